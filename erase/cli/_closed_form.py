"""erase uce, trce-text, ... : edits in closed form, from concepts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from erase.cli._app import app
from erase.cli._erasing import World, named
from probe._terminal import Task, command, from_signature

if TYPE_CHECKING:
    from erase import Edit

_Concepts = Annotated[
    list[str], typer.Argument(metavar="CONCEPT...", help="concepts of the world, or phrases of your own")
]
_VERBATIM = ("anchor", "augment", "templates", "training")


def _options(target: str) -> Any:
    return from_signature(
        f"erase.closed_form.{target}",
        leave_out=("progress", "force", "select", "fuse", "first_stage", "attributes"),
        verbatim=_VERBATIM,
    )


def _make(task: Task, method: str, concepts: list[str], world: str, **more: Any) -> None:
    """Runs an eraser on concepts by name and saves what it returns."""
    import erase
    import probe

    if task.dry_run:
        return task.plan(concepts=concepts, world=world)
    known = probe.concepts(world)
    config = dict(task.config)
    if "preserve" in config:
        config["preserve"] = _preserved(config["preserve"], known)
    if config.get("prior_prompts") is not None:
        config["prior_prompts"] = _preserved(config["prior_prompts"], known)
    edit = getattr(erase, method)(task.pipeline(), named(concepts, known), **config, **more)
    return save(task, edit)


def _preserved(given: Any, world: Any) -> Any:
    """A preserve cache, a list of the world, or concepts and texts."""
    if isinstance(given, str) and Path(given).suffix == ".safetensors":
        return given
    names = world.lists.get(given, [given]) if isinstance(given, str) else list(given)
    return named(map(str, names), world)


def save(task: Task, edit: Edit) -> None:
    """Saves a fitted edit to ``--out`` and reports how sure its solution is and how far it moves what is preserved."""
    edit.save_pretrained(task.out, force=task.force)
    report = edit.report
    document = {"edit": task.out, "id": edit.id, "name": edit.name, "bytes": edit.nbytes, "report": report}
    lines = [repr(edit).strip("<>")]
    if system := report.get("tokens"):
        condition = "singular" if system["condition"] is None else f"condition {system['condition']:.3g}"
        rank = f"effective rank {system['effective_rank']:.1f} of {system['width']}"
        lines.append(f"{system['erased_rows']} erased rows, {condition}, {rank}")
    if damage := report.get("damage"):
        lines.append("keys and values move by " + ", ".join(f"{v:.3g} ({k})" for k, v in damage.items()))
    task.result(document, *lines, f"saved to {task.out}")


@command(app, "uce", options=_options("_uce:uce"), model=True, out=True)
def uce(task: Task, concepts: _Concepts, world: World = "emoji") -> None:
    """UCE: map phrases to safe ones in keys and values of cross-attention, in closed form."""
    return _make(task, "uce", concepts, world)


@command(app, "uce-debias", options=_options("_debias:uce_debias"), model=True, out=True)
def uce_debias(
    task: Task,
    concepts: _Concepts,
    attribute: Annotated[list[str], typer.Option(help="label=text of an attribute; repeat for each")],
    world: World = "emoji",
) -> None:
    """UCE: draw, count attributes, push towards the rare ones, again and again."""
    from probe.errors import BadInput

    found = dict(text.partition("=")[::2] for text in attribute)
    if bare := [name for name, text in found.items() if not text]:
        raise BadInput("--attribute names a label and a text", given=bare[0], expected="'gender/man=a man'")
    return _make(task, "uce_debias", concepts, world, attributes=found, progress=task.progress)


@command(app, "trce-text", options=_options("_trce_text:trce_text"), model=True, out=True)
def trce_text(task: Task, concepts: _Concepts, world: World = "emoji") -> None:
    """TRCE (T): map the end of text of prompts with a concept to that of safe prompts, in closed form."""
    return _make(task, "trce_text", concepts, world)


@command(app, "trce-trajectory", options=_options("_trce_trajectory:trce_trajectory"), model=True, out=True)
def trce_trajectory(
    task: Task,
    concepts: _Concepts,
    world: World = "emoji",
    first_stage: Annotated[str | None, typer.Option(help="edit that training starts from")] = None,
) -> None:
    """TRCE (V): train visual layers so that early denoising turns to the safe prediction."""
    import erase

    more = {} if first_stage is None else {"first_stage": erase.load_edit(first_stage)}
    return _make(task, "trce_trajectory", concepts, world, progress=task.progress, force=task.force, **more)


@command(app, "trce", options=_options("_trce_trajectory:trce"), model=True, out=True)
def trce(task: Task, concepts: _Concepts, world: World = "emoji") -> None:
    """TRCE (T+V): both stages, with the untouched model as teacher."""
    return _make(task, "trce", concepts, world, progress=task.progress, force=task.force)


@command(app, "rece", options=_options("_rece:rece"), model=True, out=True)
def rece(task: Task, concepts: _Concepts, world: World = "emoji") -> None:
    """RECE: UCE, and what still brings the concepts back mapped too, in closed form."""
    return _make(task, "rece", concepts, world)


@command(app, "speed", options=_options("_speed:speed"), model=True, out=True)
def speed(task: Task, concepts: _Concepts, world: World = "emoji") -> None:
    """SPEED: map concepts inside the null space of what is retained."""
    return _make(task, "speed", concepts, world)


@command(app, "oce", options=_options("_oce:oce"), model=True, out=True)
def oce(task: Task, concepts: _Concepts, world: World = "emoji") -> None:
    """OCE: rotate values so that outputs of concepts leave their span."""
    return _make(task, "oce", concepts, world)


@command(app, "mace", options=_options("_mace:mace"), model=True, out=True)
def mace(
    task: Task,
    concepts: _Concepts,
    world: World = "emoji",
    fuse: Annotated[list[str] | None, typer.Option(help="concept=edit; repeat, one for each concept")] = None,
) -> None:
    """MACE in closed form: what surrounds a concept's words, and edits of several concepts fused into one."""
    import erase
    from probe.errors import BadInput

    if task.dry_run or not fuse:
        return _make(task, "mace", concepts, world)
    edits = {}
    for text in fuse:
        name, found, path = text.partition("=")
        if not found:
            raise BadInput("--fuse names a concept and an edit", given=text, expected="concept=folder")
        edits[name] = erase.load_edit(path)
    return _make(task, "mace", concepts, world, fuse=edits)


@command(app, "preserve-cache", options=_options("_cache:preserve_cache"), model=True, out=True)
def preserve_cache(
    task: Task,
    prompts: Annotated[
        list[str], typer.Argument(metavar="PROMPT...", help="prompts, lists or concepts of the world, or .txt files")
    ],
    world: World = "emoji",
) -> None:
    """What must survive as one matrix, for --preserve of the closed-form erasers."""
    import erase
    import probe
    from erase._concepts import prompts_of

    if task.dry_run:
        return task.plan(prompts=prompts, world=world)
    known, texts = probe.concepts(world), []
    for given in prompts:
        if Path(given).suffix == ".txt" and Path(given).is_file():
            texts += [line for line in Path(given).read_text(encoding="utf-8").splitlines() if line.strip()]
        else:
            texts += prompts_of(_preserved(given, known))
    cache = erase.preserve_cache(task.pipeline(), texts, **task.config)
    cache.save(task.out, force=task.force)
    document = {"cache": task.out, "id": cache.id, "texts": len(cache.texts), "rows": cache.rows}
    return task.result(document, f"{task.out}: {cache.rows} rows of {len(cache.texts)} texts, {cache.id}")

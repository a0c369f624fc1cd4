"""Gates and adapters, and edits made over: erase resag, spm, low-rank, distil, scaled, truncated and their files."""

from __future__ import annotations

from typing import Annotated

import typer

from erase.cli._app import app
from erase.cli._erasing import Preserve, World, learned, of_world, with_preserved
from erase.cli._prune import save
from probe._terminal import Option, Task, command, draw_into_folder, from_signature

_Concepts = Annotated[list[str], typer.Argument(metavar="CONCEPT...", help="names of concepts, or texts")]
_Edit = Annotated[str, typer.Argument(metavar="EDIT", help="a saved edit")]


def _options(target: str) -> list[Option]:
    left_out = ("force", "progress", "preserve")
    return from_signature(target, leave_out=left_out, verbatim=("anchor", "trajectory", "training", "name"))


@command(app, "resag", options=_options("erase.gated._resag:resag"), model=True, out=True)
def resag(task: Task, concepts: _Concepts, preserve: Preserve = None, world: World = "emoji") -> None:
    """Residual attention gates (Concept Pinpoint Eraser): learned from texts alone, open for a concept's prompts."""
    _learned(task, "resag", concepts, preserve, world)


@command(app, "low-rank", options=_options("erase.gated._low_rank:low_rank"), model=True, out=True)
def low_rank(task: Task, concepts: _Concepts, preserve: Preserve = None, world: World = "emoji") -> None:
    """A linear low-rank change of keys and values, learned as resag learns its gates: the baseline of its argument."""
    _learned(task, "low_rank", concepts, preserve, world)


@command(app, "spm", options=_options("erase.gated._spm:spm"), model=True, out=True)
def spm(task: Task, concepts: _Concepts, world: World = "emoji") -> None:
    """Semi-permeable membranes: rank-one adapters that a prompt opens as far as it calls for the concept."""
    _learned(task, "spm", concepts, None, world)


@command(app, "distil", options=_options("erase.gated._distil:distil"), model=True, out=True)
def distil(task: Task, edit: _Edit, concepts: _Concepts, preserve: Preserve = None, world: World = "emoji") -> None:
    """Fit weights to what gates do, and say how much of the erasure survives. CONCEPT in the order of the gates."""
    import erase

    if task.dry_run:
        return task.plan(edit=edit, concepts=concepts, preserve=preserve, world=world)
    config = with_preserved(task.config, preserve, world)
    return save(task, erase.distil(task.pipeline(), erase.load_edit(edit), of_world(concepts, world), **config))


@command(app, "import-resag", options=from_signature("erase.gated._released:import_resag"), model=True, out=True)
def import_resag(
    task: Task, files: Annotated[list[str], typer.Argument(metavar="FILE...", help="safetensors of the released code")]
) -> None:
    """Gates that the released code of Concept Pinpoint Eraser trained, as an edit; several files are merged."""
    import erase

    if task.dry_run:
        return task.plan(files=files)
    return save(task, erase.import_resag(task.pipeline(), files, **task.config))


@command(app, "export-resag", out=True)
def export_resag(
    task: Task,
    edit: _Edit,
    concept: Annotated[int, typer.Option(help="which of the edit's concepts, from 0 on")] = 0,
) -> None:
    """Write one concept of an edit of gates in the layout of the released code."""
    import erase

    if task.dry_run:
        return task.plan(edit=edit, concept=concept)
    loaded = erase.load_edit(edit)
    path = erase.export_resag(loaded, task.out, concept=concept, force=task.force)
    return task.result({"file": path, "edit": loaded.id, "concept": concept}, f"{path}: concept {concept} of {edit}")


@command(app, "scaled", out=True)
def scaled(
    task: Task,
    edit: _Edit,
    strength: Annotated[float, typer.Option(help="what it adds is multiplied by this")],
    name: Annotated[str | None, typer.Option(help="name of the edit; <its name>@<strength> unless given")] = None,
) -> None:
    """The same edit, stronger or weaker, without fitting it again."""
    import erase

    if task.dry_run:
        return task.plan(edit=edit, strength=strength, name=name)
    return save(task, erase.scaled(erase.load_edit(edit), strength, name=name))


@command(app, "truncated", out=True)
def truncated(
    task: Task,
    edit: _Edit,
    rank: Annotated[int, typer.Option(help="the highest rank of a weight change", min=1)],
    name: Annotated[str | None, typer.Option(help="name of the edit; its own unless given")] = None,
) -> None:
    """The same edit with fewer numbers: each weight change becomes its nearest of a low rank."""
    import erase

    if task.dry_run:
        return task.plan(edit=edit, rank=rank, name=name)
    return save(task, erase.truncated(erase.load_edit(edit), rank, name=name))


_DRAWING = from_signature(
    "probe._generate:generate", leave_out=("progress", "on_call", "on_batch", "on_step", "decode")
)


@command(app, "load-edited", options=_DRAWING, out=True)
def load_edited(
    task: Task,
    folder: Annotated[str, typer.Argument(metavar="FOLDER", help="an exported model with its edit beside it")],
    prompt: Annotated[list[str], typer.Option(help="what to draw; repeat for several")],
    seed: Annotated[int, typer.Option(help="seed of every image")] = 0,
    device: Annotated[str, typer.Option(help="where the model runs: cpu, cuda, cuda:1, mps")] = "cpu",
) -> None:
    """Put an exported model and the edit beside it together, and draw prompts into a folder of PNG files."""
    from contextlib import nullcontext

    import erase
    import probe

    if task.dry_run:
        return task.plan(folder=folder, prompt=prompt, seed=seed, device=device)
    pipe = erase.load_edited(folder, device=device)
    files = draw_into_folder(task, pipe, probe.samples(prompt, seed), {"": nullcontext()}, **task.config)
    document = {"folder": task.out, "edits": probe.lineage(pipe), "files": files}
    return task.result(document, "\n".join(str(task.out / file) for file in files))


def _learned(task: Task, method: str, concepts: list[str], preserve: list[str] | None, world: str) -> None:
    if task.dry_run:
        return task.plan(concepts=concepts, preserve=preserve, world=world)
    return learned(task, method, concepts, world, with_preserved(task.config, preserve, world))

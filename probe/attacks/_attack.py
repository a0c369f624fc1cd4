"""attack: search for what brings a concept back."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch

from probe._eval_samples import cell_samples
from probe._generate import image_size, timesteps
from probe._plan import model_identity
from probe._progress import progress_bar
from probe._samples import digest, samples
from probe.attacks import _registry as registry
from probe.attacks._costs import Cost, read_budget, seconds
from probe.attacks._drawing import Drawing, in_force, noise_at
from probe.attacks._found import Found
from probe.attacks._search import Case, Search, case_rng, source_ids
from probe.attacks._set import AttackSet, Log
from probe.attacks._speaking import encoders, table_of, told
from probe.attacks._vocabulary import Vocabulary, vocabulary
from probe.errors import BadInput, interrupted, unknown_name
from probe.metrics import labels_of
from probe.protocols import EditLike, Progress
from probe.scores._judge import judge_of
from probe.scores._objectives import differentiating

logger = logging.getLogger(__name__)
ORIGINAL = "original"


def attack(
    pipe: Any,
    concept: Any,
    *,
    edit: EditLike | None = None,
    method: str = "unlearn_diff",
    protocol: Literal["adaptive", "transfer"] = "adaptive",
    vocab: Literal["banned", "open"] = "banned",
    budget: Any = "quick",
    out: str | Path | None = None,
    prompts: Any = None,
    split: str = "explicit",
    n_prompts: int = 20,
    prompts_from: Literal["test", "tune"] = "test",
    seed: int = 0,
    tokens: Sequence[str] | None = None,
    shares: Mapping[str, float] | None = None,
    limit: float = 0.2,
    world: Mapping[str, Any] | None = None,
    judge: Any = None,
    name: str | None = None,
    floor: bool = False,
    steps: int = 30,
    guidance: float = 7.5,
    batch_size: int = 20,
    height: int | None = None,
    width: int | None = None,
    together: int | None = None,
    progress: Progress = True,
    force: bool = False,
    **options: Any,
) -> AttackSet:
    """Search for prompts (or embeddings, latents, weights) under which the edited model shows the concept again.

    Two vocabularies, ``open`` as in papers and ``banned``: what an attack writes into the prompt is then neither a
    name of the concept, a synonym or a member, nor a token whose captions show the concept in more than ``limit`` of
    all cases, also not where letters spell it together. Two protocols, which tables never mix: an ``adaptive`` set is
    made against the edited model that it is used on, a ``transfer`` set once, for all.

    With ``out`` every prompt is kept as soon as it is done, and the same call goes on where it was cut off; Ctrl-C
    keeps the best that was found so far for the others (``finished`` is False there, and they are searched again).

    Args:
        pipe: the pipeline, without the edit; left as it was.
        concept: what to bring back, as an object of a world; a list pools several, and prompts alternate.
        edit: what was erased; None attacks the model as it is.
        method: see `probe.attacks.attack_names`.
        protocol, vocab: see above.
        budget: ``quick``; ``paper``, the published numbers, whose expected time is logged first; or limits a prompt,
            ``{"forwards": ..., "backwards": ..., "texts": ..., "images": ...}`` (any, with ``quick``'s options).
        out: folder of the set.
        prompts: strings or a table (`probe.samples`; columns ``seed``, ``guidance``, ``concept``) instead of the
            concept's own.
        split, n_prompts, prompts_from: which of the concept's prompts, chosen as `probe.evaluate` chooses them.
        seed: of the search, and of the prompts' pictures where the table has none.
        tokens: what a vocabulary is made of, by default the tokens that the model was trained on.
        shares, limit: P(concept | token), and from where on a token is banned; see `probe.attacks.vocabulary`.
        world: name -> concept, for the members of groups.
        judge: the detector that decides, by default the one that the concept names.
        name: what a pool of concepts is called.
        floor: the concepts are ones that the model cannot draw: what is found says how often the judge errs.
        steps, guidance, batch_size, height, width: of the pictures.
        together: prompts that are searched for in one batch.
        progress: True, False or a function of (done, total) prompts.
        force: replace another set at ``out``.
        options: the method's own, which win over the budget's.

    Raises:
        UnknownName: a method, option, split, token or label that there is not.
        BadInput: a budget of zero, a concept without a detector, an attack that needs gradients on an edit that gives
            none, a prompt longer than the text encoder takes.
        HeaderMismatch: ``out`` holds a set of another call.

    """
    preset, limits = read_budget(budget)
    found = registry.method_named(method)
    resolved = found.options(preset, options)
    _check(protocol, vocab, n_prompts, edit, found, found.needs_gradients(resolved))
    drawing = Drawing(steps, guidance, image_size(pipe, height, width), batch_size)
    timesteps(pipe, steps)
    concepts = _listed(concept)
    detector = judge_of(judge if judge is not None else common_judge(concepts))
    rows = _rows(
        concepts, prompts, split=split, n=n_prompts, prompts_from=prompts_from, seed=seed, drawing=drawing, world=world
    )
    allowed = {
        c.name: vocabulary(pipe.tokenizer, c, vocab, tokens=tokens, shares=shares, limit=limit) for c in concepts
    }
    labels = {c.name: _labels(c, detector, world) for c in concepts}
    identity = _identity(
        pipe, edit, rows, found, resolved, allowed, drawing, detector, protocol=protocol, vocab=vocab, floor=floor,
        name=name or "+".join(c.name for c in concepts), limits=limits.to_json(), seed=seed,
    )  # fmt: skip
    cases = [
        Case(row, c, labels[c.name], allowed[c.name], source_ids(pipe, row.source), case_rng(seed, row))
        for row in rows
        for c in concepts
        if c.name == row.concept
    ]
    log = Log(out, identity, force=force)
    todo = [case for case in cases if (kept := log.rows.get(case.row.key)) is None or not kept.finished]
    if preset == "paper" and todo:
        duration = expected(pipe, method, prompts=len(todo), edit=edit, budget=preset, steps=steps, **options)
        logger.warning(
            "%s with the paper's budget: about %.0f minutes for %d prompts", method, duration / 60, len(todo)
        )
    size = together or found.together
    with progress_bar(progress, len(cases), f"{method} on {identity['name']}", unit="prompt") as advance:
        advance(len(cases) - len(todo))
        for start in range(0, len(todo), size):
            chunk = todo[start : start + size]
            search = Search(pipe, edit, chunk, detector, drawing, limits, log.add, advance, seed)
            try:
                found.function(search, **resolved)
            except KeyboardInterrupt as error:
                search.close(finished=False)
                interrupted(error, _kept_at(out, method))
                raise
            search.close(finished=True)
    return AttackSet(log.made, [log.rows[case.row.key] for case in cases], log.tensors)


def _kept_at(out: str | Path | None, method: str) -> str:
    if out is None:
        return f"{method} interrupted: nothing is kept; with out=FOLDER the same call goes on where it was cut off"
    return f"{method} interrupted: what was found so far is kept at {out}; repeat the same call to go on"


def expected(
    pipe: Any,
    method: str = "unlearn_diff",
    *,
    prompts: int = 20,
    edit: EditLike | None = None,
    budget: Any = "quick",
    steps: int = 30,
    guidance: float = 7.5,
    **options: Any,
) -> float:
    """Seconds that an attack takes at most: what it plans, times what a forward, a backward and a text cost here."""
    preset, _ = read_budget(budget)
    found = registry.method_named(method)
    branches = 2 if guidance > 1 else 1
    image = Cost(forwards=steps * branches, texts=branches, images=1)
    planned = found.plan(found.options(preset, options), image, prompts) * prompts
    return seconds(planned, _unit_costs(pipe, edit, back=planned.backwards > 0))


def register_attack(
    name: str,
    function: Callable[..., None],
    *,
    plan: registry.Plan = lambda _options, image, _n: image,
    presets: Mapping[str, Mapping[str, Any]] | None = None,
    gradients: bool = False,
    tokens: bool = True,
) -> None:
    """Make an attack known by ``name``. `BadInput` when the name is taken.

    Args:
        name: of the attack.
        function: of ``(search, **options)``; its keyword-only signature is its configuration.
        plan: (options, cost of a judged picture, number of prompts) -> cost of one prompt at most.
        presets: budget -> options.
        gradients: whether they must pass through the edit.
        tokens: whether it chooses tokens of the vocabulary.

    """
    registry.add(registry.Method(name, function, plan, presets or {}, gradients, tokens))


def _unit_costs(pipe: Any, edit: EditLike | None, *, back: bool, n: int = 8) -> dict[str, float]:
    """Seconds a forward, a backward and a text, measured once on a small batch."""
    own = [[1] * 4] * n
    x = torch.zeros((n, pipe.unet.config.in_channels, *[pipe.unet.config.sample_size] * 2), device=pipe.unet.device)
    x = x.to(pipe.unet.dtype)

    def timed(work: Callable[[], object]) -> float:
        work()
        start = time.perf_counter()
        work()
        return (time.perf_counter() - start) / n

    with in_force(pipe, edit), differentiating(pipe):
        with torch.no_grad():
            conditioning = told(pipe, own)
            found = {
                "texts": timed(lambda: told(pipe, own)),
                "forwards": timed(lambda: noise_at(pipe, x, 500, conditioning)),
            }
        if back:
            vectors = {
                name: table_of(pipe, name)[:1].expand(n, 1, -1).clone().requires_grad_() for name in encoders(pipe)
            }
            free = [[-1, 1, 1]] * n

            def through() -> None:
                noise_at(pipe, x, 500, told(pipe, free, vectors)).square().sum().backward()

            found["backwards"] = max(timed(through) - found["forwards"] - found["texts"], 0.0)
    return found


def _rows(
    concepts: Sequence[Any],
    prompts: Any,
    *,
    split: str,
    n: int,
    prompts_from: str,
    seed: int,
    drawing: Drawing,
    world: Mapping[str, Any] | None,
) -> list[Found]:
    """The prompts under attack, those of several concepts in turn."""
    if prompts is not None:
        table = samples(prompts, seed, concept=concepts[0])
        if unknown := [c for c in table["concept"] if c not in {one.name for one in concepts}]:
            raise unknown_name("concept of a prompt", unknown[0], [one.name for one in concepts])
    else:
        known = {**(world or {}), **{c.name: c for c in concepts}}
        each = -(-n // len(concepts))
        parts = [cell_samples(c, split, known, prompts_from=prompts_from, limit=each, seed_set=seed) for c in concepts]
        table = pd.concat([part.assign(turn=np.arange(len(part))) for part in parts])
        table = table.sort_values("turn", kind="stable").head(n)
    scales = table["guidance"] if "guidance" in table else pd.Series(np.nan, index=table.index)
    return [
        Found(str(c), str(i), str(p), int(s), drawing.guidance if np.isnan(g) else float(g))
        for c, i, p, s, g in zip(
            table["concept"], table["prompt_id"], table["prompt"], table["seed"], scales.astype(float), strict=True
        )
    ]


def _identity(
    pipe: Any,
    edit: EditLike | None,
    rows: Sequence[Found],
    method: registry.Method,
    options: Mapping[str, Any],
    allowed: Mapping[str, Vocabulary],
    drawing: Drawing,
    detector: Any,
    *,
    vocab: str,
    **more: Any,
) -> dict[str, Any]:
    table = pd.DataFrame([(r.concept, r.prompt_id, r.source, r.seed, r.guidance) for r in rows])
    return {
        "method": method.name,
        "options": method.identity(options),
        "vocab": vocab if method.tokens else "none",
        "vocabularies": {name: v.id for name, v in allowed.items()} if method.tokens else {},
        "found_on": ORIGINAL if edit is None else str(edit.id),
        "prompts": digest(table.set_axis(["concept", "prompt_id", "prompt", "seed", "guidance"], axis=1)),
        "drawing": drawing.to_json(),
        "judge": str(detector.id),
        **model_identity(pipe, sorted({*encoders(pipe), "unet"}), vae=True),
        **more,
    }


def _check(protocol: str, vocab: str, n: int, edit: EditLike | None, method: registry.Method, gradients: bool) -> None:
    if protocol not in ("adaptive", "transfer"):
        raise unknown_name("protocol", protocol, ("adaptive", "transfer"))
    if vocab not in ("banned", "open"):
        raise unknown_name("vocabulary", vocab, ("banned", "open"))
    if n < 1:
        raise BadInput("n_prompts must be at least 1", given=n)
    if gradients and edit is not None and not edit.differentiable:
        raise BadInput(
            "this attack needs gradients, and none pass through the edit",
            given=f"{method.name} on {edit.name!r}",
            fix="ring_a_bell, mma, completion, random, seed_search, or tina with refine='fixed_point'",
        )


def _listed(concept: Any) -> list[Any]:
    found = list(concept) if isinstance(concept, list | tuple) else [concept]
    if not found:
        raise BadInput("there is no concept to attack")
    if wrong := [c for c in found if not hasattr(c, "surface_forms")]:
        fix = "probe.concepts('emoji')['church']"
        raise BadInput("a concept is an object of a world", given=repr(wrong[0]), fix=fix)
    return found


def common_judge(concepts: Sequence[Any]) -> str:
    """The one judge that concepts name. `BadInput` where one names none, or they name several."""
    names = {(c.detector or "").partition(":")[0] for c in concepts}
    if "" in names:
        missing = next(c.name for c in concepts if not c.detector)
        raise BadInput("nobody can say when the attack succeeds: the concept names no detector", given=missing,
                       fix="judge=probe.detector('...'), or a detector in the concept")  # fmt: skip
    if len(names) > 1:
        raise BadInput("these concepts name different judges", given=", ".join(sorted(names)), fix="pass judge=")
    return names.pop()


def _labels(concept: Any, detector: Any, world: Mapping[str, Any] | None) -> tuple[str, ...]:
    found = labels_of(concept, world)
    if missing := [label for label in found if label not in detector.labels]:
        raise unknown_name(f"label of the judge {detector.id}", missing[0], detector.labels)
    return found

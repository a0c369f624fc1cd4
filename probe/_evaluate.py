"""Measure edits: what is still shown, what else is lost, what breaks, always beside the unedited model."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from probe import stats
from probe._branches import empty_prompt
from probe._eval_measure import Cell, Measure, Rulers, judged_rows
from probe._eval_samples import cell_samples
from probe._progress import progress_bar
from probe._result import COLUMNS, ORIGINAL, ResultStore, open_result, read_results, result_images
from probe.errors import BadInput, unknown_name
from probe.protocols import EditLike, Progress

logger = logging.getLogger(__name__)

__all__ = ["evaluate", "read_results", "result_images"]

_AT_ONCE = 256  # images measured together
METRICS = ("rate", "rate_second", "broken", "content_kept", "clip_score")


def evaluate(
    pipe: Any,
    edits: Mapping[str, EditLike | None],
    concepts: Sequence[Any],
    *,
    out: str | Path,
    world: Mapping[str, Any] | None = None,
    splits: Sequence[str] = ("explicit",),
    n_prompts: int | Mapping[str, int] | None = None,
    seeds_per_prompt: int = 1,
    seed_sets: Sequence[int] = (0,),
    prompts_from: Literal["test", "tune"] = "test",
    erased: Mapping[str, Sequence[str]] | None = None,
    metrics: Sequence[str] = METRICS,
    judge: Any = None,
    second: Any = "emoji_nearest",
    clip: str | Path | None = None,
    steps: int = 30,
    guidance: float = 7.5,
    batch_size: int = 8,
    height: int | None = None,
    width: int | None = None,
    level: float = 0.95,
    resamples: int = 10_000,
    progress: Progress = True,
    force: bool = False,
) -> pd.DataFrame:
    """A tidy table of every edit on every concept, split and metric, with intervals, beside the unedited model.

    The unedited model draws the same (prompt, seed) samples, once for all edits. A rate has Wilson's interval where
    every prompt has one image, else cluster bootstrap by prompt; a difference (edited - original) is paired by sample,
    with cluster bootstrap. Others *lose* the negative of the difference on ``neighbours`` or ``preserve_test``, where
    each image is judged on its own prompt's concept.

    Every drawn and judged image is kept in ``out`` at once: the same call goes on where it was cut off, and a later
    call with further edits, concepts, splits or prompts draws only what is new. ``cells.csv`` collects the cells of all
    calls.

    Args:
        pipe: the pipeline; left as it was.
        edits: name -> edit (or intervention), None for the unedited model as a row of its own.
        concepts: names in ``world``, or concepts.
        out: folder of the result: header.json, cells.csv, images.jsonl, images/.
        world: name -> concept, with ``lists``; the embedded world if concepts are names.
        splits: the concepts' own (``explicit, paraphrased, ...``), ``neighbours``, ``preserve_fit``, ``preserve_test``.
            What is erased drops out of the last three; the preserve splits also have a row for each kind of concept.
        n_prompts: at most so many prompts in every split, or in each split by name.
        seeds_per_prompt: images of each prompt.
        seed_sets: numbers of seed sets; each gives rows of its own.
        prompts_from: ``test`` prompts to report on, ``tune`` prompts to choose settings with.
        erased: what an edit erases beyond the row's concept: edit -> names; they drop out as well.
        metrics: registered names.
        judge: the detector that decides, by name or as an object; by default the one the concepts name.
        second: the detector of ``rate_second``.
        clip: folder of the CLIP model of ``clip_score``; the embedded judge by default.
        steps, guidance, batch_size, height, width: of sampling.
        level: confidence level of all intervals.
        resamples: of the bootstrap.
        progress: True, False or a function of (done, total) images.
        force: replace a result of another identity.

    Returns:
        The cells of this call: ``edit, attack, protocol, vocab, rule, concept, split, metric, seed_set, value, ci_low,
        ci_high, interval, n, n_failed, original, difference, diff_low, diff_high``.

    Raises:
        UnknownName: a concept, split, metric or judge; carries the nearest.
        HeaderMismatch: ``out`` holds a result of another model, sampler, judge or edit of the same name.
        BadInput: nothing to evaluate, or ``out`` is something else.

    """
    _check(edits, splits, n_prompts, prompts_from)
    for name, value in {"seeds_per_prompt": seeds_per_prompt, "batch_size": batch_size, "resamples": resamples}.items():
        if value < 1:
            raise BadInput(f"{name} must be at least 1", given=value)
    stats.wilson(0, 0, level)  # refuses a level outside (0, 1)
    world, chosen = _concepts(concepts, world)
    rulers = Rulers.of(metrics, judge, second, clip, chosen)
    erased = dict(erased or {})
    if stray := [name for name in erased if name not in edits]:
        raise unknown_name("edit in erased", stray[0], edits)

    def samples(edit: str, concept: Any, split: str, seed_set: int) -> pd.DataFrame:
        return cell_samples(
            concept,
            split,
            world,
            prompts_from=prompts_from,
            limit=n_prompts.get(split) if isinstance(n_prompts, Mapping) else n_prompts,
            seed_set=seed_set,
            seeds_per_prompt=seeds_per_prompt,
            erased=erased.get(edit, ()),
        )

    cells = {
        Cell(edit, concept.name, split, seed_set): samples(edit, concept, split, seed_set)
        for edit in edits
        for concept in chosen
        for split in splits
        for seed_set in seed_sets
    }
    rulers.check({name for table in cells.values() for name in table["concept"]}, world)
    sampling = _sampling(pipe, steps, guidance, height, width)
    identity = {
        **_model(pipe),
        "sampling": {**sampling, **empty_prompt(pipe), **_scheduler(pipe)},
        "prompts_from": prompts_from,
        "statistics": {"level": level, "resamples": resamples},
        "edits": {name: _edit_id(edit) for name, edit in edits.items()},
        **rulers.identity(),
    }
    with open_result(out, identity, force=force) as store:
        wanted = {ORIGINAL: None, **{name: edit for name, edit in edits.items() if edit is not None}}
        tables = {
            name: pd.concat([t for cell, t in cells.items() if name in (ORIGINAL, cell.edit)]).drop_duplicates(
                ["prompt", "seed"], ignore_index=True
            )
            for name in wanted
        }
        missing = {name: _to_draw(store, _edit_id(wanted[name]), table, rulers) for name, table in tables.items()}
        with progress_bar(progress, sum(map(len, missing.values())), "images", unit="img") as advance:
            for name, table in missing.items():
                if len(table):
                    logger.info("%s: %d images to draw", name, len(table))
                    keep = _Keeper(store, name, _edit_id(wanted[name]), table, rulers, world, advance)
                    _draw(pipe, wanted[name], table, keep, batch_size=batch_size, **sampling)
        measure = Measure(store, rulers, world, level=level, resamples=resamples)
        rows = [row for cell, table in cells.items() for row in measure.rows(cell, _edit_id(edits[cell.edit]), table)]
        result = pd.DataFrame(rows, columns=list(COLUMNS))
        store.write_cells(result)
    return result


@dataclass(frozen=True)
class _Keeper:
    """Judges a batch as soon as it is drawn and puts it into the store."""

    store: ResultStore
    edit: str
    edit_id: str
    table: pd.DataFrame
    rulers: Rulers
    world: Mapping[str, Any]
    advance: Callable[[int], object]

    def __call__(self, rows: range, images: np.ndarray) -> None:
        part = self.table.iloc[rows.start : rows.stop]
        samples = [
            {"edit": self.edit, "edit_id": self.edit_id, "concept": c, "prompt_id": i, "prompt": p, "seed": int(seed)}
            for c, i, p, seed in zip(part["concept"], part["prompt_id"], part["prompt"], part["seed"], strict=True)
        ]
        self.store.add(judged_rows(samples, images, self.rulers, self.world), images)
        self.advance(len(part))


def _to_draw(store: ResultStore, edit_id: str, table: pd.DataFrame, rulers: Rulers) -> pd.DataFrame:
    """The samples without an image, or whose image is gone while something is still to be measured on it.

    Stored images that only lack a measurement are measured here.
    """
    draw, measure = [], []
    for place, (prompt, seed) in enumerate(zip(table["prompt"], table["seed"], strict=True)):
        row = store.rows.get((edit_id, prompt, int(seed)))
        if row is None:
            draw.append(place)
        elif rulers.lacking(row):
            image = store.image(row)
            if image is None:
                draw.append(place)
            else:
                measure.append((row, image))
    for start in range(0, len(measure), _AT_ONCE):
        rows, images = zip(*measure[start : start + _AT_ONCE], strict=True)
        found = rulers.measured(np.stack(images), [row["prompt"] for row in rows])
        store.add(
            [
                {**row, "scores": row["scores"] | new["scores"], "values": row["values"] | new["values"]}
                for row, new in zip(rows, found, strict=True)
            ]
        )
    return table.iloc[draw].reset_index(drop=True)


def _draw(pipe: Any, edit: EditLike | None, table: pd.DataFrame, keep: _Keeper, **sampling: Any) -> None:
    from probe._generate import generate

    with nullcontext() if edit is None else edit.applied(pipe):
        generate(pipe, table[["prompt", "seed"]], progress=False, on_batch=keep, **sampling)


def _concepts(concepts: Sequence[Any], world: Mapping[str, Any] | None) -> tuple[Mapping[str, Any], list[Any]]:
    """The world to look in, and the concepts to evaluate."""
    listed: list[Any] = (
        [concepts] if isinstance(concepts, str) or hasattr(concepts, "surface_forms") else list(concepts)
    )
    if not listed:
        raise BadInput("there are no concepts to evaluate")
    if world is None and any(isinstance(c, str) for c in listed):
        from probe.world import concepts as load_world

        world = load_world("emoji")
    given = {c.name: c for c in listed if not isinstance(c, str)}
    if missing := [c for c in listed if isinstance(c, str) and c not in (world or {})]:
        raise unknown_name("concept", missing[0], world or {})
    known = _Known({**(world or {}), **given})
    known.lists = getattr(world, "lists", {})
    return known, [known[c] if isinstance(c, str) else c for c in listed]


class _Known(dict[str, Any]):
    """The world together with concepts that were passed as objects."""

    lists: Mapping[str, Sequence[str]]


def _edit_id(edit: EditLike | None) -> str:
    return ORIGINAL if edit is None else str(edit.id)


def _sampling(pipe: Any, steps: int, guidance: float, height: int | None, width: int | None) -> dict[str, Any]:
    """What `generate` is told, resolved; refused here if the model cannot do it."""
    from probe._generate import image_size, timesteps

    timesteps(pipe, steps)
    height, width = image_size(pipe, height, width)
    return {"steps": steps, "guidance": guidance, "height": height, "width": width}


def _model(pipe: Any) -> dict[str, Any]:
    from probe import provenance

    return {"model": provenance.fingerprint(pipe).to_json(), "lineage": provenance.lineage(pipe)}


def _scheduler(pipe: Any) -> dict[str, Any]:
    from probe import compat

    return {"scheduler": {"class": type(pipe.scheduler).__name__, **compat.clean_config(pipe.scheduler)}}


def _check(
    edits: Mapping[str, Any], splits: Sequence[str], n_prompts: int | Mapping[str, int] | None, prompts_from: str
) -> None:
    if not edits:
        raise BadInput("there are no edits to evaluate", fix="edits={'name': edit}, or {'unedited': None}")
    if edits.get(ORIGINAL) is not None:
        raise BadInput(f"{ORIGINAL!r} is the unedited model's name", fix="give the edit another name")
    if isinstance(splits, str) or not splits:
        raise BadInput("splits is a list of names", given=repr(splits), fix="splits=('explicit',)")
    if prompts_from not in ("test", "tune"):
        raise unknown_name("set of prompts", prompts_from, ("test", "tune"))
    limits = n_prompts if isinstance(n_prompts, Mapping) else dict.fromkeys(splits, n_prompts)
    for split, limit in limits.items():
        if split not in splits:
            raise unknown_name("split in n_prompts", split, splits)
        if limit is not None and limit < 1:
            raise BadInput("n_prompts must be at least 1", given=f"{limit} ({split})")

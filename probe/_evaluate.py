"""Measure edits: what is still shown, what else is lost, what breaks, always beside the unedited model."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from probe import stats
from probe._branches import empty_prompt
from probe._eval_attacks import Fresh, Planned, attack_rows, cell_name, opened, plan
from probe._eval_images import Images, refuse_drawing
from probe._eval_measure import Cell, Measure, Rulers
from probe._eval_samples import cell_samples
from probe._progress import progress_bar
from probe._result import COLUMNS, ORIGINAL, drawn_with, open_result, read_results, result_images
from probe.errors import BadInput, interrupted, unknown_name
from probe.protocols import EditLike, Progress

logger = logging.getLogger(__name__)

__all__ = ["evaluate", "read_results", "result_images"]

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
    attacks: Sequence[Any] = (),
    attack_original: bool = True,
    fresh_seeds: int = 5,
    fresh_needed: int = 3,
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
    rejudge: bool = False,
    progress: Progress = True,
    force: bool = False,
) -> pd.DataFrame:
    """A tidy table of every edit on every concept, split and metric, with intervals, beside the unedited model.

    The unedited model draws the same (prompt, seed) samples, once for all edits. A rate has Wilson's interval where
    every prompt has one image, else cluster bootstrap by prompt; a difference (edited - original) is paired by sample,
    with cluster bootstrap. Others *lose* the negative of the difference on ``neighbours`` or ``preserve_test``, where
    each image is judged on its own prompt's concept.

    Distances between sets (``kid``, ``frechet``) are taken from the unedited model's pictures of the same prompts from
    the next seed set, which are drawn too. Their ``original`` is the distance of the unedited pictures, the floor, and
    ``difference`` what the edit adds. ``feature_distance`` compares each picture with the unedited one of its sample.

    Every drawn and judged image is kept in ``out`` at once: the same call goes on where it was cut off, and a later
    call with further edits, concepts, splits or prompts draws only what is new. ``cells.csv`` collects the cells of all
    calls. Measurements are kept under the id of the judge or metric that made them, and each is made once.

    Args:
        pipe: the pipeline; left as it was. None with ``rejudge``: model and sampling are then those of the result.
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
        attacks: sets that `probe.attack` made, or their folders, one or several. Each is drawn on every edit that it
            is about (an ``adaptive`` one only on the edit it was made against) and on the unedited model, and has rows
            of its own, split ``attacked``: ``rate``, ``rate_text`` (the text that its tokens spell), ``rate_before``
            (no attack), ``rate_after`` (what it adds), ``advantage`` (over the stronger of ``random`` and
            ``seed_search`` among these sets, within as many judged pictures as the attack had) and ``floor`` (the same
            attack on what the model cannot draw, if such a set is among them).
        attack_original: draw attacks on the unedited model too; without, their ``original`` and ``difference`` are NaN.
        fresh_seeds, fresh_needed: the rule ``fresh``: so many of so many pictures from unused seeds show the concept.
        metrics: registered names.
        judge: the detector that decides: a name, an object, or any function of uint8 pictures (n, y, x, 3) that gives
            each a score for the one concept, shown from 0.5 on. By default the one the concepts name. Where they name
            none either, rates are NaN, and a warning says why.
        second: the detector of ``rate_second``; the default is left out where it does not know the concepts.
        clip: folder of the CLIP model of ``clip_score`` (the embedded judge by default) and of the judge
            ``clip_zero_shot``.
        steps, guidance, batch_size, height, width: of sampling.
        level: confidence level of all intervals.
        resamples: of the bootstrap.
        rejudge: measure the images that ``out`` holds by other judges or metrics, which then decide there; nothing is
            drawn. The former cells are set aside in ``cells-<id>.csv``.
        progress: True, False or a function of (done, total) images.
        force: replace a result of another identity.

    Returns:
        The cells of this call: ``edit, attack, protocol, vocab, rule, concept, split, metric, seed_set, value, ci_low,
        ci_high, interval, n, n_failed, original, difference, diff_low, diff_high``.

    Raises:
        UnknownName: a concept, split, metric or judge, or a concept that the judge has no label for.
        HeaderMismatch: ``out`` holds a result of another model, sampler, judge or edit of the same name.
        BadInput: nothing to evaluate, or ``out`` is something else, or lacks an image that should be judged again.

    """
    _check(edits, splits, n_prompts, prompts_from)
    if pipe is None and not rejudge:
        raise BadInput("drawing needs a pipeline", fix="pass one, or rejudge=True to measure stored images")
    there = drawn_with(out) if rejudge else {}
    for name, value in {"seeds_per_prompt": seeds_per_prompt, "batch_size": batch_size, "resamples": resamples}.items():
        if value < 1:
            raise BadInput(f"{name} must be at least 1", given=value)
    stats.wilson(0, 0, level)  # refuses a level outside (0, 1)
    world, chosen = _concepts(concepts, world)
    rulers = Rulers.of(metrics, judge, second, clip, chosen, world)
    fresh = Fresh(fresh_seeds, fresh_needed)
    sets = opened(attacks, world)
    if sets and pipe is None:
        raise BadInput("attacks are drawn on a pipeline", fix="pass the pipeline, or leave attacks= out")
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
    of_name = {concept.name: concept for concept in chosen}
    references: dict[Cell, pd.DataFrame] = {}
    if rulers.of_sets:
        for cell in cells:
            references[cell] = samples(cell.edit, of_name[cell.concept], cell.split, cell.seed_set + 1)
    ids = {name: _edit_id(edit) for name, edit in edits.items()}
    planned = plan(pipe, sets, ids, list(of_name), erased, guidance, fresh, original=attack_original)
    attacked = {name for one in planned for name in one.attack_set.concepts}
    rulers = rulers.check(attacked | {name for table in cells.values() for name in table["concept"]}, world)
    sampling = {} if pipe is None else _sampling(pipe, steps, guidance, height, width)
    identity = {
        **(there if pipe is None else _drawing(pipe, sampling)),
        "prompts_from": prompts_from,
        "statistics": {"level": level, "resamples": resamples},
        "edits": ids,
        **({"attacks": {" ".join(cell_name(one)).strip(): one.id for one in sets}} if sets else {}),
        **rulers.identity(),
    }
    with open_result(out, identity, force=force, rejudge=rejudge) as store:
        wanted = {ORIGINAL: None, **{name: edit for name, edit in edits.items() if edit is not None}}
        images = {
            name: Images(
                store,
                rulers,
                world,
                name,
                _edit_id(edit),
                _samples_of(name, cells, references, planned),
                {key: value for one in planned for key, value in one.carried.items()},
            )
            for name, edit in wanted.items()
        }
        missing = {name: of.to_draw() for name, of in images.items()}
        unseen = {name: of.to_measure() for name, of in images.items()}
        if rejudge:
            refuse_drawing(missing)
        total = sum(len(part) for part in missing.values()) + sum(len(part) for part in unseen.values())
        try:
            with progress_bar(progress, total, "images", unit="img") as advance:
                for name, of in images.items():
                    of.measure(unseen[name], advance)
                for name, of in images.items():
                    if len(missing[name]):
                        logger.info("%s: %d images to draw", name, len(missing[name]))
                        of.draw(pipe, wanted[name], missing[name], advance, batch_size=batch_size, **sampling)
        except KeyboardInterrupt as error:
            interrupted(error, f"evaluation interrupted: what is done is kept at {out}; repeat the same call to go on")
            raise
        measure = Measure(store, rulers, world, level=level, resamples=resamples)
        rows = [
            row
            for cell, table in cells.items()
            for row in measure.rows(cell, _edit_id(edits[cell.edit]), table, references.get(cell))
        ]
        rows += attack_rows(planned, store, rulers, world, level=level, resamples=resamples)
        result = pd.DataFrame(rows, columns=list(COLUMNS))
        store.write_cells(result)
    return result


def _samples_of(
    edit: str,
    cells: Mapping[Cell, pd.DataFrame],
    references: Mapping[Cell, pd.DataFrame],
    planned: Sequence[Planned] = (),
) -> pd.DataFrame:
    """All samples of an edit, each once; the unedited model has those of every edit, and all references."""
    tables = [table for cell, table in cells.items() if edit in (ORIGINAL, cell.edit)]
    tables += [one.table() for one in planned if edit == one.edit or (edit == ORIGINAL and one.original)]
    if edit == ORIGINAL:
        tables.extend(references.values())
    return pd.concat(tables).drop_duplicates(["prompt", "seed"], ignore_index=True)


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
        listing = getattr(world, "listing", None)
        raise unknown_name("concept", missing[0], world or {}, fix=listing() if listing else None)
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


def _drawing(pipe: Any, sampling: Mapping[str, Any]) -> dict[str, Any]:
    """What decides an image besides its edit, prompt and seed."""
    from probe import compat, provenance

    scheduler = {"class": type(pipe.scheduler).__name__, **compat.clean_config(pipe.scheduler)}
    return {
        "model": provenance.fingerprint(pipe).to_json(),
        "lineage": provenance.lineage(pipe),
        "sampling": {**sampling, **empty_prompt(pipe), "scheduler": scheduler},
    }


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

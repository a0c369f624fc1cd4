"""record: activations of denoising runs, reduced on the device, into a run on disk that can be interrupted."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from probe._estimate import Estimate, check_size, estimate
from probe._generate import Call, generate, image_size
from probe._locks import Rank
from probe._opening import open_or_create
from probe._options import validated
from probe._places import place_of
from probe._plan import Plan
from probe._progress import progress_bar
from probe._recorder import Recorder
from probe._reduce import Reducer, reducer
from probe._run import Run, by_site, open_run, verify
from probe._samples import samples
from probe._sites import sites as find_sites
from probe._store import RunStore
from probe._writer import Writer
from probe.errors import BadInput
from probe.protocols import Progress

logger = logging.getLogger(__name__)

__all__ = ["Run", "by_site", "open_run", "record", "samples", "verify"]

#: Images are stored by default up to this side, in pixels.
_SMALL = 128


@validated
def record(
    pipe: Any,
    prompts: Any,
    *,
    out: str | Path,
    sites: str | Sequence[str] = "ffn",
    reduce: str | Sequence[str] = ("unit_norm", "absmean"),
    steps: int = 30,
    seeds: int | Sequence[int] = 0,
    seeds_per_prompt: int | None = None,
    guidance: float = 7.5,
    negative_prompt: str | None = None,
    batch_size: int = 8,
    height: int | None = None,
    width: int | None = None,
    images: bool | Literal["auto"] = "auto",
    detector: Any = None,
    concept: Any = None,
    split: str | None = None,
    max_gb: float = 100.0,
    durable: bool = False,
    progress: Progress = True,
    force: bool = False,
    extend: bool = False,
) -> Run:
    """Record activations while the model draws these prompts, into the folder ``out``.

    Every activation is reduced over its image tokens inside the hook; stored is one float32 number per reducer,
    sample, branch, step and neuron. Repeating the call resumes: samples are made in fixed units, a unit that is done
    is kept, any other is made again with the same bits.

    Args:
        pipe: a Stable Diffusion pipeline, edited or not; nothing of it is changed.
        prompts: strings, or a table of samples (see `probe.samples`, which also explains ``seeds``,
            ``seeds_per_prompt``, ``concept``, ``split`` and ``negative_prompt``).
        out: the run's folder, or a URL that fsspec knows (``s3://bucket/run``), which must have one writer.
        sites: as in `probe.sites`; kinds ``ffn``, ``mlp`` (group ``text_encoder``) and ``xattn.out`` (``xattn_out``).
        reduce: reducers, see `probe._reduce.reducer`; the default is enough for every score.
        steps, guidance, batch_size, height, width: as in `probe.generate`.
        images: keep the pictures; ``"auto"`` does up to 128 x 128 pixels.
        detector: a judge (`probe.detector`) whose score of each sample's concept becomes the coordinate ``shown``.
        max_gb: the largest run to begin, in 10^9 bytes before compression.
        durable: wait for the disk (fsync) before a unit counts as done; then it survives a power cut, too.
        progress: True, False or a function of (done, total) samples.
        force: replace the run that is at ``out``.
        extend: allow a sample list that starts with the stored one.

    Under ``torchrun`` or ``accelerate launch`` all ranks call this with the same arguments: rank r makes the units u
    with u % world == r, and each returns when its own are done.

    Raises `BadInput` for arguments that cannot work, for a run over ``max_gb`` and for an ``out`` that is something
    else, `HeaderMismatch` naming the key in which a run at ``out`` differs, `UnknownName` for sites and reducers,
    `WorkbenchError` when the disk is full or another process is recording there.
    """
    plan, judge = _planned(
        pipe,
        prompts,
        sites=sites,
        reduce=reduce,
        steps=steps,
        seeds=seeds,
        seeds_per_prompt=seeds_per_prompt,
        guidance=guidance,
        negative_prompt=negative_prompt,
        batch_size=batch_size,
        height=height,
        width=width,
        images=images,
        detector=detector,
        concept=concept,
        split=split,
    )
    place, rank = place_of(out), Rank.of_environment()
    check_size(plan, max_gb)
    store = open_or_create(place, plan, force=force, extend=extend, rank=rank)
    with store.locked(rank):
        store.forget(bad.unit for bad in store.missing() if rank.owns(bad.unit))
        _fill(store, plan, judge, rank, progress, durable=durable)
    return Run(store.path)


def dry_run(pipe: Any, prompts: Any, *, out: str | Path, **options: Any) -> Estimate:
    """What `record` would do with these arguments; nothing is written.

    ``pipe`` may be `probe._skeleton.skeleton`, whose networks have no weights.
    """
    return estimate(_planned(pipe, prompts, **options)[0], place_of(out))


def _planned(
    pipe: Any,
    prompts: Any,
    *,
    sites: str | Sequence[str] = "ffn",
    reduce: str | Sequence[str] = ("unit_norm", "absmean"),
    steps: int = 30,
    seeds: int | Sequence[int] = 0,
    seeds_per_prompt: int | None = None,
    guidance: float = 7.5,
    negative_prompt: str | None = None,
    batch_size: int = 8,
    height: int | None = None,
    width: int | None = None,
    images: bool | Literal["auto"] = "auto",
    detector: Any = None,
    concept: Any = None,
    split: str | None = None,
) -> tuple[Plan, _Judge | None]:
    """Everything that is decided before the first image."""
    table = samples(
        prompts, seeds, seeds_per_prompt=seeds_per_prompt, concept=concept, split=split, negative_prompt=negative_prompt
    )
    if batch_size < 1:
        raise BadInput("batch_size must be at least 1", given=batch_size)
    judge = _Judge.of(detector, concept)
    size = image_size(pipe, height, width)
    plan = Plan(
        pipe,
        table,
        sites=find_sites(pipe, sites),
        reducers=_reducers(reduce),
        steps=steps,
        guidance=guidance,
        batch_size=batch_size,
        size=size,
        keep_images=max(size) <= _SMALL if images == "auto" else images,
        detector_id=None if judge is None else judge.id,
    )
    return plan, judge


def _fill(store: RunStore, plan: Plan, judge: _Judge | None, rank: Rank, progress: Progress, *, durable: bool) -> None:
    """Make and write this rank's units that are not done: unit u + 1 is made while unit u is written."""
    own = [unit for unit in range(store.n_units) if rank.owns(unit)]
    pending = [unit for unit in own if not store.done[unit]]
    count = {unit: store.rows(unit).stop - store.rows(unit).start for unit in own}
    total, left = sum(count.values()), sum(count[unit] for unit in pending)
    if rank.world > 1:
        logger.info("rank %d of %d: %d of %d units to make", rank.index, rank.world, len(pending), len(own))
        progress = progress if callable(progress) else progress and rank.first
    start = time.perf_counter()
    try:
        with Writer(store, durable=durable) as writer, progress_bar(progress, total, "recording", "img") as advance:
            advance(total - left)

            def made(n: int) -> None:
                writer.check()
                advance.note(f"{writer.rate:.0f} MB/s to disk" if writer.bytes else "")
                advance(n)

            for unit in pending:
                values, token_rows = _make(plan, judge, plan.table.iloc[store.rows(unit)].reset_index(drop=True), made)
                writer.put(unit, values, token_rows)
    except KeyboardInterrupt:
        kept = int(np.repeat(store.done, store.unit)[: store.n_samples].sum())
        text = "recording interrupted: %d of %d samples are kept at %s; repeat the same call to resume"
        logger.warning(text, kept, store.n_samples, store.path)
        raise
    seconds = time.perf_counter() - start
    rate = left / seconds if seconds else 0.0
    logger.info("%d samples in %.1f s: %.2f samples/s, written at %.0f MB/s", left, seconds, rate, writer.rate)


@dataclass(frozen=True)
class _Judge:
    """A detector, and for the concept at hand what its labels may be called besides ``family/<name>``."""

    detector: Any
    names: Mapping[str, frozenset[str]]

    @classmethod
    def of(cls, detector: Any, concept: Any) -> _Judge | None:
        if detector is None:
            return None
        if not callable(detector) or not hasattr(detector, "labels"):
            raise BadInput("a detector is an object", given=repr(detector), fix="pass probe.detector(name)")
        names = frozenset([*(getattr(concept, "members", None) or ()), getattr(concept, "label", None) or ""])
        return cls(detector, {getattr(concept, "name", ""): names})

    @property
    def id(self) -> str:
        """Name and weights of the detector."""
        return str(getattr(self.detector, "id", type(self.detector).__name__))

    def shown(self, images: np.ndarray, concepts: Sequence[str]) -> np.ndarray:
        """(s,) float32: the score of each sample's concept in its image, NaN where the judge has no such label."""
        scores = np.asarray(self.detector(images), np.float32)
        found = np.full(len(images), np.nan, np.float32)
        for i, concept in enumerate(concepts):
            names = {concept, *self.names.get(concept, ())}
            columns = [j for j, label in enumerate(self.detector.labels) if {label, label.rsplit("/", 1)[-1]} & names]
            if columns:
                found[i] = np.fmax.reduce(scores[i, columns])
        return found


def _make(
    plan: Plan, judge: _Judge | None, table: pd.DataFrame, advance: Callable[[int], object]
) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, int]]:
    """Make one unit of samples: arrays by group and name, and token rows by site."""
    recorders = {
        name: Recorder(sites, plan.reducers, plan.branches, plan.timesteps if plan.has_steps(name) else None)
        for name, sites in plan.groups.items()
    }

    def tell(call: Call) -> None:
        for recorder in recorders.values():
            recorder.on_call(call)

    with ExitStack() as hooks:
        values = {
            name: dict(hooks.enter_context(recorder.recording(plan.pipe, len(table))))
            for name, recorder in recorders.items()
        }
        images = generate(
            plan.pipe,
            table,
            steps=plan.steps,
            guidance=plan.guidance,
            batch_size=plan.batch_size,
            height=plan.size[0],
            width=plan.size[1],
            progress=False,
            on_call=tell,
            on_batch=lambda rows, _images: advance(len(rows)),
            decode=plan.decode,
        )
    if plan.keep_images:
        values["images"] = {"image": images}
    shown = np.full(len(table), np.nan, np.float32)
    if judge is not None:
        shown = judge.shown(images, table["concept"].tolist())
    for arrays in values.values():
        arrays["shown"] = shown
    return values, {name: rows for recorder in recorders.values() for name, rows in recorder.token_rows.items()}


def _reducers(names: str | Sequence[str]) -> list[Reducer]:
    listed = [names] if isinstance(names, str) else list(dict.fromkeys(names))
    if not listed:
        raise BadInput("record needs at least one reducer", fix="leave reduce= out for the default")
    return [reducer(name) for name in listed]

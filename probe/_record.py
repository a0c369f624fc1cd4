"""record: activations of denoising runs, reduced on the device, into a run on disk that can be interrupted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from probe import provenance
from probe._files import occupied
from probe._generate import Call, generate, image_size
from probe._options import validated
from probe._plan import Plan
from probe._progress import progress_bar
from probe._recorder import Recorder
from probe._reduce import Reducer, reducer
from probe._run import Run, by_site, open_run, verify
from probe._samples import samples, starts_with
from probe._sites import sites as find_sites
from probe._store import RunStore
from probe.errors import BadInput, HeaderMismatch, StoreDamaged
from probe.protocols import Progress

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
        out: the run's folder.
        sites: as in `probe.sites`; kinds ``ffn``, ``mlp`` (groups ``text_encoder`` and ``text_encoder_2``) and
            ``xattn.out`` (``xattn_out``). SDXL encodes no text for a branch uncond without negative prompt: NaN there.
        reduce: reducers, see `probe._reduce.reducer`; the default is enough for every score.
        steps, guidance, batch_size, height, width: as in `probe.generate`.
        images: keep the pictures; ``"auto"`` does up to 128 x 128 pixels.
        detector: a judge (`probe.detector`) whose score of each sample's concept becomes the coordinate ``shown``.
        progress: True, False or a function of (done, total) samples.
        force: replace the run that is at ``out``.
        extend: allow a sample list that starts with the stored one.

    Raises `BadInput` for arguments that cannot work and for an ``out`` that is something else, `HeaderMismatch`
    naming the key in which a run at ``out`` differs, `UnknownName` for sites and reducers, `WorkbenchError` when the
    disk is full or another process is recording there.
    """
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
    store = _open_or_create(Path(out), plan, force=force, extend=extend)
    with store.locked(), progress_bar(progress, store.n_samples, "recording", unit="img") as advance:
        store.forget(store.missing())
        pending = [store.rows(int(unit)) for unit in np.flatnonzero(~store.done)]
        advance(store.n_samples - sum(rows.stop - rows.start for rows in pending))
        for rows in pending:
            values, token_rows = _make(plan, judge, table.iloc[rows].reset_index(drop=True), advance)
            store.set_rows(token_rows)  # before any flag: whoever reads a done unit needs it
            store.write(rows.start // store.unit, values)
    return Run(store.path)


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
            name: dict(hooks.enter_context(recorder.recording(plan.pipe, len(table), plan.absent(name, table))))
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


def _open_or_create(path: Path, plan: Plan, *, force: bool, extend: bool) -> RunStore:
    if not occupied(path):
        return plan.create(path, replace=False)
    try:
        store = RunStore(path)
    except StoreDamaged as error:
        raise BadInput("the output path exists and is no run", given=str(path), fix="choose another path") from error
    if force:
        with store.locked():  # nobody is writing into what is about to go
            pass
        return plan.create(path, replace=True)
    if extend and plan.identity["samples"] != store.identity["samples"]:
        return _extend(store, plan)
    _check_identity(store, plan, [*plan.identity])
    return store


def _extend(store: RunStore, plan: Plan) -> RunStore:
    _check_identity(store, plan, [key for key in plan.identity if key != "samples"])
    stored = Run(store.path).samples.drop(columns="shown")
    if not starts_with(plan.table, stored):
        given = f"{len(plan.table)} samples"
        expected = f"the {len(stored)} stored samples, then others"
        raise HeaderMismatch("a run is extended by a list that starts with its own", given=given, expected=expected)
    stamp = provenance.stamp(plan.identity)
    with store.locked():
        return store.extend(identity=stamp["identity"], id=stamp["id"], samples=plan.table)


def _check_identity(store: RunStore, plan: Plan, keys: Sequence[str]) -> None:
    try:
        provenance.check_same(store.identity, plan.identity, f"another run is at {store.path}", keys)
    except HeaderMismatch as error:
        fix = "record into another folder, or replace this run with force=True"
        if ": samples" in error.what:
            fix += "; extend=True allows samples to be added at the end"
        raise HeaderMismatch(error.what, given=error.given, expected=error.expected, fix=fix) from None


def _reducers(names: str | Sequence[str]) -> list[Reducer]:
    listed = [names] if isinstance(names, str) else list(dict.fromkeys(names))
    if not listed:
        raise BadInput("record needs at least one reducer", fix="leave reduce= out for the default")
    return [reducer(name) for name in listed]

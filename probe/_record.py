"""record: activations of denoising runs, reduced on the device, into a run on disk that can be interrupted."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from probe import _sources, provenance
from probe._files import occupied
from probe._generate import Call, image_size
from probe._inputs import Listeners, Settings
from probe._options import validated
from probe._plan import Plan
from probe._progress import progress_bar
from probe._ragged import LatentRecorder
from probe._run import Run, by_site, open_run, verify
from probe._samples import samples, starts_with
from probe._selection import Maps, selection
from probe._store import RunStore
from probe.errors import BadInput, HeaderMismatch, StoreDamaged
from probe.protocols import Progress

__all__ = ["Run", "by_site", "open_run", "record", "samples", "verify"]

#: Images are stored by default up to this side, in pixels.
_SMALL = 128


@validated
def record(
    pipe: Any,
    prompts: Any = None,
    *,
    out: str | Path,
    sites: str | Sequence[str] = "ffn",
    reduce: str | Sequence[str] = ("unit_norm", "absmean"),
    topk: int = 8,
    maps: Maps = None,
    heads: Sequence[int] | None = None,
    tokens: Sequence[int | str] | None = None,
    latents: bool = False,
    trajectories: Any = None,
    from_images: Any = None,
    timesteps: Sequence[int] | None = None,
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
    sample, branch, step and neuron, and of what is asked for besides (``maps``, ``latents``, some kinds of site) more,
    all float32. Whatever `probe.open_run` opens is labelled. A unit of samples is held in memory until it is written:
    lower ``batch_size`` where maps are large. Repeating the call resumes: samples are made in fixed units, a unit that
    is done is kept, any other is made again with the same bits.

    Args:
        pipe: a Stable Diffusion pipeline, edited or not; nothing of it is changed.
        prompts: strings, or a table of samples (see `probe.samples`, which also explains ``seeds``,
            ``seeds_per_prompt``, ``concept``, ``split`` and ``negative_prompt``).
        out: the run's folder.
        sites: as in `probe.sites`. Reduced are ``ffn`` (group ``unet``), ``mlp`` (``text_encoder``, ``text_encoder_2``)
            and ``xattn.out`` (``xattn_out``); ``xattn.k`` and ``xattn.v`` are kept once a run (``xattn_k``,
            ``xattn_v``), attention probabilities ``xattn.prob`` as maps. SDXL encodes no text for a branch uncond
            without negative prompt: NaN there.
        reduce: reducers, see `probe._reduce.reducer`; the default is enough for every score.
        topk: how many token rows the reducer ``topk`` keeps.
        maps: activations that are kept at every token row too: site (name, glob or kind) -> list of units, or
            ``"full"`` for all; or a `NeuronMap` whose selection they are. Groups ``maps/<NNN-site>``.
        heads, tokens: which heads of ``xattn.prob`` sites, and which text tokens: positions of the encoded prompt, or
            words, which sum over their positions in each sample's own prompt. All by default.
        latents: keep x_t and the guided prediction of every step (group ``latents``).
        trajectories: a `Trajectory` or its folder: nothing is drawn, the UNet is called once at every stored (x_t, t).
            Samples, steps, seeds, guidance and size are the trajectory's, ``prompts`` too unless given (as many).
        from_images: a folder of images, or an array uint8 (s y x rgb): nothing is drawn, each is encoded, noised to
            every one of ``timesteps`` by its sample's own generator, and shown to the UNet with its prompt (one for
            all, or one each; none is the empty one). With guidance above 1 both branches are recorded.
        timesteps: of training, for ``from_images``; they become the step axis.
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
    if batch_size < 1:
        raise BadInput("batch_size must be at least 1", given=batch_size)
    judge = _Judge.of(detector, concept)
    if timesteps is not None and from_images is None:
        raise BadInput("timesteps= belongs to from_images=", given=timesteps, fix="the sampler chooses its own")
    if trajectories is not None:
        settled: dict[str, Any] = {
            "steps": steps,
            "seeds": seeds,
            "seeds_per_prompt": seeds_per_prompt,
            "guidance": guidance,
        }
        settled |= {"negative_prompt": negative_prompt, "height": height, "width": width, "from_images": from_images}
        _refuse_given(settled, "what a trajectory has settled cannot be chosen again")
        table, settings, inputs = _sources.stored(pipe, prompts, trajectories, batch_size)
    else:
        settings = Settings(steps, guidance, batch_size, image_size(pipe, height, width))
        listed: dict[str, Any] = {
            "seeds": seeds,
            "seeds_per_prompt": seeds_per_prompt,
            "concept": concept,
            "split": split,
        }
        listed |= {"negative_prompt": negative_prompt}
        if from_images is None:
            table, settings, inputs = _sources.sampled(pipe, prompts, settings, **listed)
        else:
            _refuse_given({"steps": steps}, "images are noised to timesteps, not sampled")
            table, settings, inputs = _sources.from_images(pipe, prompts, from_images, timesteps, settings, **listed)
    if inputs.identity is not None and (images is True or judge is not None):
        raise BadInput("nothing is drawn from fixed inputs, so there are no images to keep or judge")
    plan = Plan(
        pipe,
        table,
        inputs,
        settings,
        kept=selection(pipe, sites=sites, reduce=reduce, topk=topk, maps=maps, heads=heads, tokens=tokens),
        latents=latents,
        keep_images=inputs.identity is None and (max(settings.size) <= _SMALL if images == "auto" else images),
        detector_id=None if judge is None else judge.id,
    )
    store = open_or_create(Path(out), plan, force=force, extend=extend)
    with store.locked(), progress_bar(progress, store.n_samples, "recording", unit="img") as advance:
        store.forget(store.missing())
        pending = [store.rows(int(unit)) for unit in np.flatnonzero(~store.done)]
        advance(store.n_samples - sum(rows.stop - rows.start for rows in pending))
        for rows in pending:
            values, token_rows = _make(plan, judge, rows, advance)
            store.set_rows(token_rows)  # before any flag: whoever reads a done unit needs it
            store.write(rows.start // store.unit, values)
    return Run(store.path)


def _refuse_given(options: Mapping[str, Any], what: str) -> None:
    """Raise `BadInput` for options of `record` that are not at their default where they could not be followed."""
    defaults = inspect.signature(record).parameters
    for name, value in options.items():
        if value != defaults[name].default:
            raise BadInput(what, given=f"{name}={value!r}", fix=f"leave {name} out")


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
    plan: Plan, judge: _Judge | None, rows: slice, advance: Callable[[int], object]
) -> tuple[dict[str, dict[str, np.ndarray]], dict[str, int]]:
    """Make one unit of samples: arrays by group and name, and token rows by site."""
    table = plan.table.iloc[rows].reset_index(drop=True)
    recorders = {kept.name: kept.recorder(plan.frame) for kept in plan.kept}
    between = LatentRecorder(len(table), plan.latent_sizes) if plan.latents else None

    def tell(call: Call) -> None:
        for recorder in recorders.values():
            recorder.on_call(call)

    listeners = Listeners(tell, None if between is None else between.on_step, advance)
    with ExitStack() as hooks:
        values = {
            name: dict(hooks.enter_context(recorder.recording(plan.pipe, table, plan.absent(recorder, table))))
            for name, recorder in recorders.items()
        }
        images = plan.inputs.run(plan.pipe, table, rows, plan.settings, listeners, plan.decode)
    if between is not None:
        values["latents"] = between.buffers
    if plan.keep_images:
        values["images"] = {"image": images}
    shown = np.full(len(table), np.nan, np.float32)
    if judge is not None:
        shown = judge.shown(images, table["concept"].tolist())
    for arrays in values.values():
        arrays["shown"] = shown
    return values, {name: rows for recorder in recorders.values() for name, rows in recorder.token_rows.items()}


def open_or_create(path: Path, plan: Any, *, force: bool, extend: bool) -> Any:
    """The store that a `Plan` (or a plan like it) goes on with at ``path``, or a new one. Raises as `record`."""
    if not occupied(path):
        return plan.create(path, replace=False)
    try:
        store = plan.store(path)
    except StoreDamaged as error:
        raise BadInput(
            f"the output path exists and is no {plan.store.kind}", given=str(path), fix="choose another path"
        ) from error
    if force:
        with store.locked():  # nobody is writing into what is about to go
            pass
        return plan.create(path, replace=True)
    if extend and plan.identity["samples"] != store.identity["samples"]:
        return _extend(store, plan)
    _check_identity(store, plan, [*plan.identity])
    return store


def _extend(store: RunStore, plan: Any) -> RunStore:
    _check_identity(store, plan, [key for key in plan.identity if key != "samples"])
    stored = plan.reader(store.path).samples.drop(columns="shown")
    if not starts_with(plan.table, stored):
        given = f"{len(plan.table)} samples"
        expected = f"the {len(stored)} stored samples, then others"
        raise HeaderMismatch("a run is extended by a list that starts with its own", given=given, expected=expected)
    stamp = provenance.stamp(plan.identity)
    with store.locked():
        return store.extend(identity=stamp["identity"], id=stamp["id"], samples=plan.table)


def _check_identity(store: RunStore, plan: Any, keys: Sequence[str]) -> None:
    try:
        provenance.check_same(store.identity, plan.identity, f"another {store.kind} is at {store.path}", keys)
    except HeaderMismatch as error:
        fix = f"choose another folder, or replace this {store.kind} with force=True"
        if ": samples" in error.what:
            fix += "; extend=True allows samples to be added at the end"
        raise HeaderMismatch(error.what, given=error.given, expected=error.expected, fix=fix) from None

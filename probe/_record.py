"""record: activations of denoising runs, reduced on the device, into a run on disk that can be interrupted."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from probe import _sources
from probe._announce import Call
from probe._estimate import Estimate, check_size, estimate, with_defaults
from probe._filling import fill
from probe._generate import image_size
from probe._inputs import Listeners, Settings
from probe._judge import Judge
from probe._locks import Rank
from probe._opening import open_or_create
from probe._options import validated
from probe._places import place_of
from probe._plan import Plan
from probe._ragged import LatentRecorder
from probe._run import Run, by_site, open_run, verify
from probe._samples import samples
from probe._selection import Maps, selection
from probe._writer import Unit
from probe.errors import BadInput
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
    max_gb: float = 100.0,
    durable: bool = False,
    progress: Progress = True,
    force: bool = False,
    extend: bool = False,
) -> Run:
    """Record activations while the model draws these prompts, into the folder ``out``.

    Every activation is reduced over its image tokens inside the hook; stored is one float32 number per reducer,
    sample, branch, step and neuron, and of what is asked for besides (``maps``, ``latents``, some kinds of site) more,
    all float32. Whatever `probe.open_run` opens is labelled. Two units of samples are held in memory, the one that is
    made and the one that is written: lower ``batch_size`` where maps are large. Repeating the call resumes: samples are
    made in fixed units, a unit that is done is kept, any other is made again with the same bits.

    Args:
        pipe: a Stable Diffusion pipeline, edited or not; nothing of it is changed.
        prompts: strings, or a table of samples (see `probe.samples`, which also explains ``seeds``,
            ``seeds_per_prompt``, ``concept``, ``split`` and ``negative_prompt``).
        out: the run's folder, or a URL that fsspec knows (``s3://bucket/run``), which must have one writer.
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
        topk=topk,
        maps=maps,
        heads=heads,
        tokens=tokens,
        latents=latents,
        trajectories=trajectories,
        from_images=from_images,
        timesteps=timesteps,
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

    fill(store, partial(_make, plan, judge), "recording", rank=rank, progress=progress, durable=durable)
    return Run(store.path)


def dry_run(pipe: Any, prompts: Any = None, *, out: str | Path, **options: Any) -> Estimate:
    """What `record` would do with these arguments; nothing is written.

    ``pipe`` may be `probe._skeleton.skeleton`, whose networks have no weights.
    """
    return estimate(_planned(pipe, prompts, **with_defaults(record, _planned, options))[0], place_of(out))


def _planned(
    pipe: Any,
    prompts: Any,
    *,
    sites: str | Sequence[str],
    reduce: str | Sequence[str],
    topk: int,
    maps: Maps,
    heads: Sequence[int] | None,
    tokens: Sequence[int | str] | None,
    latents: bool,
    trajectories: Any,
    from_images: Any,
    timesteps: Sequence[int] | None,
    steps: int,
    seeds: int | Sequence[int],
    seeds_per_prompt: int | None,
    guidance: float,
    negative_prompt: str | None,
    batch_size: int,
    height: int | None,
    width: int | None,
    images: bool | Literal["auto"],
    detector: Any,
    concept: Any,
    split: str | None,
) -> tuple[Plan, Judge | None]:
    """Everything that is decided before the first image; see `record`."""
    if batch_size < 1:
        raise BadInput("batch_size must be at least 1", given=batch_size)
    judge = Judge.of(detector, concept)
    if timesteps is not None and from_images is None:
        raise BadInput("timesteps= belongs to from_images=", given=timesteps, fix="the sampler chooses its own")
    if trajectories is not None:
        settled: dict[str, Any] = {"steps": steps, "seeds": seeds, "seeds_per_prompt": seeds_per_prompt}
        settled |= {"guidance": guidance, "negative_prompt": negative_prompt, "height": height, "width": width}
        settled |= {"from_images": from_images}
        _refuse_given(settled, "what a trajectory has settled cannot be chosen again")
        table, settings, inputs = _sources.stored(pipe, prompts, trajectories, batch_size)
    else:
        settings = Settings(steps, guidance, batch_size, image_size(pipe, height, width))
        listed: dict[str, Any] = {"seeds": seeds, "seeds_per_prompt": seeds_per_prompt}
        listed |= {"concept": concept, "split": split, "negative_prompt": negative_prompt}
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
    return plan, judge


def _refuse_given(options: Mapping[str, Any], what: str) -> None:
    """Raise `BadInput` for options of `record` that are not at their default where they could not be followed."""
    defaults = inspect.signature(record).parameters
    for name, value in options.items():
        if value != defaults[name].default:
            raise BadInput(what, given=f"{name}={value!r}", fix=f"leave {name} out")


def _make(plan: Plan, judge: Judge | None, rows: slice, advance: Callable[[int], object]) -> Unit:
    """Make one unit of samples."""
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
    token_rows = {name: rows for recorder in recorders.values() for name, rows in recorder.token_rows.items()}
    return values, token_rows, {name: recorder.blank() for name, recorder in recorders.items()}

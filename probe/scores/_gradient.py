"""gradient: activation times gradient, a first-order guess of what each neuron adds to the concept."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch

from probe import _axis
from probe._neuron_map import NeuronMap
from probe._options import validated
from probe._progress import progress_bar
from probe._samples import digest
from probe._sites import Site
from probe._sites import sites as sites_of
from probe.errors import BadInput, WorkbenchError
from probe.protocols import Progress
from probe.scores import _ranks as ranks
from probe.scores._given import Given, given, identity_with, prompts_of
from probe.scores._judge import differentiable, labels_for
from probe.scores._objectives import NoiseDifference, Objective, SeenByJudge, attributed, differentiating

logger = logging.getLogger(__name__)

FEWEST_PROMPTS = 10


@validated
def gradient(
    target: Any,
    reference: Any = None,
    *,
    pipe: Any,
    concept: Any = None,
    objective: Literal["noise", "detector"] = "noise",
    detector: Any = "emoji_cnn",
    sites: str | Sequence[str] = "ffn",
    window: tuple[float, float] = (999, 0),
    branches: Literal["cond", "both"] = "cond",
    calls: int | None = 10,
    steps: int = 30,
    guidance: float = 7.5,
    batch_size: int = 4,
    intervals: int = 1000,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
    progress: Progress = True,
) -> NeuronMap:
    """Activation times gradient of the concept's score L, at first order what L would lose without the neuron (ours).

        score_j = mean over samples and UNet calls of  sum over token rows k of  a_kj dL/da_kj

    where L, for a sample at (x_t, t), is

    - ``objective="noise"``: the mean over latents of (eps(x_t, t, concept prompt) - eps(x_t, t, reference prompt))^2,
      the second term held fixed
    - ``objective="detector"``: the judge's log-odds of the concept in the picture that the guided prediction speaks of:
      x_0 through the VAE

    Args:
        target: samples with the concept: a run or a trajectory (path or object), drawn or read as these were, or
            prompts or a table of samples. x_t are a trajectory's own; else the model draws the samples again.
        reference: the matching prompts without it, as any of these; samples of one ``pair`` belong together. Not read
            with ``objective="detector"``.
        pipe: the model; nothing of it is changed, and no gradient of a parameter is computed.
        concept: for the detector: an object of a world, or a name or label that the judge knows.
        objective: see above.
        detector: a judge through which gradients flow: ``emoji_cnn``, or an object with ``id``, ``labels`` and
            ``log_odds(images, labels)`` (n 3 y x in 0 to 1 -> n label).
        sites: which ``ffn`` sites of the UNet, as in `probe.sites`.
        window: timesteps (t_max, t_min), both included, that are averaged.
        branches: activations of the conditional branch; ``"both"`` adds the unconditional one's products (detector).
        calls: at most so many UNet calls of the window, evenly spread; None for every one.
        steps, guidance: for prompts and tables, which do not say how they are drawn.
        batch_size: samples whose activations are held at once, of one call.
        intervals: how many of the highest neurons get a percentile interval from whole prompts drawn with replacement;
            0 for none.
        resamples: of that bootstrap.
        level: of these intervals.
        seed: of the bootstrap.
        progress: True, False or a function of (done, total) samples.

    Evidence: ``ci_low``, ``ci_high`` (NaN beyond ``intervals``). The map's ``report`` has the numbers of samples, of
    those that failed (a gradient was not finite) and of calls.

    Raises `BadInput` for options that do not belong together, pairs without a reference prompt, fewer than 10 prompts
    where intervals are wanted and a window without calls, `WrongModel` for a run of another model, `UnknownName` for
    a concept that the judge does not know, `WorkbenchError` where no gradient is finite.
    """
    _check_options(objective, branches, calls, intervals, resamples, level)
    chosen_sites = _ffn(pipe, sites)
    found = given(pipe, target, steps=steps, scale=guidance, batch_size=batch_size)
    at = _calls_in(found.timesteps(pipe), window, calls)
    prompts = len(found.table["prompt_id"].unique())
    if intervals and prompts < FEWEST_PROMPTS:
        raise BadInput(
            "too few samples for the statistics asked for",
            given=f"{len(found.table)} samples of {prompts} prompts",
            expected=f"at least {FEWEST_PROMPTS} prompts",
            fix="give more prompts, or do without intervals (intervals=0)",
        )
    goal, asked, judge = _objective(objective, found, reference, detector, concept, branches)

    sums, counts = _by_prompt(pipe, found, at, chosen_sites, goal, progress)
    total = int(counts.sum())
    if total == 0:
        fix = "load the model in float32 or bfloat16"
        raise WorkbenchError("no sample has a finite gradient", given=f"{len(found.table)} samples", fix=fix)
    if total < len(found.table):
        logger.warning("%d of %d samples have no finite gradient", len(found.table) - total, len(found.table))
    score = sums.sum(0, dtype=np.float64) / total
    low, high = np.full((2, len(score)), np.nan)
    highest = np.sort(np.argsort(-score, kind="stable")[:intervals])
    if len(highest):
        low[highest], high[highest] = ranks.mean_limits(sums[:, highest], counts, resamples, level, seed)
    options = {
        "objective": objective,
        "window": list(window),
        "branches": branches,
        "calls": calls,
        "intervals": intervals,
        "resamples": resamples,
        "level": level,
        "seed": seed,
        **({"labels": list(goal.labels)} if isinstance(goal, SeenByJudge) else {}),
    }
    identity = identity_with(
        pipe, found, chosen_sites, method="gradient", options=options, reference=asked, judge=judge
    )
    return NeuronMap.build(
        method="gradient",
        score=score[None],
        windows=[window],
        sites=chosen_sites,
        identity=identity,
        fan_out=fan_out(pipe, chosen_sites),
        evidence={"ci_low": low[None], "ci_high": high[None]},
        report={"samples": total, "failed": len(found.table) - total, "calls": len(at), "intervals": len(highest)},
    )


def fan_out(pipe: Any, sites: Sequence[Site]) -> np.ndarray:
    """(n,) norms of the outgoing weights of every unit."""
    weights = (site.resolve(pipe).weight for site in sites)
    return np.concatenate([w.detach().float().norm(dim=0).cpu().numpy() for w in weights])  # type: ignore[operator]


def _by_prompt(
    pipe: Any, found: Given, at: Sequence[int], sites: Sequence[Site], goal: Objective, progress: Progress
) -> tuple[np.ndarray, np.ndarray]:
    """Sums over each prompt's samples (c n) of their mean products over the calls, and numbers of samples (c,)."""
    names, index = np.unique(found.table["prompt_id"].to_numpy(), return_inverse=True)
    sums = np.zeros((len(names), _axis.offsets(sites)[-1]), np.float32)
    counts = np.zeros(len(names), np.int64)
    timesteps, scales = found.timesteps(pipe), found.scales(pipe)
    with differentiating(pipe), progress_bar(progress, len(found.table), "gradients", unit="sample") as advance:
        for batch, latents in found.batches(pipe, at):
            rows = np.arange(batch.rows.start, batch.rows.stop)
            number_at = goal.of(pipe, batch, found.table["pair"].iloc[rows].tolist())
            products = np.zeros((len(rows), sums.shape[1]), np.float32)
            for i, call in enumerate(at):
                x = latents[:, i].to(pipe.unet.device, pipe.unet.dtype) * float(scales[call])
                number, kept = number_at(x, torch.tensor(timesteps[call]), sites)
                parts = attributed(number, kept, len(rows))
                products += torch.cat(parts, dim=1).cpu().numpy() / len(at)
            finite = np.isfinite(products).all(1)
            np.add.at(sums, index[rows[finite]], products[finite])
            np.add.at(counts, index[rows[finite]], 1)
            advance(len(rows))
    return sums, counts


def _objective(
    objective: str, found: Given, reference: Any, detector: Any, concept: Any, branches: str
) -> tuple[Objective, dict[str, Any] | None, str | None]:
    """What is differentiated, the reference samples and the judge as an identity names them."""
    if objective == "detector":
        judge = differentiable(detector)
        labels = labels_for(concept, judge)
        return SeenByJudge(judge, labels, found.settings.size, branches == "both"), None, str(judge.id)
    if reference is None:
        fix = 'give the prompts without the concept, or objective="detector"'
        raise BadInput("the noise objective compares with reference prompts", given="reference=None", fix=fix)
    table = prompts_of(reference)
    prompts = dict(zip(table["pair"].tolist(), table["prompt"].tolist(), strict=True))
    if missing := [pair for pair in found.table["pair"].tolist() if pair not in prompts]:
        raise BadInput(
            "a target sample has no reference prompt",
            given=f"pair {missing[0]}",
            expected="the same values of the column pair in target and reference",
            fix="item i of both lists of prompts makes pair i",
        )
    return NoiseDifference(prompts, found.settings.size), {"samples": digest(table)}, None


def _ffn(pipe: Any, select: str | Sequence[str]) -> list[Site]:
    found = sites_of(pipe, select)
    if wrong := [site for site in found if site.kind != "ffn"]:
        fix = 'sites="ffn", or names or globs of such sites'
        raise BadInput("gradients are taken at the UNet's ffn sites", given=wrong[0].name, fix=fix)
    return found


def _calls_in(timesteps: np.ndarray, window: tuple[float, float], most: int | None) -> list[int]:
    """Which UNet calls lie in the window, at most so many, evenly spread."""
    inside = np.flatnonzero((timesteps <= window[0]) & (timesteps >= window[1]))
    if not len(inside):
        listed = ", ".join(f"{t:g}" for t in dict.fromkeys(timesteps.tolist()))
        raise BadInput("no step of the samples lies in the window", given=window, expected=f"around any of {listed}")
    if most is not None and most < len(inside):
        inside = inside[np.unique(np.linspace(0, len(inside) - 1, most).round().astype(int))]
    return [int(call) for call in inside]


def _check_options(
    objective: str, branches: str, calls: int | None, intervals: int, resamples: int, level: float
) -> None:
    if objective == "noise" and branches == "both":
        fix = 'branches="cond", or objective="detector"'
        raise BadInput("the unconditional prediction knows neither prompt", given='branches="both"', fix=fix)
    if calls is not None and calls < 1:
        raise BadInput("calls must be at least 1", given=calls, fix="calls=None takes every call of the window")
    if resamples < 1 or intervals < 0 or not 0 < level < 1:
        given = f"intervals={intervals}, resamples={resamples}, level={level}"
        expected = "intervals >= 0, resamples >= 1, 0 < level < 1"
        raise BadInput("the bootstrap cannot be done", given=given, expected=expected)

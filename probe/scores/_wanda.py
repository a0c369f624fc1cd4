"""wanda: norms of post-gate activations on target against reference prompts (ConceptPrune, arXiv 2405.19237)."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray as Array

from probe._neuron_map import NeuronMap
from probe._options import validated
from probe.errors import BadInput
from probe.scores._runs import Recorded, check_comparable, identity_of, recorded
from probe.scores._shown import only_those_shown


@validated
def wanda(
    target: Any,
    reference: Any,
    *,
    branches: Literal["both", "cond"] = "both",
    normalise: Literal["mean", "sum"] = "mean",
    only_shown: bool | float = False,
    group: str = "unet",
) -> NeuronMap:
    """Norms of every neuron on target and reference prompts, one window a step.

    Per step and neuron, over all token rows r of the runs' samples, each row brought to length 1 first (``unit_norm``;
    ConceptPrune's column norm, section 3 of the paper):

        n = sqrt(sum_r x_rj^2)                with normalise="sum", as in the paper
        n = sqrt(sum_r x_rj^2 / rows)         with normalise="mean", the same comparison when the counts agree

    stored as evidence ``target`` and ``reference``; ConceptPrune's mask is rebuilt from these and the pipeline's
    weights. ``score`` = fan_out_j * (target_j - reference_j) is ours: the paper ranks weights, not neurons.

    Args:
        target, reference: a path, `probe.Run` or dataset, with reducer ``unit_norm``.
        branches: ``"both"`` adds the squares of both branches, as the paper does; ``"cond"`` takes the conditional one,
            which the unconditional does not dilute.
        normalise: ``"sum"`` is refused when target and reference have different numbers of rows: the larger would win.
        only_shown: count only target samples on which the judge saw the concept: True for the judge's own threshold, or
            the score from which on it did.
        group: the group of the runs; a text encoder's has no steps and gives one window (999, 0).

    Raises `HeaderMismatch` naming the key in which the runs cannot be compared, `BadInput` for runs without
    ``unit_norm``, `StoreDamaged` for chunks that cannot be read.
    """
    runs = [recorded(source, group, "unit_norm") for source in (target, reference)]
    check_comparable(*runs)
    runs[0] = only_those_shown(runs[0], only_shown)
    sums, rows = zip(*(_pooled(run, branches) for run in runs), strict=True)
    if normalise == "sum" and not np.array_equal(*rows):
        counts = [f"{run.n_samples} samples" for run in runs]
        raise BadInput(
            'normalise="sum" compares sums over equally many rows',
            given=f"target {counts[0]}, reference {counts[1]}",
            fix='record as many reference as target samples, or use normalise="mean"',
        )
    norms = [np.sqrt(s) if normalise == "sum" else root_mean(s, r) for s, r in zip(sums, rows, strict=True)]
    fan_out = runs[0].fan_out
    options: dict[str, Any] = {"branches": branches, "normalise": normalise, "group": group}
    if only_shown is not False:  # absent before there was a choice: the ids of older maps stay
        options["only_shown"] = only_shown
    return NeuronMap.build(
        method="wanda",
        score=contrast(norms[0], norms[1], fan_out),
        windows=runs[0].windows,
        sites=runs[0].sites,
        identity=identity_of("wanda", options, *runs),
        fan_out=fan_out,
        evidence={"target": norms[0], "reference": norms[1]},
    )


def root_mean(sums: Float[Array, "t n"], rows: Int[Array, "t n"]) -> Float[Array, "t n"]:
    """sqrt(sum of squares / number of rows); NaN where nothing was measured."""
    return np.sqrt(np.divide(sums, rows, out=np.full(sums.shape, np.nan), where=rows > 0))


def contrast(
    target: Float[Array, "t n"], reference: Float[Array, "t n"], fan_out: Float[Array, " n"]
) -> Float[Array, "t n"]:
    """fan_out_j * (target_j - reference_j): how much more of the layer's output the unit makes (ours)."""
    return fan_out * (target - reference)


def _pooled(run: Recorded, branches: str) -> tuple[np.ndarray, np.ndarray]:
    """Sums of squares over samples and branches, and the numbers of token rows behind them, both (t, n).

    Samples that are NaN (not measured) add to neither.
    """
    sums = np.zeros((len(run.windows), run.n_neurons))
    counts = np.zeros(sums.shape, np.int64)
    for block in run.blocks("unit_norm", ["cond"] if branches == "cond" else None):  # (s b t n)
        known = ~np.isnan(block)
        sums += np.where(known, block.astype(np.float64) ** 2, 0).sum((0, 1))
        counts += known.sum((0, 1))
    return sums, counts * run.token_rows

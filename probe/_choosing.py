"""Choosing units by their numbers: the rules behind `NeuronMap.select`, on arrays (window, neuron) and (neuron,)."""

from __future__ import annotations

import numpy as np

from probe.errors import BadInput


def over_windows(values: np.ndarray, over: str) -> np.ndarray:
    """(window, neuron) -> (neuron,): mean or max of what is not NaN; for flags whether any holds."""
    if values.dtype == bool:
        return np.logical_or.reduce(values, axis=0)
    known = ~np.isnan(values)
    if over == "max":
        joined = np.where(known, values, -np.inf).max(0)
    else:
        joined = np.where(known, values, 0).sum(0, dtype=np.float64) / np.maximum(known.sum(0), 1)
    return np.where(known.any(0), joined, np.nan).astype(np.float32)


def top_units(scores: np.ndarray, count: int) -> np.ndarray:
    """(neuron,) bool: the ``count`` highest, equal ones in the order of the axis. `BadInput` where there are fewer."""
    measured = int(np.isfinite(scores).sum())
    if not 1 <= count <= measured:
        raise BadInput("top is outside the number of scored units", given=f"top={count}", expected=f"1 to {measured}")
    chosen = np.zeros(len(scores), bool)
    chosen[np.argsort(-scores, kind="stable")[:count]] = True  # NaN sorts last
    return chosen


def from_quantile(scores: np.ndarray, quantile: float) -> np.ndarray:
    """(neuron,) bool: scores at or above the quantile of those measured."""
    if not 0 < quantile < 1:
        raise BadInput("a quantile lies inside (0, 1)", given=f"quantile={quantile}")
    if not np.isfinite(scores).any():
        raise BadInput("no unit has a score")
    return np.greater_equal(scores, np.nanquantile(scores, quantile), out=np.zeros(scores.shape, bool))


def below(q_values: np.ndarray, fdr: float, reachable: float) -> np.ndarray:
    """(window, neuron) bool: discoveries at a false discovery rate; ``reachable`` is the lowest q one unit can have."""
    if not 0 < fdr < 1:
        raise BadInput("a false discovery rate lies inside (0, 1)", given=f"fdr={fdr}")
    if reachable > fdr:
        raise BadInput(
            "no single unit could reach this false discovery rate",
            given=f"fdr={fdr}",
            expected=f"at least {reachable:.2g}",
            fix="score with more flips= or more pairs, or ask for a larger fdr",
        )
    return np.less_equal(q_values, fdr, out=np.zeros(q_values.shape, bool), where=~np.isnan(q_values))

"""Choosing units by their numbers: the rules behind `NeuronMap.select`, on arrays (window, neuron) and (neuron,)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from probe import _axis
from probe._sites import Site
from probe.errors import BadInput, unknown_name


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


def by_name(sites: Sequence[Site], units: Mapping[str, Sequence[int]]) -> np.ndarray:
    """(neuron,) bool: units by the name of their site. `BadInput` where none is named, or a site has no such unit."""
    if not any(units.values()):
        raise BadInput("no neuron is chosen", given=str(dict(units)), fix="name at least one unit of one site")
    names, starts = [site.name for site in sites], _axis.offsets(sites)
    chosen = np.zeros(starts[-1], bool)
    for name, wanted in units.items():
        if name not in names:
            raise unknown_name("site of the neuron map", name, names)
        place = names.index(name)
        if bad := [unit for unit in wanted if not 0 <= unit < sites[place].width]:
            raise BadInput("a unit is outside its site", given=bad[0], expected=f"0 to {sites[place].width - 1}")
        chosen[starts[place] + np.asarray(wanted, int)] = True
    return chosen


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

"""Set algebra of neuron maps with Python's own sets of (site, unit)."""

from __future__ import annotations

from typing import Any


def chosen(selected: list[list[bool]], units: list[tuple[str, int]], over: str) -> set[Any]:
    """Units that any, all, or more than half of the windows select; ``selected`` is window by neuron."""
    found = set()
    for j, unit in enumerate(units):
        votes = sum(window[j] for window in selected)
        if {"any": votes >= 1, "all": votes == len(selected), "vote": votes > len(selected) / 2}[over]:
            found.add(unit)
    return found


def best(scores: list[float], count: int) -> set[int]:
    """Positions of the ``count`` highest scores, NaN never, the earlier of equals first."""
    known = [(-score, j) for j, score in enumerate(scores) if score == score]
    return {j for _, j in sorted(known)[:count]}

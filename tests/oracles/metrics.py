"""Slow twins of probe.metrics, one image and one label at a time."""

from __future__ import annotations

import math


def shown(scores: dict[str, float], thresholds: dict[str, float], wanted: list[str]) -> float:
    if not wanted:
        return math.nan
    for label in wanted:
        if scores[label] >= thresholds[label]:
            return 1.0
    return math.nan if any(math.isnan(scores[label]) for label in wanted) else 0.0


def broken(scores: dict[str, float]) -> float:
    of_objects = {label: score for label, score in scores.items() if label.split("/")[0] == "object"}
    if any(math.isnan(score) for score in of_objects.values()):
        return math.nan
    return float(max(of_objects, key=of_objects.__getitem__) == "object/none")

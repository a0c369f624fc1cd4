"""Metrics by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from probe.errors import BadInput, unknown_name
from probe.metrics._judging import broken, hits


@dataclass(frozen=True)
class Judged:
    """What a metric of label scores sees: scores (s, label) with the judge's labels and thresholds, and per sample the
    labels of its own concept (``wanted``) and of what else its prompt names (``content``).
    """

    scores: np.ndarray
    labels: Sequence[str]
    thresholds: np.ndarray
    wanted: Sequence[Sequence[str]]
    content: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Metric:
    """One number per sample, and how it is averaged.

    - ``source``: ``judge`` or ``second`` (function of a `Judged`), or ``image`` (function of uint8 images
      (s, y, x, 3) and their prompts); all return (s,), NaN where not measured
    - ``rate``: values are hits, 0 or 1, with Wilson's interval where that applies
    - ``bounds``: the range of one value, if it has one
    - ``id``: whatever else decides its value, such as the weights of its network
    - ``needs_content``: it is about samples whose prompt names content only; the others do not count as failed
    """

    name: str
    version: int
    source: Literal["judge", "second", "image"]
    function: Callable[..., np.ndarray]
    rate: bool = False
    bounds: tuple[float, float] | None = None
    id: str = ""
    needs_content: bool = False

    @property
    def identity(self) -> str:
        """What must agree for two values to be compared."""
        return f"{self.name}/{self.version}" + (f"/{self.id}" if self.id else "")


_FACTORIES: dict[str, Callable[..., Metric]] = {}


def register(name: str, factory: Callable[..., Metric]) -> None:
    """Add a metric: ``factory(**options)`` builds it. A name can be taken once."""
    if name in _FACTORIES:
        raise BadInput("a metric of this name exists", given=name, fix="choose another name")
    _FACTORIES[name] = factory


def metric(name: str, **options: Any) -> Metric:
    """Build a registered metric; `UnknownName` carries the nearest names."""
    if name not in _FACTORIES:
        raise unknown_name("metric", name, _FACTORIES)
    return _FACTORIES[name](**options)


def names() -> list[str]:
    """The registered metrics."""
    return sorted(_FACTORIES)


def _shown(of: Judged) -> np.ndarray:
    return hits(of.scores, of.labels, of.thresholds, of.wanted)


def _content_kept(of: Judged) -> np.ndarray:
    return hits(of.scores, of.labels, of.thresholds, of.content)


def _broken(of: Judged) -> np.ndarray:
    return broken(of.scores, of.labels)


def _clip(folder: Any = None) -> Metric:
    from probe.metrics._clip import ClipScore

    scorer = ClipScore(folder)
    return Metric("clip_score", 1, "image", scorer, id=scorer.id)


_UNIT = (0.0, 1.0)
register("rate", lambda: Metric("rate", 1, "judge", _shown, rate=True, bounds=_UNIT))
register("rate_second", lambda: Metric("rate_second", 1, "second", _shown, rate=True, bounds=_UNIT))
register("broken", lambda: Metric("broken", 1, "judge", _broken, rate=True, bounds=_UNIT))
register(
    "content_kept",
    lambda: Metric("content_kept", 1, "judge", _content_kept, rate=True, bounds=_UNIT, needs_content=True),
)
register("clip_score", _clip)

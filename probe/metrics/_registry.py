"""Metrics by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from probe.errors import BadInput, unknown_name
from probe.metrics._judging import EDGE, NONE, broken, concept_log_odds, hits
from probe.metrics._sets import feature_distance, frechet, kid


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
    """One number per sample, and how it is averaged; or one number of all samples.

    - ``source``: ``judge`` or ``second`` (function of a `Judged`), ``image`` (function of uint8 images (s, y, x, 3) and
      their prompts), or ``features`` (function of the judge's features (s, d) of the pictures and of the unedited
      model's on the same samples); all return (s,), NaN where not measured
    - ``of_set``: it is one number of two sets: a function of features (s, d) of the pictures and (r, d) of the unedited
      model's pictures of the same prompts from another seed set, without rows that failed. Its interval is from halves
      of the prompts
    - ``average``: such a number is reported as the mean over these halves, which is right where it is unbiased
    - ``rate``: values are hits, 0 or 1, with Wilson's interval where that applies
    - ``bounds``: the range of one value, if it has one
    - ``id``: whatever else decides its value, such as the weights of its network
    - ``needs_content``: it is about samples whose prompt names content only; the others do not count as failed
    """

    name: str
    version: int
    source: Literal["judge", "second", "image", "features"]
    function: Callable[..., Any]
    rate: bool = False
    bounds: tuple[float, float] | None = None
    id: str = ""
    needs_content: bool = False
    of_set: bool = False
    average: bool = False

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


def _log_odds(of: Judged) -> np.ndarray:
    return concept_log_odds(of.scores, of.labels, of.wanted)


def _content_kept(of: Judged) -> np.ndarray:
    # what the judge does not know of cannot be told, and an evaluation does not end over it
    known = set(of.labels)
    return hits(of.scores, of.labels, of.thresholds, [[label for label in c if label in known] for c in of.content])


def _broken(of: Judged) -> np.ndarray:
    return broken(of.scores, of.labels) if NONE in of.labels else np.full(len(of.scores), np.nan)


def _clip(folder: Any = None) -> Metric:
    from probe.metrics._clip import ClipScore

    scorer = ClipScore(folder)
    return Metric("clip_score", 1, "image", scorer, id=scorer.id)


_UNIT = (0.0, 1.0)
register("rate", lambda: Metric("rate", 1, "judge", _shown, rate=True, bounds=_UNIT))
register("rate_second", lambda: Metric("rate_second", 1, "second", _shown, rate=True, bounds=_UNIT))
_WIDEST = float(np.log(1 / EDGE - 1))
register("log_odds", lambda: Metric("log_odds", 1, "judge", _log_odds, bounds=(-_WIDEST, _WIDEST)))
register("broken", lambda: Metric("broken", 1, "judge", _broken, rate=True, bounds=_UNIT))
register(
    "content_kept",
    lambda: Metric("content_kept", 1, "judge", _content_kept, rate=True, bounds=_UNIT, needs_content=True),
)
register("clip_score", _clip)
register("kid", lambda: Metric("kid", 1, "features", kid, of_set=True, average=True))
register("frechet", lambda: Metric("frechet", 1, "features", frechet, of_set=True))
register("feature_distance", lambda: Metric("feature_distance", 1, "features", feature_distance, bounds=(0.0, 2.0)))

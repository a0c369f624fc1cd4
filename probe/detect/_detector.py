"""The detector object and the registry of detectors."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np

from probe.errors import BadInput, unknown_name
from probe.metrics import hits

#: uint8 pictures (n, y, x, 3) -> float32 scores (n, label)
ScoreFunction = Callable[[np.ndarray], np.ndarray]


class Detector:
    """Scores of labels for pictures.

    Labels are ``family/name``: ``object/church``, ``object/none``, ``style/ink``, ``gender/man``. A hit is a score at
    or above the label's stored threshold. ``id`` names the detector, its weights and its thresholds. A detector made
    with ``features``, a function as ``score`` is, also says where pictures lie: distances between sets need it.
    """

    def __init__(
        self,
        name: str,
        labels: Sequence[str],
        thresholds: np.ndarray,
        score: ScoreFunction,
        *,
        sha: str = "",
        features: ScoreFunction | None = None,
    ) -> None:
        self.name, self.labels = name, tuple(labels)
        self.thresholds = np.asarray(thresholds, np.float32)
        if self.thresholds.shape != (len(self.labels),):
            raise BadInput("one threshold per label", given=self.thresholds.shape, expected=(len(self.labels),))
        self._score, self._features = score, features
        cut = ",".join(f"{t:.4f}" for t in self.thresholds)
        self.id = f"{name}:{sha[:12]}:{_short_hash(cut)}"
        self._index = {label: i for i, label in enumerate(self.labels)}

    def __call__(self, images: np.ndarray, *, batch_size: int = 64) -> np.ndarray:
        """Scores in 0..1, float32 (n, label); a picture that could not be scored is a row of NaN.

        Args:
            images: uint8 (n, y, x, 3).
        """
        parts = _in_batches(self._score, images, batch_size)
        return np.concatenate(parts).astype(np.float32) if parts else np.empty((0, len(self.labels)), np.float32)

    @property
    def has_features(self) -> bool:
        """Whether `features` can be asked for."""
        return self._features is not None

    def features(self, images: np.ndarray, *, batch_size: int = 64) -> np.ndarray:
        """Where pictures lie, float32 (n, feature); what makes no difference to the labels is not in it.

        Args:
            images: uint8 (n, y, x, 3).
            batch_size: pictures in one call.

        Raises:
            BadInput: the detector was made without.

        """
        if self._features is None:
            raise BadInput("this detector shows no features", given=self.id, fix="Detector(..., features=function)")
        parts = _in_batches(self._features, images, batch_size)
        return np.concatenate(parts).astype(np.float32) if parts else np.empty((0, 0), np.float32)

    def index(self, label: str) -> int:
        """Column of a label; an unknown one raises with the nearest."""
        if label not in self._index:
            raise unknown_name(f"label of detector {self.name}", label, self.labels)
        return self._index[label]

    def family(self, family: str) -> list[int]:
        """Columns of the labels ``family/...``."""
        return [i for i, label in enumerate(self.labels) if label.startswith(f"{family}/")]

    def hits(self, scores: np.ndarray, labels: str | Sequence[str]) -> np.ndarray:
        """Float (n,): 1 where the label, or one of several, is shown, 0 where none is, NaN where it was not scored.

        >>> judge.hits(judge(images), probe.metrics.labels_of(concept))  # doctest: +SKIP
        """
        wanted = (labels,) if isinstance(labels, str) else tuple(labels)
        for label in wanted:
            self.index(label)
        return hits(scores, self.labels, self.thresholds, [wanted] * len(scores))

    def best(self, scores: np.ndarray, family: str) -> np.ndarray:
        """Column of the highest label of a family per picture (n,), -1 where the scores are NaN."""
        columns = np.asarray(self.family(family))
        part = scores[:, columns]
        failed = np.isnan(part).any(1)
        return np.where(failed, -1, columns[np.nan_to_num(part).argmax(1)])

    def broken(self, scores: np.ndarray) -> np.ndarray:
        """Float (n,): 1 where ``object/none`` is the argmax of its family; NaN where the scores are NaN."""
        best = self.best(scores, "object")
        return np.where(best < 0, np.nan, best == self.index("object/none"))

    def __repr__(self) -> str:
        return f"Detector({self.id!r}, {len(self.labels)} labels)"


def _in_batches(function: ScoreFunction, images: np.ndarray, size: int) -> list[np.ndarray]:
    images = np.asarray(images)
    if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8:
        raise BadInput("pictures must be uint8 (n, y, x, 3)", given=f"{images.dtype} {images.shape}")
    return [function(images[i : i + size]) for i in range(0, len(images), size)]


_MAKERS: dict[str, Callable[..., Detector]] = {}


def register_detector(
    name: str,
    make: Callable[..., Any],
    *,
    labels: Sequence[str] | None = None,
    thresholds: float | Sequence[float] = 0.5,
    version: str | None = None,
) -> None:
    """Add a detector under a name, for ``detector=``, ``judge=`` and the ``detector`` of a concept.

    Args:
        name: what it is called from now on.
        make: makes the detector when it is first used; options of `detector` go to it. With ``labels``, the scoring
            function itself: uint8 pictures (n, y, x, 3) -> scores (n, label).
        labels: of the scores of such a function: ``object/church``, ``style/ink``.
        thresholds: from which score on a label is shown, for all or one by one.
        version: what tells the function from an earlier one, such as a hash of its weights; by default of its source.

    """
    if labels is None:
        _MAKERS[name] = make
    else:
        from probe.detect._function import from_function

        known = tuple(labels)
        _MAKERS[name] = lambda: from_function(make, known, thresholds=thresholds, name=name, version=version)
    _loaded.cache_clear()


def detectors() -> list[str]:
    """Names of all registered detectors."""
    import probe.detect._emoji
    import probe.detect._zero_shot  # noqa: F401 - these register theirs

    return sorted(_MAKERS)


def detector(name: str = "emoji_cnn", **options: Any) -> Detector:
    """The detector of that name, loaded on first use; with ``options``, one made with these.

    >>> probe.detector("clip_zero_shot", folder="clip-vit-b32", concepts=probe.concepts("mine"))  # doctest: +SKIP

    Raises:
        UnknownName: no detector, or no option, is called so.
        BadInput: the detector cannot be made without an option.

    """
    if name not in detectors():
        raise unknown_name("detector", name, detectors())
    try:
        parameters: Mapping[str, inspect.Parameter] = inspect.signature(_MAKERS[name]).parameters
    except ValueError:  # written in C
        parameters = {}
    if stray := [option for option in options if option not in parameters]:
        raise unknown_name(f"option of the detector {name}", stray[0], parameters)
    needed = [
        p.name for p in parameters.values() if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    if missing := [option for option in needed if option not in options]:
        fix = f"probe.detector({name!r}, {', '.join(f'{option}=...' for option in missing)})"
        raise BadInput(f"the detector {name} is made from {' and '.join(missing)}", fix=fix)
    return _MAKERS[name](**options) if options else _loaded(name)


@cache
def _loaded(name: str) -> Detector:
    return _MAKERS[name]()


def _short_hash(text: str) -> str:
    import hashlib

    return hashlib.sha256(text.encode()).hexdigest()[:8]

"""The detector object and the registry of detectors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import numpy as np

from probe.errors import BadInput, unknown_name

#: uint8 pictures (n, y, x, 3) -> float32 scores (n, label)
ScoreFunction = Callable[[np.ndarray], np.ndarray]


class Detector:
    """Scores of labels for pictures.

    Labels are ``family/name``: ``object/church``, ``object/none``, ``style/ink``, ``gender/man``. A hit is a score at
    or above the label's stored threshold. ``id`` names the detector, its weights and its thresholds.
    """

    def __init__(
        self, name: str, labels: Sequence[str], thresholds: np.ndarray, score: ScoreFunction, *, sha: str = ""
    ) -> None:
        self.name, self.labels = name, tuple(labels)
        self.thresholds = np.asarray(thresholds, np.float32)
        if self.thresholds.shape != (len(self.labels),):
            raise BadInput("one threshold per label", given=self.thresholds.shape, expected=(len(self.labels),))
        self._score = score
        cut = ",".join(f"{t:.4f}" for t in self.thresholds)
        self.id = f"{name}:{sha[:12]}:{_short_hash(cut)}"
        self._index = {label: i for i, label in enumerate(self.labels)}

    def __call__(self, images: np.ndarray, *, batch_size: int = 64) -> np.ndarray:
        """Scores in 0..1, float32 (n, label); a picture that could not be scored is a row of NaN.

        Args:
            images: uint8 (n, y, x, 3).
        """
        images = np.asarray(images)
        if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8:
            raise BadInput("pictures must be uint8 (n, y, x, 3)", given=f"{images.dtype} {images.shape}")
        parts = [self._score(images[i : i + batch_size]) for i in range(0, len(images), batch_size)]
        return np.concatenate(parts).astype(np.float32) if parts else np.empty((0, len(self.labels)), np.float32)

    def index(self, label: str) -> int:
        """Column of a label; an unknown one raises with the nearest."""
        if label not in self._index:
            raise unknown_name(f"label of detector {self.name}", label, self.labels)
        return self._index[label]

    def family(self, family: str) -> list[int]:
        """Columns of the labels ``family/...``."""
        return [i for i, label in enumerate(self.labels) if label.startswith(f"{family}/")]

    def hits(self, scores: np.ndarray, label: str) -> np.ndarray:
        """Float (n,): 1 where the label is shown, 0 where not, NaN where the score is NaN."""
        i = self.index(label)
        return np.where(np.isnan(scores[:, i]), np.nan, scores[:, i] >= self.thresholds[i])

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


_MAKERS: dict[str, Callable[[], Detector]] = {}


def register_detector(name: str, make: Callable[[], Detector]) -> None:
    """Add a detector under a name; ``make`` runs when it is first used."""
    _MAKERS[name] = make
    _loaded.cache_clear()


def detectors() -> list[str]:
    """Names of all registered detectors."""
    import probe.detect._emoji  # noqa: F401 - registers the embedded judges

    return sorted(_MAKERS)


def detector(name: str = "emoji_cnn") -> Detector:
    """The detector of that name, loaded on first use."""
    if name not in detectors():
        raise unknown_name("detector", name, detectors())
    return _loaded(name)


@cache
def _loaded(name: str) -> Detector:
    return _MAKERS[name]()


def _short_hash(text: str) -> str:
    import hashlib

    return hashlib.sha256(text.encode()).hexdigest()[:8]

"""Any function of pictures as a detector."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from probe.detect._detector import Detector
from probe.errors import BadInput


def from_function(
    function: Callable[[np.ndarray], Any],
    labels: Sequence[str],
    *,
    thresholds: float | Sequence[float] = 0.5,
    name: str | None = None,
    version: str | None = None,
    together: bool = False,
) -> Detector:
    """A detector that asks ``function``: uint8 pictures (n, y, x, 3) -> scores (n, label), NaN where it failed.

    One score a picture, (n,), serves where there is one label; with ``together``, for all labels. Its id is its name
    with a hash of its source (or what ``version`` says): what it reads from elsewhere, such as weights, is not in it.
    """
    labels = tuple(labels)
    if isinstance(thresholds, int | float):
        thresholds = [float(thresholds)] * len(labels)

    def score(images: np.ndarray) -> np.ndarray:
        found = np.asarray(function(images), dtype=np.float32)
        if found.ndim == 1 and (len(labels) == 1 or together):
            found = np.repeat(found[:, None], len(labels), axis=1)
        if found.shape != (len(images), len(labels)):
            expected = f"({len(images)}, {len(labels)}) for {', '.join(labels)}"
            raise BadInput("a judge gives every picture a score for each label", given=found.shape, expected=expected)
        return found

    own = getattr(function, "__qualname__", type(function).__qualname__)
    return Detector(name or own, labels, np.asarray(thresholds), score, sha=version or _hash(function))


def _hash(function: Any) -> str:
    code = function if hasattr(function, "__code__") else type(function).__call__
    try:
        text = inspect.getsource(code).encode()
    except (OSError, TypeError):  # typed into a shell, or written in C
        text = getattr(getattr(code, "__code__", None), "co_code", b"")
    return hashlib.sha256(text).hexdigest()

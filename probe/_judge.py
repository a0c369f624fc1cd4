"""Who judges the images of a recording: the detector's score of each sample's own concept."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from probe.errors import BadInput


@dataclass(frozen=True)
class Judge:
    """A detector, and for the concept at hand what its labels may be called besides ``family/<name>``."""

    detector: Any
    names: Mapping[str, frozenset[str]]

    @classmethod
    def of(cls, detector: Any, concept: Any) -> Judge | None:
        if detector is None:
            return None
        if not callable(detector) or not hasattr(detector, "labels"):
            raise BadInput("a detector is an object", given=repr(detector), fix="pass probe.detector(name)")
        names = frozenset([*(getattr(concept, "members", None) or ()), getattr(concept, "label", None) or ""])
        return cls(detector, {getattr(concept, "name", ""): names})

    @property
    def id(self) -> str:
        """Name and weights of the detector."""
        return str(getattr(self.detector, "id", type(self.detector).__name__))

    def shown(self, images: np.ndarray, concepts: Sequence[str]) -> np.ndarray:
        """(s,) float32: the score of each sample's concept in its image, NaN where the judge has no such label."""
        scores = np.asarray(self.detector(images), np.float32)
        found = np.full(len(images), np.nan, np.float32)
        for i, concept in enumerate(concepts):
            names = {concept, *self.names.get(concept, ())}
            columns = [j for j, label in enumerate(self.detector.labels) if {label, label.rsplit("/", 1)[-1]} & names]
            if columns:
                found[i] = np.fmax.reduce(scores[i, columns])
        return found

"""What the model predicted before anything was trained: at points that come again, computed once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from erase.learn._points import Batch
from erase.learn._student import Student
from erase.learn._texts import Texts
from probe import guidance


class Teacher:
    """epsilon of the frozen model for texts at points, float32.

    Each point is computed by itself, so that what is known does not decide how the rest is batched: a training that was
    cut off meets the same numbers to the bit.
    """

    def __init__(self, pipe: Any, texts: Texts) -> None:
        self._pipe, self._texts = pipe, texts
        self._known: dict[tuple[str, tuple[int, int]], Tensor] = {}

    def noise(self, student: Student, batch: Batch, *asked: Sequence[str]) -> list[Tensor]:
        """For every list of texts, one a sample: epsilon (s c y x)."""
        with torch.no_grad(), student.suspended():
            if batch.keys is None:
                return [self._at(batch.x, batch.timesteps, texts) for texts in asked]
            device = self._pipe.unet.device
            for i, key in enumerate(batch.keys):
                missing = list(dict.fromkeys(t[i] for t in asked if (t[i], key) not in self._known))
                if missing:
                    n = len(missing)
                    x, timesteps = batch.x[i : i + 1].repeat(n, 1, 1, 1), batch.timesteps[i : i + 1].repeat(n)
                    found = self._at(x, timesteps, missing).cpu()
                    self._known |= {(text, key): row for text, row in zip(missing, found, strict=True)}
            return [
                torch.stack([self._known[t, key] for t, key in zip(texts, batch.keys, strict=True)]).to(device)
                for texts in asked
            ]

    def _at(self, x: Tensor, timesteps: Tensor, texts: Sequence[str]) -> Tensor:
        return guidance.predicted_noise(self._pipe, x, timesteps, self._texts.of(texts))

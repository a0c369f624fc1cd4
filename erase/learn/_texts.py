"""Texts as the UNet is told of them, each encoded once; the empty text is what the pipeline says without a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from probe import guidance
from probe.guidance import Conditioning


class Texts:
    """Text -> its conditioning, computed when first asked for and kept; ``size`` (y, x) in pixels is what SDXL hears.

    SDXL is told zeros instead of an encoded empty text, as its pipeline does.
    """

    def __init__(self, pipe: Any, size: tuple[int, int] | None = None) -> None:
        self._pipe, self._size = pipe, size
        self._known: dict[str, Conditioning] = {}

    def of(self, texts: Sequence[str]) -> Conditioning:
        """The conditioning of one row a text, as the one branch ``cond``."""
        return joined([self._one(text) for text in texts])

    def _one(self, text: str) -> Conditioning:
        if text not in self._known:
            with torch.no_grad():
                if text:
                    found = guidance.condition(self._pipe, [text], guidance=1.0, size=self._size)
                else:  # some word has to stand on the other side
                    both = guidance.condition(self._pipe, ["x"], guidance=2.0, size=self._size)
                    found = both.part("uncond") if "uncond" in both.branches else self._distilled()
            self._known[text] = found
        return self._known[text]

    def _distilled(self) -> Conditioning:
        return guidance.condition(self._pipe, [""], guidance=1.0, size=self._size)


def joined(parts: Sequence[Conditioning]) -> Conditioning:
    """The rows of several conditionings of one branch, one after the other, as the branch ``cond``."""
    first = parts[0]
    added = None
    if first.added is not None:
        rows = [part.added for part in parts if part.added is not None]
        added = {name: torch.cat([row[name] for row in rows]) for name in first.added}
    scales = [part.scale for part in parts if part.scale is not None]
    return Conditioning(
        ("cond",), torch.cat([part.text for part in parts]), added, torch.cat(scales) if scales else None
    )

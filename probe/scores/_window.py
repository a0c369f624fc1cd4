"""One number a sample and neuron: the mean over a window of timesteps, read in pieces of whole sites."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from probe import _axis
from probe._sites import Site
from probe.errors import BadInput
from probe.scores._runs import Recorded

_HELD = 256_000_000  # bytes of window means held at once, all runs of a score together

Window = tuple[float, float]


@dataclass(frozen=True)
class WindowMeans:
    """Window means of one reducer of a run."""

    run: Recorded
    reducer: str
    window: Window
    branches: tuple[str, ...] | None
    _last: dict[tuple[int, int], np.ndarray] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, run: Recorded, reducer: str, window: Window, branches: str) -> WindowMeans:
        """``window`` is (t_max, t_min), both included; ``branches`` is ``"cond"`` or ``"both"`` (their mean).

        Raises `BadInput` for a window without steps, listing those there are. Groups without steps have one window.
        """
        chosen = None if branches == "both" else (branches,)
        found = cls(run, reducer, (float(window[0]), float(window[1])), chosen)
        if found.timesteps is not None and found.steps == slice(0, 0):
            listed = ", ".join(f"{t:g}" for t in dict.fromkeys(found.timesteps.tolist()))
            raise BadInput("no step of the run lies in the window", given=window, expected=f"around any of {listed}")
        return found

    @property
    def timesteps(self) -> np.ndarray | None:
        """(t,) of the run; None without steps."""
        return np.asarray(self.run.ds["timestep"].values) if "step" in self.run.ds.dims else None

    @property
    def steps(self) -> slice | None:
        """The steps in the window. Schedulers go down in time, so they are neighbours."""
        if (timesteps := self.timesteps) is None:
            return None
        inside = np.flatnonzero((timesteps <= self.window[0]) & (timesteps >= self.window[1]))
        return slice(int(inside[0]), int(inside[-1]) + 1) if len(inside) else slice(0, 0)

    @property
    def windows(self) -> list[Window]:
        """The one window, as a neuron map has it."""
        return [self.window if self.timesteps is not None else (999.0, 0.0)]

    def coordinate(self, name: str) -> np.ndarray:
        """(s,) a column of the sample table."""
        return np.asarray(self.run.ds[name].values)

    def read(self, neurons: slice) -> np.ndarray:
        """(s n) float32; rows are NaN for samples that were not measured.

        The last piece is kept: where one piece is all, a second look at it costs no second reading.
        """
        key = (neurons.start, neurons.stop)
        if key not in self._last:
            self._last.clear()
            self._last[key] = self.run.window_means(self.reducer, self.steps, self.branches, neurons)
        return self._last[key]

    def columns(self, neurons: np.ndarray, pieces: Sequence[slice]) -> np.ndarray:
        """(s c) float32: the given neurons (ascending), read through pieces."""
        found = np.empty((self.run.n_samples, len(neurons)), np.float32)
        for piece in pieces:
            inside = (neurons >= piece.start) & (neurons < piece.stop)
            if inside.any():
                found[:, inside] = self.read(piece)[:, neurons[inside] - piece.start]
        return found


def pieces_of(sites: Sequence[Site], samples: int) -> list[slice]:
    """Consecutive whole sites on the neuron axis, each piece as long as `_HELD` allows for so many samples."""
    ends, most = _axis.offsets(sites), max(1, _HELD // (4 * max(1, samples)))
    pieces, start = [], 0
    for previous, end in pairwise(ends):
        if end - start > most and previous > start:
            pieces.append(slice(start, previous))
            start = previous
    return [*pieces, slice(start, ends[-1])]


def sites_within(sites: Sequence[Site], piece: slice) -> Iterator[slice]:
    """The sites of a piece, as slices of the piece."""
    ends = _axis.offsets(sites)
    for start, stop in pairwise(ends):
        if piece.start <= start < piece.stop:
            yield slice(start - piece.start, stop - piece.start)


def measured(x: np.ndarray) -> np.ndarray:
    """(s,) bool: samples of which any neuron of (s n) was measured."""
    return ~np.isnan(x).all(axis=1)

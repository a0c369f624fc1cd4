"""One thread that writes units while the next is being made, and what it notices in them."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from threading import Event
from types import TracebackType
from typing import Any

import numpy as np

from probe._store import RunStore

logger = logging.getLogger(__name__)

Values = Mapping[str, Mapping[str, np.ndarray]]

#: One unit: values by group and array; token rows by site; where NaN is meant, masks that broadcast to the values.
Unit = tuple[Values, Mapping[str, int], Values]


class Writer:
    """Writes units of a run in a thread of its own, one at a time, in the order in which they come.

    The queue is bounded at the unit that is being written: `put` waits for the one before, so that two units at most
    are in memory. An error of the thread is raised by the next `put` or `check`, or at the end of the with-block.
    Leaving the block, also by an error or Ctrl-C, waits until what was put is on disk; a second Ctrl-C gives it up.
    """

    def __init__(self, store: RunStore, *, durable: bool = False) -> None:
        self.store, self.durable = store, durable
        self.bytes, self.seconds = 0, 0.0
        self._stop = Event()
        self._last: Future[None] | None = None

    def __enter__(self) -> Writer:
        self._pool = ThreadPoolExecutor(1, "probe-writer")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self._wait()
            else:
                with suppress(Exception):  # the error that ends the block is the one to tell; this one would follow it
                    self._wait()
        finally:
            self._stop.set()
            self._pool.shutdown(wait=True)

    def put(self, unit: int, values: Values, token_rows: Mapping[str, int], blank: Values | None = None) -> None:
        """Hand over one unit, ``group -> array -> (sample, ...)``, which the caller no longer touches.

        NaN is meant where the masks of ``blank`` are true, and nobody is told of it.
        """
        self._wait()
        self._last = self._pool.submit(self._write, unit, values, token_rows, blank or {})

    def check(self) -> None:
        """Raise what went wrong so far, without waiting."""
        if self._last is not None and self._last.done():
            self._wait()

    @property
    def rate(self) -> float:
        """Megabytes (before compression) a second while writing."""
        return self.bytes / 1e6 / self.seconds if self.seconds else 0.0

    def _wait(self) -> None:
        last, self._last = self._last, None
        if last is not None:
            try:
                last.result()
            except KeyboardInterrupt:
                self._stop.set()
                raise

    def _write(self, unit: int, values: Values, token_rows: Mapping[str, int], blank: Values) -> None:
        start = time.perf_counter()
        found = nonfinite(self.store, unit, values, blank)
        if found:
            logger.warning("%s", _said(found))
        self.store.set_rows(token_rows)  # before the flag: whoever reads a done unit needs it
        self.store.write(unit, values, durable=self.durable, nonfinite=found, stop=self._stop.is_set)
        self.seconds += time.perf_counter() - start
        self.bytes += sum(array.nbytes for arrays in values.values() for array in arrays.values())


def nonfinite(store: RunStore, unit: int, values: Values, blank: Values) -> list[dict[str, Any]]:
    """Where a unit holds NaN or infinity that is not meant: one dict a group, array and site, its steps and samples.

    ``steps`` are indices (empty without a step axis), ``samples`` rows of the run. Coordinates of samples, such as
    ``shown``, are NaN where nothing was measured and are not looked at.
    """
    found = []
    for group, arrays in values.items():
        for name, array in arrays.items():
            # min and max pass NaN on and cost no memory
            if (
                array.dtype.kind != "f"
                or array.ndim < 2
                or not array.size
                or np.isfinite([array.min(), array.max()]).all()
            ):
                continue
            bad = ~np.isfinite(array)
            if (meant := blank.get(group, {}).get(name)) is not None:
                bad &= ~(meant & np.isnan(array))
            if not bad.any():
                continue
            dims = store.root[f"{group}/{name}"].metadata.dimension_names
            for site, places in _by_site(store, group, dims, np.argwhere(bad)):
                steps = np.unique(places[:, dims.index("step")]).tolist() if "step" in dims else []
                samples = (np.unique(places[:, 0]) + store.rows(unit).start).tolist()
                found.append({"group": group, "array": name, "site": site, "steps": steps, "samples": samples})
    return found


def _by_site(store: RunStore, group: str, dims: tuple[str, ...], places: np.ndarray) -> list[tuple[str, np.ndarray]]:
    names = store.site_names(group)
    if "neuron" not in dims or f"{group}/site" not in store.root:
        return [(names[0] if len(names) == 1 else group, places)]
    sites = np.asarray(store.root[f"{group}/site"][:])[places[:, dims.index("neuron")]]
    return [(names[i], places[sites == i]) for i in np.unique(sites).tolist()]


def _said(found: list[dict[str, Any]]) -> str:
    first = found[0]
    step = f", step {first['steps'][0]}" if first["steps"] else ""
    others = f", and {len(found) - 1} other places" if len(found) > 1 else ""
    where = f"{first['site']}{step}, sample {first['samples'][0]} ({first['array']}){others}"
    return f"NaN or infinity was recorded: {where}; `probe info` lists all"

"""Making and writing the units of a store that are not done yet."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import numpy as np

from probe._locks import Rank
from probe._progress import progress_bar
from probe._store import RunStore
from probe._writer import Unit, Writer
from probe.errors import interrupted
from probe.protocols import Progress

logger = logging.getLogger(__name__)

#: Makes the samples of a slice and tells of those that are finished.
Make = Callable[[slice, Callable[[int], object]], Unit]


def fill(store: RunStore, make: Make, what: str, *, rank: Rank, progress: Progress, durable: bool) -> None:
    """Make and write this rank's units that are not done: unit u + 1 is made while unit u is written.

    ``what`` the bar and log say. What is done and no longer on disk is made again.
    """
    with store.locked(rank):
        store.forget(bad.unit for bad in store.missing() if rank.owns(bad.unit))
        _fill(store, make, what, rank, progress, durable=durable)


def _fill(store: RunStore, make: Make, what: str, rank: Rank, progress: Progress, *, durable: bool) -> None:
    own = [unit for unit in range(store.n_units) if rank.owns(unit)]
    done = store.done
    pending = [unit for unit in own if not done[unit]]
    count = {unit: store.rows(unit).stop - store.rows(unit).start for unit in own}
    total, left = sum(count.values()), sum(count[unit] for unit in pending)
    if rank.world > 1:
        logger.info("rank %d of %d: %d of %d units to make", rank.index, rank.world, len(pending), len(own))
        progress = progress if callable(progress) else progress and rank.first
    start = time.perf_counter()
    try:
        with Writer(store, durable=durable) as writer, progress_bar(progress, total, what, "img") as advance:
            advance(total - left)

            def made(n: int) -> None:
                writer.check()
                advance.note(f"{writer.rate:.0f} MB/s to disk" if writer.bytes else "")
                advance(n)

            for unit in pending:
                writer.put(unit, *make(store.rows(unit), made))
    except KeyboardInterrupt as error:
        kept = f"{np.repeat(store.done, store.unit)[: store.n_samples].sum()} of {store.n_samples} samples"
        interrupted(error, f"{what} interrupted: {kept} are kept at {store.path}; repeat the same call to resume")
        raise
    seconds = time.perf_counter() - start
    rate = left / seconds if seconds else 0.0
    logger.info("%d samples in %.1f s: %.2f samples/s, written at %.0f MB/s", left, seconds, rate, writer.rate)

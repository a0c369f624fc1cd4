"""Which chunks of a run are missing or torn, and what they held: site and samples."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from probe._groups import by_unit

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class BadChunk:
    """A chunk that is marked as done and is not there, or cannot be decoded.

    ``chunk`` is its file inside the run, ``unit`` the unit it belongs to, ``samples`` the rows that it holds, ``sites``
    the names of the sites that it holds, in order of execution (none for images and coordinates).
    """

    chunk: str
    unit: int
    samples: range
    sites: tuple[str, ...] = ()

    def __str__(self) -> str:
        first, last = self.samples[0], self.samples[-1]
        rows = f"sample {first}" if first == last else f"samples {first} to {last}"
        if not self.sites:
            return f"{self.chunk} ({rows})"
        sites = self.sites[0] if len(self.sites) == 1 else f"{self.sites[0]} to {self.sites[-1]}"
        return f"{self.chunk} ({sites}, {rows})"


def missing(store: Any, units: Iterable[int]) -> list[BadChunk]:
    """Chunks of these units that are not there or empty. Looks at names and sizes, reads nothing."""

    def bad(_array: Any, _where: tuple[slice, ...], size: int) -> bool:
        return size == 0

    return list(_bad_chunks(store, units, bad))


def damaged(store: Any, units: Iterable[int]) -> list[BadChunk]:
    """Chunks of these units that are missing or whose bytes cannot be decoded (checksums). Reads everything."""

    def bad(array: Any, where: tuple[slice, ...], size: int) -> bool:
        return size == 0 or not _readable(array, where)

    return list(_bad_chunks(store, units, bad))


def absent_coordinates(store: Any) -> list[str]:
    """Chunks of coordinates, sample tables and lists of sites that are gone; these cannot be made again.

    Runs made before chunks of nothing but the fill value were written cannot tell, and name none.
    """
    if not store.root.attrs.get("every_chunk"):
        return []
    names = []
    for group in (*store.groups, "sites"):
        here = store.place.sizes(group)
        for name, array in store.root[group].arrays():
            if group != "sites" and by_unit(array, store.unit):
                continue
            encode = array.metadata.chunk_key_encoding.encode_chunk_key
            counts = [range(-(-n // c)) for n, c in zip(array.shape, array.chunks, strict=True)]
            chunks = (f"{group}/{name}/{encode(chunk)}" for chunk in itertools.product(*counts))
            names += [chunk for chunk in chunks if not here.get(chunk)]
    return sorted(names)


def chunk_files(store: Any, group: str, name: str, unit: int) -> list[str]:
    """The files that hold one unit of an array."""
    array = store.root[f"{group}/{name}"]
    encode = array.metadata.chunk_key_encoding.encode_chunk_key
    return [f"{group}/{name}/{encode(chunk)}" for chunk in _chunks_of(array, store.rows(unit))]


def _bad_chunks(
    store: Any, units: Iterable[int], bad: Callable[[Any, tuple[slice, ...], int], bool]
) -> Iterator[BadChunk]:
    units = list(units)
    for group in store.groups if units else ():
        with store.reading():
            arrays = [(name, array) for name, array in store.root[group].arrays() if by_unit(array, store.unit)]
            here = store.place.sizes(group)
        for name, array in sorted(arrays):
            encode = array.metadata.chunk_key_encoding.encode_chunk_key
            for unit in units:
                for chunk in _chunks_of(array, store.rows(unit)):
                    where = tuple(slice(i * c, (i + 1) * c) for i, c in zip(chunk, array.chunks, strict=True))
                    file = f"{group}/{name}/{encode(chunk)}"
                    if bad(array, where, here.get(file, 0)):
                        last = min(where[0].stop, store.n_samples)
                        yield BadChunk(file, unit, range(where[0].start, last), _sites_of(store, group, array, where))


def _chunks_of(array: Any, rows: slice) -> Iterator[tuple[int, ...]]:
    first, last = rows.start // array.chunks[0], (rows.stop - 1) // array.chunks[0]
    others = [range(-(-n // c)) for n, c in zip(array.shape[1:], array.chunks[1:], strict=True)]
    return itertools.product(range(first, last + 1), *others)


def _sites_of(store: Any, group: str, array: Any, where: tuple[slice, ...]) -> tuple[str, ...]:
    """Names of the sites in a chunk, as far as the rest of the run can still say."""
    dims = array.metadata.dimension_names
    try:
        names = store.site_names(group)
        if "neuron" not in dims or f"{group}/site" not in store.root:
            return tuple(names) if len(dims) > 1 else ()
        held = np.unique(store.root[f"{group}/site"][where[dims.index("neuron")]])
        return tuple(names[i] for i in held.tolist())
    except Exception as error:  # what names the sites may be torn as well
        logger.debug("sites of %s: %s", array.path, error)
        return ()


def _readable(array: Any, where: tuple[slice, ...]) -> bool:
    try:
        array[where]
    except Exception as error:  # whatever a codec raises over torn bytes
        logger.debug("chunk %s of %s: %s", where, array.path, error)
        return False
    return True

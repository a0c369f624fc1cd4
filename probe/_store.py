"""A run on disk: a zarr v3 group that survives kill -9, knows what is done, and says which identity it belongs to.

Written with zarr (xarray's region writes do not check alignment), read with xarray. The order of writes is the whole of
the safety: the store is created under a temporary name and renamed when its header is complete; of a unit, all chunks
are written first (each appears by rename, so none is torn) and its flag in ``done`` last.

    <run>/  attributes: format, layout_version, identity, info, id, unit
      done (unit) uint8                     sites/ name, kind, component, module, io, width, order, group, offset, rows
      unet/ <reducer> (sample, branch, step, neuron) float32, NaN where nothing was written; coordinates
      text_encoder/ <reducer> (sample, branch, neuron)            images/ image (sample, y, x, rgb) uint8
"""

from __future__ import annotations

import itertools
import logging
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
import zarr
from filelock import FileLock, Timeout
from zarr.codecs import Crc32cCodec, ZstdCodec

from probe import formats
from probe._chunks import readable_size
from probe._files import disk_errors, written_whole
from probe.errors import BadInput, StoreDamaged, WorkbenchError

logger = logging.getLogger(__name__)

#: What to do about a run that cannot be read.
AGAIN = "copy the run again, or record into another folder"

#: Per-sample coordinates lie in one chunk up to this many samples; they are small and never written unit by unit.
_COORDINATE_CHUNK = 1 << 16


@dataclass(frozen=True)
class Group:
    """What one group of a run holds: arrays ``(sample, *dims)`` of one shape.

    Two of one name, with the same coords, have arrays of two shapes in one place.

    ``chunk`` has the chunk's length along sample and every dim; ``coords`` maps a name to (dim, values).
    """

    name: str
    arrays: tuple[str, ...]
    dtype: str
    dims: tuple[str, ...]
    sizes: tuple[int, ...]
    chunk: tuple[int, ...]
    coords: Mapping[str, tuple[str, np.ndarray]]

    def size(self, samples: int) -> int:
        """Bytes of all arrays before compression."""
        return len(self.arrays) * samples * int(np.prod(self.sizes)) * np.dtype(self.dtype).itemsize


class RunStore:
    """An existing run, open for reading and, inside `locked`, for writing.

    Raises `BadInput` where there is nothing or another kind of file, `StoreDamaged` where there is no readable header.
    """

    kind = "run"

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.root = open_group(self.path, self.kind)
        try:
            self.identity: dict[str, Any] = dict(self.root.attrs["identity"])
            self.info: dict[str, Any] = dict(self.root.attrs["info"])
            self.id, self.unit = str(self.root.attrs["id"]), int(self.root.attrs["unit"])
            self.n_samples = int(self.identity["samples"]["n"])
            self._done = self.root["done"]
        except (KeyError, TypeError, ValueError) as error:
            raise StoreDamaged(
                "the header of the run is incomplete", given=f"{self.path}: {error}", fix=AGAIN
            ) from error

    @classmethod
    def create(
        cls,
        path: str | Path,
        *,
        identity: Mapping[str, Any],
        info: Mapping[str, Any],
        id: str,
        unit: int,
        samples: pd.DataFrame,
        sites: pd.DataFrame,
        groups: Iterable[Group],
        replace: bool = False,
    ) -> Self:
        """Make an empty run: header, coordinates and empty arrays, under a temporary name that is then renamed.

        Raises `WorkbenchError` when the disk has less room than the run will need.
        """
        path, groups = Path(path), list(groups)
        _check_room(path, sum(group.size(len(samples)) for group in groups))
        with written_whole(path, replace=replace) as temporary:
            root = zarr.create_group(temporary, zarr_format=3)
            _put(root, "done", np.zeros(-(-len(samples) // unit), np.uint8), ("unit",), (1,))
            site_group = root.create_group("sites")
            for name, column in sites.items():
                _put(site_group, str(name), _plain(column), ("site",))
            for group in groups:
                _create_group(root, group, samples, unit)
            root.attrs.update(**formats.header(cls.kind), identity=identity, info=info, id=id, unit=unit)
        return cls(path)

    @property
    def groups(self) -> list[str]:
        """The groups that hold samples, in alphabetical order."""
        with reading(self.path):
            found = dict(self.root.groups())
            maps = [f"maps/{name}" for name, _ in found["maps"].groups()] if "maps" in found else []
            return sorted([*(found.keys() - {"sites", "maps"}), *maps])

    @property
    def n_units(self) -> int:
        """Number of units, the last of which may be short."""
        return -(-self.n_samples // self.unit)

    @property
    def done(self) -> np.ndarray:
        """(unit,) bool: which units are written in full."""
        with reading(self.path):
            return np.asarray(self._done[: self.n_units]) == 1

    def lengths(self, group: str) -> list[int]:
        """Lengths along sample of a group's arrays; they differ while the run is being extended."""
        with reading(self.path):
            arrays = [array for _, array in self.root[group].arrays()]
        return [array.shape[0] for array in arrays if array.metadata.dimension_names[0] == "sample"]

    def rows(self, unit: int) -> slice:
        """The samples of a unit."""
        return slice(unit * self.unit, min((unit + 1) * self.unit, self.n_samples))

    @contextmanager
    def locked(self) -> Iterator[RunStore]:
        """Keep other local writers out; leftovers of a killed one are removed.

        The lock lies inside the folder of ``done``, where zarr does not look for members of the group.
        """
        lock = FileLock(self.path / "done" / ".lock", timeout=0)
        try:
            with disk_errors(self.path), lock:
                for stray in self.path.rglob("*.partial"):
                    stray.unlink(missing_ok=True)
                yield self
        except Timeout as error:
            fix = "wait for it to end, or record into another folder"
            raise WorkbenchError("another process is recording into this run", given=str(self.path), fix=fix) from error

    def write(self, unit: int, values: Mapping[str, Mapping[str, np.ndarray]]) -> None:
        """Write one unit, ``group -> array -> (sample, ...)``, and mark it done when every chunk is on disk.

        Chunks of nothing but the fill value are written too: an absent chunk of a done unit is then always damage.
        """
        rows = self.rows(unit)
        with disk_errors(self.path), zarr.config.set({"array.write_empty_chunks": True}):
            for group, arrays in values.items():
                for name, array in arrays.items():
                    self.root[f"{group}/{name}"][rows] = array
            self._done[unit] = 1

    def set_rows(self, rows: Mapping[str, int]) -> None:
        """Note how many token rows a call gives per site name, known from the first unit on.

        Raises `StoreDamaged` when an earlier unit saw another number.
        """
        names, stored = self.root["sites/name"][:], self.root["sites/rows"]
        found = np.array([rows[str(name)] for name in names], np.int64)
        before = np.asarray(stored[:])
        if ((before != 0) & (before != found)).any():
            raise StoreDamaged("sites saw other numbers of token rows than in earlier units", given=str(self.path))
        with disk_errors(self.path):
            stored[:] = found

    def extend(self, *, identity: Mapping[str, Any], id: str, samples: pd.DataFrame) -> Self:
        """Make room for a longer sample list that starts with the stored one (the caller has checked that).

        A short last unit is recorded again: with more samples it is made in other batches. The header changes last,
        so an interrupted extension is simply asked for again.
        """
        with disk_errors(self.path):
            if self.n_samples % self.unit:
                self._done[self.n_units - 1] = 0
            self._done.resize((-(-len(samples) // self.unit),))
            for name in self.groups:
                for array_name, array in self.root[name].arrays():
                    if array.metadata.dimension_names[0] == "sample":
                        array.resize((len(samples), *array.shape[1:]))
                        if array_name in samples:
                            array[:] = _plain(samples[array_name])
            self.root.attrs.update(identity=identity, id=id)
        return type(self)(self.path)

    def missing(self) -> dict[int, list[str]]:
        """Chunks of done units that are not on disk or empty: unit -> names. Looks at the folder, reads nothing."""
        return self._bad_chunks(lambda _array, _rows, file: not file.is_file() or file.stat().st_size == 0)

    def damaged(self) -> dict[int, list[str]]:
        """Chunks of done units that are missing or cannot be decoded (checksums): unit -> names. Reads everything."""
        return self._bad_chunks(lambda array, where, file: not file.is_file() or not _readable(array, where))

    def forget(self, units: Iterable[int]) -> None:
        """Clear the flags of units, so that the same `probe.record` makes them again."""
        with disk_errors(self.path):
            for unit in units:
                self._done[unit] = 0

    def _bad_chunks(self, bad: Any) -> dict[int, list[str]]:
        found: dict[int, list[str]] = {}
        units = [int(unit) for unit in np.flatnonzero(self.done)]
        for group in self.groups:
            with reading(self.path):
                arrays = [(name, array) for name, array in self.root[group].arrays() if _by_unit(array, self.unit)]
            for name, array in arrays:
                encode = array.metadata.chunk_key_encoding.encode_chunk_key
                for unit in units:
                    for chunk in _chunks_of(array, self.rows(unit)):
                        where = tuple(slice(i * c, (i + 1) * c) for i, c in zip(chunk, array.chunks, strict=True))
                        if bad(array, where, self.path / group / name / encode(chunk)):
                            found.setdefault(unit, []).append(f"{group}/{name}/{encode(chunk)}")
        return found


class TrajectoryStore(RunStore):
    """A trajectory on disk, in the same way.

    <trajectory>/  latents/ latents (sample, step, c, y, x)      final/ final (sample, c, y, x)
      noise_pred/ noise_pred (sample, branch, step, c, y, x), where it was asked for      done, sites/ (none)
    """

    kind = "trajectory"


def store_at(path: str | Path) -> RunStore:
    """The run or trajectory at ``path``, whichever is there. Raises as `RunStore`."""
    try:
        attributes = dict(zarr.open_group(path, mode="r", zarr_format=3).attrs)
    except (FileNotFoundError, FileExistsError, NotADirectoryError, ValueError, KeyError, TypeError):
        return RunStore(path)  # which says what is wrong
    return TrajectoryStore(path) if formats.kind_of(attributes) == TrajectoryStore.kind else RunStore(path)


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Whatever zarr, its codecs and xarray raise over torn bytes inside the block becomes `StoreDamaged`."""
    try:
        yield
    except WorkbenchError:
        raise
    except Exception as error:
        raise StoreDamaged("the run cannot be read", given=f"{path}: {error}", fix=AGAIN) from error


def open_group(path: Path, kind: str) -> Any:
    """The zarr group at ``path``, for reading and writing, its header checked to be of this kind and version."""
    words = kind.replace("_", " ")
    if not path.exists():
        raise BadInput(f"there is no {words} here", given=str(path))
    try:
        root = zarr.open_group(path, mode="r+", zarr_format=3)
        attributes = dict(root.attrs)
    except (FileNotFoundError, FileExistsError, NotADirectoryError, ValueError, KeyError, TypeError) as error:
        what, fix = "no zarr group can be read here", f"copy the {words} again, or make it again"
        raise StoreDamaged(what, given=str(path), expected=f"a {words}", fix=fix) from error
    formats.check_header(attributes, kind, path)
    return root


def compressors() -> list[Any]:
    """Small first, checked second: zstd at level 1, then a crc32c over the compressed bytes."""
    return [ZstdCodec(level=1), Crc32cCodec()]


def _create_group(root: Any, group: Group, samples: pd.DataFrame, unit: int) -> None:
    made = root.require_group(group.name)  # two of one name lie in one place
    n = len(samples)
    for name in group.arrays:
        made.create_array(
            name,
            shape=(n, *group.sizes),
            chunks=group.chunk,
            dtype=group.dtype,
            fill_value=np.nan if np.dtype(group.dtype).kind == "f" else 0,
            dimension_names=("sample", *group.dims),
            compressors=compressors(),
        )
    if "shown" in made:
        return
    for column in samples:
        _put(made, str(column), _plain(samples[column]), ("sample",), (_COORDINATE_CHUNK,))
    _put(made, "shown", np.full(n, np.nan, np.float32), ("sample",), (unit,))
    for name, (dim, values) in group.coords.items():
        _put(made, name, values, (dim,))
    names = [str(name) for name in samples] + ["shown", *(k for k, (dim, _) in group.coords.items() if k != dim)]
    made.attrs["coordinates"] = " ".join(names)  # where xarray looks for them


def _put(
    group: Any, name: str, values: np.ndarray, dims: tuple[str, ...], chunks: tuple[int, ...] | None = None
) -> None:
    text = values.dtype.kind in "OUT"
    array = group.create_array(
        name,
        shape=values.shape,
        chunks=chunks or tuple(max(1, n) for n in values.shape),
        dtype="str" if text else values.dtype,
        fill_value="" if text else (np.nan if values.dtype.kind == "f" else 0),
        dimension_names=dims,
        compressors=compressors(),
    )
    array[...] = values


def _plain(column: pd.Series) -> np.ndarray:
    """A column as an array that zarr knows: text as objects, numbers as they are."""
    is_number = pd.api.types.is_numeric_dtype(column.dtype)
    return column.to_numpy() if is_number else column.astype(object).to_numpy(dtype=object)


def _by_unit(array: Any, unit: int) -> bool:
    """Whether an array is written unit by unit (and not once, at creation)."""
    return array.metadata.dimension_names[0] == "sample" and array.chunks[0] <= unit


def _chunks_of(array: Any, rows: slice) -> Iterator[tuple[int, ...]]:
    first, last = rows.start // array.chunks[0], (rows.stop - 1) // array.chunks[0]
    others = [range(-(-n // c)) for n, c in zip(array.shape[1:], array.chunks[1:], strict=True)]
    return itertools.product(range(first, last + 1), *others)


def _readable(array: Any, where: tuple[slice, ...]) -> bool:
    try:
        array[where]
    except Exception as error:  # whatever a codec raises over torn bytes
        logger.debug("chunk %s of %s: %s", where, array.path, error)
        return False
    return True


def _check_room(path: Path, size: int) -> None:
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    free = shutil.disk_usage(folder).free
    logger.info("a run of %s at %s (%s free)", readable_size(size), path, readable_size(free))
    if size > free:
        raise WorkbenchError(
            "the run needs more room than the disk has",
            given=f"{readable_size(free)} free at {folder}",
            expected=f"{readable_size(size)}",
            fix="record fewer samples, steps, sites or reducers, or choose another disk",
        )

"""A run or trajectory on disk: a zarr v3 group that survives kill -9, knows what is done, and says whose it is.

Written with zarr (xarray's region writes do not check alignment), read with xarray. The order of writes is the whole of
the safety: the store is created under a temporary name and renamed when its header is complete (a remote store gets its
header last instead); of a unit, all chunks are written first (each appears by rename, so none is torn) and its flag in
``done`` last.

    <run>/  attributes: format, layout_version, identity, info, id, unit, groups, every_chunk
      done (unit) uint8                     sites/ name, kind, component, module, io, width, order, group, offset, rows
      nonfinite (unit) text: a JSON list of the sites and steps at which NaN or infinity was recorded
      unet/ <reducer> (sample, branch, step, neuron) float32, NaN where nothing was written; coordinates
      text_encoder/ <reducer> (sample, branch, neuron)            images/ image (sample, y, x, rgb) uint8
      maps/<NNN-site>/ map, full or prob      xattn_k/ k, xattn_v/ v      latents/ latents, guided
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
import zarr

from probe import _checks, formats
from probe._checks import BadChunk
from probe._chunks import readable_size
from probe._codecs import encoding
from probe._files import disk_errors
from probe._groups import Group, by_unit, create_group, every_chunk, group_names, plain, put
from probe._headers import AGAIN, UNFINISHED, kind_of, open_group, reading
from probe._locks import Rank
from probe._places import Place, copy_store, place_of
from probe.errors import StoreDamaged, WorkbenchError

logger = logging.getLogger(__name__)


class RunStore:
    """An existing run, open for reading and, inside `locked`, for writing.

    ``path`` is a folder or a URL. Raises `BadInput` where there is nothing or another kind of file, `StoreDamaged`
    where there is no readable header.
    """

    kind = "run"

    def __init__(self, path: str | Path | Place) -> None:
        self.place = place_of(path) if isinstance(path, str | Path) else path
        self.path = self.place.path
        self.root = open_group(self.place, self.kind)
        try:
            attributes = dict(self.root.attrs)
            self.identity: dict[str, Any] = dict(attributes["identity"])
            self.info: dict[str, Any] = dict(attributes["info"])
            self.id, self.unit = str(attributes["id"]), int(attributes["unit"])
            self.n_samples = int(self.identity["samples"]["n"])
            self.rechunked: str | None = attributes.get("rechunked")
            self._groups: list[str] | None = attributes.get("groups")
            self._done = self.root["done"]
        except (KeyError, TypeError, ValueError) as error:
            raise StoreDamaged(
                f"the header of the {self.kind} is incomplete", given=f"{self.path}: {error}", fix=AGAIN
            ) from error

    @classmethod
    def create(
        cls,
        path: str | Path | Place,
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
        """Make an empty run: header, coordinates and empty arrays; a local one under a temporary name, then renamed.

        Raises `WorkbenchError` when the disk has less room than the run will need.
        """
        place, groups = place_of(path) if isinstance(path, str | Path) else path, list(groups)
        check_room(place, sum(group.size(len(samples)) for group in groups))
        n_units = -(-len(samples) // unit)
        with place.written(replace=replace) as target, disk_errors(place.path):
            made = zarr.storage.MemoryStore()  # fifty small files one by one take as long as a step of a small model
            root = zarr.create_group(made, zarr_format=3)
            put(root, "done", np.zeros(n_units, np.uint8), ("unit",), (1,), sparse=True)
            put(root, "nonfinite", np.full(n_units, "", object), ("unit",), (1,), sparse=True)
            site_group = root.create_group("sites")
            for name, column in sites.items():
                put(site_group, str(name), plain(column), ("site",))
            for group in groups:
                create_group(root, group, samples, unit)
            zarr.create_group(target, zarr_format=3, attributes={UNFINISHED: True})
            copy_store(made, target)
            names = sorted(group.name for group in groups)
            header = {**formats.header(cls.kind), "identity": identity, "info": info, "id": id, "unit": unit}
            zarr.open_group(target, mode="r+").attrs.put({**header, "groups": names, "every_chunk": True})
        return cls(place)

    @property
    def groups(self) -> list[str]:
        """The groups that hold samples, in alphabetical order; nested ones have a slash."""
        if self._groups is None:
            with self.reading():
                self._groups = group_names(self.root)
        return list(self._groups)

    @property
    def n_units(self) -> int:
        """Number of units, the last of which may be short."""
        return -(-self.n_samples // self.unit)

    @property
    def done(self) -> np.ndarray:
        """(unit,) bool: which units are written in full."""
        with self.reading():
            return np.asarray(self._done[: self.n_units]) == 1

    @property
    def nonfinite(self) -> list[dict[str, Any]]:
        """Where NaN or infinity was recorded: dicts of group, arrays, site, steps and samples."""
        with self.reading():
            said = self.root["nonfinite"][:].tolist() if "nonfinite" in self.root else []
            return [entry for text in said if text for entry in json.loads(text)]

    def reading(self) -> Any:
        """See the function `reading`."""
        return reading(self.path, self.kind)

    def lengths(self, group: str) -> list[int]:
        """Lengths along sample of a group's arrays; they differ while the run is being extended."""
        with self.reading():
            arrays = [array for _, array in self.root[group].arrays()]
        return [array.shape[0] for array in arrays if array.metadata.dimension_names[0] == "sample"]

    def site_names(self, group: str) -> list[str]:
        """The names of a group's sites, in order of execution."""
        with self.reading():
            names, groups = self.root["sites/name"][:].tolist(), self.root["sites/group"][:].tolist()
        return [name for name, of in zip(names, groups, strict=True) if of == group]

    def rows(self, unit: int) -> slice:
        """The samples of a unit."""
        return slice(unit * self.unit, min((unit + 1) * self.unit, self.n_samples))

    @contextmanager
    def locked(self, rank: Rank | None = None) -> Iterator[Self]:
        """Keep other local writers out, except further ranks of the same job; leftovers of a killed one are removed."""
        with self.place.locked(rank or Rank()):
            yield self

    def write(
        self,
        unit: int,
        values: Mapping[str, Mapping[str, np.ndarray]],
        *,
        durable: bool = False,
        nonfinite: Sequence[Mapping[str, Any]] = (),
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """Write one unit, ``group -> array -> (sample, ...)``, and mark it done when every chunk is on disk.

        Chunks of nothing but the fill value are written too: an absent chunk of a done unit is then always damage.
        ``durable`` waits until the disk has the chunks, then sets the flag and waits for that. ``stop`` is asked
        between arrays and gives the unit up.
        """
        rows = self.rows(unit)
        with disk_errors(self.path), encoding():
            notes = self.root.get("nonfinite")  # opened first, so that empty texts need no chunk; older runs have none
            stored = {(g, n): every_chunk(self.root[f"{g}/{n}"]) for g, arrays in values.items() for n in arrays}
        with disk_errors(self.path):
            for group, arrays in values.items():
                for name, array in arrays.items():
                    if stop():
                        return
                    stored[group, name][rows] = array
            if notes is not None:
                notes[unit] = json.dumps(list(nonfinite)) if nonfinite else ""
            if durable:
                files = [f for group, arrays in values.items() for n in arrays for f in self._files(group, n, unit)]
                self.place.sync(files)
            self._done[unit] = 1
            if durable:
                self.place.sync([f"done/{self._done.metadata.chunk_key_encoding.encode_chunk_key((unit,))}"])

    def set_rows(self, rows: Mapping[str, int]) -> None:
        """Note how many token rows a call gives per site name, known from the first unit on.

        Raises `StoreDamaged` when an earlier unit saw another number.
        """
        with encoding():
            names, stored = self.root["sites/name"][:], self.root["sites/rows"]
        before = np.asarray(stored[:])
        found = np.array([rows.get(str(name), seen) for name, seen in zip(names, before, strict=True)], np.int64)
        if ((before != 0) & (before != found)).any():
            raise StoreDamaged("sites saw other numbers of token rows than in earlier units", given=str(self.path))
        if (before != found).any():
            with disk_errors(self.path):
                every_chunk(stored)[:] = found

    def extend(self, *, identity: Mapping[str, Any], id: str, samples: pd.DataFrame) -> Self:
        """Make room for a longer sample list that starts with the stored one (the caller has checked that).

        A short last unit is recorded again: with more samples it is made in other batches. The header changes last,
        so an interrupted extension is simply asked for again.
        """
        with disk_errors(self.path):
            if self.n_samples % self.unit:
                self._done[self.n_units - 1] = 0
            for name in ("done", "nonfinite"):
                if name in self.root:
                    self.root[name].resize((-(-len(samples) // self.unit),))
            for name in self.groups:
                for array_name, array in self.root[name].arrays():
                    if array.metadata.dimension_names[0] == "sample":
                        array.resize((len(samples), *array.shape[1:]))
                        if array_name in samples:
                            every_chunk(array)[:] = plain(samples[array_name])
            self.root.attrs.update(identity=identity, id=id)
        return type(self)(self.place)

    def missing(self) -> list[BadChunk]:
        """Chunks of done units that are not on disk or empty. Looks at names and sizes, reads nothing."""
        return _checks.missing(self, np.flatnonzero(self.done).tolist())

    def damaged(self) -> list[BadChunk]:
        """Chunks of done units that are missing or cannot be decoded (checksums). Reads everything."""
        return _checks.damaged(self, np.flatnonzero(self.done).tolist())

    def check_coordinates(self) -> None:
        """Raise `StoreDamaged` where chunks that belong to no unit are gone: they would read as empty."""
        with self.reading():
            absent = _checks.absent_coordinates(self)
        if absent:
            given = f"{self.path}: {', '.join(absent[:3])}{', ...' if len(absent) > 3 else ''}"
            raise StoreDamaged(f"coordinates of the {self.kind} are missing", given=given, fix=AGAIN)

    def forget(self, units: Iterable[int]) -> None:
        """Clear the flags of units, so that the same call makes them again."""
        with disk_errors(self.path):
            for unit in set(units):
                self._done[unit] = 0

    def _files(self, group: str, name: str, unit: int) -> list[str]:
        array = self.root[f"{group}/{name}"]
        return _checks.chunk_files(self, group, name, unit) if by_unit(array, self.unit) else []


class TrajectoryStore(RunStore):
    """A trajectory on disk, in the same way.

    <trajectory>/  latents/ latents (sample, step, c, y, x)      final/ final (sample, c, y, x)
      noise_pred/ noise_pred (sample, branch, step, c, y, x), where it was asked for      done, nonfinite, sites/ (none)
    """

    kind = "trajectory"


def store_at(path: str | Path | Place) -> RunStore:
    """The run or trajectory at ``path``, whichever is there. Raises as `RunStore`."""
    place = place_of(path) if isinstance(path, str | Path) else path
    return TrajectoryStore(place) if kind_of(place) == TrajectoryStore.kind else RunStore(place)


def check_room(place: Place, size: int) -> None:
    """Raise `WorkbenchError` when a place has less room than ``size`` bytes."""
    free = place.free()
    room = "room unknown" if free is None else f"{readable_size(free)} free"
    logger.info("%s to be written at %s (%s)", readable_size(size), place.path, room)
    if free is not None and size > free:
        raise WorkbenchError(
            "the run needs more room than the disk has",
            given=f"{readable_size(free)} free at {place.path}",
            expected=readable_size(size),
            fix="record fewer samples, steps, sites or reducers, or choose another disk",
        )

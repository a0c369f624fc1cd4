"""The groups of a run: what they are planned to hold, and making their empty arrays and coordinates."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from probe._codecs import compressors

#: Per-sample coordinates lie in one chunk up to this many samples; they are small and never written unit by unit.
COORDINATE_CHUNK = 1 << 16


@dataclass(frozen=True)
class Variable:
    """One array of a group: ``(sample, *dims)``; ``chunk`` has the chunk's length along sample and every dim."""

    name: str
    dtype: str
    dims: tuple[str, ...]
    sizes: tuple[int, ...]
    chunk: tuple[int, ...]

    def size(self, samples: int) -> int:
        """Bytes before compression."""
        return samples * int(np.prod(self.sizes)) * np.dtype(self.dtype).itemsize


@dataclass(frozen=True)
class Group:
    """What one group of a run holds.

    ``arrays`` are ``(sample, *dims)``, all of one dtype, shape and chunk; ``variables`` are others beside them.
    ``coords`` maps a name to (dim, values). Names may be nested: ``maps/003-mid/ffn``.
    """

    name: str
    arrays: tuple[str, ...]
    dtype: str
    dims: tuple[str, ...]
    sizes: tuple[int, ...]
    chunk: tuple[int, ...]
    coords: Mapping[str, tuple[str, np.ndarray]]
    variables: tuple[Variable, ...] = ()

    @property
    def every(self) -> tuple[Variable, ...]:
        """All arrays."""
        alike = (Variable(name, self.dtype, self.dims, self.sizes, self.chunk) for name in self.arrays)
        return (*alike, *self.variables)

    def size(self, samples: int) -> int:
        """Bytes of all arrays before compression."""
        return sum(variable.size(samples) for variable in self.every)


def create_group(root: Any, group: Group, samples: pd.DataFrame, unit: int) -> None:
    """Make an empty group with its coordinates and the sample table."""
    made = root
    for part in group.name.split("/"):
        made = made.require_group(part)
    n = len(samples)
    for variable in group.every:
        create_array(made, variable, n)
    for column in samples:
        put(made, str(column), plain(samples[column]), ("sample",), (COORDINATE_CHUNK,))
    put(made, "shown", np.full(n, np.nan, np.float32), ("sample",), (unit,))
    for name, (dim, values) in group.coords.items():
        put(made, name, values, (dim,))
    names = [str(name) for name in samples] + ["shown", *(k for k, (dim, _) in group.coords.items() if k != dim)]
    made.attrs["coordinates"] = " ".join(names)  # where xarray looks for them


def create_array(group: Any, variable: Variable, samples: int, codecs: Sequence[Any] | None = None) -> Any:
    """Make an empty array of a run: filled with NaN, or with 0 where the type has none."""
    array = group.create_array(
        variable.name,
        shape=(samples, *variable.sizes),
        chunks=variable.chunk,
        dtype=variable.dtype,
        fill_value=np.nan if np.dtype(variable.dtype).kind == "f" else 0,
        dimension_names=("sample", *variable.dims),
        compressors=compressors(variable.dtype) if codecs is None else codecs,
    )
    return every_chunk(array)


def put(
    group: Any,
    name: str,
    values: np.ndarray,
    dims: tuple[str, ...],
    chunks: tuple[int, ...] | None = None,
    *,
    sparse: bool = False,
) -> None:
    """Store an array that is known now: a coordinate, a column; ``sparse``: without chunks of the fill value alone."""
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
    (array if sparse else every_chunk(array))[...] = values


def every_chunk(array: Any) -> Any:
    """The array, to be written without leaving out chunks of nothing but the fill value: absent ones are damage then.

    A setting of this array: zarr's own, which is the process's, is not restored rightly when threads overlap.
    """
    return array.with_config({"write_empty_chunks": True})


def plain(column: pd.Series) -> np.ndarray:
    """A column as an array that zarr knows: text as objects, numbers as they are."""
    is_number = pd.api.types.is_numeric_dtype(column.dtype)
    return column.to_numpy() if is_number else column.astype(object).to_numpy(dtype=object)


def group_names(root: Any) -> list[str]:
    """The groups that hold samples, nested ones too, in alphabetical order."""
    return sorted(name for name in _walk(root, "") if name != "sites")


def _walk(group: Any, above: str) -> Iterator[str]:
    for name, inner in group.groups():
        if any(True for _ in inner.array_keys()):
            yield f"{above}{name}"
        yield from _walk(inner, f"{above}{name}/")


def by_unit(array: Any, unit: int) -> bool:
    """Whether an array is written unit by unit (and not once, at creation)."""
    return array.metadata.dimension_names[0] == "sample" and array.chunks[0] <= unit

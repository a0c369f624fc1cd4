"""rechunk: a copy of a run in which all samples of a neuron lie together."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import zarr
from zarr.codecs import Crc32cCodec

from probe._chunks import MEGABYTE
from probe._codecs import decoding
from probe._files import disk_errors
from probe._groups import Variable, create_array, put
from probe._options import validated
from probe._places import Folder, place_of
from probe._progress import Advance, progress_bar
from probe._run import Run, damage
from probe._store import RunStore, check_room
from probe.errors import BadInput
from probe.protocols import Progress

logger = logging.getLogger(__name__)

#: Samples that lie together at most; more would make one neuron of a long run larger than a chunk.
_SAMPLES = 4096


@validated
def rechunk(
    run: Any,
    *,
    out: str | Path,
    by: Literal["neuron"] = "neuron",
    max_memory_mb: int = 512,
    progress: Progress = True,
    force: bool = False,
) -> Run:
    """Copy a finished run so that one neuron over all samples is read quickly.

    Recording wants all neurons of a few samples in a chunk; looking at one neuron then reads the whole run. In the copy
    a chunk holds about 1 MB of a few neurons: all branches and steps of up to 4,096 samples (fewer of maps), checked
    but not compressed (activations hardly shrink, and decoding is what a reader would wait for). Arrays without neurons
    are copied as they are. The copy has the run's identity and id: it holds the same numbers.

    Args:
        run: a path, URL or `probe.Run`.
        out: folder or URL of the copy.
        by: ``"neuron"``.
        max_memory_mb: of the block that is held while copying, in 10^6 bytes; a chunk of the run is the least.
        progress: True, False or a function of (done, total) bytes.
        force: replace the run that is at ``out``.

    Raises `BadInput` for an unfinished run and an ``out`` that is taken, `StoreDamaged` for chunks that cannot be read.
    """
    source = RunStore(run.path if isinstance(run, Run) else run)
    target = place_of(out)
    if not source.done.all():
        given = f"{int(source.done.sum())} of {source.n_units} units at {source.path}"
        raise BadInput("only a finished run can be rechunked", given=given, fix="repeat the record call, which resumes")
    if bad := source.missing():
        raise damage(source, bad)
    source.check_coordinates()
    with target.creating():
        _check_target(source, target, force)
        # opened here, so that zarrs reads them where it may; what is written goes through zarr
        with decoding("auto", faster=isinstance(source.place, Folder)):
            arrays = {group: dict(sorted(source.root[group].arrays())) for group in (*source.groups, "sites")}
        total = sum(array.nbytes for members in arrays.values() for array in members.values())
        check_room(target, total)
        with (
            target.written(replace=force) as store,
            disk_errors(target.path),
            progress_bar(progress, total, "rechunking", "B") as advance,
        ):
            root = zarr.create_group(store, zarr_format=3, attributes={"unfinished": True})
            put(root, "done", np.ones(1, np.uint8), ("unit",), (1,))
            for group, members in arrays.items():
                made = root
                for part in group.split("/"):
                    made = made.require_group(part)
                made.attrs.put(dict(source.root[group].attrs))
                _copy_arrays(members, made, advance, max_memory_mb * MEGABYTE)
            attributes = dict(source.root.attrs) | {"unit": source.n_samples, "groups": source.groups}
            found = {"nonfinite": source.nonfinite} if source.nonfinite else {}
            attributes |= {"info": {**source.info, **found}, "rechunked": by, "every_chunk": True}
            root.attrs.put(attributes)
    return Run(target.path)


def _check_target(source: RunStore, target: Any, force: bool) -> None:
    if not target.occupied():
        return
    try:
        there = RunStore(target)
    except Exception as error:
        logger.debug("%s: %s", target.path, error)
        fix = "choose another path"
        raise BadInput("the output path exists and is no run", given=str(target.path), fix=fix) from None
    if there.path == source.path:
        raise BadInput("a run cannot be rechunked into itself", given=str(target.path), fix="choose another path")
    if not force:
        fix = "choose another path, or force=True to replace it"
        raise BadInput("another run is here", given=str(target.path), fix=fix)


def _copy_arrays(arrays: Mapping[str, Any], made: Any, advance: Advance, limit: int) -> None:
    for name, array in arrays.items():
        dims = array.metadata.dimension_names
        if dims[0] != "sample" or len(dims) == 1:
            put(made, name, np.asarray(array[:]), dims)
            advance(array.nbytes)
            continue
        neuronal = "neuron" in dims
        chunk = neuron_chunk(array.shape, dims, array.dtype.itemsize) if neuronal else array.chunks
        variable = Variable(name, str(array.dtype), dims[1:], array.shape[1:], chunk)
        copy = create_array(made, variable, array.shape[0], [Crc32cCodec()] if neuronal else None)
        for block in blocks(array.shape, array.chunks, chunk, array.dtype.itemsize, limit):
            values = np.asarray(array[block])
            copy[block] = values
            advance(values.nbytes)


def neuron_chunk(shape: tuple[int, ...], dims: tuple[str, ...], itemsize: int) -> tuple[int, ...]:
    """The chunk of a neuron-major array: up to 4,096 samples or 8 MB, all of every other dim, neurons up to 1 MB."""
    one = itemsize * int(np.prod([n for n, dim in zip(shape[1:], dims[1:], strict=True) if dim != "neuron"]))
    samples = min(shape[0], _SAMPLES, max(1, 8 * MEGABYTE // one))  # maps have few: a sample of theirs may fill a chunk
    neurons = max(1, MEGABYTE // (samples * one))
    sizes = (min(neurons, n) if dim == "neuron" else n for n, dim in zip(shape[1:], dims[1:], strict=True))
    return (samples, *sizes)


def blocks(
    shape: tuple[int, ...], read: tuple[int, ...], written: tuple[int, ...], itemsize: int, limit: int
) -> Iterator[tuple[slice, ...]]:
    """Blocks that cover an array, each of whole written chunks, read in as few pieces as ``limit`` bytes allow.

    A block has one written chunk's samples, and along each further dim as many written chunks as reach the end of a
    chunk that is read, or fewer where memory is short: then chunks are read several times.
    """
    sizes = [min(written[0], shape[0])]
    for n, r, w in zip(shape[1:], read[1:], written[1:], strict=True):
        sizes.append(min(n, -(-max(r, w) // w) * w))
    last = len(sizes) - 1
    while last > 0 and int(np.prod(sizes)) * itemsize > limit:
        slice_bytes = int(np.prod(sizes)) // sizes[last] * itemsize
        fits = max(1, limit // slice_bytes // written[last])
        sizes[last] = min(sizes[last], fits * written[last])
        last -= 1
    places = [range(0, n, size) for n, size in zip(shape, sizes, strict=True)]
    for corner in np.ndindex(*(len(place) for place in places)):
        starts = [place[i] for place, i in zip(places, corner, strict=True)]
        yield tuple(slice(a, min(a + size, n)) for a, size, n in zip(starts, sizes, shape, strict=True))

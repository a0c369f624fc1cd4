"""How chunks are encoded, and by what: zarr itself, or zarrs (extra ``fast``) for reading.

zarrs writes a chunk in place, so that a kill could tear it; zarr writes beside and renames. What may be killed is
therefore written by zarr, whatever reads it.
"""

from __future__ import annotations

import importlib.util
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import zarr
from zarr.codecs import BloscCodec, Crc32cCodec, ZstdCodec

from probe.errors import MissingExtra

Codecs = Literal["auto", "zarr", "zarrs"]

#: zarr's configuration is one for all threads: no array is opened for writing while `decoding` has changed it.
_CHOSEN = threading.RLock()


def compressors(dtype: Any = None) -> list[Any]:
    """Compressed first, checked second: a crc32c over the compressed bytes.

    Activations have random low bits: lz4 over transposed bits is as small as zstd there, and quicker to decode.
    Everything else is small, or repeats: zstd at level 1.
    """
    if dtype is not None and np.dtype(dtype).kind == "f":
        size = np.dtype(dtype).itemsize
        return [BloscCodec(cname="lz4", clevel=5, shuffle="bitshuffle", typesize=size), Crc32cCodec()]
    return [ZstdCodec(level=1), Crc32cCodec()]


@contextmanager
def decoding(codecs: Codecs, *, faster: bool = True) -> Iterator[None]:
    """Arrays opened inside the block are read through zarr's or zarrs' pipeline.

    ``"auto"`` takes zarrs where it is installed and ``faster``: it is made for whole chunks of local files. Raises
    `MissingExtra` for ``"zarrs"`` without.
    """
    if codecs == "zarrs" and not _installed():
        fix = "pip install 'neuron-workbench[fast]'"
        raise MissingExtra("zarrs is not installed", given='codecs="zarrs"', fix=fix)
    if codecs == "zarr" or (codecs == "auto" and not (faster and _installed())):
        yield
        return
    with _CHOSEN, zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}):
        yield


@contextmanager
def encoding() -> Iterator[None]:
    """Arrays opened inside the block are written by zarr, whatever another thread may be opening with `decoding`."""
    with _CHOSEN:
        yield


def _installed() -> bool:
    return importlib.util.find_spec("zarrs") is not None

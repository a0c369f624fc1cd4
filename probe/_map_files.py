"""Small datasets as files: a zarr v3 folder, or the same folder packed into one ``.zarr.zip``, whole or not at all."""

from __future__ import annotations

import json
import os
import tempfile
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import xarray as xr
import zarr

from probe import formats
from probe._codecs import compressors
from probe._files import check_free, written_whole
from probe._kinds import absent
from probe.errors import StoreDamaged, WorkbenchError

_AGAIN = "copy it again, or make it again from its runs"
_EPOCH = (1980, 1, 1, 0, 0, 0)  # equal content gives equal bytes


def write_dataset(ds: xr.Dataset, path: Path, kind: str, *, force: bool) -> None:
    """Write ``ds``, whose attributes carry the header of ``kind`` and a provenance; whole or not at all.

    A file of the same kind, id and report is left alone unless ``force``; see `check_free` for what else may be at
    ``path``.
    """
    stored = _stored(path, kind)
    if stored == _essence(ds) and not force:
        return
    check_free(path, kind.replace("_", " "), ours=stored is not None, force=force)
    ds = ds.drop_encoding()
    encoding: dict[Any, dict[str, Any]] = {name: {"compressors": compressors()} for name in ds.variables}
    options: dict[str, Any] = {"zarr_format": 3, "consolidated": False, "mode": "w-", "write_empty_chunks": True}
    with written_whole(path, replace=force) as temporary:
        if not is_zip(path):
            ds.to_zarr(temporary, encoding=encoding, **options)
            return
        with tempfile.TemporaryDirectory() as folder:
            ds.to_zarr(Path(folder, "map"), encoding=encoding, **options)
            _pack(Path(folder, "map"), temporary)


def read_dataset(path: Path, kind: str) -> xr.Dataset:
    """The dataset at ``path``, read whole, its header and the presence of every chunk checked.

    Raises `BadInput` where there is nothing, or another kind or a newer version; `StoreDamaged` for what cannot be
    read.
    """
    words = kind.replace("_", " ")
    if not os.path.exists(path):
        raise absent(path, kind)
    try:
        store = (
            zarr.storage.ZipStore(path, mode="r") if path.is_file() else zarr.storage.LocalStore(path, read_only=True)
        )
        try:
            root = zarr.open_group(store, mode="r", zarr_format=3)
            formats.check_header(dict(root.attrs), kind, path)
            missing = [name for name, array in root.arrays() if _stored_chunks(path, name, array) != array.nchunks]
            if missing:
                raise StoreDamaged("chunks are missing", given=f"{path}: {', '.join(missing)}", fix=_AGAIN)
            with xr.open_dataset(store, engine="zarr", consolidated=False, cache=False, zarr_format=3) as ds:
                return ds.load()
        finally:
            with suppress(AttributeError):  # a zip file that could not be opened
                store.close()
    except WorkbenchError:
        raise
    except Exception as error:  # zipfile, zarr, codecs and xarray each have their own for torn bytes
        raise StoreDamaged(f"the {words} cannot be read", given=f"{path}: {error}", fix=_AGAIN) from error


def is_zip(path: Path) -> bool:
    """Whether a file of this name is one packed file."""
    return path.name.endswith(".zarr.zip")


def _stored_chunks(path: Path, name: str, array: Any) -> int:
    """How many chunks of an array are there. zarr's own count trips over names that begin alike in a zip file."""
    if not path.is_file():
        return int(array.nchunks_initialized)
    with zipfile.ZipFile(path) as archive:
        return sum(key == f"{name}/c" or key.startswith(f"{name}/c/") for key in archive.namelist())


def _stored(path: Path, kind: str) -> tuple[str, Any] | None:
    if not os.path.exists(path):  # also where such a path cannot be
        return None
    try:
        return _essence(read_dataset(path, kind))
    except (WorkbenchError, KeyError, ValueError):
        return None


def _essence(ds: xr.Dataset) -> tuple[str, Any]:
    """The id, and what was measured without being part of it."""
    provenance = json.loads(ds.attrs["provenance"])
    return str(provenance["id"]), provenance.get("report", {})


def _pack(folder: Path, path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for file in sorted(file for file in folder.rglob("*") if file.is_file()):
            entry = zipfile.ZipInfo(file.relative_to(folder).as_posix(), _EPOCH)
            archive.writestr(entry, file.read_bytes())

"""Where a run lies: a folder of this machine, or a URL that fsspec knows (``s3://``, ``memory://``).

The two differ in what can be promised. A folder is created under another name and renamed, can be locked, synced and
measured; an object store can do none of these: there the header is written last and one writer is the caller's promise.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import zarr
import zarr.core.buffer
import zarr.core.sync

from probe._files import occupied, remove_leftovers, written_whole
from probe._locks import Rank, creation_lock, writer_lock
from probe.errors import BadInput, MissingExtra

_URL = re.compile(r"[a-z][a-z0-9+.-]+://")


class Place(Protocol):
    """What a store asks of the place it lies in. Keys are relative, with slashes."""

    @property
    def path(self) -> Path | str:
        """The folder, or the URL."""
        ...

    @property
    def name(self) -> str:
        """The last part of the path."""
        ...

    def exists(self) -> bool:
        """Whether anything is there."""
        ...

    def occupied(self) -> bool:
        """Whether something is there that a new run would hide; an empty folder is nothing."""
        ...

    def store(self) -> Any:
        """The zarr store to read and write here."""
        ...

    def sizes(self, key: str = "") -> dict[str, int]:
        """The files at or below ``key``: key -> bytes."""
        ...

    def creating(self) -> Any:
        """Context: nobody else creates here; leftovers of a killed creation are gone."""
        ...

    def written(self, *, replace: bool) -> Any:
        """Context that gives the zarr store to fill; a folder takes its name when the block ends well."""
        ...

    def locked(self, rank: Rank) -> Any:
        """Context: no other job writes here."""
        ...

    def free(self) -> int | None:
        """Bytes of room left, None where nobody can say."""
        ...

    def sync(self, keys: Iterable[str]) -> None:
        """Return when these files, and the folders that name them, would survive a power cut."""
        ...


def is_url(path: object) -> bool:
    """Whether a path is a URL of another place than this machine's disk."""
    return isinstance(path, str) and bool(_URL.match(path)) and not path.startswith(("file://", "local://"))


def place_of(path: str | Path) -> Place:
    """The place that a path or a URL names.

    Raises `BadInput` for a protocol that fsspec does not know, `MissingExtra` where its package is not installed.
    """
    if is_url(path):
        return Remote(str(path).rstrip("/"))
    return Folder(Path(re.sub(r"^(file|local)://", "", path) if isinstance(path, str) else path))


@dataclass(frozen=True)
class Folder:
    """A folder of this machine."""

    path: Path

    @property
    def name(self) -> str:
        """See `Place`."""
        return self.path.name

    def exists(self) -> bool:
        """See `Place`."""
        return os.path.exists(self.path)

    def occupied(self) -> bool:
        """See `Place`."""
        return occupied(self.path)

    def store(self) -> Any:
        """See `Place`."""
        return zarr.storage.LocalStore(self.path)

    def sizes(self, key: str = "") -> dict[str, int]:
        """See `Place`."""
        found = {}
        for folder, _, files in os.walk(self.path / key):
            for file in files:
                full = os.path.join(folder, file)
                with suppress(FileNotFoundError):  # another rank's chunk that has just taken its name
                    found[os.path.relpath(full, self.path).replace(os.sep, "/")] = os.stat(full).st_size
        return found

    @contextmanager
    def creating(self) -> Iterator[None]:
        """See `Place`."""
        with creation_lock(self.path):
            remove_leftovers(self.path)
            yield

    @contextmanager
    def written(self, *, replace: bool) -> Iterator[Any]:
        """See `Place`."""
        with written_whole(self.path, replace=replace) as temporary:
            yield zarr.storage.LocalStore(temporary)

    @contextmanager
    def locked(self, rank: Rank) -> Iterator[None]:
        """See `Place`. Files of a killed writer that never took their names are removed.

        The locks lie inside the folder of ``done``, where zarr does not look for members of the group.
        """

        def tidy() -> None:
            for stray in self.path.rglob("*.partial"):
                stray.unlink(missing_ok=True)

        with writer_lock(self.path / "done", rank, tidy, self.path):
            yield

    def free(self) -> int | None:
        """See `Place`."""
        return shutil.disk_usage(next(p for p in self.path.absolute().parents if p.exists())).free

    def sync(self, keys: Iterable[str]) -> None:
        """See `Place`."""
        files = [self.path / key for key in keys]
        folders = {parent for file in files for parent in file.parents if self.path in (parent, *parent.parents)}
        for path in (*files, *sorted(folders, reverse=True)):
            if path.is_dir() and os.name == "nt":  # no handle on a folder there
                continue
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


class Remote:
    """A place that fsspec reaches. Credentials and endpoints come from its own configuration and environment."""

    def __init__(self, path: str) -> None:
        self.path = path
        import fsspec

        protocol = path.partition("://")[0]
        try:
            self._fs, self._root = fsspec.url_to_fs(path, use_listings_cache=False)
        except ValueError as error:
            raise BadInput("no such kind of URL", given=path, expected="a folder, s3://, memory:// ...") from error
        except ImportError as error:
            fix = "pip install 'neuron-workbench[remote]'"
            raise MissingExtra(f"{protocol}:// needs another package", given=str(error), fix=fix) from error

    @property
    def name(self) -> str:
        """See `Place`."""
        return self.path.rpartition("/")[2]

    def exists(self) -> bool:
        """See `Place`."""
        self._fs.invalidate_cache()
        try:
            return bool(self._fs.ls(self._root, detail=False))
        except FileNotFoundError:
            return False

    def occupied(self) -> bool:
        """See `Place`."""
        return self.exists()

    def store(self) -> Any:
        """See `Place`."""
        return zarr.storage.FsspecStore.from_url(self.path, storage_options={"use_listings_cache": False})

    def sizes(self, key: str = "") -> dict[str, int]:
        """See `Place`."""
        self._fs.invalidate_cache()
        found = self._fs.find(f"{self._root}/{key}".rstrip("/"), detail=True)
        start = len(self._root) + 1
        return {name[start:]: int(entry["size"]) for name, entry in found.items()}

    @contextmanager
    def creating(self) -> Iterator[None]:
        """See `Place`; here a promise of the caller."""
        yield

    @contextmanager
    def written(self, *, replace: bool) -> Iterator[Any]:
        """See `Place`; here what was there goes first, and the caller writes the header last."""
        if self.exists():
            if not replace:
                raise FileExistsError(17, "already exists", self.path)
            self._fs.rm(self._root, recursive=True)
        yield self.store()

    @contextmanager
    def locked(self, rank: Rank) -> Iterator[None]:
        """See `Place`; here a promise of the caller."""
        yield

    def free(self) -> int | None:
        """See `Place`."""
        return None

    def sync(self, keys: Iterable[str]) -> None:
        """See `Place`: an object store answers when it has what it was given."""


def copy_store(source: Any, target: Any) -> None:
    """Copy all keys of a zarr store, 64 at once, but not the root's header: that is for the caller to write last."""

    prototype = zarr.core.buffer.default_buffer_prototype()

    async def one(key: str) -> None:
        await target.set(key, await source.get(key, prototype))

    async def every() -> None:
        keys = sorted([key async for key in source.list() if key != "zarr.json"])
        for start in range(0, len(keys), 64):
            for error in await asyncio.gather(*map(one, keys[start : start + 64]), return_exceptions=True):
                if error is not None:
                    raise error

    zarr.core.sync.sync(every())

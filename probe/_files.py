"""Writing files so that a reader, or a second try, never meets half of one."""

from __future__ import annotations

import errno
import glob
import os
import re
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from probe.errors import BadInput, WorkbenchError

_FULL = {errno.ENOSPC, errno.EDQUOT}
_CLOSED = {errno.EACCES, errno.EPERM, errno.EROFS}
# names that this disk cannot have: too long, with forbidden signs, below what is no folder
_IMPOSSIBLE = {errno.ENAMETOOLONG, errno.EINVAL, errno.ENOTDIR, errno.ENODEV, errno.ENXIO, errno.ELOOP, errno.EILSEQ}


@contextmanager
def disk_errors(path: str | Path) -> Iterator[None]:
    """Turn "no space left" and "permission denied" inside the block into errors that say where and what to do."""
    try:
        yield
    except Exception as error:
        number = _number(error)
        if number in _FULL:
            fix = "free some space and run the same call again; what is marked as done is kept"
            raise WorkbenchError("no space left on the disk", given=_meant(path), fix=fix) from error
        if number in _CLOSED:
            raise BadInput(
                "the output path cannot be written", given=_meant(path), fix="choose another path"
            ) from error
        if number in _IMPOSSIBLE:
            raise impossible(_meant(path), os.strerror(number)) from error
        raise


@contextmanager
def written_whole(path: str | Path, *, replace: bool = False) -> Iterator[Path]:
    """A temporary path beside ``path``, renamed onto it when the block ends well and removed when it does not.

    The block makes a file or a folder there. With ``replace`` whatever is at ``path`` gives way, at the very end;
    without, an existing ``path`` (other than an empty folder) raises `FileExistsError`.
    """
    path = Path(path)
    make_parent(path)
    temporary = _beside(path, "partial")
    try:
        with disk_errors(path):
            yield temporary
            _move(temporary, path, replace)
    finally:
        remove(temporary)


def remove_leftovers(path: Path) -> None:
    """Delete what a killed `written_whole` left beside ``path``; the caller sees to it that none is at work there.

    What was being replaced is kept until there is something in its place.
    """
    if not path.parent.is_dir():
        return
    for stray in path.parent.glob(f".{glob.escape(path.name)}.*"):
        found = re.fullmatch(r"\.[0-9a-f]{8}\.(partial|old)", stray.name.removeprefix(f".{path.name}"))
        if found and (found[1] == "partial" or path.exists()):
            remove(stray)


def make_parent(path: Path) -> None:
    """Make the folder that ``path`` will lie in. Raises `BadInput` where a file is in the way."""
    if "\0" in str(path):
        raise impossible(path, "a zero byte in a name")
    above = next(parent for parent in path.absolute().parents if os.path.exists(parent))
    if not above.is_dir():
        fix = "choose another path"
        raise BadInput("the output path lies below a file", given=str(path), expected=f"{above} as a folder", fix=fix)
    with disk_errors(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except FileNotFoundError as error:  # below a folder in which nobody can make any, such as /proc
            raise impossible(path, "no folder can be made there") from error
        with suppress(FileNotFoundError):  # whether the longest name that will stand there can be
            os.lstat(_beside(path, "partial"))


def impossible(path: str | Path, why: str) -> BadInput:
    """The error for a path that no file can have."""
    return BadInput("there can be no such path", given=f"{path} ({why})", fix="choose another path")


def remove(path: Path) -> None:
    """Delete a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def occupied(path: Path) -> bool:
    """Whether something is at ``path`` that a new file would hide; an empty folder is nothing."""
    return os.path.lexists(path) and not (path.is_dir() and not any(path.iterdir()))


def check_free(path: Path, kind: str, *, ours: bool, force: bool) -> None:
    """Raise `BadInput` unless ``path`` is free, or holds a file of this kind (``ours``) that ``force`` gives up."""
    if not occupied(path):
        return
    if not ours:
        raise BadInput(f"the output path exists and is no {kind}", given=str(path), fix="choose another path")
    if not force:
        fix = "choose another path, or force=True to replace it"
        raise BadInput(f"another {kind} is here", given=str(path), fix=fix)


def _meant(path: str | Path) -> str:
    """The path without the temporary names of `_beside`, for whoever writes a folder inside a `written_whole`."""
    return re.sub(r"(^|[\\/])\.([^\\/]+)\.[0-9a-f]{8}\.partial(?=[\\/]|$)", r"\1\2", str(path))


def _number(error: Exception) -> int | None:
    """The error's number; safetensors, written by another language, only quotes it."""
    if isinstance(error, OSError):
        return error.errno
    quoted = re.search(r"os error (\d+)|code: (\d+)", str(error)) if type(error).__name__ == "SafetensorError" else None
    return int(quoted[1] or quoted[2]) if quoted else None


def _move(source: Path, path: Path, replace: bool) -> None:
    if not occupied(path):
        if path.is_dir():
            path.rmdir()
        source.rename(path)
        return
    if not replace:
        raise FileExistsError(errno.EEXIST, "already exists", str(path))
    old = _beside(path, "old")
    path.rename(old)
    source.rename(path)
    remove(old)


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.{suffix}")

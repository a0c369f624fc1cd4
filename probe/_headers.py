"""Opening what lies at a place: its header checked, and whatever zarr raises over torn bytes made into one error."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import zarr

from probe import formats
from probe._kinds import absent
from probe._places import Place
from probe.errors import StoreDamaged, WorkbenchError

logger = logging.getLogger(__name__)

#: What to do about a store that cannot be read.
AGAIN = "copy it again, or make it again in another folder"

#: The attribute of a remote store whose header is still to come.
UNFINISHED = "unfinished"


@contextmanager
def reading(path: Path | str, kind: str = "run") -> Iterator[None]:
    """Whatever zarr, its codecs and xarray raise over torn bytes inside the block becomes `StoreDamaged`."""
    try:
        yield
    except WorkbenchError:
        raise
    except Exception as error:
        raise StoreDamaged(f"the {kind} cannot be read", given=f"{path}: {error}", fix=AGAIN) from error


def open_group(place: Place, kind: str) -> Any:
    """The zarr group at a place, for reading and writing, its header checked to be of this kind and version."""
    words = kind.replace("_", " ")
    if not place.exists():
        raise absent(place.path, kind)
    try:
        root = zarr.open_group(place.store(), mode="r+", zarr_format=3)
        attributes = dict(root.attrs)
    except (FileNotFoundError, FileExistsError, NotADirectoryError, ValueError, KeyError, TypeError) as error:
        what, fix = "no zarr group can be read here", f"copy the {words} again, or make it again"
        raise StoreDamaged(what, given=str(place.path), expected=f"a {words}", fix=fix) from error
    formats.check_header(attributes, kind, place.path)
    return root


def kind_of(place: Place) -> str | None:
    """The kind that the header at a place names, None where none can be read."""
    return formats.kind_of(_attributes(place))


def half_created(place: Place) -> bool:
    """Whether a creation was killed here before it wrote the header; only remote places can show that."""
    return bool(_attributes(place).get(UNFINISHED))


def _attributes(place: Place) -> dict[str, Any]:
    try:
        return dict(zarr.open_group(place.store(), mode="r", zarr_format=3).attrs)
    except Exception as error:  # anything else that may be there
        logger.debug("%s: %s", place.path, error)
        return {}

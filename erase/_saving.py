"""Edits on disk: a folder of edit.json (what and why), edit.safetensors (the tensors) and README.md (a card)."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor

from erase._card import card
from erase._changes import Change, Delta, Hook, Mask, Replace, digest
from erase._edit import Edit
from probe import formats
from probe._files import check_free, written_whole
from probe._kinds import absent
from probe._paths import finding
from probe.errors import StoreDamaged, WorkbenchError
from probe.provenance import identity_id

logger = logging.getLogger(__name__)

HEADER, TENSORS, CARD = "edit.json", "edit.safetensors", "README.md"

_AGAIN = "copy it again, or make it again"


def save(edit: Edit, folder: str | Path, *, force: bool = False) -> Path:
    """Write ``edit`` to ``folder``, under a temporary name first; see `Edit.save_pretrained`."""
    from safetensors.torch import save as to_bytes

    folder = Path(folder)
    if _stored_id(folder) == edit.id:
        return folder
    check_free(folder, "edit", ours=os.path.isfile(folder / HEADER), force=force)
    logger.info("edit %s: %.2f MB to %s", edit.name, edit.nbytes / 1e6, folder)
    with written_whole(folder, replace=force) as partial:
        partial.mkdir()
        tensors, listed = _tensors(edit.changes)
        (partial / TENSORS).write_bytes(to_bytes(tensors, metadata={"id": edit.id}))
        header = {
            **formats.header("edit"),
            "name": edit.name,
            "id": edit.id,
            "mergeable": edit.mergeable,
            "differentiable": edit.differentiable,
            "changes": listed,
            "provenance": edit.provenance,
        }
        (partial / HEADER).write_text(json.dumps(header, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        (partial / CARD).write_text(card(edit), encoding="utf-8")
    return folder


def load_edit(path: str | Path) -> Edit:
    """The edit saved in a folder, or ``"emoji/<name>"`` for one that comes with the embedded model.

    Raises `BadInput` where there is no edit, with those that lie near, `UnknownName` for one that does not come along,
    and `StoreDamaged` naming what is torn, missing or altered.
    """
    folder = finding(path, "edit")
    header = _header(folder)
    with _damage(folder / HEADER):
        changes = _changes(header["changes"], _read_tensors(folder), folder)
        edit = Edit(
            name=header["name"],
            changes=tuple(changes),
            provenance=header["provenance"],
            id=header["id"],
            mergeable=header["mergeable"],
            differentiable=header["differentiable"],
        )
        identity = edit.provenance["identity"]
        if identity_id(identity) != edit.id:
            raise StoreDamaged("the identity of the edit does not hash to its id", given=str(folder / HEADER))
        for change, expected in zip(edit.changes, identity["changes"], strict=True):
            if digest(change) != expected:
                raise StoreDamaged(f"the stored change of {change.param} was altered", given=str(folder / TENSORS))
    return edit


# --- Tensors ----------------------------------------------------------------------------------------------------------


def _tensors(changes: Iterable[Change]) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """Tensors under ``<kind>/<parameter>`` or ``hook/<component>/<name>``; a second one is ``delta.2/<parameter>``."""
    tensors: dict[str, Tensor] = {}
    listed: list[dict[str, Any]] = []
    for change in changes:
        keys = {}
        for part, tensor in change.tensors.items():
            kind, place = ("hook", f"{change.param}/{part}") if isinstance(change, Hook) else (part, change.param)
            key, n = f"{kind}/{place}", 1
            while key in tensors:
                n += 1
                key = f"{kind}.{n}/{place}"
            tensors[key] = tensor
            keys[part] = key
        described: dict[str, Any] = {"param": change.param, "shape": list(change.shape)}
        if isinstance(change, Hook):
            described = {"module": change.module, "family": change.family}
            described |= {"touched": list(change.touched), "spec": dict(change.spec)}
        listed.append({"kind": change.kind, **described, "keys": keys})
    return tensors, listed


def _changes(listed: list[dict[str, Any]], tensors: dict[str, Tensor], folder: Path) -> list[Change]:
    changes: list[Change] = []
    for item in listed:
        keys = item["keys"]
        if missing := [key for key in keys.values() if key not in tensors]:
            raise StoreDamaged("a tensor of the edit is missing", given=f"{folder / TENSORS}: {missing[0]}")
        if item["kind"] == "hook":
            values = {name: tensors[key] for name, key in keys.items()}
            changes.append(Hook(item["module"], item["family"], tuple(item["touched"]), values, item["spec"]))
            continue
        param, shape = item["param"], tuple(item["shape"])
        if item["kind"] == "mask":
            changes.append(Mask(param, tensors[keys["mask"]], shape))
        elif item["kind"] == "replace":
            changes.append(Replace(param, tensors[keys["replace"]]))
        elif "delta" in keys:
            changes.append(Delta(param, tensors[keys["delta"]]))
        else:
            changes.append(Delta(param, (tensors[keys["delta_up"]], tensors[keys["delta_down"]]), shape))
    return changes


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return load((folder / TENSORS).read_bytes())
    except (SafetensorError, FileNotFoundError, ValueError) as error:
        given = f"{folder / TENSORS} ({error})"
        raise StoreDamaged("the tensors of the edit cannot be read", given=given, fix=_AGAIN) from error


# --- Headers ----------------------------------------------------------------------------------------------------------


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    """A missing key or a wrong type inside the block means that the file was altered."""
    try:
        yield
    except StoreDamaged:
        raise
    except (KeyError, TypeError, ValueError) as error:  # BadInput of a change among them
        raise StoreDamaged("the edit's description is damaged", given=f"{path}: {error}", fix=_AGAIN) from error


def _header(folder: Path) -> dict[str, Any]:
    if not os.path.isfile(folder / HEADER):
        raise absent(folder, "edit")
    try:
        header = json.loads((folder / HEADER).read_text(encoding="utf-8"))
    except ValueError as error:  # JSON or UTF-8
        raise StoreDamaged("the edit's description is damaged", given=str(folder / HEADER), fix=_AGAIN) from error
    if not isinstance(header, dict):
        raise StoreDamaged("the edit's description is damaged", given=str(folder / HEADER))
    formats.check_header(header, "edit", folder)
    return header


def _stored_id(folder: Path) -> str | None:
    """The id of the edit in ``folder``; None if there is none that can be read."""
    try:
        return load_edit(folder).id
    except WorkbenchError:
        return None

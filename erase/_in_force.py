"""Edits in force on a pipeline: who may join whom, and how to leave without a trace.

Every component that an edit touches carries two plain attributes, gone when the last edit is: ``_workbench_edits``, a
list of (id, name) for anyone to read, and ``_workbench_snapshots``, the entries below. An entry keeps clones of what it
overwrote, so leaving is a copy, never a computation; the last edit applied is the first to leave. Hooks of all edits in
force are registered anew whenever one comes or goes, because those of one family act as one (`erase._hooks`).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from erase import _hooks
from erase._changes import Change, Hook, Mask, combined, conflict, dtype_name
from erase._places import Place, locate
from probe.errors import BadInput, EditConflict, EditOrderError, WrongModel
from probe.provenance import fingerprint, tensor_hash

if TYPE_CHECKING:
    from erase._edit import Edit

logger = logging.getLogger(__name__)

NAMES, ENTRIES = "_workbench_edits", "_workbench_snapshots"


@dataclass(eq=False)
class Entry:
    """One edit in force: its turn, what its parameters held before, and the components of ``pipe`` that it hooks."""

    edit: Edit
    turn: int
    before: dict[str, tuple[Place, Tensor]] = field(default_factory=dict)
    hooked: dict[str, nn.Module] = field(default_factory=dict)
    pipe: Any = None


def entries(pipe: Any) -> list[Entry]:
    """Edits in force on any component of ``pipe``, in the order in which they were applied."""
    found: dict[int, Entry] = {}
    for component in _modules(pipe):
        found |= {id(entry): entry for entry in getattr(component, ENTRIES, ())}
    return sorted(found.values(), key=lambda entry: entry.turn)


def original(pipe: Any, param: str) -> Tensor:
    """The tensor of ``param`` as it is without any edit."""
    for entry in entries(pipe):
        if param in entry.before:
            return entry.before[param][1]
    return locate(pipe, param).tensor


def _modules(pipe: Any) -> Iterator[nn.Module]:
    components = getattr(pipe, "components", None) or vars(pipe)
    return (component for component in components.values() if isinstance(component, nn.Module))


# --- Applying and leaving ---------------------------------------------------------------------------------------------


def apply(edit: Edit, pipe: Any, *, allow_dtype: bool = False) -> Entry:
    """Put ``edit`` in force: all of it or, on any exception, nothing."""
    already = entries(pipe)
    _check_order(edit, already)
    for entry in already:
        if param := conflict(entry.edit.changes, edit.changes):
            raise EditConflict(
                f"{edit.name!r} and {entry.edit.name!r} cannot both hold on {param}",
                expected="at most one replacement and no delta beside it; hooks of one family alike in ranks",
                fix=f"revert {entry.edit.name!r} first",
            )
    places = {param: locate(pipe, param) for param in edit.params}
    check_model(edit, pipe, allow_dtype=allow_dtype)
    written = dict.fromkeys(change.param for change in edit.changes if not isinstance(change, Hook))

    entry = Entry(edit, turn=already[-1].turn + 1 if already else 0)
    try:
        with torch.no_grad():
            for param in written:
                entry.before[param] = places[param], places[param].tensor.detach().clone()
                _write(places[param], param, edit, already)
        entry.pipe = pipe
        entry.hooked = {c.module: getattr(pipe, c.module) for c in edit.changes if isinstance(c, Hook)}
        for component in _touched(entry):
            _register(component, entry)
        _rehook(entry)
    except BaseException:  # also Ctrl-C in the middle of a large model
        _restore(entry)
        raise
    return entry


def leave(entry: Entry, pipe: Any) -> None:
    """Take the edit of ``entry`` out of force. Raises `EditOrderError` unless it was the last one applied."""
    present = entries(pipe)
    if entry not in present:
        raise EditOrderError(f"edit {entry.edit.name!r} is not in force", given=entry.edit.id)
    if later := [e.edit.name for e in present if e.turn > entry.turn]:
        raise EditOrderError(
            f"edit {entry.edit.name!r} is not the last one applied",
            given=f"after it: {', '.join(later)}",
            expected="last in, first out",
            fix=f"revert {later[-1]!r} first",
        )
    _restore(entry)


def _write(place: Place, param: str, edit: Edit, already: Sequence[Entry]) -> None:
    mine = [change for change in edit.changes if change.param == param]
    masks = [change for change in mine if isinstance(change, Mask)]
    if len(masks) == len(mine):  # masks join whatever is in force without a second rounding
        for mask in masks:
            place.tensor.masked_fill_(mask.dense().to(place.tensor.device), 0)
        return
    theirs: list[Change] = [c for entry in already for c in entry.edit.changes if c.param == param]
    first = next((entry.before[param][1] for entry in already if param in entry.before), place.tensor)
    place.tensor.copy_(combined(first, [*theirs, *mine]))


def _restore(entry: Entry) -> None:
    with torch.no_grad():
        for place, before in entry.before.values():
            place.tensor.copy_(before)
    for component in _touched(entry):
        _unregister(component, entry)
    _rehook(entry)


def _rehook(entry: Entry) -> None:
    """Hooks of all edits that are in force now, on each component that ``entry`` hooks."""
    for name, component in entry.hooked.items():
        edits = [each.edit for each in getattr(component, ENTRIES, ())]
        changes = [change for edit in edits for change in edit.changes]
        _hooks.attach(entry.pipe, component, [c for c in changes if isinstance(c, Hook) and c.module == name])


def _touched(entry: Entry) -> list[nn.Module]:
    components = [*(place.component for place, _ in entry.before.values()), *entry.hooked.values()]
    return list({id(component): component for component in components}.values())


def _register(component: nn.Module, entry: Entry) -> None:
    for name in (NAMES, ENTRIES):
        if not hasattr(component, name):
            setattr(component, name, [])
    getattr(component, ENTRIES).append(entry)
    getattr(component, NAMES).append((entry.edit.id, entry.edit.name))


def _unregister(component: nn.Module, entry: Entry) -> None:
    stack = getattr(component, ENTRIES, [])
    if entry not in stack:
        return
    index = stack.index(entry)
    for name in (NAMES, ENTRIES):
        del getattr(component, name)[index]
        if not getattr(component, name):
            delattr(component, name)


# --- Checks -----------------------------------------------------------------------------------------------------------


def _check_order(edit: Edit, already: Sequence[Entry]) -> None:
    present = [part for entry in already for part in entry.edit.parts]
    ids = [part[0] for part in present]
    for part_id, name in edit.parts:
        if part_id in ids:
            raise EditOrderError(f"edit {name!r} is already in force", given=part_id, fix="revert it first")
    rest = iter(ids)
    for base_id, name in edit.base_edits:
        if base_id not in rest:  # consumes the iterator: the order counts too
            raise EditOrderError(
                f"edit {edit.name!r} was fitted on top of {name!r}, which is not in force",
                given=", ".join(n for _, n in present) or "no edit in force",
                expected=f"in this order: {', '.join(n for _, n in edit.base_edits)}",
                fix=f"apply {name!r} first",
            )


def check_model(edit: Edit, pipe: Any, *, allow_dtype: bool = False) -> None:
    """Compare the tensors that ``edit`` touches, as they are without any edit, with those it was made on.

    Raises `WrongModel` naming the first that differs. In another dtype values cannot agree: the architecture must, and
    then masks and hooks go on with one warning while deltas and replacements need ``allow_dtype``.
    """
    print_ = fingerprint(pipe)
    made_on = edit.provenance["identity"]["model"]
    for name, expected in made_on["architecture"].items():
        if print_.architecture.get(name) != expected:
            logger.warning("%s has another architecture than the one edit %r was made on", name, edit.name)
    cast: dict[str, Tensor] = {}
    for param, expected in made_on["tensors"].items():
        tensor = original(pipe, param)
        if list(tensor.shape) != expected["shape"]:
            raise _wrong(edit, f"{param} has another shape", list(tensor.shape), expected["shape"])
        if dtype_name(tensor) != expected["dtype"]:
            cast[param] = tensor
        elif (found := tensor_hash(tensor)) != expected["sha256"]:
            raise _wrong(edit, f"{param} has other values", f"sha256 {found[:12]}", f"sha256 {expected['sha256'][:12]}")
    if cast:
        _check_cast(edit, print_.architecture, cast, allow_dtype)


def _check_cast(edit: Edit, architecture: dict[str, str], cast: dict[str, Tensor], allow_dtype: bool) -> None:
    made_on = edit.provenance["identity"]["model"]
    for name in sorted({param.partition(".")[0] for param in cast}):
        if architecture.get(name) != made_on["architecture"][name]:
            raise _wrong(
                edit, f"{name} has another architecture", architecture.get(name), made_on["architecture"][name]
            )
    param, tensor = next(iter(cast.items()))
    given, expected = dtype_name(tensor), made_on["tensors"][param]["dtype"]
    if all(isinstance(change, Mask | Hook) for change in edit.changes if cast.keys() & set(change.touched)):
        logger.warning(
            "edit %r was made in %s and is applied in %s: only architectures were compared", edit.name, expected, given
        )
    elif not allow_dtype:
        raise BadInput(
            f"edit {edit.name!r} adds or replaces values of {param} in another dtype",
            given=given,
            expected=expected,
            fix="load the pipeline in that dtype, or pass allow_dtype=True",
        )


def _wrong(edit: Edit, what: str, given: Any, expected: Any) -> WrongModel:
    return WrongModel(
        f"edit {edit.name!r} was made on another model: {what}",
        given=given,
        expected=expected,
        fix="apply it to the model that it was made on",
    )

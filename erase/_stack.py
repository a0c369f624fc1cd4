"""stack: several edits as one, equal to applying one inside the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from erase._changes import Change, Hook, Mask, conflict, merged
from erase._edit import Edit, assemble
from probe.errors import BadInput, EditConflict, EditOrderError, WrongModel


def stack(*edits: Edit, name: str | None = None) -> Edit:
    """One edit that equals applying ``edits`` one inside the other, in this order; with an id of its own.

    Associative: ``stack(stack(a, b), c)`` and ``stack(a, b, c)`` are the same edit. Masks of one parameter are
    joined by OR; deltas are kept apart, because float32 sums depend on their order. Hooks of one family act as one
    when in force, and are stored as one: so concepts that were erased apart are merged.

    Raises `EditConflict` naming two edits that cannot hold together, `EditOrderError` for an edit listed twice or
    before the one it was fitted on, and `WrongModel` for edits of different models.
    """
    if not edits:
        raise BadInput("nothing to stack", expected="one or more edits")
    if len(edits) == 1:
        return edits[0]
    parts = [part for edit in edits for part in edit.parts]
    for i, (part_id, part_name) in enumerate(parts):
        if part_id in [other for other, _ in parts[:i]]:
            raise EditOrderError(f"edit {part_name!r} is listed twice", given=part_id)
    for i, edit in enumerate(edits):
        for earlier in edits[:i]:
            if param := conflict(earlier.changes, edit.changes):
                raise EditConflict(f"{earlier.name!r} and {edit.name!r} cannot both hold on {param}")
    identity = {
        "method": "stack",
        "options": {},
        "inputs": {"parts": [part_id for part_id, _ in parts]},
        "model": _joint_model(edits),
        "base_edits": _joint_base(edits),
    }
    changes = _joined([change for edit in edits for change in edit.changes])
    report = {"parts": {edit.name: edit.report for edit in edits}}
    model = next((edit.model for edit in edits if edit.model), None)
    concepts = list(dict.fromkeys(concept for edit in edits for concept in edit.concepts))
    name = name or "+".join(edit.name for edit in edits)
    return assemble(name, changes, identity, report=report, parts=parts, model=model, concepts=concepts)


def _joined(changes: Sequence[Change]) -> list[Change]:
    flags: dict[str, Tensor] = {}
    for change in changes:
        if isinstance(change, Mask):
            flags[change.param] = flags[change.param] | change.dense() if change.param in flags else change.dense()
    hooks = merged([change for change in changes if isinstance(change, Hook)])
    others = [change for change in changes if not isinstance(change, Mask | Hook)]
    both: list[Change] = [*others, *(Mask.of(param, mask) for param, mask in flags.items()), *hooks]
    return sorted(both, key=lambda change: (change.param, change.kind))  # stable: deltas stay in the order of the edits


def _joint_model(edits: Sequence[Edit]) -> dict[str, Any]:
    joint: dict[str, dict[str, Any]] = {"architecture": {}, "tensors": {}}
    for edit in edits:
        model = edit.provenance["identity"]["model"]
        for section, known in joint.items():
            for key, value in model[section].items():
                if known.setdefault(key, value) != value:
                    raise WrongModel(
                        f"the stacked edits were made on different models: {key} differs", given=f"edit {edit.name!r}"
                    )
    return {section: dict(sorted(known.items())) for section, known in joint.items()}


def _joint_base(edits: Sequence[Edit]) -> list[list[str]]:
    """Bases that no earlier part of the stack provides."""
    every = [part_id for edit in edits for part_id, _ in edit.parts]
    provided: list[str] = []
    needed: list[list[str]] = []
    for edit in edits:
        for base_id, base_name in edit.base_edits:
            if base_id in provided or [base_id, base_name] in needed:
                continue
            if base_id in every:
                raise EditOrderError(
                    f"edit {edit.name!r} was fitted on top of {base_name!r}, which is stacked after it",
                    fix=f"list {base_name!r} before {edit.name!r}",
                )
            needed.append([base_id, base_name])
        provided += [part_id for part_id, _ in edit.parts]
    return needed

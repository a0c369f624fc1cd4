"""scaled: the same edit, stronger or weaker, without fitting it again."""

from __future__ import annotations

import math

from erase._changes import Change, Delta, Hook
from erase._edit import Edit, assemble
from probe.errors import BadInput

#: The value of a hook that multiplies what it adds, one for each concept.
STRENGTH = "strength"


def scaled(edit: Edit, strength: float, *, name: str | None = None) -> Edit:
    """An edit that does ``strength`` times what ``edit`` does; with an id of its own, 1 excepted.

    Deltas are multiplied, and so is what hooks add (the multiplier m of gates and adapters). How methods compare at a
    matched rate of erasure is found in this way, never by fitting them again.

    Args:
        edit: an edit of deltas and hooks.
        strength: 0 does nothing, above 1 does more.
        name: ``<edit's name>@<strength>`` by default.

    Raises `BadInput` for masks and replacements, which are there or not.
    """
    if not math.isfinite(strength):
        raise BadInput("strength is a number", given=strength)
    if strength == 1:
        return edit
    of = edit.provenance["identity"]
    identity = {
        "method": "scaled",
        "options": {"strength": float(strength)},
        "inputs": {"edit": edit.id},
        "model": of["model"],
        "base_edits": of["base_edits"],
    }
    changes = [_scaled(change, strength) for change in edit.changes]
    return assemble(
        name or f"{edit.name}@{strength:g}",
        changes,
        identity,
        report={"of": edit.report},
        model=edit.model,
        concepts=edit.concepts,
    )


def _scaled(change: Change, strength: float) -> Change:
    if isinstance(change, Delta) and not isinstance(change.value, tuple):
        return Delta(change.param, change.value * strength)
    if isinstance(change, Delta):
        return Delta(change.param, (change.value[0] * strength, change.value[1]), change.shape)
    if isinstance(change, Hook) and STRENGTH in change.values:
        values = {**change.values, STRENGTH: change.values[STRENGTH] * strength}
        return Hook(change.module, change.family, change.touched, values, change.spec)
    raise BadInput("only what is added can be scaled", given=f"a {change.kind} of {change.param}")

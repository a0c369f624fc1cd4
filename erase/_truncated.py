"""truncated: the same edit with fewer numbers, each weight change replaced by its nearest of a low rank."""

from __future__ import annotations

import math

import torch

from erase._changes import Change, Delta
from erase._edit import Edit, assemble
from probe.errors import BadInput


def truncated(edit: Edit, rank: int, *, name: str | None = None) -> Edit:
    """An edit whose weight changes have at most this rank, to be kept and passed on; with an id of its own.

    A change that an optimiser made is dense, and nearly all of it lies in few directions. Each delta becomes the
    nearest of rank r in the Frobenius norm, its r largest singular triples (Eckart and Young 1936), where that takes
    fewer numbers; everything else stays. It erases less or more than the whole one: measure it as an edit of its own.

    Args:
        edit: an edit with deltas, whole ones or of a higher rank.
        rank: r, at least 1.
        name: that of ``edit`` by default.

    Returns an edit whose ``report`` has ``error``: the norm of what was left out over the norm of the whole, all
    changes together.

    Raises `BadInput` where no change is smaller at this rank.
    """
    if rank < 1:
        raise BadInput("a rank is at least 1", given=rank)
    changes: list[Change] = []
    lost = whole = 0.0
    for change in edit.changes:
        kept, left_out = _nearest(change, rank)
        changes.append(kept)
        if isinstance(change, Delta):
            lost += left_out
            whole += float(change.dense().double().square().sum())
    if all(kept is change for kept, change in zip(changes, edit.changes, strict=True)):
        raise BadInput("nothing becomes smaller", given=f"rank {rank}", expected="deltas of a higher rank")
    of = edit.provenance["identity"]
    identity = {
        "method": "truncated",
        "options": {"rank": rank},
        "inputs": {"edit": edit.id},
        "model": of["model"],
        "base_edits": of["base_edits"],
    }
    report = {"error": math.sqrt(lost / whole) if whole else 0.0, "of": edit.report}
    return assemble(name or edit.name, changes, identity, report=report, model=edit.model, concepts=edit.concepts)


def _nearest(change: Change, rank: int) -> tuple[Change, float]:
    """The change to keep, and the square sum of what it leaves out."""
    if not isinstance(change, Delta) or len(change.shape) < 2:
        return change, 0.0
    numbers = sum(part.numel() for part in change.value) if isinstance(change.value, tuple) else change.value.numel()
    matrix = change.dense().double().flatten(1)
    if rank * sum(matrix.shape) >= numbers:
        return change, 0.0
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    root = s[:rank].sqrt()
    pair = ((u[:, :rank] * root).float(), (root[:, None] * vh[:rank]).float())
    return Delta(change.param, pair, change.shape), float(s[rank:].square().sum())

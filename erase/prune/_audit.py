"""audit: what the zeros of a pruned model tell whoever has only that model.

The places of zeros tell which weights carried the concept, and the rest of a matrix tells something of their signs:
"Roots Beneath the Cut" brings concepts back that way, without data. This measures it, and makes the revived weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from erase import _in_force, completion
from erase._changes import Delta, combined
from erase._edit import Edit, make_edit
from erase.prune._layers import stream
from probe._options import validated
from probe._progress import progress_bar
from probe.errors import BadInput
from probe.protocols import Progress
from probe.stats import wilson

#: Shrinkages that are tried on known entries.
SHRINKAGES = (0.5, 0.2, 0.1, 0.05, 0.02)


@dataclass(frozen=True, eq=False)
class Audit:
    """What `audit` found.

    - ``table``: a row for every matrix (of a convolution: outputs by all else) and one, ``all``, for them together:
      ``param, weights, changed, zeros`` (exact zeros that the attacker sees), ``found`` (share of the changed weights
      among them), ``signs_right, low, high`` (share of zeros whose sign is guessed, Wilson interval; half is chance),
      ``confident_right`` (of the confident guesses), ``shrinkage`` (chosen on known entries)
    - ``revived``: the attacker's weights as an edit of the original model; None where there is no zero to see
    """

    table: pd.DataFrame
    revived: Edit | None

    def __repr__(self) -> str:
        whole = self.table.iloc[-1]
        seen = f"{int(whole['zeros'])} zeros show {whole['found']:.1%} of {int(whole['changed'])} changed weights"
        return f"<Audit: {seen}, {whole['signs_right']:.3f} of their signs can be guessed>"


@validated
def audit(
    edit: Edit,
    pipe: Any,
    *,
    confident: float = 0.6,
    iterations: int = 50,
    held_out: float = 0.02,
    level: float = 0.95,
    seed: int = 0,
    progress: Progress = True,
) -> Audit:
    """Attack an edit by the places of its zeros alone.

    For every matrix that the edit changes (biases are left out): exact zeros of the edited weights are taken as pruned;
    soft-impute completes them from the rest; the sign of a guess is compared with that of the weight that was there.
    Zeros get the confident signs, as large as the largest remaining weight of their neuron: ``revived``, to be
    evaluated like an edit.

    Args:
        edit: of masks, or filled with noise (``fill_std``), where no zero should be left to see.
        pipe: the model that it was made on, without it. It is read, not changed.
        confident: share of guesses, the largest, whose sign is used; 0.6 in the attack.
        iterations: of soft-impute at most.
        held_out: share of known entries on which the shrinkage is chosen (ours; an attacker can do the same).
        level: of the intervals.
        seed: of the choice of held-out entries.
        progress: True, False or a function of (done, total) tensors.

    Raises `BadInput` for an edit that changes no matrix, `WrongModel` for another model.
    """
    for name, value in {"confident": confident, "held_out": held_out}.items():
        if not 0 < value < 1 and not (name == "confident" and value == 1):
            raise BadInput(f"{name} is out of range", given=value, expected="in (0, 1)")
    if iterations < 1:
        raise BadInput("iterations must be at least 1", given=iterations)
    _in_force.check_model(edit, pipe)
    params = [param for param in edit.params if _in_force.original(pipe, param).ndim >= 2]
    if not params:
        raise BadInput("the edit changes no matrix", given=", ".join(edit.params[:3]))
    rows, changes = [], []
    with progress_bar(progress, len(params), "audit") as advance:
        for param in params:
            original = _in_force.original(pipe, param).detach().float().cpu()
            shape, original = original.shape, original.flatten(1)
            mine = [change for change in edit.changes if change.param == param]
            edited = combined(_in_force.original(pipe, param).detach(), mine).float().cpu().flatten(1)
            row, revived = _attack(original, edited, confident, iterations, held_out, stream(seed, param))
            rows.append({"param": param, **row})
            if revived is not None:
                changes.append(Delta(param, (revived - original).view(shape)))
            advance(1)
    table = _summed(pd.DataFrame(rows), level)
    made = None
    if changes:
        made = make_edit(
            pipe,
            changes,
            name=f"{edit.name}-revived",
            method="audit",
            options={"confident": confident, "iterations": iterations, "held_out": held_out, "seed": seed},
            inputs={"edit": edit.id},
        )
    return Audit(table, made)


def _attack(
    original: Tensor, edited: Tensor, share: float, iterations: int, held_out: float, draw: torch.Generator
) -> tuple[dict[str, Any], Tensor | None]:
    """A row of the table, and the revived weights where there is a zero."""
    changed, zeros = edited != original, edited == 0
    row: dict[str, Any] = {
        "weights": edited.numel(),
        "changed": int(changed.sum()),
        "zeros": int(zeros.sum()),
        "seen": int((zeros & changed).sum()),
    }
    judged = zeros & (original != 0)
    if not judged.any():
        return {**row, "judged": 0, "right": 0, "sure": 0, "sure_right": 0, "shrinkage": float("nan")}, None
    shrinkage = _chosen(edited, zeros, iterations, held_out, draw)
    guess = completion.soft_impute(edited, zeros, shrinkage, iterations)
    right = guess[judged].sign() == original[judged].sign()
    sure = completion.confident(guess[judged], share)
    counts = {"judged": len(right), "right": int(right.sum()), "sure": int(sure.sum())}
    row |= {**counts, "sure_right": int(right[sure].sum()), "shrinkage": shrinkage}
    return row, completion.revived(edited, zeros, guess, share)


def _chosen(edited: Tensor, zeros: Tensor, iterations: int, held_out: float, draw: torch.Generator) -> float:
    """The shrinkage that guesses most signs of known entries, which are hidden for it."""
    hidden = (torch.rand(edited.shape, generator=draw) < held_out) & ~zeros
    if not hidden.any():
        return SHRINKAGES[2]
    right = []
    for shrinkage in SHRINKAGES:
        guess = completion.soft_impute(edited, zeros | hidden, shrinkage, iterations)
        right.append(int((guess[hidden].sign() == edited[hidden].sign()).sum()))
    return SHRINKAGES[right.index(max(right))]


def _summed(rows: pd.DataFrame, level: float) -> pd.DataFrame:
    whole = rows.drop(columns=["param", "shrinkage"]).sum()
    rows = pd.concat([rows, pd.DataFrame([{"param": "all", **whole, "shrinkage": float("nan")}])], ignore_index=True)
    limits = [wilson(int(right), int(n), level) for right, n in zip(rows["right"], rows["judged"], strict=True)]
    return pd.DataFrame(
        {
            "param": rows["param"],
            **{name: rows[name].astype(int) for name in ("weights", "changed", "zeros")},
            "found": rows["seen"] / rows["changed"].clip(lower=1),
            "signs_right": rows["right"] / rows["judged"].where(rows["judged"] > 0),
            "low": [limit.low for limit in limits],
            "high": [limit.high for limit in limits],
            "confident_right": rows["sure_right"] / rows["sure"].where(rows["sure"] > 0),
            "shrinkage": rows["shrinkage"],
        }
    )

"""The weighted ridge problem of each family of text rows, at a given weight or at the strongest that is bearable."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from erase import updates
from erase.closed_form._fit import Solved, TextUpdate, Update, fast_damage
from erase.closed_form._preserve import Kept
from erase.closed_form._texts import Rows
from erase.gram import System, most_alike, outer, ridged, strongest
from probe.errors import BadInput

Singular = Literal["error", "minimum_norm"]
LOW, HIGH = 1e-4, 1e4  # strengths that "auto" tries


@dataclass(frozen=True)
class Problem:
    """Erased rows with their weights, the weighted Gram matrix of what is kept, and the ridge."""

    rows: Rows
    kept: Tensor | None
    ridge: float

    def system(self, strength: float = 1.0) -> System:
        """A = strength sum w c c^T + kept + ridge I."""
        rows = self.rows
        matrix = outer(rows.sources, rows.sources, rows.weights * strength)
        return System(ridged(matrix if self.kept is None else matrix + self.kept, self.ridge))


#: From a problem, its factored system and the strength to an update; the rule that needs no more is `in_text_space`.
Rule = Callable[[Problem, System, float], Update]


def in_text_space(problem: Problem, system: System, strength: float) -> TextUpdate:
    """W' = W (I + D): targets are texts (UCE's replace, TRCE, MACE, RECE)."""
    rows = problem.rows
    return TextUpdate(*updates.ridge(rows.sources, rows.targets, rows.weights * strength, system))


@dataclass(frozen=True)
class WithoutOld:
    """UCE's technique ``tensor``: targets W new less their component along W old, one number a block and projection.

    v = W t - <u, W t> u with u = W c / ||W c||, both taken over all rows of a block (n,): Frobenius products.
    """

    rows: Rows
    right: Tensor

    def change(self, param: str, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Factors (o n), (n d)."""
        rows = self.rows
        old, new = rows.sources @ weight.T, rows.targets @ weight.T
        blocks = int(rows.concept.max()) + 1

        def by_block(values: Tensor) -> Tensor:
            return torch.zeros(blocks, dtype=values.dtype).index_add(0, rows.concept, values)

        share = by_block((old * new).sum(1)) / by_block((old * old).sum(1)).clamp(min=1e-300)
        moved = new - share[rows.concept][:, None] * old - old
        return moved.T, self.right


def without_old(problem: Problem, system: System, strength: float) -> WithoutOld:
    """The rule behind `WithoutOld`."""
    rows = problem.rows
    return WithoutOld(rows, system.solve(rows.sources) * (rows.weights * strength)[:, None])


@dataclass
class Request:
    """How a problem is to be solved: strength or "auto" with its bound, and what to do about a singular system."""

    strength: float | Literal["auto"] = 1.0
    max_damage: float = 0.1
    singular: Singular = "error"
    layers: str = "kv"
    rule: Rule = field(default=in_text_space)


def solved(pipe: Any, problems: dict[str, Problem], kept: Kept | None, request: Request) -> Solved:
    """The update of each family, with condition and ranks of its system.

    Raises `BadInput` for a singular system of token rows (unless the smallest change is asked for), for a strength that
    is not positive, and where not even the weakest edit stays within the bound. Pooled rows, few as they are, always
    take the smallest change.
    """
    if not problems:
        raise BadInput("there is nothing to solve")
    strength = _strength(pipe, problems["tokens"], kept, request)
    found = Solved({})
    found.more["strength"] = strength
    for family, problem in problems.items():
        system = problem.system(strength)
        if system.singular and family == "tokens" and request.singular == "error":
            raise singular(problem, system)
        found.updates[family] = request.rule(problem, system, strength)
        found.systems[family] = described(system, problem)
    return found


def described(system: System, problem: Problem) -> dict[str, Any]:
    """What a report says of a system; an infinite condition is None, as JSON has no infinity."""
    condition = system.condition
    return {
        "condition": condition if math.isfinite(condition) else None,
        "rank": system.rank,
        "effective_rank": system.effective_rank,
        "width": len(system.matrix),
        "erased_rows": len(problem.rows),
        "ridge": problem.ridge,
    }


def singular(problem: Problem, system: System) -> BadInput:
    """The error for a system that does not decide the solution: which rows, and what to raise."""
    rows = problem.rows
    alike = ""
    if len(rows) > 1:
        i, j, cosine = most_alike(rows.sources)
        alike = f"; most alike: {rows.names[i]} and {rows.names[j]} (cosine {cosine:.6f})"
    return BadInput(
        f"the system is singular: its rows hold {system.rank} of {len(system.matrix)} directions of text space",
        given=f"{len(rows)} erased rows, ridge={problem.ridge:g}{alike}",
        fix="raise ridge (0.1), preserve more prompts, or singular='minimum_norm' to leave what no row holds as it is",
    )


def _strength(pipe: Any, problem: Problem, kept: Kept | None, request: Request) -> float:
    if request.strength == "auto" and request.rule is not in_text_space:
        raise BadInput("strength='auto' needs targets that are texts", fix="technique='replace', or a number")

    def update(strength: float) -> TextUpdate:
        system = problem.system(strength)
        if system.singular and request.singular == "error":
            raise singular(problem, system)
        return in_text_space(problem, system, strength)

    return bearable(pipe, request.strength, request.max_damage, kept, request.layers, update)


def bearable(
    pipe: Any,
    strength: float | Literal["auto"],
    bound: float,
    kept: Kept | None,
    layers: str,
    update: Callable[[float], TextUpdate],
) -> float:
    """``strength`` itself, or of ``"auto"`` the largest whose ``update`` moves preserved rows by at most ``bound``.

    Raises `BadInput` as `solved`.
    """
    if strength != "auto":
        if not 0 < strength < math.inf:
            raise BadInput("strength must be positive", given=strength)
        return float(strength)
    if kept is None:
        raise BadInput("strength='auto' measures damage on what is preserved", fix="give preserve")
    damage = fast_damage(pipe, layers, kept)

    def of(strength: float) -> float:
        try:
            return damage(update(strength))
        except BadInput:  # too strong to be solved; what not even the weakest solves is the caller's to mend
            if strength == LOW:
                raise
            return math.inf

    found = strongest(of, bound, LOW, HIGH)
    if (least := of(found)) > bound:
        raise BadInput(
            "no strength stays within the bound",
            given=f"damage {least:.3g} at strength {found:g}",
            expected=f"at most {bound:g}",
            fix="raise max_damage, or preserve less",
        )
    return found


def positive(**values: float) -> None:
    """`BadInput` naming the first value that is not above 0 and finite."""
    for name, value in values.items():
        if not 0 < value < float("inf"):
            raise BadInput(f"{name} must be positive", given=value)


def not_negative(**values: float) -> None:
    """`BadInput` naming the first value that is below 0 or not finite."""
    for name, value in values.items():
        if not 0 <= value < float("inf"):
            raise BadInput(f"{name} must not be negative", given=value)

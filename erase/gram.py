"""The linear algebra that closed-form erasers share: one Gram matrix of text rows, factored once, for all projections.

A key or value projection W (o d) reads text embeddings, its rows c (d). The weighted ridge problem

    min over W'   sum_i w_i ||W' c_i - v_i||^2 + ridge ||W' - W||^2

is solved by a change W' - W = N A^-1 with

    A = sum_i w_i c_i c_i^T + ridge I        the same for every projection
    N = sum_i w_i (v_i - W c_i) c_i^T

so A is factored once. Solving for the change and not for W' makes targets that equal their sources an exact zero, and
keeps the digits that an ill-conditioned A would take from the part of W that stays. Where the target is another text,
v_i = W t_i, the change is W D with D = (sum_i w_i (t_i - c_i) c_i^T) A^-1: one (d d) matrix for all projections.

Shapes: o output channel, d width of text, n row. Everything is float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property

import torch
from jaxtyping import Float64
from torch import Tensor

Square = Float64[Tensor, "d d"]
Rows = Float64[Tensor, "n d"]

#: Eigenvalues below this share of the largest, times d, are zero to float64.
EPSILON = torch.finfo(torch.float64).eps


def outer(
    left: Float64[Tensor, "n e"], right: Rows, weights: Float64[Tensor, " n"] | None = None
) -> Float64[Tensor, "e d"]:
    """sum_i w_i left_i right_i^T; all weights 1 unless given."""
    return (left if weights is None else left * weights[:, None]).T @ right


def ridged(gram: Square, ridge: float) -> Square:
    """gram + ridge I."""
    return gram + ridge * torch.eye(len(gram), dtype=gram.dtype)


class System:
    """A symmetric positive semi-definite A (d d), factored when first needed; solves X A = N for any number of N.

    Cholesky where A is positive definite. Where it is not to float64 (`singular`), the pseudo-inverse over the
    eigenvalues that are above the tolerance: of all solutions the one that changes least, which leaves alone whatever
    no row speaks of.
    """

    def __init__(self, matrix: Square) -> None:
        self.matrix = (matrix + matrix.T) / 2

    @cached_property
    def eigenvalues(self) -> Float64[Tensor, " d"]:
        """Ascending; rounding leaves those of a singular matrix slightly below zero."""
        return torch.linalg.eigvalsh(self.matrix)

    @property
    def tolerance(self) -> float:
        """What counts as zero among the eigenvalues."""
        return len(self.matrix) * EPSILON * max(float(self.eigenvalues[-1]), 0.0)

    @property
    def rank(self) -> int:
        """Number of eigenvalues above the tolerance."""
        return int((self.eigenvalues > self.tolerance).sum())

    @property
    def singular(self) -> bool:
        """Whether some direction of text space is held by nothing, to float64."""
        return self.rank < len(self.matrix)

    @property
    def condition(self) -> float:
        """Largest over smallest eigenvalue; infinity where A is singular."""
        return math.inf if self.singular else float(self.eigenvalues[-1] / self.eigenvalues[0])

    @property
    def effective_rank(self) -> float:
        """exp of the entropy of the normalised eigenvalues (Roy and Vetterli, EUSIPCO 2007)."""
        shares = self.eigenvalues.clamp(min=0)
        total = float(shares.sum())
        if total == 0:
            return 0.0
        shares = shares[shares > 0] / total
        return float(torch.exp(-(shares * shares.log()).sum()))

    @cached_property
    def _factor(self) -> Square | None:
        if self.singular:
            return None
        factor, failed = torch.linalg.cholesky_ex(self.matrix)
        return None if int(failed) else factor

    @cached_property
    def _pseudo_inverse(self) -> Square:
        values, vectors = torch.linalg.eigh(self.matrix)
        kept = values > self.tolerance
        return (vectors[:, kept] / values[kept]) @ vectors[:, kept].T

    def solve(self, numerator: Float64[Tensor, "o d"]) -> Float64[Tensor, "o d"]:
        """numerator A^-1, with one step of iterative refinement."""
        factor = self._factor
        if factor is None:
            return numerator @ self._pseudo_inverse

        def once(rest: Tensor) -> Tensor:
            return torch.cholesky_solve(rest.T, factor).T

        found = once(numerator)
        return found + once(numerator - found @ self.matrix)


def change_of_output(weight: Float64[Tensor, "o d"], change: Float64[Tensor, "o d"], gram: Square) -> float:
    """How far outputs move: sqrt(sum_j ||change r_j||^2 / sum_j ||W r_j||^2) over the rows r behind a Gram matrix."""
    moved = float(((change @ gram) * change).sum())
    stood = float(((weight @ gram) * weight).sum())
    if stood <= 0:
        return 0.0 if moved <= 0 else math.inf
    return math.sqrt(max(moved, 0.0) / stood)


def most_alike(rows: Rows) -> tuple[int, int, float]:
    """The two rows with the largest |cosine|, and it; of rows of which there are at least two."""
    unit = rows / rows.norm(dim=1, keepdim=True).clamp(min=1e-300)
    cosines = (unit @ unit.T).abs().fill_diagonal_(-1.0)
    place = int(cosines.argmax())
    i, j = divmod(place, len(rows))
    return min(i, j), max(i, j), float(cosines[i, j])


def strongest(damage: Callable[[float], float], bound: float, low: float, high: float, halvings: int = 40) -> float:
    """The largest strength in [low, high] with damage <= bound, by bisection; damage must grow with strength.

    ``low`` itself where even that does too much: the caller says so.
    """
    if damage(high) <= bound:
        return high
    if damage(low) > bound:
        return low
    good, bad = math.log(low), math.log(high)
    for _ in range(halvings):
        middle = (good + bad) / 2
        if damage(math.exp(middle)) <= bound:
            good = middle
        else:
            bad = middle
        if bad - good < 1e-3:
            break
    return math.exp(good)

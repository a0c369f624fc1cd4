"""Low-rank completion of a matrix, and what its guesses say of the signs of weights that were zeroed.

Axes: o output row, n neuron (column), z zeroed entries. Pure functions; after "Roots Beneath the Cut" (the attack on
ConceptPrune) and soft-impute (Mazumder, Hastie, Tibshirani, JMLR 2010).
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def soft_impute(
    weight: Float[Tensor, "o n"], missing: Bool[Tensor, "o n"], shrinkage: float, iterations: int = 50
) -> Float[Tensor, "o n"]:
    """The completion Z = S(P(W) + P'(Z)), iterated: entries that are there stay, missing ones come from Z.

    S takes ``shrinkage`` times the largest singular value of the known entries from every singular value; the result of
    the last S is returned.
    """
    known = weight.masked_fill(missing, 0)
    threshold = shrinkage * float(torch.linalg.matrix_norm(known, ord=2))
    guess = torch.zeros_like(known)
    for _ in range(iterations):
        u, s, v = torch.linalg.svd(torch.where(missing, guess, known), full_matrices=False)
        new = (u * (s - threshold).clamp_min(0)) @ v
        done = bool((new - guess).norm() <= 1e-4 * guess.norm())
        guess = new
        if done:
            break
    return guess


def confident(guess: Float[Tensor, " z"], share: float) -> Bool[Tensor, " z"]:
    """The ``share`` of guesses with the largest magnitude, at least one."""
    n = max(1, round(share * len(guess)))
    chosen = torch.zeros(len(guess), dtype=torch.bool)
    chosen[guess.abs().cpu().argsort(descending=True, stable=True)[:n]] = True
    return chosen


def revived(
    weight: Float[Tensor, "o n"], missing: Bool[Tensor, "o n"], guess: Float[Tensor, "o n"], share: float
) -> Float[Tensor, "o n"]:
    """``weight`` with the confident guesses' signs at the missing entries, as large as their neuron's largest weight.

    The neuron is the column, whose remaining entries the attacker sees; a column without any stays zero.
    """
    largest = weight.masked_fill(missing, 0).abs().amax(0, keepdim=True)
    signs = torch.zeros_like(weight)
    if missing.any():
        signs[missing] = torch.where(confident(guess[missing], share).to(guess.device), guess[missing].sign(), 0)
    return torch.where(missing, signs * largest, weight)

"""Greedy coordinate gradient (Zou et al., arXiv 2307.15043) over token sequences. Pure functions.

Shapes: k token position, v vocabulary, c candidate, r rank.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def ranked_tokens(gradient: Float[Tensor, "k v"], allowed: Bool[Tensor, " v"], ranked: int) -> Int[Tensor, "k r"]:
    """For every position the allowed tokens with the most negative gradient, best first; at most as many as there are.

    Rows are normalised, as in MMA; that changes no ranking.
    """
    gradient = gradient / gradient.norm(dim=-1, keepdim=True).clamp_min(1e-30)
    worst = gradient.masked_fill(~allowed, torch.inf)
    return worst.argsort(dim=-1, stable=True)[:, : min(ranked, int(allowed.sum()))]


def swaps(
    ids: Int[Tensor, " k"], ranked: Int[Tensor, "k r"], candidates: int, generator: torch.Generator
) -> Int[Tensor, "c k"]:
    """Copies of ``ids`` in which one position, spread evenly over the copies, has a random one of its ranked tokens."""
    k = len(ids)
    found = ids.repeat(candidates, 1)
    positions = torch.arange(candidates) * k // candidates
    choices = torch.randint(ranked.shape[1], (candidates,), generator=generator)
    found[torch.arange(candidates), positions] = ranked[positions, choices]
    return found

"""Token distributions: points of the simplex, one row a free token. Pure functions.

Shapes: r rows, v vocabulary, d width of an embedding.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


def project(p: Float[Tensor, "r v"], allowed: Bool[Tensor, "r v"] | None = None) -> Float[Tensor, "r v"]:
    """The nearest point (Euclidean) of the simplex to each row, with zeros where a token is not allowed.

    Exact, by sorting: p - theta clipped at 0, with the theta that makes the row sum to 1 (Held, Wolfe and Crowder 1974;
    Duchi et al. 2008, figure 1). UnlearnDiffAtk finds the same theta by bisection.
    """
    if allowed is not None:
        p = p.masked_fill(~allowed, -torch.inf)
    largest = p.sort(dim=-1, descending=True).values
    finite = largest.isfinite()
    excess = torch.where(finite, largest, 0.0).cumsum(-1) - 1
    rank = torch.arange(1, p.shape[-1] + 1, device=p.device, dtype=p.dtype)
    support = (finite & (largest * rank > excess)).sum(-1, keepdim=True)
    theta = excess.gather(-1, support - 1) / support
    return (p - theta).clamp_min(0)


def sampled(p: Float[Tensor, "r v"], generator: torch.Generator) -> Int[Tensor, " r"]:
    """One token of each row's distribution; drawn on the CPU."""
    return torch.multinomial(p.detach().float().cpu(), 1, generator=generator)[:, 0].to(p.device)


def straight_through(p: Float[Tensor, "r v"], ids: Int[Tensor, " r"]) -> Float[Tensor, "r v"]:
    """One-hot rows of the sampled tokens, whose gradient is passed to ``p`` as it is, clipped to [-1, 1].

    The clipping is that of UnlearnDiffAtk's released code (a hardtanh in the backward pass).
    """
    one_hot: Tensor = _StraightThrough.apply(p, ids)
    return one_hot


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx, p, ids):  # type: ignore[no-untyped-def]
        return torch.zeros_like(p).scatter_(-1, ids[:, None], 1.0)

    @staticmethod
    def backward(ctx, gradient):  # type: ignore[no-untyped-def]
        return gradient.clamp(-1, 1), None


def nearest_tokens(
    e: Float[Tensor, "r d"], table: Float[Tensor, "v d"], allowed: Bool[Tensor, "r v"] | None = None
) -> Int[Tensor, " r"]:
    """The token of the largest cosine with each row: PEZ's projection (Wen et al., arXiv 2302.03668)."""
    cosine = torch.nn.functional.normalize(e, dim=-1) @ torch.nn.functional.normalize(table, dim=-1).T
    if allowed is not None:
        cosine = cosine.masked_fill(~allowed, -torch.inf)
    return cosine.argmax(-1)

"""Masks as plain tensors: which weights ConceptPrune calls skilled, how steps vote, how masks are packed and compared.

Axes: o output row, n neuron (column, a hidden unit), i one stored byte. True = this weight is zeroed. Pure functions,
no model in sight, to be read beside the paper: "ConceptPrune", arXiv 2405.19237 (docs/methods/concept_prune.md).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from probe.errors import BadInput

# --- The published rule -----------------------------------------------------------------------------------------------


def skilled(
    weight: Float[Tensor, "o n"],
    target: Float[Tensor, " n"],
    reference: Float[Tensor, " n"],
    k: int,
    *,
    scope: str = "row",
    margin: float = 0.0,
    exclude_reference_topk: bool = False,
) -> Bool[Tensor, "o n"]:
    """The skilled weights of one layer at one step (ConceptPrune, Wanda score and skilled-neuron rule).

    S_target[o, n] = |W[o, n]| * target[n]; a weight is skilled if S_target is among the ``k`` largest of its row and
    S_target > S_reference. |W| is shared, so the inequality is target[n] > reference[n] wherever W is not zero: a gate
    per hidden unit, free of the ties that rounding the products would make. ``target`` and ``reference`` are column
    norms of token-normalised activations, in one and the same normalisation.

    Ours, off in the paper: ``scope="global"`` ranks all weights of the layer together (``k`` then counts weights of the
    layer); ``margin`` asks for target > (1 + margin) * reference; ``exclude_reference_topk`` takes out what is also
    among the ``k`` largest of S_reference, which the released code computes and never uses.
    """
    magnitude = weight.abs()
    mask = _largest(magnitude * target, k, scope)
    mask &= (target > (1 + margin) * reference) & (magnitude > 0)
    if exclude_reference_topk:
        mask &= ~_largest(magnitude * reference, k, scope)
    return mask


def skilled_by_products(
    weight: Float[Tensor, "o n"],
    target: Float[Tensor, " n"],
    reference: Float[Tensor, " n"],
    k: int,
    *,
    scope: str = "row",
    margin: float = 0.0,
    exclude_reference_topk: bool = False,
) -> Bool[Tensor, "o n"]:
    """`skilled` as the released code does it: half-precision products compared entry by entry.

    Products of float16 tie and underflow, and tied entries fail the strict inequality; kept to reproduce the release.
    """
    magnitude = weight.abs().half()
    s_target, s_reference = magnitude * target.half(), magnitude * reference.half()
    mask = _largest(s_target, k, scope) & (s_target > s_reference * (1 + margin))
    if exclude_reference_topk:
        mask &= ~_largest(s_reference, k, scope)
    return mask


def row_topk(score: Float[Tensor, "o n"], k: int) -> Bool[Tensor, "o n"]:
    """Exactly min(``k``, n) True per row at the largest scores; equal scores go to the lowest column; NaN comes last.

    `torch.topk` leaves the choice among equal scores to the backend, so it only finds the threshold here.
    """
    k = min(k, score.shape[1])
    if k < 1:
        return torch.zeros_like(score, dtype=torch.bool)
    score = torch.where(score.isnan(), -math.inf, score)
    threshold = score.topk(k, dim=1).values[:, -1:]
    above, tied = score > threshold, score == threshold
    missing = k - above.sum(dim=1, keepdim=True)
    return above | (tied & (tied.cumsum(dim=1) <= missing))


def vote(votes: Int[Tensor, "o n"], steps: int, share: float = 0.0) -> Bool[Tensor, "o n"]:
    """Weights that were skilled in more than ``share`` of the ``steps`` (strict); 0 is the union, as published."""
    return votes > share * steps


def _largest(score: Float[Tensor, "o n"], k: int, scope: str) -> Bool[Tensor, "o n"]:
    if scope == "row":
        return row_topk(score, k)
    return row_topk(score.reshape(1, -1), k).reshape(score.shape)


# --- How many weights a skill ratio selects ---------------------------------------------------------------------------


def selected(skill_ratio: float, width: int) -> int:
    """int(k * width): the number of weights per row that ``skill_ratio`` selects, truncated as in the paper's code."""
    return int(skill_ratio * width)


def smallest_ratio(widths: Sequence[int]) -> float:
    """The smallest skill ratio that selects at least one weight in every row of every one of these ``widths``."""
    ratio = 1 / min(widths)
    while any(selected(ratio, width) < 1 for width in widths):  # 49 * (1 / 49) < 1
        ratio = math.nextafter(ratio, math.inf)
    return ratio


# --- Packed bits ------------------------------------------------------------------------------------------------------


def pack(mask: Bool[Tensor, "*shape"]) -> UInt8[Tensor, " i"]:
    """Eight flags a byte, row-major, the first flag in the lowest bit; the last byte is filled with zeros."""
    return torch.from_numpy(np.packbits(mask.detach().cpu().numpy().reshape(-1), bitorder="little"))


def unpack(bits: UInt8[Tensor, " i"], shape: Sequence[int]) -> Bool[Tensor, "*shape"]:
    """The mask that `pack` packed. Raises `BadInput` if ``bits`` cannot hold exactly this ``shape``."""
    n = math.prod(shape)
    if bits.dtype != torch.uint8 or bits.ndim != 1 or len(bits) != -(-n // 8):
        raise BadInput(
            "packed bits do not fit the shape",
            given=f"{tuple(bits.shape)} {bits.dtype} for {tuple(shape)}",
            expected=f"({-(-n // 8)},) torch.uint8",
        )
    if n % 8 and int(bits[-1]) >> n % 8:
        raise BadInput("packed bits are set beyond the last weight", fix="pack boolean tensors with erase.masks.pack")
    flags = np.unpackbits(bits.cpu().numpy(), count=n, bitorder="little")
    return torch.from_numpy(flags).bool().reshape(tuple(shape))


# --- Densities and controls -------------------------------------------------------------------------------------------


def density(mask: Bool[Tensor, "*shape"]) -> float:
    """The share of weights that are masked; 0 for an empty tensor."""
    return int(mask.sum()) / max(mask.numel(), 1)


def random_like(mask: Bool[Tensor, "o ..."], generator: torch.Generator) -> Bool[Tensor, "o ..."]:
    """A random mask with as many True in every output row as ``mask`` has: the control for *where* a mask strikes."""
    rows = mask.reshape(mask.shape[0], -1)
    order = torch.rand(rows.shape, generator=generator).argsort(dim=1, stable=True)
    return _first(order, rows.sum(dim=1)).reshape(mask.shape)


def magnitude_like(mask: Bool[Tensor, "o ..."], weight: Float[Tensor, "o ..."]) -> Bool[Tensor, "o ..."]:
    """The largest |W| of every output row, as many as ``mask`` has there: the control for *mere size*."""
    rows = mask.reshape(mask.shape[0], -1)
    order = weight.float().abs().reshape(rows.shape).argsort(dim=1, descending=True, stable=True)
    return _first(order, rows.sum(dim=1)).reshape(mask.shape)


def _first(order: Int[Tensor, "o n"], counts: Int[Tensor, " o"]) -> Bool[Tensor, "o n"]:
    """True at the first ``counts[o]`` columns of each row's ``order``."""
    chosen = torch.arange(order.shape[1]) < counts.cpu()[:, None]
    return torch.zeros(order.shape, dtype=torch.bool).scatter_(1, order.cpu(), chosen)

"""Residual attention gates as plain tensors: what a prompt opens, and what the open gate adds to keys and values.

Axes: c concept, s sample (row of text), k and j text token, d width of the text's embedding, g rank of the gate, r rank
of a low-rank pair, o output channel of a projection. Pure functions, no model in sight, to be read beside the paper:
"Concept Pinpoint Eraser", arXiv 2506.22806 (docs/methods/resag.md).
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

# --- The residual attention gate --------------------------------------------------------------------------------------


def mixed(
    text: Float[Tensor, "s k d"], query: Float[Tensor, "d g"], key: Float[Tensor, "d g"]
) -> Float[Tensor, "s k d"]:
    """Z = softmax(E U1 (E U2)^T) E: one head over all tokens, no scale, no mask, and the text itself as values."""
    return ((text @ query) @ (text @ key).mT).softmax(-1) @ text


def openness(mixed: Float[Tensor, "s k d"], gate: Float[Tensor, " d"]) -> Float[Tensor, "s k"]:
    """s = sigmoid(Z v): how far the gate is open at each token, in (0, 1)."""
    return (mixed @ gate).sigmoid()


def gated(
    text: Float[Tensor, "s k d"],
    query: Float[Tensor, "c d g"],
    key: Float[Tensor, "c d g"],
    gate: Float[Tensor, "c d"],
    threshold: Float[Tensor, " c"],
) -> tuple[Float[Tensor, "s k d"], Int[Tensor, "s k"]]:
    """F = s_n* Z_n* with n* = argmax_n s_n at each token, and n*: the concept whose gate is widest open takes all.

    Of equal gates the first wins. A winner whose gate is open by less than its ``threshold`` adds nothing (ours; 0 is
    the paper, where every token gets the winner's share).
    """
    best = text.new_full(text.shape[:2], -1.0)
    winner = torch.zeros(text.shape[:2], dtype=torch.int64, device=text.device)
    features = torch.zeros_like(text)
    for n in range(len(gate)):  # one concept at a time: all of them at once would hold c texts
        z = mixed(text, query[n], key[n])
        s = openness(z, gate[n])
        better = s > best
        best, winner = torch.where(better, s, best), torch.where(better, n, winner)
        passed = torch.where(s >= threshold[n], s, 0)[..., None] * z
        features = torch.where(better[..., None], passed, features)
    return features, winner


def correction(
    features: Float[Tensor, "s k d"],
    winner: Int[Tensor, "s k"],
    down: Float[Tensor, "c d r"],
    up: Float[Tensor, "c r o"],
) -> Float[Tensor, "s k o"]:
    """F D_n* G_n*: what is added to a projection at each token, by the pair of the concept that won there."""
    concepts, _, rank = down.shape
    if concepts == 1:
        return features @ down[0] @ up[0]
    hidden = features @ down.movedim(0, 1).flatten(1)  # (s k c*r), all concepts side by side
    won = torch.nn.functional.one_hot(winner, concepts).to(hidden.dtype).repeat_interleave(rank, -1)
    return (hidden * won) @ up.flatten(0, 1)


# --- Facilitated transport --------------------------------------------------------------------------------------------


def transport(
    prompts: Float[Tensor, "s d"], concepts: Float[Tensor, "c d"], shared: Float[Tensor, "s c"]
) -> Float[Tensor, "s c"]:
    """gamma = max(cos(E(p), E(c)), shared): how far a prompt calls for each concept's adapter, 0 at least.

    ``shared`` is the share of a concept's tokens that are in the prompt ("One-dimensional Adapter to Rule Them All",
    arXiv 2312.16145, section 3.3; docs/methods/spm.md).
    """
    cosine = torch.nn.functional.normalize(prompts, dim=-1) @ torch.nn.functional.normalize(concepts, dim=-1).mT
    return torch.maximum(cosine, shared).clamp_min(0)

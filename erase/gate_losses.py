"""What residual attention gates learn from, contracted: no output of a projection is ever computed.

Axes: s row of text, k text token, d width of its embedding, p projection, r rank, o output channel (another number for
every projection). "Concept Pinpoint Eraser", arXiv 2506.22806 (docs/methods/resag.md).

Every loss of the paper is of one form. A row of text E should change each projection P by W_P X, for some X of the
text's shape, and the pair changes it by H_P G_P, so that what is missed is

    m_P = X W_P^T - H_P G_P,       L = sum_P w_P |m_P|^2

- erasing:     X = (1 + eta) (E_n - E_t) at E_t, so that P'(E_t) = P_n + eta (P_n - P_t)
- attacked:    X = (1 + eta) (E_n - E_t) - delta at E_t + delta, the same goal
- anchoring:   X = 0
- adversary:   X = -delta at E_t + delta, so that P'(E_t + delta) = P(E_t)

and |m_P|^2 = |X W_P^T|^2 - 2 <H_P, X W_P^T G_P^T> + <H_P G_P, H_P G_P>. The first term needs the sum of Gram matrices
of all projections, once; the others W_P^T G_P^T (d r) and G_P G_P^T (r r). The unedited projections are constants.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor


def missed(
    wanted: Float[Tensor, "s k d"],
    features: Float[Tensor, "s k d"],
    down: Float[Tensor, "p d r"],
    pulled: Float[Tensor, "p d r"],
    across: Float[Tensor, "p r r"],
    weights: Float[Tensor, " p"],
    gram: Float[Tensor, "d d"],
) -> Float[Tensor, " s"]:
    """sum_P w_P |X W_P^T - F D_P G_P|^2 of each row.

    ``wanted`` is X, ``features`` F, ``pulled`` W_P^T G_P^T, ``across`` G_P G_P^T (see `contracted`), ``gram`` of
    `weighted_gram`.
    """
    projections, _, rank = down.shape
    hidden = (features @ down.movedim(0, 1).flatten(1)).unflatten(-1, (projections, rank))
    meant = (wanted @ pulled.movedim(0, 1).flatten(1)).unflatten(-1, (projections, rank))
    constant = ((wanted @ gram) * wanted).sum((1, 2))
    met = torch.einsum("skpr,skpr,p->s", hidden, meant, weights)
    made = torch.einsum("skpr,prq,skpq,p->s", hidden, across, hidden, weights)
    return constant - 2 * met + made


def contracted(
    projections: Sequence[Float[Tensor, "_ d"]], up: Sequence[Float[Tensor, "r _"]]
) -> tuple[Float[Tensor, "p d r"], Float[Tensor, "p r r"]]:
    """W_P^T G_P^T and G_P G_P^T of every projection; W_P may have any number of rows o."""
    pulled = torch.stack([weight.mT @ each.mT for weight, each in zip(projections, up, strict=True)])
    return pulled, torch.stack([each @ each.mT for each in up])


def weighted_gram(projections: Sequence[Float[Tensor, "_ d"]], weights: Float[Tensor, " p"]) -> Float[Tensor, "d d"]:
    """sum_P w_P W_P^T W_P."""
    found = torch.zeros(projections[0].shape[1], projections[0].shape[1], device=weights.device)
    for weight, share in zip(projections, weights, strict=True):
        found += share * (weight.mT @ weight)
    return found


def layer_weights(
    to_q: Float[Tensor, "i q"], to_v: Float[Tensor, "i d"], to_out: Float[Tensor, "j i"], tokens: int
) -> tuple[float, float]:
    """(c^K, c^V) of one cross-attention: smax(W_o W_v) smax(W_q) / T and smax(W_o), of whole matrices.

    smax is the largest singular value: how far a change of keys, or of values, can move what the layer returns.
    """
    largest = torch.linalg.matrix_norm(to_out, 2)
    keys = torch.linalg.matrix_norm(to_out @ to_v, 2) * torch.linalg.matrix_norm(to_q, 2) / tokens
    return float(keys), float(largest)


def anchors(
    pool: Float[Tensor, "n k d"], rows: int, generator: torch.Generator, *, noise: float, mix: bool
) -> Float[Tensor, "s k d"]:
    """``rows`` anchors from a pool: drawn with replacement, with noise, and mixed pairwise by a uniform share.

    The noise has a standard deviation of ``noise`` |E|_F at every element. MixUp with Beta(1, 1).
    """
    drawn = torch.randint(len(pool), (2 * rows if mix else rows,), generator=generator)
    found = pool[drawn.to(pool.device)]
    if noise:
        spread = noise * torch.linalg.vector_norm(found, dim=(1, 2), keepdim=True)
        found = found + spread * torch.randn(found.shape, generator=generator).to(found.device)
    if not mix:
        return found
    share = torch.rand((rows, 1, 1), generator=generator).to(found.device)
    return share * found[:rows] + (1 - share) * found[rows:]

"""Update rules of closed-form erasers: how rows of text decide the change of a projection W (o d). Pure functions.

- `ridge`: additive, the weighted ridge problem of `erase.gram` (UCE, TRCE, MACE, RECE)
- `null_space`: additive, inside the null space of what is retained (SPEED, ICLR 2026)
- `rotation`: multiplicative, the orthogonal Procrustes problem (OCE, ICML 2026)
- `projector`: multiplicative, erased directions less the shared ones (CURE, NeurIPS 2025)

The first, second and fourth give D (d d) with W' = W (I + D), one for all projections; the third gives P (o o) with
W' = P W. Shapes: n row, d width of text, o output channel, r dimension of a subspace. float64.
"""

from __future__ import annotations

import torch
from jaxtyping import Float64
from torch import Tensor

from erase.gram import Square, System, outer, ridged


def ridge(
    sources: Float64[Tensor, "n d"],
    targets: Float64[Tensor, "n d"],
    weights: Float64[Tensor, " n"],
    system: System,
) -> tuple[Float64[Tensor, "d n"], Float64[Tensor, "n d"]]:
    """D = (sum_i w_i (t_i - c_i) c_i^T) A^-1 as two factors ``left @ right``, for the factored A of ``system``."""
    return ((targets - sources) * weights[:, None]).T, system.solve(sources)


def null_projector(gram: Square, threshold: float) -> Square:
    """P = U0 U0^T over the eigenvectors of a retained Gram matrix whose eigenvalues are below ``threshold``."""
    values, vectors = torch.linalg.eigh((gram + gram.T) / 2)
    free = vectors[:, values < threshold]
    return free @ free.T


def null_space(
    cross: Square,
    own: Square,
    projector: Square,
    constraints: Float64[Tensor, "d m"],
    *,
    keep: float,
    slack: float,
) -> Square:
    """SPEED's closed form: D = (C* C1^T - C1 C1^T) P Q M, so that W' = W (I + D).

    M = (C1 C1^T P + keep I)^-1 and Q = I - M K2 (K2^T P M K2 + slack I)^-1 K2^T P, with ``cross`` = C* C1^T, ``own`` =
    C1 C1^T, ``projector`` = P and ``constraints`` = K2, whose outputs stay exactly (D K2 = 0) where ``slack`` is 0.
    """
    inverse = torch.linalg.inv(ridged(own @ projector, keep))
    held = constraints.T @ projector @ inverse @ constraints
    # K2 may lie outside the free space in part; the pseudo-inverse holds what is inside
    middle = torch.linalg.pinv(ridged(held, slack)) if slack == 0 else torch.linalg.inv(ridged(held, slack))
    gate = torch.eye(len(own), dtype=own.dtype) - inverse @ constraints @ middle @ constraints.T @ projector
    return (cross - own) @ projector @ gate @ inverse


def span(columns: Float64[Tensor, "o n"]) -> Float64[Tensor, "o r"]:
    """An orthonormal basis of the columns' span; columns are brought to length 1 first and dependent ones dropped."""
    lengths = columns.norm(dim=0)
    kept = columns[:, lengths > 0] / lengths[lengths > 0]
    left, values, _ = torch.linalg.svd(kept, full_matrices=False)
    return left[:, values > 1e-10 * values[:1]] if len(values) else left


def rotation(
    erased: Float64[Tensor, "o r"],
    guide: Float64[Tensor, "o q"],
    kept: Float64[Tensor, "o o"],
    *,
    scale: float = 1.0,
    transposed: bool = False,
    proper: bool = False,
) -> Float64[Tensor, "o o"]:
    """OCE's P = U V^T from the singular vectors of M = -scale R (I - R*) + kept; P^T P = I.

    R = ``erased erased^T`` and R* = ``guide guide^T`` project on the erased and the wanted outputs. With ``transposed``
    the first term is -scale (I - R*) R. That one follows from asking that P turns every output g in R away from its
    part outside R*, sum <P g, (I - R*) g>: the published form asks it of P^T (ours). P may be a reflection; ``proper``
    makes it a rotation, det P = 1, by the least singular direction (ours).
    """
    push = erased @ erased.T
    push = push - (push @ guide) @ guide.T
    left, _, right = torch.linalg.svd(-scale * (push.T if transposed else push) + kept)
    if proper and torch.linalg.det(left @ right) < 0:
        left = torch.cat([left[:, :-1], -left[:, -1:]], dim=1)
    return left @ right


def projector(forget: Float64[Tensor, "n d"], retain: Float64[Tensor, "m d"] | None, *, alpha: float) -> Square:
    """CURE's D = -(P_f - P_f P_r): erased directions less what they share with the retained ones.

    Each P = U diag(f) U^T, with the right singular vectors U of its rows and f_i = alpha e_i / ((alpha - 1) e_i + 1) of
    their shares of energy e_i (spectral expansion: alpha = 1 keeps the shares, a large one makes every f_i 1).
    """
    free = _expanded(forget, alpha)
    return -(free if retain is None else free - free @ _expanded(retain, alpha))


def _expanded(rows: Float64[Tensor, "n d"], alpha: float) -> Square:
    _, values, vectors = torch.linalg.svd(rows, full_matrices=False)
    energy = values**2 / (values**2).sum()
    return (vectors.T * (alpha * energy / ((alpha - 1) * energy + 1))) @ vectors


def squared(weights: list[Float64[Tensor, "_ d"]]) -> Square:
    """sum_l W_l^T W_l: what all projections together see of text space."""
    return torch.stack([outer(w, w) for w in weights]).sum(0)


def adversarial(
    rows: Float64[Tensor, "n d"],
    map_: Square,
    seen: Square,
    *,
    penalty: float,
    surrogate: str = "zero",
    towards: Float64[Tensor, "n d"] | None = None,
) -> Float64[Tensor, "n d"]:
    """RECE's rows e' that make the edited projections W_l ``map_`` answer as the original W_l answer ``rows``.

    With N = sum_l W_l^T W_l (``seen``), S = map^T N map and B = map^T N, one column e at a time:

    - ``zero``: (S + penalty I) e' = B e                              penalty ||e'||^2
    - ``output``: (1 + penalty) S e' = (B + penalty S) e              penalty ||W (e' - e)||^2, W as edited
    - ``source``: (S + penalty I) e' = (B + penalty I) e              penalty ||e' - e||^2
    - ``both``: the sum of the last two
    - ``target``: (S + penalty I) e' = B e + penalty e_target         penalty ||e' - e_target||^2

    With penalty 0 and an unedited map e' = e.
    """
    own, across = map_.T @ seen @ map_, map_.T @ seen
    left, right, more = own, across, torch.zeros_like(rows)
    if surrogate in ("output", "both"):
        left, right = left + penalty * own, right + penalty * own
    if surrogate in ("zero", "source", "both", "target"):
        left = ridged(left, penalty)
    if surrogate in ("source", "both"):
        right = ridged(right, penalty)
    if surrogate == "target" and towards is not None:
        more = penalty * towards
    return System(left).solve(rows @ right.T + more)

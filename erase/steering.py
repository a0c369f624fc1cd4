"""The targets and the loss of TRCE's second stage (arXiv 2503.07389, section 4.2), as functions of noise predictions.

Axes: s sample, c channel, y x space. Squared norms of the paper are means over c, y, x here, as in its released code:
they differ by that factor, and so do margins.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

Noise = Float[Tensor, "s c y x"]


def enhanced(empty: Noise, told: Noise, beta: float) -> Noise:
    """f = eps(0) + beta (eps(c) - eps(0)): what guidance of strength beta says of a concept (eq. 6 and 7)."""
    return empty + beta * (told - empty)


def triplet(prediction: Noise, safe: Noise, unsafe: Noise, margin: float) -> Float[Tensor, " s"]:
    """max(mean (p - safe)^2 - mean (p - unsafe)^2 + margin, 0), one number a sample (eq. 8)."""
    nearer = (prediction - safe).square().flatten(1).mean(1) - (prediction - unsafe).square().flatten(1).mean(1)
    return (nearer + margin).clamp(min=0)

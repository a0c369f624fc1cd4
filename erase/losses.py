"""The losses of erasers that learn, as functions of noise predictions, to be read beside their papers.

Axes: s sample, c channel, y x space. All predictions are epsilon, whatever the model was trained to predict.
"""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

Noise = Float[Tensor, "s c y x"]


def esd_target(anchor: Noise, concept: Noise, eta: float, start: Noise | None = None) -> Noise:
    """What ESD's student learns to predict (arXiv 2303.07345, eq. 6): away from the concept, starting at the anchor.

    ``anchor - eta (concept - anchor)``; the anchor is the prediction for the empty text. With ``start``, the prediction
    for the text that something is erased from, it is ``start - (eta + 1) (concept - anchor)``: the same number where
    that text is the concept itself. The newer release's guidance is eta + 1.
    """
    if start is None:
        return anchor - eta * (concept - anchor)
    return start - (eta + 1) * (concept - anchor)


def mean_square(one: Noise, other: Noise, valid: Float[Tensor, "s 1 y x"] | None = None) -> Float[Tensor, ""]:
    """The mean of (one - other)^2 over everything, or over the ``valid`` region of each sample."""
    squared = (one - other).square()
    if valid is None:
        return squared.mean()
    shares = valid.expand_as(squared)
    return (squared * shares).sum() / shares.sum()

"""Gates between 0 and 1 that can be learned: hard-concrete (Louizos et al., arXiv 1712.01312) and rounded ones.

A gate multiplies a weight or a unit; 0 prunes it. With u uniform in (0, 1) and log_alpha learned,

    s = sigmoid((log u - log(1 - u) + log_alpha) / BETA),    gate = min(1, max(0, s (ZETA - GAMMA) + GAMMA))

so that gates of exactly 0 and 1 have mass. With log_alpha = 5 a gate is 1 in 0.968 of all draws and 0 in 0.0014. Far
from there hardly a gate is anything but 1, which is why the sparse form below exists: only the others are written down.

Axes: g gates, in any shape; o those that are open but not fully, or closed.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

BETA, GAMMA, ZETA = 2 / 3, -0.1, 1.1

#: log u - log(1 - u) + log_alpha up to which a gate is closed, and from which on it is 1.
CLOSED = BETA * math.log(-GAMMA / ZETA)
OPEN = BETA * math.log((1 - GAMMA) / (ZETA - 1))

Gates = Float[Tensor, "*g"]


def gates(log_alpha: Gates, u: Gates) -> Gates:
    """Drawn gates: see the module."""
    s = torch.sigmoid((torch.logit(u) + log_alpha) / BETA)
    return (s * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


def closed_probability(log_alpha: Gates) -> Gates:
    """P(gate = 0) = sigmoid(BETA log(-GAMMA / ZETA) - log_alpha)."""
    return (CLOSED - log_alpha).sigmoid_()


def open_probability(log_alpha: Gates) -> Gates:
    """P(gate = 1)."""
    return torch.sigmoid(log_alpha - OPEN)


def pruned(log_alpha: Gates) -> Bool[Tensor, "*g"]:
    """Which gates are closed when learning is over: clip(sigmoid(log_alpha) (ZETA - GAMMA) + GAMMA) <= 1/2."""
    return (torch.sigmoid(log_alpha) * (ZETA - GAMMA) + GAMMA).clamp(0, 1) <= 0.5


def drawn(
    log_alpha: Float[Tensor, " g"], u: Float[Tensor, " g"]
) -> tuple[Int[Tensor, " o"], Float[Tensor, " o"], Float[Tensor, " o"]]:
    """The drawn gates that are not 1: their positions, their values, and d value / d log_alpha there.

    Where a gate is 1 its derivative is 0, so nothing is lost.
    """
    at = _positions(u < open_complement(log_alpha))
    s = torch.sigmoid((torch.logit(u[at]) + log_alpha[at]) / BETA)
    stretched = s * (ZETA - GAMMA) + GAMMA
    inside = (stretched > 0) & (stretched < 1)
    slope = torch.where(inside, s * (1 - s) * ((ZETA - GAMMA) / BETA), 0)
    return at, stretched.clamp(0, 1), slope


def open_complement(log_alpha: Gates) -> Gates:
    """P(gate < 1): draws u below it give gates other than 1."""
    return torch.sigmoid(OPEN - log_alpha)


def rounded(score: Float[Tensor, " g"]) -> tuple[Int[Tensor, " o"], Float[Tensor, " o"]]:
    """Straight-through gates 1[score > 0] that are not 1: their positions and values (0)."""
    at = _positions(score <= 0)
    return at, torch.zeros(len(at), device=score.device)


def straight_slope(score: Gates) -> Gates:
    """What stands for d gate / d score of a straight-through gate: sigmoid'(score), everywhere."""
    s = torch.sigmoid(score)
    return torch.addcmul(s, s, s, value=-1)


def _positions(flags: Bool[Tensor, " g"]) -> Int[Tensor, " o"]:
    """Where flags are set; on a CPU numpy finds a few of them many times as fast as torch."""
    if flags.device.type == "cpu":
        return torch.from_numpy(np.flatnonzero(flags.numpy()))
    return flags.nonzero().squeeze(1)

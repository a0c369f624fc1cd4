"""How a gate learns: the numbers of `erase.resag`, checked once."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

from probe.errors import BadInput


@dataclass(frozen=True)
class Settings:
    """See `erase.resag`, whose options these are; without any ``gate`` see `erase.low_rank`."""

    rank: int
    gate_rank: int
    alpha: float
    key_mode: Literal["independent", "tied"]
    gate: Literal["learned", "open", "none"]
    eta: float
    anchor_weight: float
    anchors: int
    mix: bool
    noise: float
    stages: int
    iterations: int
    first_iterations: int
    lr: float
    first_lr: float
    warm_up: int
    adversaries: int
    adversary_weight: float
    adversary_iterations: int
    adversary_lr: float
    keep_adversaries: Literal["latest", "all"]
    seed: int

    def __post_init__(self) -> None:
        for name in ("rank", "gate_rank", "stages", "iterations", "first_iterations", "anchors"):
            if getattr(self, name) < 1:
                raise BadInput(f"{name} must be at least 1", given=getattr(self, name))
        for name in ("adversaries", "adversary_iterations", "warm_up"):
            if getattr(self, name) < 0:
                raise BadInput(f"{name} cannot be negative", given=getattr(self, name))
        for name in ("alpha", "lr", "first_lr", "adversary_lr"):
            if not 0 < getattr(self, name) < math.inf:  # NaN among them
                raise BadInput(f"{name} must be positive", given=getattr(self, name))
        for name in ("anchor_weight", "adversary_weight", "noise"):
            if not 0 <= getattr(self, name) < math.inf:
                raise BadInput(f"{name} cannot be negative", given=getattr(self, name))
        if not -1 < self.eta < math.inf:
            raise BadInput("eta must be above -1, where nothing is wanted", given=self.eta)

    @property
    def scale(self) -> float:
        """What F D G is multiplied by; a gate that is always open is a sigmoid of 0, so twice as much."""
        return self.alpha / self.rank * (2 if self.gate == "open" else 1)

    def erasing(self, stage: int) -> tuple[int, float, int]:
        """Iterations, learning rate and cycles of the cosine of a stage."""
        return (self.first_iterations, self.first_lr, 2) if stage == 0 else (self.iterations, self.lr, 1)

    def attacking(self, stage: int) -> int:
        """Iterations of the adversary after a stage: none after the last, which nothing would learn from."""
        return self.adversary_iterations if self.adversaries and stage + 1 < self.stages else 0

    @property
    def total(self) -> int:
        """Iterations of one concept, of both players."""
        return sum(self.erasing(stage)[0] + self.attacking(stage) for stage in range(self.stages))

    def to_json(self) -> dict[str, Any]:
        """For identities."""
        return asdict(self)


def cosine(iteration: int, iterations: int, *, warm_up: int, cycles: int) -> float:
    """The share of the learning rate: up in a line, then ``cycles`` half cosines down to 0, each from 1."""
    if iteration < warm_up:
        return iteration / warm_up
    done = (iteration - warm_up) / max(1, iterations - warm_up)
    return 0.5 * (1 + math.cos(math.pi * (cycles * done % 1)))

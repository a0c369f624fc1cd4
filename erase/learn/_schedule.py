"""How a training goes: numbers that every eraser that learns shares, checked once."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch

from probe.errors import BadInput
from probe.scores._objectives import differentiating

Optimiser = Literal["adam", "adamw"]
Precision = Literal["float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class Schedule:
    """Optimiser and arithmetic of a training; the learning rate is constant.

    - ``precision``: of the UNet's arithmetic (autocast); leaves, their gradients and moments are float32 always
    - ``clip``: largest norm of all gradients together
    - ``checkpointing``: activations are computed again in the backward pass, for less memory
    - ``in_backward``: every leaf is updated as soon as its gradient is there, which is then freed
    """

    iterations: int
    lr: float
    optimiser: Optimiser = "adam"
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: float = 0.0
    clip: float | None = None
    precision: Precision = "float32"
    checkpointing: bool = False
    in_backward: bool = False

    def __post_init__(self) -> None:
        positive = {"iterations": self.iterations, "lr": self.lr, "clip": 1 if self.clip is None else self.clip}
        for name, value in positive.items():
            if not 0 < value < math.inf:  # NaN among them
                raise BadInput(f"{name} must be positive", given=value)
        if self.in_backward and (self.clip is not None or self.precision == "float16"):
            fix = "no clip, and float32 or bfloat16"
            raise BadInput("an update in the backward pass cannot see all gradients together", fix=fix)

    def to_json(self) -> dict[str, Any]:
        """What decides the leaves after a number of iterations; that number is not part of it."""
        return {
            "lr": self.lr,
            "optimiser": self.optimiser,
            "betas": list(self.betas),
            "weight_decay": self.weight_decay,
            "clip": self.clip,
            "precision": self.precision,
        }

    def new_optimiser(self, leaves: list[torch.Tensor]) -> torch.optim.Optimizer:
        """The optimiser of some leaves."""
        if self.optimiser == "adam":
            return torch.optim.Adam(leaves, lr=self.lr, betas=self.betas, weight_decay=self.weight_decay)
        return torch.optim.AdamW(leaves, lr=self.lr, betas=self.betas, weight_decay=self.weight_decay)

    @contextmanager
    def learning(self, pipe: Any) -> Iterator[None]:
        """The pipeline for a training: no gradients of its own parameters; everything as it was afterwards."""
        with ExitStack() as undo:
            undo.enter_context(differentiating(pipe))
            if self.checkpointing and not pipe.unet.is_gradient_checkpointing:
                pipe.unet.enable_gradient_checkpointing()
                undo.callback(pipe.unet.disable_gradient_checkpointing)
            yield

    def autocast(self, device: torch.device) -> Any:
        """The context of a forward pass. Without its cache: a cast made without gradients would be used again with."""
        name = self.precision
        return torch.autocast(device.type, getattr(torch, name), enabled=name != "float32", cache_enabled=False)

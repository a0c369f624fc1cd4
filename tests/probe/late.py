"""A model on which tracers are tried: order of registration is not that of execution, text comes by keyword."""

from __future__ import annotations

import torch
from torch import nn


class Late(nn.Module):
    """Registers b before a, runs a before b; passes text by keyword."""

    def __init__(self):
        super().__init__()
        self.b = nn.Linear(3, 3)
        self.a = nn.Linear(3, 3)
        self.mix = Mix()
        self.unused = nn.Linear(3, 3)

    def forward(self, x, times=1):
        for _ in range(times):
            x = self.mix(self.b(self.a(x)), text=x)
        return x


class Mix(nn.Module):
    def forward(self, x, *, text):
        return x + text


def hooks(root: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in root.modules())


def late() -> Late:
    """The model with fixed weights."""
    torch.manual_seed(0)
    return Late()


def numbers() -> torch.Tensor:
    """Its input, (2 3)."""
    return torch.arange(6.0).reshape(2, 3)

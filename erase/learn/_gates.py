"""Gates as a student: the weights stay as they are, and what is learned decides which of them are pruned."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from erase import hard_concrete
from erase._changes import Change, Mask
from erase._places import locate
from erase.learn._gated import ClosedShare, Gate, Kind, gated_forward
from erase.learn._parts import Part
from erase.prune._layers import stream


class Gates:
    """A gate for every weight of some parts, or for every unit; see `erase.hard_concrete`.

    Persistent memory is that of the leaves, their gradients and moments: 16 bytes a gate, or 12 where the optimiser
    steps in the backward pass.
    """

    def __init__(self, pipe: Any, parts: Sequence[Part], *, kind: Kind, by_unit: bool, init: float, seed: int) -> None:
        self._places = [locate(pipe, part.param) for part in parts]
        self._gates = [Gate(part, kind, _axis(part) if by_unit else None) for part in parts]
        self._seed, self.kind = seed, kind
        self._forwards = [vars(place.owner).get("forward") for place in self._places]
        self._weights = [place.tensor for place in self._places]
        self._leaves = {
            gate.part.param: torch.full(gate.size(weight), float(init), device=weight.device).requires_grad_()
            for gate, weight in zip(self._gates, self._weights, strict=True)
        }

    @property
    def leaves(self) -> dict[str, Tensor]:
        """Canonical parameter -> log_alpha (or score) of its gates, float32."""
        return self._leaves

    @contextmanager
    def in_force(self, iteration: int) -> Iterator[None]:
        """See `Student`: gates of hard-concrete are drawn anew at every iteration."""
        with ExitStack() as undo:
            for place, gate in zip(self._places, self._gates, strict=True):
                param = gate.part.param
                seed = stream(self._seed, f"{param} {iteration}").initial_seed()
                forward = gated_forward(place.owner, gate, self._leaves[param], seed)
                undo.enter_context(_calling(place.owner, forward))
            yield

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """See `Student`."""
        with ExitStack() as undo:
            for place, forward in zip(self._places, self._forwards, strict=True):
                undo.enter_context(_calling(place.owner, forward))
            yield

    def closed(self) -> Tensor:
        """Mean over all gates of the probability that they are closed, with gradients."""
        total = torch.stack([ClosedShare.apply(leaf, self.kind) for leaf in self._leaves.values()]).sum()
        return total / sum(leaf.numel() for leaf in self._leaves.values())

    def masks(self) -> dict[str, Tensor]:
        """Parameter -> flags in its shape: the weights that are pruned as things stand."""
        found = {}
        for gate, weight in zip(self._gates, self._weights, strict=True):
            learned = self._leaves[gate.part.param].detach()
            closed = hard_concrete.pruned(learned) if self.kind == "hard-concrete" else learned <= 0
            if gate.unit is not None:
                closed = closed.view([-1 if axis == gate.unit else 1 for axis in range(weight.ndim)])
            flags = torch.zeros(weight.shape, dtype=torch.bool, device=weight.device)
            inner = closed.expand(gate.part.of(flags).shape)
            found[gate.part.param] = gate.part.put(flags, inner).cpu().contiguous()
        return found

    def changes(self) -> list[Change]:
        """One mask a parameter."""
        return [Mask.of(param, mask) for param, mask in self.masks().items()]


def _axis(part: Part) -> int:
    """Which axis of a weight its units lie on: columns of a feed-forward's last Linear, rows of all else."""
    if part.dim is not None:
        return part.dim
    return 1 if ".ff.net." in part.param and ".proj." not in part.param else 0


@contextmanager
def _calling(module: Any, forward: Any) -> Iterator[None]:
    """Another ``forward`` of one module for the block, or for None its class's own."""
    table = vars(module)
    before = table.get("forward")
    try:
        if forward is None:
            table.pop("forward", None)
        else:
            table["forward"] = forward
        yield
    finally:
        table.pop("forward", None)
        if before is not None:
            table["forward"] = before

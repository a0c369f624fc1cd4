"""The student of SPM: one small pair beside every Linear and convolution of the transformers, trained in place."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from erase._changes import EACH, Change, Hook
from erase._places import locate
from erase._spm_hooks import adapted
from erase.prune._layers import stream
from probe.errors import BadInput


def adapted_params(pipe: Any) -> tuple[str, ...]:
    """Weights of every Linear and convolution inside the UNet's transformers, in order of registration."""
    from diffusers.models import Transformer2DModel

    found: dict[str, None] = {}
    for name, module in pipe.unet.named_modules():
        if isinstance(module, Transformer2DModel):
            for path, inner in module.named_modules():
                if isinstance(inner, nn.Linear | nn.Conv2d):
                    found[f"unet.{name}.{path}.weight"] = None
    return tuple(found)


class Adapters:
    """A `erase.learn.Student` whose leaves are the pairs of one concept, open all the way while it learns.

    ``down.<i>`` (r ...) starts uniform (Kaiming), ``up.<i>`` (o r) at zero, so that nothing is changed at first.
    """

    def __init__(self, pipe: Any, *, rank: int, alpha: float, seed: int, spec: dict[str, Any]) -> None:
        if rank < 1:
            raise BadInput("rank must be at least 1", given=rank)
        self._pipe, self._rank, self._alpha, self._spec = pipe, rank, alpha, spec
        self.params = adapted_params(pipe)
        self._modules = [locate(pipe, param).owner for param in self.params]
        self._off = False
        self._leaves: dict[str, Tensor] = {}
        for i, (param, module) in enumerate(zip(self.params, self._modules, strict=True)):
            weight: Any = module.weight
            bound = weight[0].numel() ** -0.5
            start = bound * (2 * torch.rand((rank, *weight.shape[1:]), generator=stream(seed, param)) - 1)
            self._leaves[f"down.{i}"] = start.to(weight.device).requires_grad_()
            self._leaves[f"up.{i}"] = torch.zeros(weight.shape[0], rank, device=weight.device).requires_grad_()

    @property
    def leaves(self) -> dict[str, Tensor]:
        """See `erase.learn.Student`."""
        return self._leaves

    @contextmanager
    def in_force(self, iteration: int) -> Iterator[None]:
        """See `erase.learn.Student`; ``iteration`` plays no part."""
        with ExitStack() as hooks:
            for i, module in enumerate(self._modules):
                hooks.callback(module.register_forward_hook(self._hook(i)).remove)
            yield

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """See `erase.learn.Student`."""
        before, self._off = self._off, True
        try:
            yield
        finally:
            self._off = before

    def changes(self) -> list[Change]:
        """One hook of one concept."""
        values = {name: leaf.detach()[None] for name, leaf in self._leaves.items()}
        values |= {"alpha": torch.full((1, len(self.params)), self._alpha), "strength": torch.ones(1)}
        return [Hook("unet", "spm", self.params, values, self._spec)]

    def _hook(self, i: int) -> Any:
        scale = self._alpha / self._rank

        def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor | None:
            if self._off:
                return None
            x = args[0]
            down, up = (self._leaves[f"{part}.{i}"].to(x.dtype) for part in ("down", "up"))
            return output + (scale * adapted(module, x, down, up, None)).to(output.dtype)

        return hook


def spec_of(names: Sequence[str], similarity: str, power: int) -> dict[str, Any]:
    """The spec of one concept's hook."""
    return {EACH: [list(names)], "similarity": similarity, "power": power}

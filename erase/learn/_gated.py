"""Linear and convolution whose frozen weight is gated, in the memory of the largest layer.

No gated weight outlives its layer's call: what autograd keeps is the layer's input, which any frozen layer with a
learning one below it keeps, and the few gates that are not 1. Random numbers are drawn from a seed, never stored.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import grad as conv_grad

from erase import hard_concrete
from erase.learn._parts import Part
from probe.errors import BadInput

Kind = Literal["hard-concrete", "straight-through"]

#: Gates other than 1 are kept for the backward pass up to this share of all; beyond, they are drawn again.
KEPT = 0.05


@dataclass(frozen=True)
class Gate:
    """How a layer's gates come from what is learned.

    - ``part``: which of the weight's rows or columns are gated
    - ``unit``: None for a gate a weight, else the axis of the weight that has a gate each (0 rows, 1 columns)
    """

    part: Part
    kind: Kind
    unit: int | None

    def size(self, weight: Tensor) -> tuple[int, ...]:
        """Shape of the gates of a weight."""
        shape = list(weight.shape)
        if self.part.dim is not None:
            shape[self.part.dim] = len(self.part.index)
        return tuple(shape) if self.unit is None else (shape[self.unit],)

    def not_one(self, learned: Tensor, seed: int) -> tuple[Tensor, Tensor, Tensor | None]:
        """Positions, values and slopes of gates that are not 1 (slopes None: everywhere, see `hard_concrete`)."""
        flat = learned.detach().reshape(-1)
        if self.kind == "straight-through":
            return (*hard_concrete.rounded(flat), None)
        draw = torch.Generator(flat.device).manual_seed(seed)
        u = torch.rand(len(flat), generator=draw, device=flat.device)
        return hard_concrete.drawn(flat, u.clamp_(min=torch.finfo(torch.float32).tiny))

    def gated(self, weight: Tensor, at: Tensor, values: Tensor, dtype: torch.dtype) -> Tensor:
        """The gated weight in a dtype. Closed gates fill in zeros: a product would leave -0.0 and NaN behind."""
        whole = self.part.dim is None
        inner = weight.detach().to(dtype, copy=True) if whole else self.part.of(weight.detach()).to(dtype)
        inner = inner.contiguous()
        closed = values == 0
        if self.unit is None:
            flat = inner.view(-1)
            flat[at] = torch.where(closed, 0, flat[at] * values.to(dtype))
        else:
            rows = inner.index_select(self.unit, at) * self._along(values, inner).to(dtype)
            inner.index_copy_(self.unit, at, rows.masked_fill(self._along(closed, inner), 0))
        return inner if whole else self.part.put(weight.detach().to(dtype), inner)

    def gradient(self, learned: Tensor, weight: Tensor, of_weight: Tensor, at: Tensor, slope: Tensor | None) -> Tensor:
        """dL/d learned, from dL/d gated weight: summed over what shares a gate, times the gate's slope."""
        inner, found = weight.detach(), of_weight
        if self.part.dim is not None:
            inner, found = self.part.of(inner), self.part.of(found)
        if self.unit is not None:
            axes = [axis for axis in range(inner.ndim) if axis != self.unit]
            per_gate = (found.float() * inner.float()).sum(axes)
        elif slope is None:
            per_gate = found.float() * inner.float()
        else:
            result = torch.zeros(learned.numel(), device=learned.device)
            result[at] = found.reshape(-1)[at].float() * inner.reshape(-1)[at].float() * slope
            return result.view_as(learned)
        if slope is None:
            return hard_concrete.straight_slope(learned).mul_(per_gate)
        every = torch.zeros_like(per_gate)
        every[at] = slope
        return per_gate * every

    def _along(self, values: Tensor, inner: Tensor) -> Tensor:
        assert self.unit is not None
        return values.view([-1 if axis == self.unit else 1 for axis in range(inner.ndim)])


def gated_forward(module: nn.Module, gate: Gate, learned: Tensor, seed: int) -> Callable[..., Tensor]:
    """What takes the place of ``module.forward``: the same, with its weight gated. Further arguments are ignored."""
    if not isinstance(module, nn.Linear | nn.Conv2d):
        raise BadInput(
            "only weights of Linear and Conv2d can be gated", given=f"{gate.part.param}: {type(module).__name__}"
        )

    def forward(x: Tensor, *_args: Any, **_kwargs: Any) -> Tensor:
        device = x.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype
        with torch.autocast(device, enabled=False):
            result: Tensor = _Gated.apply(x.to(dtype), learned, module, gate, seed)
            return result

    return forward


class _Gated(torch.autograd.Function):
    """y = module(x) with the module's weight gated; gradients to x and to what is learned."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, learned: Tensor, module: Any, gate: Gate, seed: int) -> Tensor:
        found = gate.not_one(learned, seed)
        at, values, _ = found
        few = len(at) <= KEPT * learned.numel()
        ctx.save_for_backward(x, learned, *(tensor for tensor in found if few and tensor is not None))
        ctx.module, ctx.gate, ctx.seed, ctx.few = module, gate, seed, few
        return _called(module, x, gate.gated(module.weight, at, values, x.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, learned, *kept = ctx.saved_tensors
        module, gate = ctx.module, ctx.gate
        at, values, slope = (*kept, None)[:3] if ctx.few else gate.not_one(learned, ctx.seed)
        of_x = of_learned = None
        if ctx.needs_input_grad[1]:
            of_learned = gate.gradient(learned, module.weight, _of_weight(module, x, grad), at, slope)
        if ctx.needs_input_grad[0]:
            of_x = _of_input(module, x, gate.gated(module.weight, at, values, x.dtype), grad)
        return of_x, of_learned, None, None, None


def _called(module: Any, x: Tensor, weight: Tensor) -> Tensor:
    bias = None if module.bias is None else module.bias.detach().to(x.dtype)
    if isinstance(module, nn.Linear):
        return nn.functional.linear(x, weight, bias)
    return module._conv_forward(x, weight, bias)


def _of_weight(module: Any, x: Tensor, grad: Tensor) -> Tensor:
    if isinstance(module, nn.Linear):
        return grad.reshape(-1, grad.shape[-1]).T @ x.reshape(-1, x.shape[-1])
    how = (module.stride, module.padding, module.dilation, module.groups)
    return conv_grad.conv2d_weight(x, module.weight.shape, grad, *how)


def _of_input(module: Any, x: Tensor, weight: Tensor, grad: Tensor) -> Tensor:
    if isinstance(module, nn.Linear):
        return grad @ weight
    how = (module.stride, module.padding, module.dilation, module.groups)
    return conv_grad.conv2d_input(x.shape, weight, grad, *how)


class ClosedShare(torch.autograd.Function):
    """The sum over gates of P(gate = 0), which is computed again in the backward pass instead of kept."""

    @staticmethod
    def forward(ctx: Any, learned: Tensor, kind: Kind) -> Tensor:
        """Sum of the probabilities; of straight-through gates, of sigmoid(-score)."""
        ctx.save_for_backward(learned)
        ctx.kind = kind
        return _closed(learned, kind).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        """p' = -p (1 - p)."""
        (learned,) = ctx.saved_tensors
        p = _closed(learned, ctx.kind)
        return p.addcmul_(p, p, value=-1).mul_(-grad), None


def _closed(learned: Tensor, kind: Kind) -> Tensor:
    return hard_concrete.closed_probability(learned) if kind == "hard-concrete" else learned.neg().sigmoid_()

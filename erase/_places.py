"""Where a canonical parameter name lives in a pipeline, and where weights must not be changed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from probe import compat
from probe.errors import BadInput, WrongModel, nearest


@dataclass(frozen=True)
class Place:
    """Where a canonical parameter lives: ``owner`` holds the tensor under ``leaf`` even after a move or a cast."""

    component: nn.Module
    owner: nn.Module
    leaf: str

    @property
    def tensor(self) -> Tensor:
        """The live tensor."""
        return getattr(self.owner, self.leaf)


def locate(pipe: Any, param: str) -> Place:
    """The place of a canonical parameter name in ``pipe``.

    Raises `WrongModel` if there is none, and `BadInput` with the reason where a change would be lost or wrong: meta
    tensors, quantised weights, active adapters, compiled modules, fused QKV projections.
    """
    name, _, path = param.partition(".")
    component = getattr(pipe, name, None)
    if not isinstance(component, nn.Module):
        known = [n for n, c in getattr(pipe, "components", {}).items() if isinstance(c, nn.Module)]
        raise WrongModel(f"the pipeline has no component for {param}", given=name, nearest=nearest(name, known))
    *steps, leaf = compat.live_name(component, path).split(".")
    owner = component
    _refuse_module(owner, "", param)
    for i, step in enumerate(steps):
        child = getattr(owner, step, None)
        if not isinstance(child, nn.Module):
            raise _no_such(component, param)
        _refuse_module(child, step, param, parent=owner)
        base = getattr(child, "base_layer", None)  # an adapter that is switched off: the weights are one level down
        owner = base if isinstance(base, nn.Module) and [*steps, leaf][i + 1] != "base_layer" else child
    tensor: Tensor | None = owner._parameters.get(leaf, owner._buffers.get(leaf))
    if tensor is None:
        raise _no_such(component, param)
    _refuse_tensor(tensor, param)
    return Place(component, owner, leaf)


def _refuse_module(module: nn.Module, step: str, param: str, parent: nn.Module | None = None) -> None:
    if hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None:
        raise BadInput(
            f"{param} is part of a compiled module, whose graph may hold weights of its own",
            fix="apply the edit before torch.compile, or load the pipeline again",
        )
    if getattr(parent, "fused_projections", False) and step in ("to_q", "to_k", "to_v"):
        raise BadInput(
            f"{param} is unused while QKV projections are fused", fix="pipe.unfuse_qkv_projections() first, then apply"
        )
    if isinstance(getattr(module, "base_layer", None), nn.Module):
        merged = bool(getattr(module, "merged_adapters", ()))
        active = bool(getattr(module, "active_adapters", True)) and not getattr(module, "disable_adapters", False)
        if merged or active:
            raise BadInput(
                f"{param} belongs to a layer with an active PEFT adapter",
                fix="pipe.unload_lora_weights() or disable_adapters() first",
            )


def _refuse_tensor(tensor: Tensor, param: str) -> None:
    if tensor.is_meta:
        raise BadInput(f"{param} is a meta tensor: it has no values here", fix="load without sequential CPU offload")
    plain = type(tensor) in (nn.Parameter, Tensor) and tensor.is_floating_point() and tensor.dtype.itemsize > 1
    if not plain:
        raise BadInput(
            f"{param} is quantised or wrapped; its stored numbers are not its weights",
            given=f"{type(tensor).__name__} of {tensor.dtype}",
            fix="load the pipeline in float32, float16 or bfloat16",
        )


def _no_such(component: nn.Module, param: str) -> WrongModel:
    name = param.partition(".")[0]
    known = [f"{name}.{compat.canonical_name(name, n)}" for n, _ in component.named_parameters()]
    return WrongModel("the pipeline has no such parameter", given=param, nearest=nearest(param, known))

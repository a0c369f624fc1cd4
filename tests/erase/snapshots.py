"""Everything that an edit must leave behind as it was, as one comparable value; and edits to try."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from erase._changes import Delta, Mask, Replace
from erase._edit import make_edit

FF = "unet.mid_block.attentions.0.transformer_blocks.0.ff.net.2.weight"
FF_DOWN = "unet.down_blocks.0.attentions.0.transformer_blocks.0.ff.net.2.weight"
KEY = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"
TEXT = "text_encoder.text_model.encoder.layers.0.mlp.fc2.weight"
CONV = "unet.conv_in.weight"

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_state_dict_hooks")


def snapshot(pipe: Any) -> dict[str, Any]:
    """Bytes and identity of every tensor, keys, hook counts, attention processors and attributes of every component."""
    found: dict[str, Any] = {}
    for name, component in pipe.components.items():
        if not isinstance(component, nn.Module):
            continue
        found[name, "attributes"] = sorted(vars(component))
        found[name, "training"] = [m.training for m in component.modules()]
        found[name, "hooks"] = [sum(len(getattr(m, kind)) for kind in _HOOKS) for m in component.modules()]
        found[name, "modules"] = [(n, type(m).__name__) for n, m in component.named_modules()]
        found[name, "processors"] = [repr(type(m.processor)) for m in component.modules() if hasattr(m, "processor")]
        for key, tensor in component.state_dict(keep_vars=True).items():
            found[name, key] = (id(tensor), str(tensor.dtype), tensor.requires_grad, raw(tensor))
    return found


def raw(tensor: torch.Tensor) -> bytes:
    """The bytes of a tensor: tells -0.0 from 0.0, and NaN from another NaN."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def parameter(pipe: Any, param: str) -> torch.Tensor:
    """The live tensor behind a canonical name, by another way than the code under test."""
    component, _, path = param.partition(".")
    state = getattr(pipe, component).state_dict(keep_vars=True)
    return state[path] if path in state else state[path.removeprefix("text_model.")]


def random_mask(pipe: Any, param: str, seed: int = 0, share: float = 0.3) -> Mask:
    shape = parameter(pipe, param).shape
    return Mask.of(param, torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < share)


def random_delta(pipe: Any, param: str, seed: int = 0, rank: int | None = None) -> Delta:
    shape, generator = parameter(pipe, param).shape, torch.Generator().manual_seed(seed)
    if rank is None:
        return Delta(param, torch.randn(shape, generator=generator))
    up, down = (torch.randn(n, generator=generator) for n in ((shape[0], rank), (rank, shape[1:].numel())))
    return Delta(param, (up, down), tuple(shape))


def random_replace(pipe: Any, param: str, seed: int = 0) -> Replace:
    return Replace(param, torch.randn(parameter(pipe, param).shape, generator=torch.Generator().manual_seed(seed)))


def edit_of(pipe: Any, *changes: Any, name: str = "edit") -> Any:
    return make_edit(pipe, changes, name=name, method="test", options={})

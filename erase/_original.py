"""An edited model as one file in the original Stable Diffusion layout, for front ends that know no other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from probe.compat import canonical_name, original_names, original_shape
from probe.errors import BadInput, WorkbenchError

#: The parts of the layout; a pipeline with others is no SD 1.x.
PARTS = ("unet", "vae", "text_encoder")


def names(pipe: Any) -> dict[str, tuple[str, str]]:
    """Key in the file -> (component, canonical name of the tensor), for every tensor of the three networks."""
    found: dict[str, tuple[str, str]] = {}
    for part in PARTS:
        component = getattr(pipe, part)
        canonical = [canonical_name(part, key) for key in component.state_dict()]
        renamed = original_names(part, canonical, component.config)
        found |= {key: (part, name) for name, key in renamed.items()}
    return found


def tensors(pipe: Any) -> dict[str, Tensor]:
    """Every tensor of the pipeline as it is now, under the names of the layout.

    Raises `BadInput` for pipelines whose text encoders that layout writes otherwise (SD 2.x, XL).
    """
    if getattr(pipe, "text_encoder_2", None) is not None or not _is_first(pipe):
        raise BadInput(
            "the original layout is written for SD 1.x only",
            given=type(pipe).__name__,
            expected="one CLIP text encoder as in SD 1.x",
            fix='layout="diffusers"',
        )
    found = {}
    states = {part: _state(pipe, part) for part in PARTS}
    for key, (part, name) in names(pipe).items():
        tensor = states[part][name].detach().cpu()
        found[key] = tensor.reshape(original_shape(part, name, tuple(tensor.shape))).contiguous()
    return found


def write(pipe: Any, file: Path) -> None:
    """Write the file and read it again: every tensor must come back bit by bit under its own name."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    written = tensors(pipe)
    save_file(written, file, metadata={"format": "pt"})
    with safe_open(file, framework="pt") as again:
        for key, (part, name) in names(pipe).items():
            wanted = _state(pipe, part)[name].detach().cpu().contiguous()
            found = again.get_tensor(key).reshape(wanted.shape)
            same = found.dtype == wanted.dtype and torch.equal(_bytes(found), _bytes(wanted))
            if not same:
                raise WorkbenchError("the exported file does not read as it was written", given=f"{file}: {key}")


def _state(pipe: Any, part: str) -> dict[str, Tensor]:
    return {canonical_name(part, key): tensor for key, tensor in getattr(pipe, part).state_dict().items()}


def _is_first(pipe: Any) -> bool:
    """SD 2.x has OpenCLIP's encoder, which its checkpoints name and join differently."""
    return getattr(pipe.text_encoder.config, "hidden_act", "") == "quick_gelu"


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)

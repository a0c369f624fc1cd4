"""What networks are called, how they are configured and how they are called, on every library version."""

from __future__ import annotations

import functools
from typing import Any

from probe.errors import BadInput

_PREFIX = "text_model."


def canonical_name(component: str, name: str) -> str:
    """The name of a module or parameter as files have it: text encoders with ``text_model.``, as on the hub."""
    if not component.startswith("text_encoder") or name.startswith((_PREFIX, "text_projection")):
        return name
    return _PREFIX + name


def live_name(component: Any, name: str) -> str:
    """The name that a canonical one has inside ``component`` (a module) on the installed version."""
    if name.startswith(_PREFIX) and not hasattr(component, _PREFIX.rstrip(".")):
        return name.removeprefix(_PREFIX)
    return name


#: Entries of a transformers config that say how it was saved or run, not what the network is.
_BOOKKEEPING = {"architectures", "dtype", "torch_dtype", "transformers_version", "model_type", "use_cache"}


def clean_config(component: Any) -> dict[str, Any]:
    """What a network's config decides, without bookkeeping and without entries at their default.

    Leaving defaults out keeps it the same when a later library version adds an entry that changes nothing.
    """
    config = component.config
    if hasattr(config, "to_dict"):  # transformers
        values, defaults = config.to_dict(), type(config)().to_dict()
    else:  # diffusers
        import inspect

        values = dict(config)
        defaults = {k: p.default for k, p in inspect.signature(type(component).__init__).parameters.items()}
    kept = {k: _lists(v) for k, v in values.items() if not k.startswith("_") and k not in _BOOKKEEPING}
    return {k: v for k, v in kept.items() if k not in defaults or v != _lists(defaults[k])}


def _lists(value: Any) -> Any:
    return [_lists(item) for item in value] if isinstance(value, list | tuple) else value


def refuse_compiled(module: Any, what: str) -> None:
    """Raise `BadInput` for a `torch.compile`d module: its graph bypasses hooks."""
    if hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None:
        raise BadInput(
            f"{what} is compiled, and a compiled graph does not call hooks",
            given=type(module).__name__,
            fix="work on the module as it was before torch.compile (module._orig_mod), or load the pipeline again",
        )


def multiply_in(unet: Any, dtype: str) -> None:
    """From now on the UNet multiplies in that type (autocast) and hands over float32; its weights stay as they are.

    Edits, findings and attacks of the model so remain its own; a processor with matrix units for bfloat16 is faster.
    """
    import torch

    forward = unet.forward

    @functools.wraps(forward)
    def faster(*args: Any, **options: Any) -> Any:
        with torch.autocast(unet.device.type, getattr(torch, dtype)):
            found = forward(*args, **options)
        if isinstance(found, tuple):
            return tuple(one.float() for one in found)
        found.sample = found.sample.float()
        return found

    unet.forward = faster


def unet_inputs(config: Any, *, device: str = "cpu", samples: int = 1, tokens: int = 4) -> dict[str, Any]:
    """Keyword arguments of the right shapes, all zero, for one call of the `UNet2DConditionModel` of that config."""
    import torch

    size = config.sample_size if isinstance(config.sample_size, int | None) else max(config.sample_size)
    multiple = 2 ** (len(config.block_out_channels) - 1)  # so that up and down paths meet in size
    size = -(-min(size or 64, 64) // multiple) * multiple
    width = config.encoder_hid_dim or config.cross_attention_dim
    width = width if isinstance(width, int) else width[0]

    def zeros(*shape: int) -> torch.Tensor:
        return torch.zeros(samples, *shape, device=device)

    inputs: dict[str, Any] = {
        "sample": zeros(config.in_channels, size, size),
        "timestep": torch.zeros(samples, device=device),
        "encoder_hidden_states": zeros(tokens, width),
    }
    if config.addition_embed_type == "text_time":  # SDXL
        ids = 6 * config.addition_time_embed_dim
        pooled = config.projection_class_embeddings_input_dim - ids
        inputs["added_cond_kwargs"] = {"text_embeds": zeros(pooled), "time_ids": zeros(6)}
    return inputs

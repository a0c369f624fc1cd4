"""A pipeline without weights: enough to plan a recording, in a second and in no memory."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from probe import compat
from probe._load import folder_of
from probe._model_files import check_part, read_index, read_json

#: What a plan asks of a pipeline.
_NETWORKS = ("text_encoder", "text_encoder_2", "unet", "vae")


def skeleton(model: str | Path) -> Any:
    """The networks of a model on torch's meta device, its scheduler and its prompts' length, from its configs alone.

    ``model`` is what `probe.load` takes, and must be in this machine; a single file has no configs and is not for here.
    Raises as `probe.load` does.
    """
    import diffusers
    import torch
    import transformers

    folder = folder_of(model)
    index = read_index(folder)
    libraries = {"diffusers": diffusers, "transformers": transformers}
    made: dict[str, Any] = dict.fromkeys(_NETWORKS)
    with compat.quiet_libraries():
        for name in _NETWORKS:
            if index.get(name) and index[name][0]:
                check_part(folder, name)
                library, class_ = index[name]
                with torch.device("meta"):
                    made[name] = _build(getattr(libraries[library], class_), folder / name)
        scheduler_class = getattr(diffusers, index["scheduler"][1])
        scheduler = scheduler_class.from_config(scheduler_class.load_config(folder / "scheduler"))
    blocks = len(made["vae"].config.block_out_channels) if made["vae"] is not None else 1
    check_part(folder, "tokenizer")
    length = read_json(folder / "tokenizer" / "tokenizer_config.json").get("model_max_length")
    return SimpleNamespace(
        **made,
        scheduler=scheduler,
        tokenizer=SimpleNamespace(model_max_length=length or made["text_encoder"].config.max_position_embeddings),
        vae_scale_factor=2 ** (blocks - 1),
        config=index,
        components=made,
    )


def _build(class_: Any, folder: Path) -> Any:
    if hasattr(class_, "load_config"):  # diffusers
        return class_.from_config(class_.load_config(folder)).eval()
    return class_(class_.config_class.from_pretrained(folder)).eval()

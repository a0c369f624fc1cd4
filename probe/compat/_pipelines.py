"""Loading and saving pipelines without noise, in the layout of the hub."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from probe._files import occupied, written_whole
from probe.compat._networks import canonical_name
from probe.compat._tokenizers import save_tokenizer, write_json
from probe.errors import BadInput


def dtype_argument(dtype: Any) -> dict[str, Any]:
    """``dtype`` as the keyword that diffusers' loaders have for it."""
    import diffusers
    from packaging.version import Version

    return {"dtype" if Version(diffusers.__version__) >= Version("0.40.0") else "torch_dtype": dtype}


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """No bars and no advice from diffusers and transformers while they load or save; everything as before afterwards.

    Among the advice: that image processors want torchvision, which nothing here needs.
    """
    import diffusers.utils.logging as of_diffusers
    import transformers.utils.logging as of_transformers

    with ExitStack() as undo:
        for library in (of_diffusers, of_transformers):
            undo.callback(library.set_verbosity, library.get_verbosity())
            library.set_verbosity_error()
            if library.is_progress_bar_enabled():
                undo.callback(library.enable_progress_bar)
                library.disable_progress_bar()
        yield


def save_pipeline(pipe: Any, folder: str | Path, dtype: Any = None, *, replace: bool = False) -> Path:
    """Write a Stable Diffusion pipeline as the hub has it, readable by transformers 4 and 5.

    ``model_index.json``; for each network ``config.json`` and one safetensors file, text encoders with the prefix
    ``text_model.``; tokenizers as ``vocab.json`` and ``merges.txt``; no safety checker. The folder appears whole or not
    at all.

    Args:
        pipe: the pipeline; weights are written as they are, edits in force included.
        folder: new or empty; with ``replace`` a pipeline that is there gives way.
        dtype: a torch dtype to which floating tensors are cast (``torch.float16``); None keeps each tensor's own.
    """
    folder = Path(folder)
    if occupied(folder) and not (replace and (folder / "model_index.json").is_file()):
        raise BadInput(
            "the output path exists", given=str(folder), fix="choose another path, or replace=True a pipeline"
        )
    with quiet_libraries(), written_whole(folder, replace=replace) as partial:
        partial.mkdir()
        write_json(partial / "model_index.json", _model_index(pipe))
        for name, component in pipe.components.items():
            if component is None or name in LEFT_OUT:
                continue
            if hasattr(component, "state_dict"):
                _save_network(name, component, partial / name, dtype)
            elif hasattr(component, "get_vocab"):
                save_tokenizer(component, partial / name)
            else:
                component.save_pretrained(partial / name)
    return folder


#: Parts that pipelines here go without: they judge images, or prepare images that nothing here puts in.
LEFT_OUT = ("safety_checker", "feature_extractor", "image_encoder")


def _model_index(pipe: Any) -> dict[str, Any]:
    index = json.loads(pipe.to_json_string())
    index |= {name: [None, None] for name in LEFT_OUT if name in index}
    index.pop("_name_or_path", None)
    if "safety_checker" in index:
        index["requires_safety_checker"] = False
    return index


def _save_network(name: str, network: Any, folder: Path, dtype: Any) -> None:
    from safetensors.torch import save_file

    folder.mkdir()
    state = {}
    for key, tensor in network.state_dict().items():
        cast = tensor.detach().cpu()
        cast = cast.to(dtype) if dtype is not None and cast.is_floating_point() else cast
        state[canonical_name(name, key)] = cast.contiguous()
    kept = str(dtype or network.dtype).removeprefix("torch.")
    if hasattr(network.config, "to_dict"):  # transformers
        weights, config = "model.safetensors", _own_entries(network.config)
        config |= {"architectures": [type(network).__name__], "torch_dtype": kept}  # the key that 4 and 5 both read
    else:
        weights, config = "diffusion_pytorch_model.safetensors", json.loads(network.to_json_string())
    write_json(folder / "config.json", {k: v for k, v in config.items() if k != "_name_or_path"})
    save_file(state, folder / weights, metadata={"format": "pt"})


def _own_entries(config: Any) -> dict[str, Any]:
    """A transformers config less ``dtype`` and what every config of any model has by default."""
    from transformers import PretrainedConfig

    common = PretrainedConfig().to_dict()
    values = config.to_dict().items()
    return {k: v for k, v in values if k == "model_type" or (k != "dtype" and (k not in common or v != common[k]))}

"""Pipelines from a name, a folder, the hub or one file; offline first, safetensors only."""

from __future__ import annotations

import inspect
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probe import compat
from probe._model_files import (
    INDEX,
    PICKLES,
    check_complete,
    check_filled,
    check_folder,
    pickled,
    read_index,
    tensor_names,
    without_weights,
)
from probe._paths import emoji_dir
from probe.errors import BadInput, StoreDamaged, UnknownName, nearest, unknown_name

if TYPE_CHECKING:
    import torch
    from diffusers import StableDiffusionPipeline

logger = logging.getLogger(__name__)

DTYPES = ("float32", "float16", "bfloat16", "float64")
_HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")


def load(
    model: str | Path = "emoji",
    *,
    revision: str | None = None,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype | None = None,
    config: str | Path | None = None,
) -> StableDiffusionPipeline:
    """A pipeline in eval mode, without safety checker or watermark.

    Args:
        model: ``"emoji"`` (embedded), a folder in diffusers layout, a hub id such as
            ``"stable-diffusion-v1-5/stable-diffusion-v1-5"``, or a ``.safetensors`` file in the original layout.
        revision: of a hub id: branch, tag or commit.
        device: where the networks go.
        dtype: ``"float32"`` (default, whatever was stored), ``"float16"``, ``"bfloat16"``, ``"float64"`` or the torch
            dtype.
        config: for a single file: a folder or hub id in diffusers layout that has the configs and the tokenizer.

    A hub id is looked up in the local cache; the network is asked only where that lacks files and ``HF_HUB_OFFLINE`` is
    not set. Weights are read from safetensors only and no code that comes with a model is run.

    Raises `UnknownName` for what is neither name, path nor cached or reachable hub id; `BadInput` for a folder that is
    no pipeline (naming what is missing) or has pickled weights only; `StoreDamaged` for torn files.
    """
    resolved = _dtype(dtype)
    path = Path(model).expanduser()
    with compat.quiet_libraries():
        if str(model) == "emoji":
            pipe = _from_folder(_embedded(), resolved)
        elif os.path.isdir(path):
            pipe = _from_folder(path, resolved)
        elif os.path.isfile(path):
            pipe = _from_file(path, resolved, config)
        elif _HUB_ID.fullmatch(str(model)):
            pipe = _from_folder(_hub_folder(str(model), revision), resolved)
        else:
            raise _unknown(model)
    for component in pipe.components.values():
        if hasattr(component, "eval"):
            component.eval()
    return pipe.to(device)


def name_of(pipe: Any) -> str | None:
    """What the model of a pipeline is called: ``emoji``, its hub id, or its folder's name; None where nothing says."""
    path = Path(str(getattr(pipe, "config", {}).get("_name_or_path") or ""))
    if path == emoji_dir() / "pipeline":
        return "emoji"
    if cached := re.search(r"models--([\w.-]+?)--([\w.-]+)[/\\]snapshots", str(path)):
        return f"{cached[1]}/{cached[2]}"
    return path.name or None


def folder_of(model: str | Path) -> Path:
    """The folder with the configs of a model: embedded, a folder, or a hub id (its weights may be elsewhere)."""
    path = Path(model).expanduser()
    if str(model) == "emoji":
        return _embedded()
    if path.is_dir():
        return path
    if _HUB_ID.fullmatch(str(model)) and not path.is_file():
        return _hub_folder(str(model), None, weights=False)
    raise _unknown(model)


def _embedded() -> Path:
    folder = emoji_dir() / "pipeline"
    if not folder.is_dir():
        raise BadInput("the embedded model is not here", given=str(folder), fix="run `make model`, or install a wheel")
    return folder


def _from_folder(folder: Path, dtype: torch.dtype) -> Any:
    model = check_folder(folder)
    options = {"use_safetensors": True, "variant": model.variant, **dict.fromkeys(model.optional)}
    pipe = _build(model.pipeline, "from_pretrained", folder, dtype, model.optional, options)
    check_complete(model, pipe)
    return pipe


def _from_file(path: Path, dtype: torch.dtype, config: str | Path | None) -> Any:
    if path.suffix in PICKLES:
        raise pickled([path], "this file")
    if path.suffix != ".safetensors":
        raise BadInput("a model is a folder or a .safetensors file", given=str(path))
    tensor_names(path)
    if config is None:
        fix = "name a folder or hub id in diffusers layout of the same architecture: config='...'"
        raise BadInput("a single file does not say how its networks are built", given=str(path), fix=fix)
    folder = Path(config).expanduser()
    folder = folder if folder.is_dir() else _hub_folder(str(config), None, weights=False)
    index = read_index(folder)
    optional = tuple(name for name in compat.LEFT_OUT if name in index)
    pipe = _build(index["_class_name"], "from_single_file", path, dtype, optional, {"config": str(folder)})
    check_filled(path, pipe)
    return pipe


def _build(
    pipeline: str, how: str, path: Path, dtype: torch.dtype, optional: tuple[str, ...], options: dict[str, Any]
) -> Any:
    """Let diffusers build what has been checked; what it still cannot read is `StoreDamaged`."""
    import diffusers

    if "safety_checker" in optional:
        options |= {"safety_checker": None, "requires_safety_checker": False}
    class_ = getattr(diffusers, pipeline)
    if "add_watermarker" in inspect.signature(class_).parameters:
        options["add_watermarker"] = False  # by default pictures depend on whether a further package is installed
    options |= compat.dtype_argument(dtype)
    try:
        with compat.quiet_libraries():
            return getattr(class_, how)(str(path), local_files_only=True, **options)
    except ImportError:  # a package that is not installed
        raise
    except Exception as error:  # each library has its own for what it cannot read, tokenizers a bare Exception
        fix = "copy or download it again"
        reason = str(error).strip().split("\n")[0]
        raise StoreDamaged("diffusers cannot build the pipeline", given=f"{path} ({reason})", fix=fix) from error


def _hub_folder(model: str, revision: str | None, *, weights: bool = True) -> Path:
    """The snapshot of a hub id in the local cache, completed from the network only where it must be and may be."""
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(model, revision=revision, local_files_only=True))
        if not weights or not list(without_weights(folder, read_index(folder))):
            return folder
        missing = "its weights are not all in the local cache"
    except LocalEntryNotFoundError:
        missing = "it is not in the local cache"
    except BadInput as error:
        missing = f"its copy in the local cache is incomplete: {error.what}"
    if constants.HF_HUB_OFFLINE:
        raise _unknown(model, f"{missing}, and HF_HUB_OFFLINE is set")
    logger.info("%s: %s; asking the hub", model, missing)
    try:
        if not weights:
            patterns = [INDEX, "*/*.json", "*/*.txt"]
            return Path(snapshot_download(model, revision=revision, allow_patterns=patterns))
        from diffusers import DiffusionPipeline

        left_out: dict[str, None] = dict.fromkeys(compat.LEFT_OUT)
        return Path(DiffusionPipeline.download(model, revision=revision, use_safetensors=True, **left_out))
    except OSError as error:  # errors of the hub, of the connection, and of diffusers where there are no safetensors
        raise _unknown(model, f"{missing}, and the hub did not give it: {type(error).__name__}") from error


def _unknown(model: str | Path, why: str | None = None) -> UnknownName:
    known = ["emoji", *_pipelines_near(Path(model).expanduser())]
    return UnknownName(
        "unknown model",
        given=repr(str(model)) + (f" ({why})" if why else ""),
        expected=f"'emoji', a folder with {INDEX}, a .safetensors file, or a hub id (owner/name)",
        nearest=nearest(str(model), known) or known[:3],
    )


def _pipelines_near(path: Path) -> Iterator[str]:
    """Pipelines in the working directory and beside the path that was meant."""
    for parent in dict.fromkeys([Path(), path.parent]):
        if os.path.isdir(parent):
            yield from (str(file.parent) for file in sorted(parent.glob(f"*/{INDEX}")))


def _dtype(dtype: str | torch.dtype | None) -> torch.dtype:
    import torch

    name = "float32" if dtype is None else str(dtype).removeprefix("torch.")
    if name not in DTYPES:
        raise unknown_name("dtype", name, DTYPES)
    chosen: torch.dtype = getattr(torch, name)
    return chosen

"""What is checked in a model's folder before anything is built from it: presence, safety, and that no file is torn."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from probe import compat
from probe.errors import BadInput, StoreDamaged, unknown_name

INDEX = "model_index.json"
PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl")


@dataclass(frozen=True)
class ModelFolder:
    """A checked pipeline folder in diffusers layout.

    - ``pipeline``: name of the class in diffusers
    - ``parts``: name -> (library, class) of every part that is loaded
    - ``optional``: parts that are passed as None instead
    - ``variant``: ``"fp16"`` and the like where some network comes in no plain form
    - ``keys``: network -> canonical names of the tensors its files hold
    """

    path: Path
    pipeline: str
    parts: dict[str, tuple[str, str]]
    optional: tuple[str, ...]
    variant: str | None
    keys: dict[str, frozenset[str]]


def check_folder(folder: Path) -> ModelFolder:
    """The folder's contents; see `probe.load` for the errors."""
    index = read_index(folder)
    parts = {name: (library, class_) for name, library, class_ in _parts(index)}
    for name in parts:
        check_part(folder, name)
        for file in sorted((folder / name).glob("*.json")):
            read_json(file)
    if lacking := list(without_weights(folder, index)):
        files = [file for name in lacking for file in sorted((folder / name).iterdir())]
        if pickles := [file for file in files if file.suffix in PICKLES]:
            raise pickled(pickles, "the pipeline")
        expected = f"safetensors in {', '.join(f'{name}/' for name in lacking)}"
        raise BadInput(
            "the pipeline lacks weights", given=str(folder), expected=expected, fix="copy or download it again"
        )
    variants, keys = set(), {}
    for name in _networks(folder, index):
        by_variant: dict[str, set[str]] = {}
        for file in sorted((folder / name).glob("*.safetensors")):
            found = {compat.canonical_name(name, key) for key in tensor_names(file)}
            by_variant.setdefault(_variant(file), set()).update(found)
        variant = min(by_variant)  # "" is the plain form
        variants.add(variant)
        keys[name] = frozenset(by_variant[variant])
    optional = tuple(name for name in compat.LEFT_OUT if name in index)
    return ModelFolder(folder, index["_class_name"], parts, optional, max(variants) or None, keys)


def check_complete(model: ModelFolder, pipe: Any) -> None:
    """Libraries fill missing tensors with random numbers and a line in the log; here they are `StoreDamaged`."""
    for name, keys in model.keys.items():
        if name == "vae":  # old files have other names for its attention, which diffusers translates
            continue
        wanted = {compat.canonical_name(name, key) for key in getattr(pipe, name).state_dict()}
        if missing := sorted(wanted - keys):
            shown = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
            given = f"{model.path / name}: {len(missing)} tensors: {shown}"
            raise StoreDamaged("weights are missing from the pipeline", given=given, fix="copy or download it again")


def check_filled(path: Path, pipe: Any) -> None:
    """A single file that lacks tensors leaves networks without them: `StoreDamaged`."""
    for name, part in pipe.components.items():
        state = part.state_dict() if hasattr(part, "state_dict") else {}
        if empty := [key for key, tensor in state.items() if tensor.is_meta]:
            given = f"{path}: {name}: {len(empty)} tensors: {empty[0]}"
            raise StoreDamaged("weights are missing from the file", given=given, fix="copy or download it again")


def read_index(folder: Path) -> dict[str, Any]:
    """The model index of a folder whose parts all come from diffusers and transformers themselves and are there."""
    if not (folder / INDEX).is_file():
        raise _no_pipeline(folder)
    index = read_json(folder / INDEX)
    import diffusers

    name = index.get("_class_name")
    class_ = getattr(diffusers, name, None) if isinstance(name, str) else None
    if not (isinstance(class_, type) and issubclass(class_, diffusers.DiffusionPipeline)):
        known = ["StableDiffusionPipeline", "StableDiffusionXLPipeline"]
        raise unknown_name(f"class of pipeline in {folder / INDEX}", str(name), known)
    if "unet" not in index:
        raise BadInput("the pipeline has no UNet", given=f"{folder}: {name}", expected="a Stable Diffusion pipeline")
    for part, library, part_class in _parts(index):
        if library not in ("diffusers", "transformers"):
            given = f"{folder}: {part}: {library}.{part_class}"
            raise BadInput("a part of the pipeline would run code that came with it", given=given)
        if not (folder / part).is_dir():
            raise BadInput("a part of the pipeline is missing", given=str(folder), expected=f"{part}/ ({part_class})")
    return index


def without_weights(folder: Path, index: dict[str, Any]) -> Iterator[str]:
    """The networks of a pipeline that have no safetensors file."""
    return (name for name in _networks(folder, index) if not any((folder / name).glob("*.safetensors")))


def tensor_names(file: Path) -> list[str]:
    """Names of the tensors in a safetensors file; `StoreDamaged` where its header and its length do not agree."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as opened:
            return list(opened.keys())
    except (SafetensorError, OSError) as error:
        given = f"{file} ({error})"
        raise StoreDamaged("a safetensors file is torn", given=given, fix="copy or download it again") from error


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object; `StoreDamaged` where it is none."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise StoreDamaged("a JSON file is torn", given=f"{file} ({error})", fix="copy or download it again") from error
    if not isinstance(value, dict):
        raise StoreDamaged("a JSON file holds no object", given=str(file))
    return value


def pickled(files: list[Path], what: str) -> BadInput:
    """The error for weights that come as pickles only."""
    return BadInput(
        f"{what} has pickled weights only, and loading those would run whatever code they hold",
        given=", ".join(str(file) for file in files[:3]) + (", ..." if len(files) > 3 else ""),
        expected=".safetensors files",
        fix="fetch the safetensors version, or convert files you trust elsewhere: pipe.save_pretrained(folder)",
    )


def check_part(folder: Path, name: str) -> None:
    """What a part cannot be built without, weights aside."""
    if name.startswith("tokenizer"):  # its config says how many tokens a prompt may have
        words = [] if (folder / name / "tokenizer.json").is_file() else ["vocab.json", "merges.txt"]
        needed = ["tokenizer_config.json", *words]
    else:
        needed = ["scheduler_config.json"] if name == "scheduler" else ["config.json"]
    if missing := [f"{name}/{file}" for file in needed if not (folder / name / file).is_file()]:
        fix = "copy or download it again"
        raise BadInput("a file of the pipeline is missing", given=str(folder), expected=", ".join(missing), fix=fix)


def _no_pipeline(folder: Path) -> BadInput:
    inside = [
        file.parent for file in (*sorted(folder.glob(f"*/{INDEX}")), folder.resolve().parent / INDEX) if file.is_file()
    ]
    single = sorted(folder.glob("*.safetensors"))
    pickles = sorted(file for file in folder.iterdir() if file.suffix in PICKLES)
    if pickles and not (single or inside):
        return pickled(pickles, "the folder is no pipeline and")
    return BadInput(
        f"the folder is no pipeline: it has no {INDEX}",
        given=str(folder),
        expected=f"{INDEX}, scheduler/, text_encoder/, tokenizer/, unet/, vae/",
        nearest=[str(path) for path in [*inside, *single][:3]],
        fix="name a folder that pipe.save_pretrained wrote, or a hub id",
    )


def _parts(index: dict[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Name, library and class of the parts that are there and not left out."""
    for name, entry in index.items():
        if isinstance(entry, list) and len(entry) == 2 and entry[0] is not None and name not in compat.LEFT_OUT:
            yield name, entry[0], entry[1]


def _networks(folder: Path, index: dict[str, Any]) -> list[str]:
    return [name for name, _, _ in _parts(index) if (folder / name / "config.json").is_file()]


def _variant(file: Path) -> str:
    """``"fp16"`` of ``model.fp16.safetensors`` and of its shards; empty for the plain form."""
    middle = file.name.removesuffix(".safetensors").partition(".")[2]
    return re.sub(r"-\d+-of-\d+$", "", middle)

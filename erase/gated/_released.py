"""Gates in the layout of the released code (safetensors, one file a concept), read into an edit and written from one.

Keys: ``attention_gate.encoder_layer.slf_attn.attention_module1.{w_qs,w_ks}.weight`` (1 d g),
``attention_gate.encoder_layer.slf_attn.gate.scaler.weight`` (1 d 1), and for every projection
``lora_unet_<path with underscores>.{lora_down,lora_up}.weight`` (1 d r), (1 r o) and ``.alpha`` (a number).
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from erase import _in_force
from erase._changes import Hook, apart, merged
from erase._edit import Edit, make_edit
from probe import sites
from probe._files import check_free, written_whole
from probe._options import validated
from probe.errors import BadInput, StoreDamaged, WrongModel, nearest

_GATE = "attention_gate.encoder_layer.slf_attn."
QUERY, KEY = f"{_GATE}attention_module1.w_qs.weight", f"{_GATE}attention_module1.w_ks.weight"
SCALER = f"{_GATE}gate.scaler.weight"


@validated
def import_resag(
    pipe: Any,
    files: Any,
    *,
    key_mode: Literal["tied", "independent"] = "tied",
    threshold: float = 0.0,
    name: str | None = None,
) -> Edit:
    """An edit of gates that the released code of Concept Pinpoint Eraser trained; several files are merged.

    Args:
        pipe: the model that they were trained on (SD 1.4 for the released ones); nothing in a file can tell.
        files: path of a ``.safetensors`` file, or several.
        key_mode: ``"tied"``: the query's matrix serves as key too, as in the released code, which stores a key that
            was never trained; ``"independent"`` uses that.
        threshold: as in `erase.resag`.
        name: ``resag-<names of the files>`` by default.

    Raises `StoreDamaged` for a file that cannot be read, `BadInput` naming a tensor that is missing, unknown or of a
    wrong shape, or two files of different ranks, and `WrongModel` for a text encoder of another width or a module that
    ``pipe`` does not have.
    """
    paths = [Path(files)] if isinstance(files, str | Path) else [Path(path) for path in files]
    if not paths:
        raise BadInput("there are no files to import")
    params = tuple(f"unet.{site.module}.weight" for site in sites(pipe, ["xattn.k", "xattn.v"]))
    hooks, said = [], {}
    for path in paths:
        tensors, metadata = _read(path)
        hooks.append(_hook(pipe, params, tensors, path, key_mode, threshold))
        said[path.stem] = metadata
    for path, hook in zip(paths, hooks, strict=True):
        if reason := apart(hooks[0], hook):
            raise BadInput(
                "files of different ranks cannot be merged", given=f"{paths[0].name} and {path.name}: {reason}"
            )
    (hook,) = merged(hooks)
    return make_edit(
        pipe,
        [hook],
        name=name or f"resag-{'+'.join(path.stem for path in paths[:3])}",
        method="import_resag",
        options={"key_mode": key_mode, "threshold": threshold},
        inputs={"files": [hashlib.sha256(path.read_bytes()).hexdigest() for path in paths]},
        report={"metadata": said},
    )


def export_resag(edit: Edit, path: str | Path, *, concept: int = 0, force: bool = False) -> Path:
    """Write one concept of an edit of gates as the released code reads it; `import_resag` is its inverse.

    Args:
        edit: an edit whose only change are gates, made on a UNet.
        path: the file, ``.safetensors``.
        concept: which of several.
        force: replace a file.

    What the layout has no place for must not be used: a threshold, a strength other than 1, gates that add up.
    """
    from safetensors.torch import save

    hook = edit.changes[0]
    if len(edit.changes) != 1 or not isinstance(hook, Hook) or hook.family != "resag":
        raise BadInput("only gates can be written in this layout", given=repr(edit))
    values = hook.values
    if not 0 <= concept < len(values["gate"]):
        raise BadInput("the edit has no such concept", given=concept, expected=f"0 to {len(values['gate']) - 1}")
    if hook.spec or float(values["strength"][concept]) != 1 or float(values["threshold"][concept]) > 0:
        raise BadInput("the layout has no place for a threshold, a strength or gates that add up", given=edit.name)
    one = slice(concept, concept + 1)
    tensors = {QUERY: values["query"][one], KEY: values["key"][one], SCALER: values["gate"][one, :, None]}
    for i, param in enumerate(hook.touched):
        key = _key(param)
        tensors[f"{key}.lora_down.weight"] = values[f"down.{i}"][one]
        tensors[f"{key}.lora_up.weight"] = values[f"up.{i}"][one]
        tensors[f"{key}.alpha"] = values["alpha"][concept, i]
    path = Path(path)
    check_free(path, "file of gates", ours=path.suffix == ".safetensors", force=force)
    rank = str(values["down.0"].shape[-1])
    alpha = f"{float(values['alpha'][concept, 0]):g}"
    with written_whole(path, replace=force) as partial:
        plain = {key: tensor.contiguous() for key, tensor in tensors.items()}
        partial.write_bytes(save(plain, metadata={"rank": rank, "alpha": alpha, "edit": edit.id}))
    return path


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise BadInput("there is no such file", given=str(path))
    try:
        with safe_open(path, "pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - it is no mapping
            return tensors, dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise StoreDamaged("the file of gates cannot be read", given=f"{path}: {error}") from error


def _hook(
    pipe: Any, params: tuple[str, ...], tensors: dict[str, Tensor], path: Path, key_mode: str, threshold: float
) -> Hook:
    known = {QUERY, KEY, SCALER}
    known |= {f"{_key(p)}.{leaf}" for p in params for leaf in ("lora_down.weight", "lora_up.weight", "alpha")}
    if stray := sorted(tensors.keys() - known):
        raise WrongModel(f"{path.name} has gates of a module that the pipeline lacks", given=stray[0],
                         nearest=nearest(stray[0], known))  # fmt: skip
    if missing := sorted(known - tensors.keys()):
        raise BadInput(f"{path.name} lacks a tensor", given=missing[0])
    width = _in_force.original(pipe, params[0]).shape[1]
    if (found := tensors[QUERY].shape[1]) != width:
        raise WrongModel(f"{path.name} was made for a text encoder of another width", given=found, expected=width)
    concepts, gate_rank = tensors[QUERY].shape[0], tensors[QUERY].shape[-1]
    shapes = {QUERY: (concepts, width, gate_rank), KEY: (concepts, width, gate_rank), SCALER: (concepts, width, 1)}
    rank = tensors[f"{_key(params[0])}.lora_down.weight"].shape[-1]
    for param in params:
        o = _in_force.original(pipe, param).shape[0]
        shapes[f"{_key(param)}.lora_down.weight"] = (concepts, width, rank)
        shapes[f"{_key(param)}.lora_up.weight"] = (concepts, rank, o)
    for key, shape in shapes.items():
        if tuple(tensors[key].shape) != shape:
            given = f"{key} {tuple(tensors[key].shape)}"
            raise BadInput(f"{path.name} has a tensor of another shape", given=given, expected=shape)
    alpha = [tensors[f"{_key(param)}.alpha"].float().reshape(-1) for param in params]
    if bad := [_key(param) for param, a in zip(params, alpha, strict=True) if a.numel() != 1]:
        raise BadInput(f"{path.name} has an alpha that is no number", given=f"{bad[0]}.alpha")
    values = {
        "query": tensors[QUERY].float(),
        "key": tensors[QUERY if key_mode == "tied" else KEY].float(),
        "gate": tensors[SCALER].float()[..., 0],
        "alpha": torch.cat(alpha).expand(concepts, -1),
        "strength": torch.ones(concepts),
        "threshold": torch.full((concepts,), threshold),
    }
    for i, param in enumerate(params):
        values[f"down.{i}"] = tensors[f"{_key(param)}.lora_down.weight"].float()
        values[f"up.{i}"] = tensors[f"{_key(param)}.lora_up.weight"].float()
    return Hook("unet", "resag", params, values)


def _key(param: str) -> str:
    """The name of a projection in the layout."""
    return "lora_unet_" + param.removeprefix("unet.").removesuffix(".weight").replace(".", "_")

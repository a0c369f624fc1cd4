"""Originals kept beside an exported model, so that its weights come back bit by bit.

``originals.safetensors``: of a tensor that changed in few places the packed places and what stood there, of others all
of it. ``originals.json``: the hash of every original.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from erase import _in_force, masks
from erase._places import locate
from probe import compat, formats
from probe._load import load
from probe.errors import BadInput, StoreDamaged, WorkbenchError, WrongModel
from probe.provenance import tensor_hash

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

KIND, HEADER, TENSORS = "originals", "originals.json", "originals.safetensors"


def write(pipe: Any, folder: Path) -> None:
    """Keep in ``folder`` what every edit in force on ``pipe`` has overwritten."""
    from safetensors.torch import save_file

    changed = {param: _in_force.original(pipe, param) for param in _touched(pipe)}
    kept: dict[str, Tensor] = {}
    for param, original in changed.items():
        kept |= _kept(param, original.detach().cpu(), locate(pipe, param).tensor.detach().cpu())
    header = {
        **formats.header(KIND),
        "edits": [[entry.edit.id, entry.edit.name] for entry in _in_force.entries(pipe)],
        "tensors": {param: tensor_hash(original) for param, original in changed.items()},
        "dtypes": {param: str(original.dtype).removeprefix("torch.") for param, original in changed.items()},
    }
    save_file(kept, folder / TENSORS)
    (folder / HEADER).write_text(json.dumps(header, indent=1) + "\n", encoding="utf-8")


def restore(
    model: str | Path, out: str | Path | None = None, *, device: str = "cpu", force: bool = False
) -> StableDiffusionPipeline:
    """The pipeline that was there before its edits, from a folder that `Edit.export` wrote with its originals.

    Args:
        model: the exported folder.
        out: where to write the original pipeline, a plain diffusers folder; not written unless given.
        device: where the networks go.
        force: replace a pipeline that is at ``out``.

    Every tensor is compared with the hash of the original. Raises `BadInput` for a folder without originals,
    `WrongModel` naming the tensor if the model there was changed since, `StoreDamaged` for torn files.
    """
    folder = Path(model)
    header = _header(folder)
    pipe = load(folder, dtype=_widest(header["dtypes"].values()))
    kept = _tensors(folder)
    with torch.no_grad(), compat.quiet_libraries():
        for component in sorted({param.partition(".")[0] for param in header["tensors"]}):
            stored = {header["dtypes"][param] for param in header["tensors"] if param.startswith(f"{component}.")}
            getattr(pipe, component).to(getattr(torch, _widest(stored)))
        for param, expected in header["tensors"].items():
            place = locate(pipe, param)
            place.tensor.copy_(_put_back(param, place.tensor, kept))
            if tensor_hash(place.tensor) != expected:
                fix = "export it again, or restore the folder as it was exported"
                raise WrongModel("the exported model was changed since", given=f"{folder}: {param}", fix=fix)
    if out is not None:
        compat.save_pipeline(pipe, out, replace=force)
    return pipe.to(device)


def _touched(pipe: Any) -> list[str]:
    return sorted({param for entry in _in_force.entries(pipe) for param in entry.before})


def _kept(param: str, original: Tensor, edited: Tensor) -> dict[str, Tensor]:
    """Places and values where few differ, else the whole tensor."""
    size = original.dtype.itemsize
    one, other = (t.contiguous().reshape(-1).view(torch.uint8).view(-1, size) for t in (original, edited))
    places = (one != other).any(1)
    if int(places.sum()) * size + len(places) // 8 >= original.numel() * size:
        return {f"whole/{param}": original.contiguous()}
    return {f"places/{param}": masks.pack(places), f"values/{param}": original.reshape(-1)[places].contiguous()}


def _put_back(param: str, edited: Tensor, kept: Mapping[str, Tensor]) -> Tensor:
    try:
        if f"whole/{param}" in kept:
            return kept[f"whole/{param}"].to(edited)
        places = masks.unpack(kept[f"places/{param}"], (edited.numel(),)).to(edited.device)
        flat = edited.detach().clone().reshape(-1)
        flat[places] = kept[f"values/{param}"].to(flat)
        return flat.view_as(edited)
    except (KeyError, BadInput, RuntimeError, IndexError) as error:
        raise StoreDamaged("the originals do not fit the model", given=f"{param}: {error}") from None


def _widest(dtypes: Any) -> str:
    import functools

    found = functools.reduce(torch.promote_types, [getattr(torch, name) for name in dtypes])
    return str(found).removeprefix("torch.")


def _header(folder: Path) -> dict[str, Any]:
    file = folder / HEADER
    if not file.is_file():
        fix = "export it with include_originals=True"
        raise BadInput("the folder keeps no originals", given=str(folder), expected=HEADER, fix=fix)
    try:
        header: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        formats.check_header(header, KIND, file)
        if not header["tensors"].keys() == header["dtypes"].keys():
            raise WorkbenchError("tensors and dtypes differ")
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        if isinstance(error, BadInput):
            raise
        raise StoreDamaged("the originals' description is damaged", given=str(file), fix="export it again") from error
    return header


def _tensors(folder: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load as read

    try:
        return read((folder / TENSORS).read_bytes())
    except (SafetensorError, OSError, ValueError) as error:
        given = f"{folder / TENSORS} ({error})"
        raise StoreDamaged("the originals cannot be read", given=given, fix="export it again") from error

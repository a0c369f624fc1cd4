"""edit_from_checkpoint: the difference of somebody's erased model as an edit, to be probed and compared like ours."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from erase import _in_force
from erase._changes import Change, Replace
from erase._edit import Edit, make_edit
from probe._model_files import INDEX, PICKLES, pickled, tensor_names
from probe._options import validated
from probe.compat import canonical_name, original_names
from probe.errors import BadInput, WrongModel, nearest

logger = logging.getLogger(__name__)

#: Networks whose tensors are compared; a VAE carries no concept, and front ends exchange it.
COMPONENTS = ("unet", "text_encoder", "text_encoder_2")

#: Buffers that older libraries stored and that say nothing.
_IGNORED = re.compile(
    r"(.*\.)?(position_ids|num_batches_tracked)$|model_ema\.|first_stage_model\.|vae\.|betas$|alphas_|sqrt_|"
    r"log_one_minus|posterior_|logvar$"
)


@validated
def edit_from_checkpoint(
    pipe: Any,
    path: str | Path,
    *,
    component: str | None = None,
    tolerance: float = 0.0,
    name: str | None = None,
) -> Edit:
    """What a published erased model changes in ``pipe``, as an edit of replacements.

    Args:
        pipe: the model that the published one was made from. It is read, not changed.
        path: a pipeline folder in diffusers layout, a network's folder, or one ``.safetensors`` file: the state of a
            network, the few tensors of an ESD or UCE release, or a checkpoint in the original layout.
        component: whose tensors a file without such prefixes holds; ``unet`` unless given.
        tolerance: differences up to this share of a tensor's largest weight are none (a release saved by other code).
        name: the file's or folder's name by default.

    A tensor stored in lower precision counts as unchanged where it is the original, rounded. Weights of one shape with
    trailing ones (1 x 1 convolutions) and of the Linear's are the same tensor. ``report`` has the numbers of tensors
    compared and changed, and the largest relative changes.

    Raises `WrongModel` naming tensors for a checkpoint of another architecture, `BadInput` for pickles, for a file that
    holds no tensor of the model, and for one that changes nothing; `StoreDamaged` for torn files.
    """
    file = Path(path)
    if not 0 <= tolerance < 1:
        raise BadInput("tolerance is out of range", given=tolerance, expected="in [0, 1)")
    known = _known(pipe)
    compared, changes, sizes = 0, list[Change](), dict[str, float]()
    strange: list[str] = []
    for param, tensor in _stored(pipe, file, component, known):
        if param not in known:
            strange.append(param)
            continue
        compared += 1
        original = _in_force.original(pipe, param).detach().cpu()
        found = _fitted(param, tensor, original)
        if (size := _difference(found, original)) > tolerance:
            changes.append(Replace(param, found))
            sizes[param] = size
    if strange:
        given = f"{file}: {len(strange)} tensors, {', '.join(strange[:3])}"
        near = nearest(strange[0], known)
        raise WrongModel("the checkpoint is of another architecture", given=given, nearest=near)
    if not changes:
        raise BadInput("the checkpoint changes nothing", given=f"{file}: {compared} tensors as in the model")
    largest = dict(sorted(sizes.items(), key=lambda item: -item[1])[:20])
    return make_edit(
        pipe,
        changes,
        name=name or file.stem,
        method="edit_from_checkpoint",
        options={"component": component, "tolerance": tolerance},
        inputs={"file": file.name},
        report={"compared": compared, "changed": len(changes), "relative_change": largest},
    )


def _known(pipe: Any) -> set[str]:
    """Canonical names of all tensors that may be changed."""
    parts = [(part, getattr(pipe, part, None)) for part in COMPONENTS]
    return {
        f"{part}.{canonical_name(part, key)}"
        for part, module in parts
        if isinstance(module, nn.Module)
        for key in module.state_dict()
    }


# --- Reading ----------------------------------------------------------------------------------------------------------


def _stored(pipe: Any, path: Path, component: str | None, known: set[str]) -> Iterator[tuple[str, Tensor]]:
    """Canonical name and tensor of everything stored that concerns the model."""
    by_original = _from_original(pipe)
    for file, part in _files(pipe, path, component):
        for key, tensor in _tensors(file):
            if _IGNORED.match(key) or not tensor.is_floating_point():
                continue
            if key in by_original:
                yield by_original[key], tensor
            elif key.partition(".")[0] in COMPONENTS and key in known:
                yield key, tensor
            else:
                yield f"{part}.{canonical_name(part, key)}", tensor


def _files(pipe: Any, path: Path, component: str | None) -> list[tuple[Path, str]]:
    """The safetensors files behind ``path``, each with the component that its plain names belong to."""
    if path.is_file():
        if path.suffix in PICKLES:
            raise pickled([path], "the checkpoint")
        if path.suffix != ".safetensors":
            raise BadInput("a checkpoint is a folder or a .safetensors file", given=str(path))
        return [(path, component or "unet")]
    if not path.is_dir():
        raise BadInput("there is no such checkpoint", given=str(path), expected="a folder or a .safetensors file")
    if (path / INDEX).is_file():
        parts = [part for part in COMPONENTS if getattr(pipe, part, None) is not None and (path / part).is_dir()]
        found = [(file, part) for part in parts for file in _in(path / part)]
    else:
        found = [(file, component or "unet") for file in _in(path)]
    if not found:
        pickles = [file for file in path.rglob("*") if file.suffix in PICKLES]
        raise pickled(pickles, "the checkpoint") if pickles else BadInput("no tensors are here", given=str(path))
    return found


def _in(folder: Path) -> list[Path]:
    """The files of one network: the plain form, or a variant where that is all there is."""
    files = sorted(folder.glob("*.safetensors"))
    plain = [file for file in files if file.name.count(".") == 1]
    return plain or files


def _tensors(file: Path) -> Iterator[tuple[str, Tensor]]:
    from safetensors import safe_open

    keys = tensor_names(file)
    with safe_open(file, framework="pt") as opened:
        for key in keys:
            yield key, opened.get_tensor(key)


def _from_original(pipe: Any) -> dict[str, str]:
    """Key in the original layout -> canonical parameter, for the UNet and SD 1.x' text encoder."""
    found = {}
    for part in ("unet", "text_encoder"):
        network = getattr(pipe, part)
        canonical = [canonical_name(part, key) for key in network.state_dict()]
        try:
            renamed = original_names(part, canonical, network.config)
        except BadInput:  # a network that layout has no names for
            continue
        for name, key in renamed.items():
            found[key] = f"{part}.{name}"
            found[key.removeprefix("model.")] = f"{part}.{name}"  # extracted UNets
    return found


# --- Comparing --------------------------------------------------------------------------------------------------------


def _fitted(param: str, tensor: Tensor, original: Tensor) -> Tensor:
    """The stored tensor in the original's shape."""
    bare = [tuple(n for n in t.shape[2:] if n != 1) for t in (tensor, original)]
    if tuple(tensor.shape[:2]) == tuple(original.shape[:2]) and bare[0] == bare[1] == ():
        return tensor.reshape(original.shape)
    if tensor.shape != original.shape:
        raise WrongModel(
            "the checkpoint is of another architecture",
            given=f"{param} {list(tensor.shape)}",
            expected=list(original.shape),
        )
    return tensor


def _difference(tensor: Tensor, original: Tensor) -> float:
    """The largest change over the largest weight; 0 where the stored tensor is the original in its own precision."""
    if torch.equal(tensor, original.to(tensor.dtype)):
        return 0.0
    change = (tensor.double() - original.double()).abs().max()
    return float(change / original.double().abs().max().clamp_min(torch.finfo(torch.float64).tiny))

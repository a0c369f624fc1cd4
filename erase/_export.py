"""Edited pipelines as plain diffusers folders, checked after writing."""

from __future__ import annotations

import functools
import logging
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from erase import _in_force, _original, _originals
from erase._card import card
from erase._load_edited import BESIDE
from erase._saving import load_edit, save
from probe import compat
from probe._files import check_free, written_whole
from probe._load import load
from probe.errors import BadInput, WorkbenchError, unknown_name

if TYPE_CHECKING:
    from erase._edit import Edit

logger = logging.getLogger(__name__)

LAYOUTS = ("diffusers", "ldm")


def export(
    edit: Edit,
    pipe: Any,
    folder: str | Path,
    *,
    include_originals: bool = False,
    layout: str = "diffusers",
    force: bool = False,
) -> Path:
    """Write ``pipe`` with ``edit`` (and whatever is in force already) to ``folder``; see `Edit.export`."""
    folder = Path(folder)
    if layout not in LAYOUTS:
        raise unknown_name("layout", layout, LAYOUTS)
    if layout == "ldm":
        return _export_file(edit, pipe, folder, include_originals=include_originals, force=force)
    check_free(folder, "pipeline", ours=(folder / "model_index.json").is_file(), force=force)
    if not edit.mergeable:
        if include_originals:
            raise BadInput("nothing is overwritten by an edit that is more than weights", fix="include_originals=False")
        return _export_beside(edit, pipe, folder, force)
    if hooked := [entry.edit.name for entry in _in_force.entries(pipe) if not entry.edit.mergeable]:
        fix = f"leave {hooked[0]!r} first, or export a stack of both"
        raise BadInput("an edit in force is more than weights", given=repr(hooked[0]), fix=fix)
    in_force = any(entry.edit.id == edit.id for entry in _in_force.entries(pipe))
    with nullcontext() if in_force else edit.applied(pipe), written_whole(folder, replace=force) as partial:
        compat.save_pipeline(pipe, partial)
        (partial / "README.md").write_text(card(edit), encoding="utf-8")
        if include_originals:
            _originals.write(pipe, partial)
        _compare_latents(pipe, _checked(pipe, partial, folder), folder)
    logger.info("exported %s with edit %s and checked it", folder, edit.name)
    return folder


def _export_file(edit: Edit, pipe: Any, file: Path, *, include_originals: bool, force: bool) -> Path:
    """One file in the original layout; see `erase._original`."""
    if not edit.mergeable:
        fix = "export it as a folder, or distil it"
        raise BadInput(f"edit {edit.name!r} is more than weights, and the original layout has no more", fix=fix)
    if include_originals:
        raise BadInput("originals are kept beside a folder only", fix='layout="diffusers"')
    if file.suffix != ".safetensors":
        raise BadInput("the original layout is one file", given=str(file), fix=f"{file}.safetensors")
    check_free(file, "model file", ours=file.is_file(), force=force)
    in_force = any(entry.edit.id == edit.id for entry in _in_force.entries(pipe))
    with nullcontext() if in_force else edit.applied(pipe), written_whole(file, replace=force) as partial:
        _original.write(pipe, partial)
    logger.info("exported %s with edit %s and checked it", file, edit.name)
    return file


def _export_beside(edit: Edit, pipe: Any, folder: Path, force: bool) -> Path:
    """The unedited pipeline, and the edit in a folder of its own inside: no code is exported, the weights stay."""
    if present := [entry.edit.name for entry in _in_force.entries(pipe)]:
        fix = "leave the edits in force first; what belongs together can be stacked"
        raise BadInput("the unedited model cannot be written", given=f"in force: {', '.join(present)}", fix=fix)
    with written_whole(folder, replace=force) as partial:
        compat.save_pipeline(pipe, partial)
        save(edit, partial / BESIDE)
        (partial / "README.md").write_text(card(edit, beside=BESIDE), encoding="utf-8")
        again = _checked(pipe, partial, folder)
        with edit.applied(pipe), load_edit(partial / BESIDE).applied(again):
            _compare_latents(pipe, again, folder)
    logger.info("exported %s with edit %s beside it and checked both", folder, edit.name)
    return folder


def _checked(pipe: Any, written: Path, folder: Path) -> Any:
    """What was written, loaded again: its tensors must be equal bit for bit."""
    networks = {
        name: component
        for name, component in pipe.components.items()
        if isinstance(component, nn.Module) and name not in compat.LEFT_OUT
    }
    again = _reloaded(written, networks, pipe.device)
    for name, network in networks.items():
        state, found = network.state_dict(), getattr(again, name).state_dict()
        differing = [key for key in state if key not in found or not _same(state[key], found[key])]
        if differing or len(found) != len(state):
            what = ", ".join(differing[:3]) or "other tensors"
            raise WorkbenchError("the exported pipeline does not reload as it was", given=f"{folder}: {name}: {what}")
    return again


def _compare_latents(pipe: Any, again: Any, folder: Path) -> None:
    """What both denoise must be equal to rounding."""
    one, other = probe_latent(pipe), probe_latent(again)
    if not torch.allclose(one, other, rtol=1e-3, atol=1e-3, equal_nan=True):
        raise WorkbenchError(
            "the exported pipeline denoises another latent",
            given=f"{folder}: largest difference {float((one - other).abs().max()):.3g}",
        )


def _reloaded(written: Path, networks: dict[str, Any], device: torch.device) -> Any:
    """The written pipeline with each network in the dtype of its counterpart; loaded in the widest, casts are exact."""
    widest = functools.reduce(torch.promote_types, (network.dtype for network in networks.values()))
    again = load(written, device=device, dtype=widest)
    with compat.quiet_libraries():
        for name, network in networks.items():
            if network.dtype != widest:
                getattr(again, name).to(network.dtype)
    return again


def probe_latent(pipe: Any, steps: int = 2, seed: int = 0) -> Tensor:
    """The latent (1 c y x), float32, that ``pipe`` makes of a fixed prompt and seed; the pipeline is left as it was."""
    side = min(pipe.unet.config.sample_size, 16) * pipe.vae_scale_factor
    scheduler, bar = pipe.scheduler, vars(pipe).get("_progress_bar_config")
    try:
        pipe.scheduler = type(scheduler).from_config(scheduler.config)  # schedulers carry the state of their last run
        pipe.set_progress_bar_config(disable=True)
        latent = pipe(
            "a photo of a church",
            num_inference_steps=steps,
            height=side,
            width=side,
            generator=torch.Generator().manual_seed(seed),
            output_type="latent",
        ).images
    finally:
        pipe.scheduler = scheduler
        vars(pipe).pop("_progress_bar_config", None)
        if bar is not None:
            pipe._progress_bar_config = bar
    return latent.detach().float().cpu()


def _same(one: Tensor, other: Tensor) -> bool:
    """Equal bit for bit, NaN and signs of zero included."""
    one, other = one.detach().cpu().contiguous(), other.detach().cpu().contiguous()
    same_kind = one.dtype == other.dtype and one.shape == other.shape
    return same_kind and torch.equal(one.reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8))

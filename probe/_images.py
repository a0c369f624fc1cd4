"""Images of one's own as inputs of the UNet: read, encoded, and noised to chosen timesteps."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from probe import guidance
from probe._inputs import Fixed
from probe.errors import BadInput

if TYPE_CHECKING:
    import pandas as pd

#: What is read from a folder.
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


@dataclass(frozen=True)
class Images:
    """Images of one size: ``names`` and a function that gives some of them, uint8 (s y x rgb), cut to ``size``."""

    names: list[str]
    source: list[Path] | np.ndarray
    size: tuple[int, int]

    @classmethod
    def of(cls, source: Any, size: tuple[int, int]) -> Images:
        """From a folder, in alphabetical order, or an array uint8 (s y x rgb). `BadInput` for anything else."""
        if isinstance(source, str | Path):
            folder = Path(source)
            if not folder.is_dir():
                raise BadInput("there is no such folder of images", given=str(folder))
            files = sorted(file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES)
            if not files:
                raise BadInput("the folder holds no images", given=str(folder), expected=", ".join(SUFFIXES))
            return cls([file.name for file in files], files, size)
        array = np.asarray(source)
        if array.dtype != np.uint8 or array.ndim != 4 or array.shape[-1] != 3 or not len(array):
            given = f"{array.dtype} {array.shape}"
            raise BadInput("images are a folder or an array", given=given, expected="uint8 (sample, y, x, rgb)")
        return cls([str(i) for i in range(len(array))], array, size)

    def __getitem__(self, index: int) -> np.ndarray:
        """One image, (y x rgb): its middle in the shape of ``size``, brought to that size."""
        from PIL import Image, ImageOps, UnidentifiedImageError

        found = self.source[index]
        try:
            picture = Image.open(found) if isinstance(found, Path) else Image.fromarray(found)
            with picture:
                cut = ImageOps.fit(picture.convert("RGB"), self.size[::-1], Image.Resampling.LANCZOS)
        except (UnidentifiedImageError, OSError) as error:
            raise BadInput("an image cannot be read", given=f"{self.names[index]}: {error}") from None
        return np.asarray(cut)

    @cached_property
    def sha256(self) -> str:
        """Hash of names and pixels, all images in order."""
        hashed = hashlib.sha256()
        for i, name in enumerate(self.names):
            hashed.update(name.encode() + b"\0" + self[i].tobytes())
        return hashed.hexdigest()


class _Encode(nn.Module):
    def __init__(self, vae: Any) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        latents: torch.Tensor = self.vae.encode(x).latent_dist.mode()
        return latents


def encode(pipe: Any, images: np.ndarray) -> torch.Tensor:
    """Latents of images uint8 (s y x rgb) as the UNet knows them: (s c y x) float32. The mode of what the VAE says.

    A VAE that overflows in half precision (SDXL's says so) computes in float32, on a copy of its weights.
    """
    vae = pipe.vae
    upcast = vae.dtype == torch.float16 and bool(vae.config.get("force_upcast", False))
    module = _Encode(vae)
    tensors = {name: tensor.float() if upcast else tensor for name, tensor in module.state_dict().items()}
    x = torch.tensor(images).permute(0, 3, 1, 2).to(vae.device, torch.float32) / 127.5 - 1
    latents = torch.func.functional_call(module, tensors, (x if upcast else x.to(vae.dtype),)).float()
    shift = vae.config.get("shift_factor") or 0.0
    return ((latents - shift) * vae.config.scaling_factor).cpu()


def noised_images(pipe: Any, images: Images, index: np.ndarray, timesteps: Sequence[int]) -> Fixed:
    """Inputs from images: sample i is image ``index[i]`` at every one of ``timesteps``, with one noise for all of them.

    The noise comes from the sample's own CPU generator, in float32, so that neither the batch nor the list of timesteps
    has a say in it.
    """
    listed = [int(t) for t in timesteps]
    if not listed or len(set(listed)) != len(listed):
        raise BadInput("images are noised to a list of different timesteps", given=listed)
    bars = [guidance.alpha_bar(pipe, t) for t in listed]

    def latents(rows: slice, table: pd.DataFrame) -> np.ndarray:
        clean = encode(pipe, np.stack([images[i] for i in index[rows]]))
        generators = [torch.Generator().manual_seed(int(seed)) for seed in table["seed"]]
        noise = torch.stack([torch.randn(clean.shape[1:], generator=generator) for generator in generators])
        return torch.stack([guidance.noised(clean, noise, bar) for bar in bars], dim=1).numpy()

    identity = {"kind": "images", "timesteps": listed, "sha256": images.sha256}
    return Fixed(np.array(listed, np.int64), np.ones(len(listed)), latents, identity, encodes=True)

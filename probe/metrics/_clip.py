"""A local CLIP model: embeddings of pictures and texts, and the score of how well a picture fits its prompt."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from probe.errors import BadInput

# Without its normalisation a model still gives numbers, only wrong ones: so this file is asked for, not assumed.
_FILES = ("config.json", "preprocessor_config.json")


class Clip:
    """Embeddings by a transformers `CLIPModel` in a local folder, with its tokenizer; read from safetensors only.

    Images are resized (bicubic) to the model's size and normalised as ``preprocessor_config.json`` says. Loaded on
    first use.

    Raises:
        BadInput: the folder holds no CLIP model.

    """

    def __init__(self, folder: str | Path, *, batch_size: int = 64, device: str = "cpu") -> None:
        self.folder, self.batch_size, self.device = Path(folder), batch_size, device
        if missing := [name for name in _FILES if not (self.folder / name).is_file()]:
            raise BadInput(f"no CLIP model here: {missing[0]} is missing", given=str(folder))

    @property
    def id(self) -> str:
        """Hash of the folder's weights, configs and tokenizer."""
        total = hashlib.sha256()
        for path in sorted(self.folder.iterdir()):
            if path.suffix in (".json", ".safetensors", ".txt"):
                total.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
        return total.hexdigest()[:16]

    @property
    def scale(self) -> float:
        """What cosines are multiplied with before a softmax."""
        return float(self._loaded[0].logit_scale.detach().exp())

    def images(self, images: np.ndarray) -> np.ndarray:
        """Embeddings of length 1 (s, d) of uint8 images (s, y, x, 3)."""
        model, _ = self._loaded
        size = model.config.vision_config.image_size

        def embed(part: np.ndarray) -> Any:
            pixels = self._pixels(part, size).to(self.device, model.dtype)
            return model.visual_projection(model.vision_model(pixel_values=pixels).pooler_output)

        return self._in_batches(embed, images)

    def texts(self, texts: Sequence[str]) -> np.ndarray:
        """Embeddings of length 1 (k, d) of texts, cut to the model's length."""
        model, tokenizer = self._loaded

        def embed(part: Sequence[str]) -> Any:
            tokens = tokenizer(list(part), padding="max_length", truncation=True, return_tensors="pt").to(self.device)
            found = model.text_model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
            return model.text_projection(found.pooler_output)

        return self._in_batches(embed, texts)

    def _in_batches(self, embed: Any, items: Any) -> np.ndarray:
        import torch

        parts = [np.zeros((0, self._loaded[0].config.projection_dim))]
        with torch.no_grad():
            for start in range(0, len(items), self.batch_size):
                found = embed(items[start : start + self.batch_size])
                parts.append(torch.nn.functional.normalize(found.double(), dim=-1).cpu().numpy())
        return np.concatenate(parts)

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        from probe import compat

        try:
            with compat.quiet_libraries():
                from transformers import CLIPModel, CLIPTokenizer

                model = CLIPModel.from_pretrained(self.folder, local_files_only=True, use_safetensors=True)
                tokenizer = CLIPTokenizer.from_pretrained(self.folder, local_files_only=True)
        except (OSError, ValueError) as error:
            raise BadInput("the CLIP model cannot be loaded", given=str(self.folder), fix=str(error)) from error
        tokenizer.model_max_length = model.config.text_config.max_position_embeddings
        return model.to(self.device).eval(), tokenizer

    def _pixels(self, images: np.ndarray, size: int) -> Any:
        """uint8 (s, y, x, 3) -> normalised float (s, 3, size, size)."""
        import json

        import torch

        config = json.loads((self.folder / "preprocessor_config.json").read_text(encoding="utf-8"))
        mean, std = (torch.tensor(config[key])[:, None, None] for key in ("image_mean", "image_std"))
        pixels = torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).float() / 255
        if pixels.shape[-2:] != (size, size):
            pixels = torch.nn.functional.interpolate(pixels, (size, size), mode="bicubic", antialias=True).clamp(0, 1)
        return (pixels - mean) / std


def clip_score(
    images: np.ndarray, prompts: Sequence[str], *, folder: str | Path | None = None, batch_size: int = 64
) -> np.ndarray:
    """100 cos(image, prompt) per sample, (s,); see `ClipScore`."""
    return ClipScore(folder, batch_size=batch_size)(images, prompts)


class ClipScore:
    """100 times the cosine between CLIP's embeddings of an image and of its prompt (Hessel et al. 2021, without their
    weight 2.5 and without clipping at 0).

    ``folder`` is that of a `Clip`; by default the embedded judge, which has never conditioned a diffusion model. Scores
    of different CLIP models do not compare.

    Raises:
        BadInput: the folder holds no CLIP model, or images and prompts do not pair.

    """

    def __init__(self, folder: str | Path | None = None, *, batch_size: int = 64, device: str = "cpu") -> None:
        if folder is None:
            from probe._paths import emoji_dir

            folder = emoji_dir() / "judge_clip"
        self.clip = Clip(folder, batch_size=batch_size, device=device)

    @property
    def id(self) -> str:
        """Hash of the folder's weights, configs and tokenizer."""
        return self.clip.id

    def __call__(self, images: np.ndarray, prompts: Sequence[str]) -> np.ndarray:
        """Scores (s,) of uint8 images (s, y, x, 3) and their prompts."""
        if images.ndim != 4 or images.shape[-1] != 3 or len(images) != len(prompts):
            raise BadInput("every image needs its prompt", given=f"{images.shape}, {len(prompts)} prompts")
        return np.asarray(100 * (self.clip.images(images) * self.clip.texts(list(prompts))).sum(1))

"""The two judges of the embedded world.

``emoji_cnn``: a small residual network with one softmax per label family. ``emoji_nearest``: nearest mean render in the
image features of a second contrastive model that never conditions the generator, whitened by how much pictures of one
drawing differ there.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from probe._paths import emoji_dir
from probe.detect._detector import Detector, register_detector
from probe.errors import StoreDamaged

SIZE = 64


class JudgeCNN(nn.Module):
    """Residual network for 64 x 64 pictures; ``forward``: float (n, 3, 64, 64) in -1..1 -> logits per family."""

    def __init__(self, families: dict[str, int], widths: tuple[int, ...] = (32, 64, 128, 160)) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, widths[0], 5, stride=2, padding=2)
        self.stages = nn.ModuleList(_Stage(a, b) for a, b in itertools.pairwise(widths))
        self.heads = nn.ModuleDict({name: nn.Linear(widths[-1], n) for name, n in families.items()})

    def features(self, x: Tensor) -> Tensor:
        """What the heads read: (n, width of the last stage)."""
        x = F.relu(self.stem(x))
        for stage in self.stages:
            x = stage(x)
        return x.mean((2, 3))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.features(x)
        return {name: head(x) for name, head in self.heads.items()}


class _Stage(nn.Module):
    """Halve the picture, then one residual block."""

    def __init__(self, a: int, b: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(a, b, 3, stride=2, padding=1)
        self.norm1, self.norm2 = nn.GroupNorm(8, b), nn.GroupNorm(8, b)
        self.conv1, self.conv2 = nn.Conv2d(b, b, 3, padding=1), nn.Conv2d(b, b, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm1(self.down(x)))
        return F.relu(x + self.norm2(self.conv2(F.relu(self.conv1(x)))))


def to_pixels(images: np.ndarray) -> Tensor:
    """uint8 (n, y, x, 3) -> float (n, 3, 64, 64) in -1..1; other sizes are resized by area or bilinearly."""
    x = torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).float() / 127.5 - 1
    if x.shape[-2:] == (SIZE, SIZE):
        return x
    return F.interpolate(x, (SIZE, SIZE), mode="area" if min(x.shape[-2:]) >= SIZE else "bilinear")


def families(labels: list[str]) -> dict[str, int]:
    """Family -> number of labels, in order of first appearance."""
    out: dict[str, int] = {}
    for label in labels:
        out[label.split("/")[0]] = out.get(label.split("/")[0], 0) + 1
    return out


def _read(name: str) -> tuple[dict[str, Any], dict[str, Tensor], str]:
    """(settings, tensors, sha256 of the weights) of a judge's files."""
    folder = emoji_dir() / "judges"
    weights: Path = folder / f"{name}.safetensors"
    try:
        settings = json.loads((folder / f"{name}.json").read_text())
        return settings, load_file(weights), hashlib.sha256(weights.read_bytes()).hexdigest()
    except (OSError, ValueError) as e:
        what = f"the judge {name} cannot be read"
        raise StoreDamaged(what, given=str(folder), fix="reinstall, or `make model`") from e


def _cnn() -> Detector:
    settings, tensors, sha = _read("emoji_cnn")
    labels = settings["labels"]
    net = JudgeCNN(families(labels), tuple(settings["widths"])).eval()
    net.load_state_dict({k: v.float() for k, v in tensors.items()})

    @torch.no_grad()
    def score(images: np.ndarray) -> np.ndarray:
        return torch.cat([logits.softmax(-1) for logits in net(to_pixels(images)).values()], -1).numpy()

    @torch.no_grad()
    def features(images: np.ndarray) -> np.ndarray:
        return net.features(to_pixels(images)).numpy()

    return Detector("emoji_cnn", labels, np.asarray(settings["thresholds"]), score, sha=sha, features=features)


@torch.no_grad()
def clip_features(model: Any, pixels: Tensor) -> Tensor:
    """What `emoji_nearest` compares: the pooled token and the mean over patches, (n, 2 d), of (n, 3, 64, 64) pixels."""
    tower = model.vision_model(pixel_values=pixels)
    return torch.cat([tower.pooler_output, tower.last_hidden_state[:, 1:].mean(1)], dim=-1)


def _nearest() -> Detector:
    from probe import compat

    settings, tensors, sha = _read("emoji_nearest")
    labels = settings["labels"]
    folder = emoji_dir() / "judge_clip"
    with compat.quiet_libraries():
        from transformers import CLIPModel

        model = CLIPModel.from_pretrained(folder, use_safetensors=True).float().eval()
    renders = F.normalize(tensors["features"].float(), dim=-1)
    # (render, family): the label of each render in each family, -1 where it has none
    columns = tensors["columns"].long()

    @torch.no_grad()
    def score(images: np.ndarray) -> np.ndarray:
        feature = (clip_features(model, to_pixels(images)) - tensors["mean"].float()) @ tensors["whiten"].float()
        similarity = F.normalize(feature, dim=-1) @ renders.T / settings["temperature"]
        none = torch.full((len(images), 1), settings["none_similarity"] / settings["temperature"])
        share = torch.cat([similarity, none], 1).softmax(-1)
        out = torch.zeros(len(images), len(labels))
        out[:, labels.index("object/none")] = share[:, -1]
        for family in columns.T:
            known = family >= 0
            part = share[:, :-1][:, known]
            out.index_add_(1, family[known], part)
        return out.numpy()

    return Detector("emoji_nearest", labels, np.asarray(settings["thresholds"]), score, sha=sha)


register_detector("emoji_cnn", _cnn)
register_detector("emoji_nearest", _nearest)

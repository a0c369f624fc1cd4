"""A world without a model: concepts, a judge of mean colours, an edit of one weight. For tests of measuring."""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class FakeConcept:
    name: str
    kind: str = "object"
    members: tuple[str, ...] = ()
    surface_forms: tuple[str, ...] = ()
    anchor: str = ""
    prompts: dict = field(default_factory=dict)
    test: dict = field(default_factory=dict)
    references: dict = field(default_factory=dict)
    neighbours: tuple[str, ...] = ()
    detector: str = "colours"


class FakeWorld(dict):
    def __init__(self, concepts, **lists):
        super().__init__({c.name: c for c in concepts})
        self.lists = lists


def concept(name: str, kind: str = "object", *, n: int = 6, **more) -> FakeConcept:
    test = {"explicit": tuple(f"a {name}, number {i}" + (" in ink" if i % 2 else "") for i in range(n))}
    prompts = {"explicit": tuple(f"one {name}, tuning {i}" for i in range(n))}
    return FakeConcept(name, kind, surface_forms=(name, f"old {name}"), test=test, prompts=prompts, **more)


def small_world() -> FakeWorld:
    return FakeWorld(
        [
            concept("church", neighbours=("castle", "house")),
            concept("castle"),
            concept("house"),
            concept("bomb"),
            concept("axe"),
            concept("elf", "character"),
            FakeConcept("weapon", "group", members=("bomb", "axe"), test={"explicit": ("a weapon",)}),
            FakeConcept("ink", "style", surface_forms=("ink", "in ink"), test={"explicit": ("a house in ink",)}),
        ],
        preserve_fit=["house"],
        preserve_test=["castle", "bomb", "axe", "weapon", "elf", "ink", "church"],
    )


class Colours:
    """Scores are simple statistics of the picture, so that any of them can be recomputed by hand."""

    labels = (
        *("object/church", "object/castle", "object/house", "object/bomb", "object/axe", "object/elf"),
        *("object/none", "style/ink"),
    )
    thresholds = np.full(8, 0.5, dtype=np.float32)

    def __init__(self, name: str = "colours", shift: int = 0, fail_after: int | None = None) -> None:
        self.id, self.shift, self.fail_after, self.seen = name, shift, fail_after, 0

    def __call__(self, images: np.ndarray) -> np.ndarray:
        if self.fail_after is not None and self.seen >= self.fail_after:
            raise KeyboardInterrupt
        self.seen += len(images)
        assert images.dtype == np.uint8
        light = np.roll(images.reshape(len(images), 8, -1).astype(np.float32), self.shift, axis=1)
        # each label looks at its own eighth of the picture
        return (light.mean(-1) > np.median(light, axis=(1, 2))[:, None]).astype(np.float32) * 0.9


class Featured(Colours):
    """`Colours` that also says where pictures lie: the light of each eighth."""

    def features(self, images: np.ndarray) -> np.ndarray:
        return images.reshape(len(images), 8, -1).mean(-1) / 255


class ScaledWeight:
    """An edit that scales the UNet's first convolution, and puts it back."""

    differentiable = True

    def __init__(self, factor: float, name: str = "scaled") -> None:
        self.name, self.id, self.factor = name, f"{name}-{factor}", factor
        self.times = 0

    @contextmanager
    def applied(self, pipe):
        import torch

        weight = pipe.unet.conv_in.weight
        before = weight.detach().clone()
        self.times += 1
        try:
            with torch.no_grad():
                weight.mul_(self.factor)
            yield
        finally:
            with torch.no_grad():
                weight.copy_(before)


def tiny_clip(folder: Path, *, seed: int = 0) -> Path:
    """A CLIP model of random weights with its tokenizer, for pictures of 8 x 8 pixels."""
    import torch
    from transformers import CLIPConfig, CLIPModel

    from probe import compat

    tokenizer = compat.clip_tokenizer(model_max_length=16)
    n = len(tokenizer)
    small = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    ids = {"bos_token_id": n - 2, "eos_token_id": n - 1, "pad_token_id": n - 1}
    text = {**small, **ids, "vocab_size": n, "max_position_embeddings": 16}
    vision = {**small, "image_size": 8, "patch_size": 4}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))
    model.save_pretrained(folder)
    compat.save_tokenizer(tokenizer, folder)
    config = {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.25, 1.0]}
    (folder / "preprocessor_config.json").write_text(json.dumps(config))
    return folder

"""Small concepts and pipelines for the closed-form erasers."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from probe import Concept, guidance
from probe.testing import tiny_pipeline
from probe.tokens import encode

KEEP = [f"a {word}" for word in ("dog", "bus", "rose", "key", "owl", "drum", "fish", "hat", "car", "map", "pen", "egg")]


def concept(name: str = "church", **more: Any) -> Concept:
    prompts = {"explicit": (f"a {name}", f"one {name}")}
    own = {"name": name, "kind": "object", "prompts": prompts, "surface_forms": (name,), "anchor": "a hut"}
    return Concept(**own | more)


def group() -> Concept:
    forms = {"members": ("axe", "bomb"), "surface_forms": ("axe", "hatchet", "bomb"), "anchor": "a lamp"}
    return Concept(name="arms", kind="group", prompts={"explicit": ("an axe", "a bomb")}, **forms)


def embedding(pipe: Any, text: str) -> np.ndarray:
    """(k, d) as the pipeline's own call would have it: by another way than the code under test."""
    with torch.no_grad():
        found = pipe.encode_prompt(
            prompt=text, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
        )
    return found[0][0].double().numpy()


def pooled(pipe: Any, text: str) -> np.ndarray:
    with torch.no_grad():
        found = pipe.encode_prompt(
            prompt=text, device="cpu", num_images_per_prompt=1, do_classifier_free_guidance=False
        )
    return found[2][0].double().numpy()


def end(pipe: Any, text: str) -> int:
    """The first position with the end-of-text id, by counting."""
    return encode(pipe.tokenizer, text)[0].tolist().index(pipe.tokenizer.eos_token_id)


def keys_and_values(pipe: Any) -> dict[str, torch.Tensor]:
    """Canonical name -> weight of every cross-attention projection, found by name."""
    found = {}
    for name, module in pipe.unet.named_modules():
        if "attn2" in name and name.endswith((".to_k", ".to_v")):
            found[f"unet.{name}.weight"] = module.weight.detach()
    return found


def edited(pipe: Any, edit: Any) -> dict[str, np.ndarray]:
    """The projections with the edit in force."""
    with edit.applied(pipe):
        return {param: weight.double().numpy().copy() for param, weight in keys_and_values(pipe).items()}


def close(found: np.ndarray, expected: np.ndarray, tolerance: float = 2e-6) -> bool:
    """Equal to what a float32 weight resolves."""
    return bool(np.linalg.norm(found - expected) <= tolerance * np.linalg.norm(expected))


def pipeline(kind: str = "sd15") -> Any:
    """A tiny pipeline whose last normalisation has a bias, as if trained: without, rows of text add up to zero."""
    pipe: Any = tiny_pipeline(kind)
    last = next(m for name, m in pipe.text_encoder.named_modules() if name.endswith("final_layer_norm"))
    with torch.no_grad():
        last.bias.copy_(0.3 * torch.randn(last.bias.shape, generator=torch.Generator().manual_seed(1)))
    guidance.condition(pipe, ["a"], guidance=2.0)  # transformers hooks SDXL's layers on the first call, for good
    return pipe

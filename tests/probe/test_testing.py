"""The tiny pipelines that everything else is tested on."""

from __future__ import annotations

import pytest
import torch

from probe import fingerprint
from probe.errors import UnknownName
from probe.testing import KINDS, TOPOLOGIES, tiny_pipeline


@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("kind", KINDS)
def test_images_depend_on_prompt_and_seed(kind, topology):
    pipe = tiny_pipeline(kind, topology=topology)

    def image(prompt: str, seed: int):
        generator = torch.Generator().manual_seed(seed)
        return pipe(prompt, num_inference_steps=2, generator=generator, output_type="np").images

    first = image("a church", 0)
    assert first.shape == (1, 16, 16, 3)
    assert (image("a church", 0) == first).all()
    assert abs(image("a church", 1) - first).max() > 0.1
    assert abs(image("a cat", 0) - first).max() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_equal_seeds_give_equal_weights_whatever_was_drawn_before(kind):
    one = fingerprint(tiny_pipeline(kind, seed=3)).to_json()
    torch.rand(5)
    before = torch.random.get_rng_state()
    assert fingerprint(tiny_pipeline(kind, seed=3)).to_json() == one
    assert torch.equal(before, torch.random.get_rng_state())
    assert fingerprint(tiny_pipeline(kind, seed=4)).to_json() != one


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_in_eval_mode_and_small(kind):
    networks = [p for p in tiny_pipeline(kind).components.values() if isinstance(p, torch.nn.Module)]
    assert len(networks) == (4 if kind == "sdxl" else 3)
    assert not any(m.training for part in networks for m in part.modules())
    assert sum(p.numel() for part in networks for p in part.parameters()) < 2e6


def test_sdxl_has_what_sets_it_apart():
    pipe = tiny_pipeline("sdxl")
    assert type(pipe).__name__ == "StableDiffusionXLPipeline"
    assert pipe.watermark is None
    assert pipe.config.force_zeros_for_empty_prompt
    assert (pipe.tokenizer.pad_token, pipe.tokenizer_2.pad_token) == ("<|endoftext|>", "!")
    assert pipe.tokenizer_2("a", padding="max_length").input_ids[3:] == [0] * 29
    assert pipe.text_encoder_2.text_projection.out_features == 24


def test_unknown_kind():
    with pytest.raises(UnknownName, match="nearest: sd15"):
        tiny_pipeline("sd1.5")
    with pytest.raises(UnknownName, match="nearest: published"):
        tiny_pipeline("sdxl", topology="publshed")

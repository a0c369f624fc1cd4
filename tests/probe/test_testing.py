"""The tiny pipelines that everything else is tested on."""

from __future__ import annotations

import pytest
import torch

from probe import fingerprint
from probe.errors import UnknownName
from probe.testing import KINDS, tiny_pipeline


@pytest.mark.parametrize("kind", KINDS)
def test_images_depend_on_prompt_and_seed(kind):
    pipe = tiny_pipeline(kind)

    def image(prompt: str, seed: int):
        generator = torch.Generator().manual_seed(seed)
        return pipe(prompt, num_inference_steps=2, generator=generator, output_type="np").images

    first = image("a church", 0)
    assert first.shape == (1, 16, 16, 3)
    assert (image("a church", 0) == first).all()
    assert abs(image("a church", 1) - first).max() > 0.1
    assert abs(image("a cat", 0) - first).max() > 1e-3


def test_equal_seeds_give_equal_weights_whatever_was_drawn_before():
    one = fingerprint(tiny_pipeline(seed=3)).to_json()
    torch.rand(5)
    before = torch.random.get_rng_state()
    assert fingerprint(tiny_pipeline(seed=3)).to_json() == one
    assert torch.equal(before, torch.random.get_rng_state())
    assert fingerprint(tiny_pipeline(seed=4)).to_json() != one


def test_it_is_in_eval_mode_and_small():
    pipe = tiny_pipeline()
    assert not any(m.training for part in (pipe.unet, pipe.vae, pipe.text_encoder) for m in part.modules())
    assert sum(p.numel() for p in pipe.unet.parameters()) < 1e6


def test_unknown_kind():
    with pytest.raises(UnknownName, match="nearest: sd15"):
        tiny_pipeline("sd1.5")

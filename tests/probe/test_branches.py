"""Layouts of network calls, stated and checked, never guessed."""

from __future__ import annotations

import pytest
import torch

from probe._branches import Layout, layout_of
from probe.errors import AmbiguousBatch, BadInput


class StableDiffusionPipeline:
    def __init__(self, guides):
        self.do_classifier_free_guidance = guides


def test_split_gives_branch_then_sample():
    layout = Layout(3, ("uncond", "cond"))
    rows = torch.tensor([[10, 0], [11, 0], [12, 0], [20, 0], [21, 0], [22, 0]])
    assert layout.split(rows)[:, :, 0].tolist() == [[10, 11, 12], [20, 21, 22]]
    assert layout.split(rows).shape == (2, 3, 2)
    assert layout.split(rows).data_ptr() == rows.data_ptr()


def test_one_guided_and_two_unguided_prompts_have_equal_rows_and_different_layouts():
    guided, unguided = layout_of(StableDiffusionPipeline(True), 1), layout_of(StableDiffusionPipeline(False), 2)
    assert guided.rows == unguided.rows == 2
    assert guided != unguided


def test_wrong_rows_carry_the_three_numbers():
    with pytest.raises(AmbiguousBatch, match=r"given: 5 rows; expected: 3 samples x 2 branches \(uncond, cond\)"):
        Layout(3, ("uncond", "cond")).split(torch.zeros(5, 2))


def test_a_loop_of_ones_own_says_its_branches():
    assert layout_of(object(), 2, branches=("cond",)).rows == 2


@pytest.mark.parametrize("name", ["StableDiffusionPAGPipeline", "StableDiffusionInstructPix2PixPipeline"])
def test_other_guidance_is_refused_by_name(name):
    pipe = type(name, (StableDiffusionPipeline,), {})(True)
    with pytest.raises(BadInput, match=name):
        layout_of(pipe, 1)


def test_perturbed_attention_is_seen_under_any_name():
    pipe = StableDiffusionPipeline(True)
    pipe.do_perturbed_attention_guidance = True
    with pytest.raises(BadInput, match="perturbed-attention"):
        layout_of(pipe, 1)


def test_a_pipeline_that_does_not_say():
    with pytest.raises(BadInput, match="does not say"):
        layout_of(object(), 1)

"""Edits of Stable Diffusion XL: made, applied, saved and exported, in the UNet and in both text encoders."""

from __future__ import annotations

import pytest

import erase
import probe
from probe.errors import WrongModel
from probe.testing import tiny_pipeline
from tests.erase.prune.maps import TIMESTEPS, norms, wanda_map
from tests.erase.snapshots import edit_of, parameter, random_mask, raw, snapshot

FIRST = "text_encoder.text_model.encoder.layers.0.mlp.fc2.weight"
SECOND = "text_encoder_2.text_model.encoder.layers.0.mlp.fc2.weight"
TABLE = probe.samples(["a church"])


@pytest.fixture(scope="module")
def own():
    pipe = tiny_pipeline("sdxl")
    probe.generate(pipe, TABLE, steps=1, progress=False)  # transformers hooks its layers on the first call, for good
    return pipe


@pytest.fixture
def pipe(own):
    before = snapshot(own)
    yield own
    assert snapshot(own) == before


@pytest.fixture(scope="module")
def in_unet(own):
    target, reference = norms(own, len(TIMESTEPS))
    return erase.concept_prune(own, wanda_map(own, target, reference, TIMESTEPS), skill_ratio=0.05, name="in the UNet")


@pytest.fixture(scope="module")
def in_text(own):
    nm = wanda_map(own, *norms(own, 1, sites="mlp"), [999], sites="mlp")
    return erase.prune_neurons(own, nm.select(top=40), name="in the text")


def picture(pipe):
    return probe.generate(pipe, TABLE, steps=1, progress=False).tobytes()


def test_concept_prune_masks_every_block(pipe, in_unet):
    assert in_unet.params == tuple(sorted(f"unet.{site.module}.weight" for site in probe.sites(pipe)))
    assert 0 < in_unet.density < 0.1
    plain = picture(pipe)
    with in_unet.applied(pipe):
        assert picture(pipe) != plain
        assert probe.lineage(pipe) == [[in_unet.id, "in the UNet"]]


def test_neurons_of_both_text_encoders_can_be_pruned(pipe, in_text):
    assert {FIRST, SECOND} <= set(in_text.params)
    plain = picture(pipe)
    with in_text.applied(pipe):
        assert picture(pipe) != plain
        masked = in_text.report["layers"][SECOND]["masked"]
        assert int((parameter(pipe, SECOND) == 0).sum()) == masked > 0


def test_the_last_layer_counts_only_in_the_second_encoder(pipe):
    """SDXL reads the last hidden state but one, and the pooled vector of the second encoder."""
    plain = picture(pipe)
    for param, same in ((FIRST, True), (SECOND, False)):
        last = param.replace("layers.0", "layers.1")
        with edit_of(pipe, random_mask(pipe, last, share=0.9)).applied(pipe):
            assert (picture(pipe) == plain) is same


def test_an_edit_in_force_is_part_of_what_a_run_was_made_on(pipe, in_text, tmp_path):
    with in_text.applied(pipe):
        run = probe.record(pipe, ["a"], out=tmp_path / "run", sites="mlp", steps=1, images=False, progress=False)
    assert run.identity["lineage"] == [[in_text.id, "in the text"]]
    for component in ("text_encoder", "text_encoder_2"):
        fan_out = run.open(component)["fan_out"].values
        pruned = [change for change in in_text.changes if change.param.startswith(f"{component}.")]
        assert (fan_out == 0).sum() == sum(int(change.dense().all(dim=0).sum()) for change in pruned) > 0


def test_a_stack_saved_and_loaded_has_the_same_effect(pipe, in_unet, in_text, tmp_path):
    both = erase.stack(in_unet, in_text)
    again = erase.load_edit(both.save_pretrained(tmp_path / "edit"))
    assert again.id == both.id
    with both.applied(pipe):
        expected = picture(pipe)
    with again.applied(pipe):
        assert picture(pipe) == expected


def test_the_exported_pipeline_is_the_edited_one(pipe, in_unet, in_text, tmp_path):
    both = erase.stack(in_unet, in_text)
    again = probe.load(both.export(pipe, tmp_path / "erased"))
    with both.applied(pipe):
        assert probe.fingerprint(again).to_json() == probe.fingerprint(pipe).to_json()
        assert picture(again) == picture(pipe)
        assert raw(parameter(again, SECOND)) == raw(parameter(pipe, SECOND))
    assert again.config.force_zeros_for_empty_prompt
    assert again.tokenizer_2("a", padding="max_length").input_ids[-1] == 0  # "!"


def test_it_fits_no_other_model(in_unet, in_text):
    for edit in (in_unet, in_text):
        with pytest.raises(WrongModel), edit.applied(tiny_pipeline()):
            pass

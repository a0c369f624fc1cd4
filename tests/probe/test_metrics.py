from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from probe import metrics
from probe.errors import BadInput, UnknownName
from tests.oracles import metrics as oracle
from tests.probe.measuring import FakeConcept, concept, small_world, tiny_clip

LABELS = ["object/church", "object/dog", "object/none", "style/ink"]
SCORES = st.sampled_from([0.0, 0.2, 0.5, 0.7, 0.99, math.nan])


@given(
    st.lists(st.tuples(*[SCORES] * 4), min_size=1, max_size=8),
    st.tuples(*[st.sampled_from([0.2, 0.5, 0.9])] * 4),
    st.data(),
)
@settings(max_examples=80, deadline=None)
def test_verdicts_agree_with_one_image_at_a_time(rows, thresholds, data):
    wanted = [data.draw(st.lists(st.sampled_from(LABELS), max_size=3)) for _ in rows]
    scores, limits = np.array(rows), np.array(thresholds)
    by_label = [dict(zip(LABELS, row, strict=True)) for row in rows]
    of_threshold = dict(zip(LABELS, thresholds, strict=True))
    expected = [oracle.shown(row, of_threshold, names) for row, names in zip(by_label, wanted, strict=True)]
    assert np.array_equal(metrics.hits(scores, LABELS, limits, wanted), expected, equal_nan=True)
    expected = [oracle.broken(row) for row in by_label]
    assert np.array_equal(metrics.broken(scores, LABELS), expected, equal_nan=True)


def test_a_label_that_the_judge_lacks_is_named_with_the_nearest():
    with pytest.raises(UnknownName, match="object/church"):
        metrics.hits(np.zeros((1, 4)), LABELS, np.ones(4), [["object/chruch"]])
    with pytest.raises(UnknownName, match="object/none"):
        metrics.broken(np.zeros((1, 1)), ["object/church"])


def test_labels_of_each_kind():
    world = small_world()
    assert metrics.labels_of(world["church"], world) == ("object/church",)
    assert metrics.labels_of(world["elf"], world) == ("object/elf",)
    assert metrics.labels_of(world["ink"], world) == ("style/ink",)
    assert metrics.labels_of(world["weapon"], world) == ("object/bomb", "object/axe")
    assert metrics.labels_of(world["weapon"]) == ("object/bomb", "object/axe")


def test_a_concept_may_name_its_label():
    mine = FakeConcept("my church", detector="emoji_cnn:object/church")
    assert metrics.labels_of(mine) == ("object/church",)
    assert metrics.labels_of(FakeConcept("places", "group", members=("my church",)), {"my church": mine}) == (
        "object/church",
    )


@pytest.mark.parametrize(
    ("prompt", "about", "expected"),
    [
        ("a church in INK", "church", ["style/ink"]),
        ("a church with a drink", "church", []),
        ("a skull and crossbones, ink", "ink", ["object/skull and crossbones"]),
        ("a skull and a church in ink", "ink", ["object/skull", "object/church"]),
        ("an old church in ink", "ink", ["object/church"]),
        ("a weapon in ink", "ink", ["object/bomb", "object/axe"]),
        ("something dangerous", "weapon", []),
    ],
)
def test_content_is_what_else_the_prompt_names(prompt, about, expected):
    world = small_world()
    world |= {name: concept(name) for name in ("skull", "skull and crossbones")}
    assert list(metrics.content_labels(prompt, world[about], world)) == expected


def test_a_world_without_styles_names_no_content():
    alone = {"church": concept("church")}
    assert metrics.content_labels("a church in ink", alone["church"], alone) == ()


def test_metrics_are_found_by_name_and_a_name_is_taken_once():
    assert {"rate", "rate_second", "broken", "content_kept", "clip_score"} <= set(metrics.names())
    with pytest.raises(UnknownName, match="clip_score"):
        metrics.metric("clipscore")
    with pytest.raises(BadInput, match="exists"):
        metrics.register("rate", lambda: None)
    assert metrics.metric("rate").identity == "rate/1"


# --- CLIP score -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    return tiny_clip(tmp_path_factory.mktemp("clip"))


PROMPTS = ["a church", "a dog, in ink", "", "so many words that the tokenizer has to cut the end of them off"]


def test_clip_score_is_a_hundred_times_the_models_own_cosine(clip_folder):
    import torch
    from transformers import CLIPModel, CLIPTokenizer

    images = np.random.default_rng(0).integers(0, 255, (4, 8, 8, 3), dtype=np.uint8)
    model = CLIPModel.from_pretrained(clip_folder).eval()
    tokenizer = CLIPTokenizer.from_pretrained(clip_folder)
    expected = []
    for image, prompt in zip(images, PROMPTS, strict=True):
        pixels = torch.tensor((image / 255 - [0.5, 0.4, 0.3]) / [0.5, 0.25, 1.0]).permute(2, 0, 1)[None].float()
        tokens = tokenizer([prompt], padding="max_length", truncation=True, max_length=16, return_tensors="pt")
        with torch.no_grad():
            logits = model(**tokens, pixel_values=pixels).logits_per_image
        expected.append(100 * (logits / model.logit_scale.exp()).item())
    assert metrics.clip_score(images, PROMPTS, folder=clip_folder) == pytest.approx(expected, abs=1e-3)
    in_batches = metrics.clip_score(images, PROMPTS, folder=clip_folder, batch_size=3)
    assert in_batches == pytest.approx(expected, abs=1e-3)


def test_clip_score_resizes_and_takes_no_images(clip_folder):
    images = np.random.default_rng(0).integers(0, 255, (2, 20, 12, 3), dtype=np.uint8)
    assert np.isfinite(metrics.clip_score(images, PROMPTS[:2], folder=clip_folder)).all()
    assert metrics.clip_score(images[:0], [], folder=clip_folder).shape == (0,)


def test_the_id_of_a_clip_score_follows_the_weights(clip_folder, tmp_path):
    import shutil

    copy = shutil.copytree(clip_folder, tmp_path / "copy")
    assert metrics.ClipScore(copy).id == metrics.ClipScore(clip_folder).id
    path = copy / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert metrics.ClipScore(copy).id != metrics.ClipScore(clip_folder).id


def test_a_folder_that_is_no_clip_model_is_refused(clip_folder, tmp_path):
    with pytest.raises(BadInput, match=r"config\.json is missing"):
        metrics.ClipScore(tmp_path)
    import shutil

    copy = shutil.copytree(clip_folder, tmp_path / "copy")
    (copy / "model.safetensors").unlink()
    with pytest.raises(BadInput, match="cannot be loaded"):
        metrics.clip_score(np.zeros((1, 8, 8, 3), np.uint8), ["a"], folder=copy)
    (copy / "preprocessor_config.json").unlink()
    with pytest.raises(BadInput, match="preprocessor_config"):
        metrics.ClipScore(copy)
    with pytest.raises(BadInput, match="every image needs its prompt"):
        metrics.clip_score(np.zeros((2, 8, 8, 3), np.uint8), ["a"], folder=clip_folder)


def test_a_group_outside_the_world_still_has_labels():
    group = FakeConcept("weapon", "group", members=("bomb", "sling"))
    assert metrics.labels_of(group, {"bomb": concept("bomb")}) == ("object/bomb", "object/sling")


def test_log_odds_of_the_likeliest_wanted_label():
    scores = np.array([[0.9, 0.2, 0.0], [0.1, 0.5, 1.0], [0.3, np.nan, 0.2], [0.4, 0.4, 0.4]])
    wanted = [["a"], ["a", "b"], ["b"], []]
    found = metrics.concept_log_odds(scores, ["a", "b", "c"], wanted)
    np.testing.assert_allclose(found[:2], [np.log(9), 0.0], atol=1e-12)
    assert np.isnan(found[2:]).all()
    edge = metrics.concept_log_odds(scores, ["a", "b", "c"], [["c"]] * 4)
    assert edge[0] == pytest.approx(-13.8155, abs=1e-3)
    assert edge[1] == pytest.approx(13.8155, abs=1e-3)
    with pytest.raises(UnknownName, match="label of the judge"):
        metrics.concept_log_odds(scores, ["a", "b", "c"], [["d"]] * 4)

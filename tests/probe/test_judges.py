"""Judges from elsewhere: CLIP without training, any function, and none at all."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import probe
from probe import metrics
from probe._eval_judges import judges_of
from probe.detect import _detector, clip_zero_shot, detector, detectors, from_function, register_detector
from probe.errors import BadInput, UnknownName
from probe.testing import tiny_pipeline
from tests.probe.measuring import Colours, FakeConcept, FakeWorld, ScaledWeight, concept, small_world, tiny_clip
from tests.probe.test_evaluate import one, run

IMAGES = np.random.default_rng(0).integers(0, 255, (5, 8, 8, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline()


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    return tiny_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture
def registry(monkeypatch):
    detectors()
    monkeypatch.setattr(_detector, "_MAKERS", dict(_detector._MAKERS))
    yield
    _detector._loaded.cache_clear()


def unnamed_world() -> FakeWorld:
    """`small_world` whose concepts name no detector."""
    from dataclasses import replace

    world = small_world()
    return FakeWorld([replace(c, detector=None) for c in world.values()], **world.lists)


# --- zero-shot --------------------------------------------------------------------------------------------------------


def by_hand(folder, own: list[str], others: list[list[str]]) -> np.ndarray:
    """The share of a concept by CLIP's own logits for its texts, one picture at a time."""
    import torch

    clip = metrics.Clip(folder)
    model, tokenizer = clip._loaded
    found = []
    for image in IMAGES:
        logits = []
        for texts in (own, *others):
            tokens = tokenizer(texts, padding="max_length", truncation=True, return_tensors="pt")
            with torch.no_grad():
                out = model(**tokens, pixel_values=clip._pixels(image[None], 8))
            mean = torch.nn.functional.normalize(out.text_embeds, dim=-1).mean(0)
            cosine = torch.cosine_similarity(mean, out.image_embeds[0], dim=0)
            logits.append((model.logit_scale.exp() * cosine).item())
        powers = np.exp(np.array(logits) - max(logits))
        found.append(powers[0] / powers.sum())
    return np.array(found)


def test_a_score_is_the_share_of_the_concept_among_anchor_and_neighbours(clip_folder):
    church = concept("church", neighbours=("castle", "axe"), anchor="a building")
    ink = FakeConcept("ink", "style", surface_forms=("in ink",), neighbours=("noto",))
    judge = clip_zero_shot(clip_folder, FakeWorld([church, concept("castle"), ink]))
    assert judge.labels == ("object/church", "object/castle", "style/ink")
    scores = judge(IMAGES)
    pictures = {name: [f"a picture of a {name}", f"a picture of an old {name}"] for name in ("church", "castle")}
    expected = by_hand(
        clip_folder, pictures["church"], [["a picture of a building"], pictures["castle"], ["a picture of an axe"]]
    )
    np.testing.assert_allclose(scores[:, 0], expected, atol=1e-5)
    np.testing.assert_allclose(scores[:, 1], by_hand(clip_folder, pictures["castle"], [["a picture"]]), atol=1e-5)
    styles = ["a picture, ink style", "a picture, in ink style"]
    np.testing.assert_allclose(
        scores[:, 2], by_hand(clip_folder, styles, [["a picture"], ["a picture, noto style"]]), atol=1e-5
    )
    assert np.ptp(scores) > 1e-3, "the test would see nothing"


def test_a_group_has_its_members_labels(clip_folder):
    group = FakeConcept("weapon", "group", members=("bomb", "sling"), anchor="an umbrella")
    judge = clip_zero_shot(clip_folder, [group, concept("bomb")])
    assert sorted(judge.labels) == ["object/bomb", "object/sling"]
    expected = by_hand(clip_folder, ["a picture of a sling"], [["a picture of an umbrella"]])
    np.testing.assert_allclose(judge(IMAGES)[:, judge.index("object/sling")], expected, atol=1e-5)


def test_the_id_follows_what_decides(clip_folder, tmp_path):
    first = clip_zero_shot(clip_folder, [concept("church")]).id
    assert clip_zero_shot(clip_folder, [concept("church")]).id == first
    others = [
        clip_zero_shot(clip_folder, [concept("church", anchor="a building")]),
        clip_zero_shot(clip_folder, [concept("church")], threshold=0.6),
        clip_zero_shot(tiny_clip(tmp_path, seed=1), [concept("church")]),
    ]
    assert len({first, *(judge.id for judge in others)}) == 4
    apart = clip_zero_shot(clip_folder, [concept("church"), concept("axe")], threshold={"object/axe": 0.25})
    assert apart.thresholds.tolist() == [0.5, 0.25]


def test_only_safetensors_are_read(clip_folder, tmp_path):
    import shutil

    import torch
    from safetensors.torch import load_file

    copy = shutil.copytree(clip_folder, tmp_path / "copy")
    torch.save(load_file(copy / "model.safetensors"), copy / "pytorch_model.bin")
    (copy / "model.safetensors").unlink()
    with pytest.raises(BadInput, match="cannot be loaded"):
        clip_zero_shot(copy, [concept("church")])(IMAGES)
    with pytest.raises(BadInput, match=r"config\.json is missing"):
        clip_zero_shot(tmp_path, [concept("church")])
    with pytest.raises(BadInput, match="needs concepts"):
        clip_zero_shot(clip_folder, [])


def test_it_is_made_by_name_and_says_what_from(clip_folder):
    judge = detector("clip_zero_shot", folder=clip_folder, concepts=[concept("church")], threshold=0.25)
    assert judge.thresholds.tolist() == [0.25]
    with pytest.raises(BadInput, match="folder and concepts"):
        detector("clip_zero_shot")
    with pytest.raises(UnknownName, match="folder"):
        detector("clip_zero_shot", fodler=clip_folder)


def test_zero_shot_decides_where_concepts_name_it(pipe, clip_folder, tmp_path, caplog):
    world = FakeWorld([concept("church", neighbours=("castle",), detector="clip_zero_shot"), concept("castle")])
    some = {"world": world, "splits": ("explicit", "neighbours"), "judge": None, "second": None, "clip": clip_folder}
    measured = ("rate", "broken", "clip_score", "kid")
    table = run(pipe, tmp_path / "r", metrics=measured, **some)
    judge = clip_zero_shot(clip_folder, world)
    for split in ("explicit", "neighbours"):
        assert one(table, split=split, metric="rate")["n_failed"] == 0
        assert np.isfinite(one(table, split=split, metric="kid")["value"]), "its features are CLIP's"
        broken = one(table, split=split, metric="broken")
        assert (broken["n"], broken["n_failed"]) == (0, 6), "it has no label for pictures of nothing"
    assert "broken will be NaN" in caplog.text
    from probe._result_rows import read_rows

    assert {row["judge"] for row in read_rows(tmp_path / "r")} == {judge.id}
    with pytest.raises(BadInput, match="needs a CLIP model"):
        run(pipe, tmp_path / "other", metrics=("rate",), **{**some, "clip": None})


@pytest.mark.embedded
def test_the_embedded_clip_tells_clean_drawings_apart():
    """As a smoke alarm only: chance is one in four or so."""
    from probe._paths import emoji_dir

    world = probe.concepts("emoji")
    judge = clip_zero_shot(emoji_dir() / "judge_clip", world)
    assert set(probe.detector("emoji_cnn").labels) - set(judge.labels) <= {"object/none", "gender/man", "gender/woman"}
    assert np.isfinite(judge(IMAGES)).all()


# --- functions --------------------------------------------------------------------------------------------------------


def lightness(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1).mean(-1) / 255


def test_any_function_may_judge_a_concept(pipe, tmp_path):
    table = run(pipe, tmp_path / "r", judge=lightness, metrics=("rate",))
    from probe import _generate
    from probe._eval_samples import cell_samples

    world = small_world()
    images = _generate.generate(pipe, cell_samples(world["church"], "explicit", world), steps=1, progress=False)
    assert one(table, metric="rate")["original"] == pytest.approx((lightness(images) >= 0.5).mean())
    with pytest.raises(UnknownName, match="object/castle"):
        run(pipe, tmp_path / "other", judge=lightness, metrics=("rate",), splits=("neighbours",))
    assert not (tmp_path / "other").exists()


def test_a_function_answers_for_a_group_as_a_whole():
    world = small_world()
    (judge,) = judges_of(lightness, None, None, [world["weapon"]], world, []).values()
    assert judge.labels == ("object/bomb", "object/axe")
    scores = judge(IMAGES)
    assert (scores[:, 0] == scores[:, 1]).all()


def test_a_function_of_another_shape_is_told_so():
    judge = from_function(lambda images: np.zeros((len(images), 3)), ["object/a", "object/b"])
    with pytest.raises(BadInput, match=r"a score for each label.*\(5, 2\)"):
        judge(IMAGES)
    with pytest.raises(BadInput, match="each label"):
        from_function(lightness, ["object/a", "object/b"])(IMAGES)
    for nothing in (3, object()):
        with pytest.raises(BadInput, match="a judge has"):
            judges_of(nothing, None, None, [concept("a")], {}, [])


def test_the_id_of_a_function_follows_its_source_or_version():
    ids = [
        from_function(lightness, ["object/a"]).id,
        from_function(lambda images: lightness(images) / 2, ["object/a"]).id,
        from_function(lightness, ["object/a"], version="2").id,
        from_function(lightness, ["object/a"], thresholds=0.25).id,
    ]
    assert len(set(ids)) == 4
    assert from_function(lightness, ["object/a"]).id == ids[0]
    assert from_function(np.ones_like, ["object/a"]).id.startswith("ones_like:")


def test_a_function_may_have_a_name(registry, pipe, tmp_path):
    probe.register_detector("light", lightness, labels=["object/church"], thresholds=0.25, version="w1")
    judge = detector("light")
    assert (judge.name, judge.labels, judge.thresholds.tolist()) == ("light", ("object/church",), [0.25])
    assert judge.id.startswith("light:w1:")
    np.testing.assert_allclose(judge(IMAGES)[:, 0], lightness(IMAGES), rtol=1e-6)
    table = run(pipe, tmp_path / "r", judge="light", metrics=("rate",))
    assert one(table, metric="rate")["n"] == 6
    register_detector("made", lambda shift=0: Colours(shift=shift))
    assert detector("made", shift=2).shift == 2
    with pytest.raises(UnknownName, match="shift"):
        detector("made", shfit=2)


# --- nobody -----------------------------------------------------------------------------------------------------------


def test_without_a_detector_rates_are_nan_and_a_warning_says_why(pipe, clip_folder, tmp_path, caplog):
    every = ("rate", "rate_second", "broken", "content_kept", "clip_score")
    some = {"world": unnamed_world(), "metrics": every, "judge": None, "second": "emoji_nearest", "clip": clip_folder}
    table = run(pipe, tmp_path / "r", **some)
    assert "no detector decides: the concepts name none" in caplog.text
    assert "rate, rate_second, broken, content_kept will be NaN" in caplog.text
    assert "clip_zero_shot" in caplog.text, "the way out"
    for metric in ("rate", "rate_second", "broken"):
        row = one(table, metric=metric)
        assert (row["n"], row["n_failed"], row["interval"]) == (0, 6, "none")
        assert np.isnan(row[["value", "original", "difference"]].astype(float)).all()
    assert np.isfinite(one(table, metric="clip_score")["value"])
    _, _, shown = probe.result_images(tmp_path / "r", "church")
    assert not any(shown["original"])
    with pytest.raises(BadInput, match="there is no judge"):
        run(pipe, tmp_path / "other", **{**some, "metrics": ("kid",)})


def test_a_detector_may_come_later(pipe, clip_folder, tmp_path):
    some = {"world": unnamed_world(), "metrics": ("rate",), "second": None}
    run(pipe, tmp_path / "r", judge=None, **some)
    later = run(pipe, tmp_path / "r", judge=Colours(), **some)
    pd.testing.assert_frame_equal(later, run(pipe, tmp_path / "fresh", judge=Colours(), **some))


def test_content_that_the_judge_does_not_know_does_not_end_an_evaluation(pipe, tmp_path):
    def bare(images):
        return lightness(images)

    table = run(pipe, tmp_path / "r", {"a": ScaledWeight(0.3)}, judge=bare, metrics=("rate", "content_kept"))
    row = one(table, metric="content_kept")
    assert (row["n"], row["n_failed"]) == (0, 3)

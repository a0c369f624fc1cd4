"""Distances between sets of pictures in `probe.evaluate`'s table, and the features behind them."""

from __future__ import annotations

import shutil

import numpy as np
import pandas as pd
import pytest

from probe import _generate, metrics
from probe._eval_samples import cell_samples
from probe._result_rows import pack_feature, read_rows, unpack_features
from probe.detect import Detector
from probe.errors import BadInput
from probe.testing import tiny_pipeline
from tests.probe.measuring import Colours, Featured, ScaledWeight, small_world
from tests.probe.test_evaluate import one, run

METRICS = ("kid", "frechet", "feature_distance")


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline()


@pytest.fixture(scope="module")
def made(pipe, tmp_path_factory):
    """A result with all distances, and the unedited model as a row of its own."""
    out = tmp_path_factory.mktemp("sets") / "r"
    edits = {"scaled": ScaledWeight(0.3), "nothing": None}
    return out, run(pipe, out, edits, metrics=("rate", *METRICS), judge=Featured())


def test_distances_are_those_of_the_pictures(pipe, made):
    _, table = made
    world, judge, edit = small_world(), Featured(), ScaledWeight(0.3)
    samples, reference = (cell_samples(world["church"], "explicit", world, seed_set=i) for i in (0, 1))
    before, other = (
        judge.features(_generate.generate(pipe, of, steps=1, progress=False)) for of in (samples, reference)
    )
    with edit.applied(pipe):
        after = judge.features(_generate.generate(pipe, samples, steps=1, progress=False))
    row = one(table, edit="scaled", metric="frechet")
    assert row["value"] == pytest.approx(metrics.frechet(after, other), rel=1e-5)
    assert row["original"] == pytest.approx(metrics.frechet(before, other), rel=1e-5)
    assert row["difference"] == pytest.approx(row["value"] - row["original"])
    row = one(table, edit="scaled", metric="kid")
    halves = [metrics.kid(after[list(at)], other[list(at)]) for at in pairs_of_three()]
    assert min(halves) <= row["value"] <= max(halves), "the mean over halves of the prompts"
    assert row["ci_low"] < row["value"] < row["ci_high"]
    assert (row["interval"], row["n"], row["n_failed"]) == ("half_samples", 6, 0)
    row = one(table, edit="scaled", metric="feature_distance")
    assert row["value"] == pytest.approx(np.mean(metrics.feature_distance(after, before)), rel=1e-5)
    assert (row["original"], row["interval"]) == (0, "cluster_bootstrap")
    assert row["difference"] == row["value"] > 0


def pairs_of_three():
    from itertools import combinations

    return combinations(range(6), 3)


def test_the_unedited_model_is_at_its_own_floor(made):
    _, table = made
    for metric in ("kid", "frechet"):
        row = one(table, edit="nothing", metric=metric)
        assert row["value"] == row["original"] == one(table, edit="scaled", metric=metric)["original"]
        assert row[["difference", "diff_low", "diff_high"]].tolist() == [0, 0, 0]
    assert one(table, edit="nothing", metric="feature_distance")["value"] == 0


def test_the_text_files_alone_make_the_distances_again(pipe, made, tmp_path):
    out, table = made
    copy = shutil.copytree(out, tmp_path / "r")
    shutil.rmtree(copy / "images")
    edits = {"scaled": ScaledWeight(0.3), "nothing": None}
    again = run(None, copy, edits, metrics=("rate", *METRICS), judge=Featured(), rejudge=True)
    pd.testing.assert_frame_equal(again, table)


def test_features_are_added_to_stored_pictures(pipe, made, tmp_path):
    """Pictures of a plain result serve; only the reference set is drawn."""
    _, table = made
    plain = run(pipe, tmp_path / "r", metrics=("rate",), judge=Featured())
    assert "features" not in read_rows(tmp_path / "r")[0]
    with pytest.raises(BadInput, match="6 samples"):
        run(None, tmp_path / "r", metrics=METRICS, judge=Featured(), rejudge=True)
    found = run(pipe, tmp_path / "r", metrics=("rate", *METRICS), judge=Featured())
    expected = table[table["edit"] == "scaled"].reset_index(drop=True)
    pd.testing.assert_frame_equal(found, expected)
    pd.testing.assert_frame_equal(found[found["metric"] == "rate"], plain)


def test_pictures_that_failed_are_left_out_and_counted(pipe, tmp_path, monkeypatch):
    real = _generate.generate

    def dark(pipe, samples, *, on_batch, **options):
        def keep(rows, images):
            images[0] = 0
            on_batch(rows, images)

        return real(pipe, samples, on_batch=keep, **options)

    monkeypatch.setattr(_generate, "generate", dark)
    table = run(pipe, tmp_path / "r", metrics=METRICS, judge=Featured(), batch_size=12)
    for metric in METRICS:
        row = one(table, metric=metric)
        assert (row["n"], row["n_failed"]) == (5, 1)
        assert np.isfinite([row["value"], row["difference"]]).all()


def test_kinds_have_distances_of_their_own_and_too_few_have_none(pipe, tmp_path):
    table = run(pipe, tmp_path / "r", splits=("preserve_test",), metrics=("kid", "frechet"), judge=Featured())
    assert set(table["split"]) == {
        "preserve_test",
        *(f"preserve_test/{k}" for k in ("object", "character", "group", "style")),
    }
    single = one(table, split="preserve_test/group", metric="frechet")
    assert single["n"] == 1
    assert np.isnan(single[["value", "ci_low", "original", "difference"]].astype(float)).all()
    assert np.isfinite(one(table, split="preserve_test", metric="kid")["value"])


def test_a_judge_without_features_is_refused_before_anything_is_drawn(pipe, tmp_path):
    judge = Detector("bare", Colours.labels, Colours.thresholds, Colours())
    for bare in (Colours(), judge):
        with pytest.raises(BadInput, match="shows none"):
            run(pipe, tmp_path / "r", metrics=("kid",), judge=bare)
    assert not (tmp_path / "r").exists()
    with pytest.raises(BadInput, match="features=function"):
        judge.features(np.zeros((1, 8, 8, 3), np.uint8))


def test_a_detector_shows_the_features_it_was_made_with():
    images = np.random.default_rng(0).integers(0, 255, (5, 8, 8, 3), dtype=np.uint8)
    judge = Detector("mine", Colours.labels, Colours.thresholds, Colours(), features=Featured().features)
    assert judge.has_features
    found = judge.features(images, batch_size=2)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, Featured().features(images), rtol=1e-6)
    assert len(judge.features(images[:0])) == 0
    with pytest.raises(BadInput, match="uint8"):
        judge.features(images / 255)


def test_features_come_back_as_stored():
    features = np.array([[1.5, -2.25e8], [np.nan, 1.0], [0.0, 1e-30]])
    rows = [{"features": {"a": pack_feature(feature)}} for feature in features]
    assert rows[1]["features"]["a"] is None
    found = unpack_features(rows, "a")
    np.testing.assert_allclose(found[[0, 2]], features[[0, 2]], rtol=1e-6)
    assert np.isnan(found[1]).all()
    assert np.isnan(unpack_features(rows[1:2], "a")).all()

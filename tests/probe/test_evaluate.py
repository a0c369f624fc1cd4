from __future__ import annotations

import logging
import shutil

import numpy as np
import pandas as pd
import pytest

from probe import _evaluate, _generate, stats
from probe._eval_judges import common
from probe._eval_samples import cell_samples
from probe._result import COLUMNS, read_results
from probe._result_rows import read_rows
from probe.errors import BadInput, HeaderMismatch, UnknownName
from probe.testing import tiny_pipeline
from tests.probe.measuring import Colours, FakeConcept, ScaledWeight, concept, small_world

METRICS = ("rate", "rate_second", "broken", "content_kept")


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline()


@pytest.fixture
def drawn(monkeypatch):
    """How many images were drawn, and the samples of each call."""
    calls = []
    real = _generate.generate

    def counting(pipe, samples, **options):
        calls.append(samples)
        return real(pipe, samples, **options)

    monkeypatch.setattr(_generate, "generate", counting)
    return lambda: sum(map(len, calls))


def run(pipe, out, edits=None, concepts=("church",), **options):
    defaults = {"world": small_world(), "judge": Colours(), "second": Colours("other", shift=3), "metrics": METRICS}
    settings = {"steps": 1, "batch_size": 6, "resamples": 200, "progress": False, **defaults, **options}
    return _evaluate.evaluate(pipe, edits or {"scaled": ScaledWeight(0.3)}, concepts, out=out, **settings)


def one(table: pd.DataFrame, **key) -> pd.Series:
    for column, value in key.items():
        table = table[table[column] == value]
    assert len(table) == 1, table
    return table.iloc[0]


def test_rates_and_paired_differences_are_those_of_the_images(pipe, tmp_path):
    world, judge, edit = small_world(), Colours(), ScaledWeight(0.3)
    splits = ("explicit", "neighbours", "preserve_test")
    some = {"explicit": 4, "neighbours": 4, "preserve_test": 9}
    table = run(pipe, tmp_path / "r", splits=splits, n_prompts=some, seeds_per_prompt=2)
    assert list(table.columns) == list(COLUMNS)
    for split in splits:
        samples = cell_samples(world["church"], split, world, limit=some[split], seeds_per_prompt=2)
        before = _generate.generate(pipe, samples, steps=1, progress=False)
        with edit.applied(pipe):
            after = _generate.generate(pipe, samples, steps=1, progress=False)
        column = {name: i for i, name in enumerate(judge.labels)}
        own = [
            [column["style/ink"]]
            if name == "ink"
            else [column["object/bomb"], column["object/axe"]]
            if name == "weapon"
            else [column[f"object/{name}"]]
            for name in samples["concept"]
        ]
        shown = [
            np.array([float(scores[at].max() >= 0.5) for scores, at in zip(judge(images), own, strict=True)])
            for images in (before, after)
        ]
        row = one(table, split=split, metric="rate")
        assert row["value"] == pytest.approx(shown[1].mean())
        assert row["original"] == pytest.approx(shown[0].mean())
        assert row["difference"] == pytest.approx(shown[1].mean() - shown[0].mean())
        assert row["n"] == len(samples)
        expected = stats.paired_difference(*shown, samples["prompt"].tolist(), resamples=200, bounds=(0.0, 1.0))
        assert (row["diff_low"], row["diff_high"]) == pytest.approx((expected.low, expected.high))
        assert row["interval"] == "cluster_bootstrap"
    assert 0 < one(table, split="preserve_test", metric="rate")["value"] < 1, "the test would see nothing"


def test_preserve_rows_by_kind_add_up_to_the_pooled_one(pipe, tmp_path):
    table = run(pipe, tmp_path / "r", splits=("preserve_test",), metrics=("rate",))
    pooled = one(table, split="preserve_test")
    kinds = table[table["split"].str.startswith("preserve_test/")]
    assert set(kinds["split"]) == {f"preserve_test/{kind}" for kind in ("object", "character", "group", "style")}
    assert kinds["n"].sum() == pooled["n"]
    assert (kinds["n"] * kinds["value"]).sum() == pytest.approx(pooled["n"] * pooled["value"])
    assert pooled["interval"] == "wilson"


def test_content_kept_is_about_prompts_that_name_content(pipe, tmp_path):
    table = run(pipe, tmp_path / "r", metrics=("content_kept", "rate"))
    assert one(table, metric="content_kept")["n"] == 3
    assert one(table, metric="rate")["n"] == 6


def test_the_unedited_model_is_drawn_once_and_does_not_differ_from_itself(pipe, tmp_path, drawn):
    edits = {"a": ScaledWeight(0.3, "a"), "b": ScaledWeight(0.5, "b"), "nothing": None}
    table = run(pipe, tmp_path / "r", edits)
    assert drawn() == 3 * 6
    nothing = one(table, edit="nothing", metric="rate")
    assert nothing[["difference", "diff_low", "diff_high"]].tolist() == [0, 0, 0]
    assert nothing["value"] == nothing["original"] == one(table, edit="a", metric="rate")["original"]


def test_the_pipeline_is_left_as_it_was(pipe, tmp_path):
    from probe.provenance import fingerprint

    before = fingerprint(pipe).to_json()
    run(pipe, tmp_path / "r")
    assert fingerprint(pipe).to_json() == before


def test_a_killed_evaluation_goes_on_to_the_same_table(pipe, tmp_path, drawn):
    whole = run(pipe, tmp_path / "whole", batch_size=4)
    total = drawn()
    with pytest.raises(KeyboardInterrupt, match=r"what is done is kept at .*killed; repeat the same call"):
        run(pipe, tmp_path / "killed", judge=Colours(fail_after=8), batch_size=4)
    kept = len(read_rows(tmp_path / "killed"))
    assert 0 < kept < total
    before = drawn()
    resumed = run(pipe, tmp_path / "killed", batch_size=4)
    pd.testing.assert_frame_equal(resumed, whole)
    assert drawn() - before <= total - kept + 4, "more than a batch was drawn twice"
    files = [{p.name for p in (tmp_path / name / "images").iterdir()} for name in ("whole", "killed")]
    assert files[0] == files[1], "a resumed evaluation draws the same pictures to the bit"


def test_what_is_there_is_not_drawn_again(pipe, tmp_path, drawn):
    out = tmp_path / "r"
    first = run(pipe, out, n_prompts=4)
    assert drawn() == 8
    again = run(pipe, out, n_prompts=4)
    pd.testing.assert_frame_equal(again, first)
    assert drawn() == 8
    run(pipe, out, n_prompts={"explicit": 6})
    assert drawn() == 12
    run(pipe, out, {"other": ScaledWeight(0.5, "other")})
    assert drawn() == 18
    table = read_results(out)
    assert set(table["edit"]) == {"scaled", "other"}
    assert one(table, edit="scaled", metric="rate")["n"] == 6


def test_the_text_files_alone_make_the_table_again(pipe, tmp_path, drawn):
    first = run(pipe, tmp_path / "r")
    shutil.rmtree(tmp_path / "r" / "images")
    (tmp_path / "r" / "cells.csv").unlink()
    before = drawn()
    pd.testing.assert_frame_equal(run(pipe, tmp_path / "r"), first)
    assert drawn() == before


def test_a_further_metric_looks_at_the_stored_pictures_or_draws_them_again(pipe, tmp_path, drawn):
    out = tmp_path / "r"
    run(pipe, out, metrics=("rate",))
    before = drawn()
    table = run(pipe, out, metrics=("rate", "rate_second"))
    assert drawn() == before
    fresh = run(pipe, tmp_path / "fresh", metrics=("rate", "rate_second"))
    pd.testing.assert_frame_equal(table, fresh)
    shutil.rmtree(out / "images")
    before = drawn()
    run(pipe, out, metrics=("rate", "rate_second"))
    assert drawn() == before, "everything was measured already"


def test_another_judge_looks_at_the_stored_pictures(pipe, tmp_path, drawn):
    """The table is that of a result that was judged so from the start; nothing is drawn, nothing is lost."""
    first = run(pipe, tmp_path / "r")
    fresh = run(pipe, tmp_path / "fresh", judge=Colours("another", shift=1))
    assert not first["value"].equals(fresh["value"]), "the test would see nothing"
    before, rows = drawn(), read_rows(tmp_path / "r")
    pictures = {p.name for p in (tmp_path / "r" / "images").iterdir()}
    judge = Colours("another", shift=1)
    table = run(None, tmp_path / "r", judge=judge, rejudge=True)
    pd.testing.assert_frame_equal(table, fresh)
    assert drawn() == before
    assert judge.seen == 12
    assert {p.name for p in (tmp_path / "r" / "images").iterdir()} == pictures
    for old, new in zip(rows, read_rows(tmp_path / "r"), strict=True):
        assert (old["judge"], new["judge"]) == ("colours", "another")
        assert new["scores"].items() > old["scores"].items(), "what the first judge said is kept"
    pd.testing.assert_frame_equal(read_results(tmp_path / "r"), read_results(tmp_path / "fresh"))
    (aside,) = (tmp_path / "r").glob("cells-*.csv")
    assert len(pd.read_csv(aside)) == len(first)


def test_the_first_judge_may_decide_again_without_looking(pipe, tmp_path):
    first = run(pipe, tmp_path / "r")
    run(None, tmp_path / "r", judge=Colours("another", shift=1), rejudge=True)
    shutil.rmtree(tmp_path / "r" / "images")
    judge = Colours()
    pd.testing.assert_frame_equal(run(None, tmp_path / "r", judge=judge, rejudge=True), first)
    assert judge.seen == 0
    fresh = read_rows(tmp_path / "r")
    run(pipe, tmp_path / "fresh")
    assert [row["shown"] for row in fresh] == [row["shown"] for row in read_rows(tmp_path / "fresh")]


def test_a_killed_judging_goes_on(pipe, tmp_path, drawn, monkeypatch):
    monkeypatch.setattr("probe._eval_images._AT_ONCE", 5)
    run(pipe, tmp_path / "r")
    before = drawn()
    with pytest.raises(KeyboardInterrupt):
        run(None, tmp_path / "r", judge=Colours("another", shift=1, fail_after=5), rejudge=True)
    judge = Colours("another", shift=1)
    table = run(pipe, tmp_path / "r", judge=judge)
    assert (judge.seen, drawn()) == (12 - 5, before)
    pd.testing.assert_frame_equal(table, run(pipe, tmp_path / "fresh", judge=judge))


def test_further_calls_add_the_other_cells_of_the_new_judge(pipe, tmp_path, drawn):
    run(pipe, tmp_path / "r")
    run(pipe, tmp_path / "r", concepts=["castle"])
    before, judge = drawn(), Colours("another", shift=1)
    run(None, tmp_path / "r", judge=judge, rejudge=True)
    assert set(read_results(tmp_path / "r")["concept"]) == {"church"}
    with pytest.raises(BadInput, match="another judge"):
        _evaluate.result_images(tmp_path / "r", "castle")
    run(None, tmp_path / "r", concepts=["castle"], judge=judge, rejudge=True)
    assert set(read_results(tmp_path / "r")["concept"]) == {"church", "castle"}
    assert _evaluate.result_images(tmp_path / "r", "castle")[1]
    assert drawn() == before


def test_a_second_judge_and_the_pictures_own_metrics_may_change_too(pipe, tmp_path, drawn):
    first = run(pipe, tmp_path / "r")
    before = drawn()
    with pytest.raises(HeaderMismatch, match=r"second differs.*rejudge=True"):
        run(pipe, tmp_path / "r", second=Colours("third", shift=2))
    judge = Colours()
    table = run(None, tmp_path / "r", judge=judge, second=Colours("third", shift=2), rejudge=True)
    assert (drawn(), judge.seen) == (before, 0), "the judge that is still the same does not look again"
    rest = table["metric"] != "rate_second"
    pd.testing.assert_frame_equal(table[rest], first[rest])
    assert not table[~rest]["value"].equals(first[~rest]["value"])


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"n_prompts": None, "splits": ("explicit", "neighbours")}, BadInput, "no images to judge"),
        ({"seed_sets": (1,)}, BadInput, "no images to judge"),
        ({"edits": {"scaled": ScaledWeight(0.9)}}, HeaderMismatch, "scaled"),
        ({"prompts_from": "tune"}, HeaderMismatch, "prompts_from"),
        ({"rejudge": False}, BadInput, "needs a pipeline"),
    ],
)
def test_what_cannot_be_judged_again_leaves_everything_as_it_was(pipe, tmp_path, options, error, words):
    run(pipe, tmp_path / "r")
    files = {p: p.read_bytes() for p in (tmp_path / "r").rglob("*") if p.is_file()}
    with pytest.raises(error, match=words):
        run(None, tmp_path / "r", **{"judge": Colours("another", shift=1), "rejudge": True, **options})
    assert {p: p.read_bytes() for p in (tmp_path / "r").rglob("*") if p.is_file()} == files


def test_pictures_that_are_gone_cannot_be_judged_again(pipe, tmp_path):
    run(pipe, tmp_path / "r")
    shutil.rmtree(tmp_path / "r" / "images")
    with pytest.raises(BadInput, match="12 samples"):
        run(None, tmp_path / "r", judge=Colours("another"), rejudge=True)
    with pytest.raises(BadInput, match="no result here"):
        run(pipe, tmp_path / "nowhere", rejudge=True)
    assert not (tmp_path / "nowhere").exists()


def test_another_model_is_refused_also_for_judging(pipe, tmp_path):
    run(pipe, tmp_path / "r")
    with pytest.raises(HeaderMismatch, match="model"):
        run(tiny_pipeline(seed=1), tmp_path / "r", rejudge=True)


def test_failed_judgements_are_counted_and_left_out(pipe, tmp_path):
    class Failing(Colours):
        def __call__(self, images):
            scores = super().__call__(images)
            scores[0] = np.nan
            return scores

    table = run(pipe, tmp_path / "r", judge=Failing(), metrics=("rate", "broken"), batch_size=3)
    for metric in ("rate", "broken"):
        row = one(table, metric=metric)
        assert (row["n"], row["n_failed"]) == (4, 2)


def test_a_black_picture_is_a_failed_one(pipe, tmp_path, monkeypatch):
    real = _generate.generate

    def dark(pipe, samples, *, on_batch, **options):
        def keep(rows, images):
            images[0] = 0
            on_batch(rows, images)

        return real(pipe, samples, on_batch=keep, **options)

    monkeypatch.setattr(_generate, "generate", dark)
    row = one(run(pipe, tmp_path / "r", metrics=("rate",), batch_size=6), metric="rate")
    assert (row["n"], row["n_failed"]) == (5, 1)


def test_seed_sets_are_rows_of_their_own(pipe, tmp_path):
    table = run(pipe, tmp_path / "r", seed_sets=(0, 1), metrics=("rate",))
    assert table["seed_set"].tolist() == [0, 1]
    seeds = [found["seed"] for found in read_rows(tmp_path / "r") if found["edit"] == "original"]
    assert len(set(seeds)) == 12


def test_what_else_an_edit_erases_drops_out_for_it_alone(pipe, tmp_path):
    edits = {"a": ScaledWeight(0.3, "a"), "b": ScaledWeight(0.5, "b")}
    options = {"splits": ("preserve_test",), "metrics": ("rate",)}
    table = run(pipe, tmp_path / "r", edits, erased={"b": ["castle"]}, **options)
    assert one(table, edit="a", split="preserve_test")["n"] - one(table, edit="b", split="preserve_test")["n"] == 6


def test_concepts_may_be_objects_and_progress_a_function(pipe, tmp_path):
    seen = []
    church = small_world()["church"]
    table = run(pipe, tmp_path / "r", concepts=[church], world=None, progress=lambda *at: seen.append(at))
    assert one(table, metric="rate")["n"] == 6
    assert seen[-1] == (12, 12)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"concepts": ["chruch"]}, UnknownName, "church"),
        ({"concepts": []}, BadInput, "no concepts"),
        ({"metrics": ["ratte"]}, UnknownName, "rate"),
        ({"metrics": []}, BadInput, "no metric"),
        ({"splits": ["neighbors"]}, UnknownName, "neighbours"),
        ({"splits": "explicit"}, BadInput, "list of names"),
        ({"edits": {"original": ScaledWeight(2)}}, BadInput, "original"),
        ({"seeds_per_prompt": 0}, BadInput, "seeds_per_prompt"),
        ({"steps": 0}, BadInput, "steps"),
        ({"height": 7}, BadInput, "height"),
        ({"concepts": [concept("church", kind="style")]}, UnknownName, "style/ink"),
        ({"n_prompts": 0}, BadInput, "n_prompts"),
        ({"n_prompts": {"implicit": 3}}, UnknownName, "explicit"),
        ({"erased": {"scald": ["axe"]}}, UnknownName, "scaled"),
        ({"prompts_from": "train"}, UnknownName, "tune"),
        ({"level": 95.0}, BadInput, "level"),
    ],
)
def test_bad_input_is_named_before_anything_is_written(pipe, tmp_path, options, error, words):
    with pytest.raises(error, match=words):
        run(pipe, tmp_path / "r", **options)
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    ("named", "expected"),
    [((None, "emoji_cnn:object/x"), "emoji_cnn"), (("nude:exposed", "nude:covered"), "nude"), ((None,), None)],
)
def test_the_judge_is_the_one_that_the_concepts_name(named, expected):
    assert common([FakeConcept(str(i), detector=name) for i, name in enumerate(named)]) == expected
    with pytest.raises(BadInput, match="different judges"):
        common([FakeConcept("a", detector="one:object/a"), FakeConcept("b")])


def test_no_edits_at_all(pipe, tmp_path):
    with pytest.raises(BadInput, match="no edits"):
        _evaluate.evaluate(pipe, {}, ["church"], out=tmp_path / "r", world=small_world(), judge=Colours())


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"steps": 3}, "steps"),
        ({"judge": Colours("another")}, "judge"),
        ({"edits": {"scaled": ScaledWeight(0.9)}}, "scaled"),
        ({"prompts_from": "tune"}, "prompts_from"),
    ],
)
def test_a_result_of_something_else_is_not_mixed_in(pipe, tmp_path, options, key):
    run(pipe, tmp_path / "r")
    with pytest.raises(HeaderMismatch, match=key):
        run(pipe, tmp_path / "r", **options)
    run(pipe, tmp_path / "r", force=True, **options)


def test_another_model_is_not_mixed_in(pipe, tmp_path, caplog):
    run(pipe, tmp_path / "r")
    with pytest.raises(HeaderMismatch, match="model"):
        run(tiny_pipeline(seed=1), tmp_path / "r")
    with caplog.at_level(logging.INFO, logger="probe"):
        run(tiny_pipeline(seed=1), tmp_path / "r", force=True)

"""Attack sets in probe.evaluate: rules, baselines, floor, protocols, against verdicts taken by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from probe._eval_attacks import Fresh
from probe._evaluate import evaluate, read_results
from probe._generate import generate
from probe._result_rows import read_rows
from probe._samples import samples
from probe.attacks import attack
from probe.errors import BadInput, UnknownName
from probe.metrics import labels_of
from probe.testing import tiny_pipeline
from tests.probe.measuring import Colours, ScaledWeight, small_world

QUICK = {"steps": 2, "progress": False}


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline()


@pytest.fixture(scope="module")
def world():
    return small_world()


@pytest.fixture(scope="module")
def edit():
    return ScaledWeight(0.5)


@pytest.fixture(scope="module")
def sets(pipe, world, edit):
    # under this seed both baselines find more with their fourth picture, which the attack never has
    common = {"edit": edit, "judge": Colours(), "vocab": "open", "n_prompts": 4, "seed": 1, **QUICK}
    return {
        "unlearn_diff": attack(pipe, world["church"], method="unlearn_diff", k=2, rounds=2, iterations=1, **common),
        "random": attack(pipe, world["church"], method="random", k=2, images=5, **common),
        "seed_search": attack(pipe, world["church"], method="seed_search", images=5, **common),
    }


def measured(pipe, world, edits, sets, out, **more):
    options = {"n_prompts": 2, "judge": Colours(), "metrics": ("rate",), "resamples": 200, **QUICK, **more}
    return evaluate(pipe, edits, ["church"], world=world, out=out, attacks=sets, **options)


def cell(table, **where):
    for name, value in where.items():
        table = table[table[name] == value]
    assert len(table) == 1, where
    return table.iloc[0]


def test_rates_are_those_of_pictures_drawn_and_judged_by_hand(pipe, world, edit, sets, tmp_path):
    table = measured(pipe, world, {"scaled": edit}, list(sets.values()), tmp_path / "r")
    judge, label = Colours(), labels_of(world["church"], world)[0]
    found = sets["seed_search"]
    with edit.applied(pipe):
        rows = samples([r.source for r in found], seeds=[r.found_seed for r in found])
        images = generate(pipe, rows, **QUICK)
    shown = judge(images)[:, judge.labels.index(label)] >= 0.5
    row = cell(table, attack="seed_search", rule="any_hit", metric="rate")
    assert row["value"] == shown.mean()
    assert row["value"] == np.mean([r.success for r in found])  # what the search saw
    assert (row["edit"], row["protocol"], row["vocab"], row["split"]) == ("scaled", "adaptive", "none", "attacked")
    before = cell(table, attack="seed_search", rule="any_hit", metric="rate_before")["value"]
    after = cell(table, attack="seed_search", rule="any_hit", metric="rate_after")["value"]
    assert before == np.mean([r.before for r in found])
    assert after == np.mean([bool(r.success) and not r.before for r in found])
    assert len(read_results(tmp_path / "r")) == len(table)


def test_fresh_seeds_were_never_searched_and_enough_of_them_must_show_it(pipe, world, edit, sets, tmp_path):
    found = sets["seed_search"]
    table = measured(pipe, world, {"scaled": edit}, [found], tmp_path / "r", fresh_seeds=3, fresh_needed=2)
    row = cell(table, rule="fresh_2_of_3", metric="rate")
    from probe._eval_attacks import Planned

    planned = Planned(found, "scaled", edit.id, pipe, 7.5, Fresh(3, 2))
    judge, hits = Colours(), []
    for one in found:
        seeds = planned.fresh_seeds(one)
        assert len(set(seeds)) == 3
        assert not set(seeds) & {one.seed, one.found_seed, *one.seeds}
        with edit.applied(pipe):
            images = generate(pipe, samples([one.source] * 3, seeds=seeds), **QUICK)
        hits.append((judge(images)[:, 0] >= 0.5).sum() >= 2)
    assert row["value"] == np.mean(hits)


def test_the_unedited_model_can_be_spared_the_attacks(pipe, world, edit, sets, tmp_path):
    both = measured(pipe, world, {"scaled": edit}, list(sets.values()), tmp_path / "both")
    alone = measured(pipe, world, {"scaled": edit}, list(sets.values()), tmp_path / "alone", attack_original=False)
    columns = ["attack", "rule", "split", "metric", "value", "ci_low", "ci_high", "n"]
    pd.testing.assert_frame_equal(alone[columns], both[columns])
    attacked = alone["split"] == "attacked"
    assert alone.loc[attacked, ["original", "difference", "diff_low"]].isna().all(axis=None)
    pd.testing.assert_frame_equal(alone[~attacked], both[~attacked])
    drawn = [row["edit_id"] for row in read_rows(tmp_path / "alone")]
    assert drawn.count("original") == 2, "the plain prompts alone"


def test_the_advantage_is_the_rate_less_the_stronger_baselines_within_as_many_pictures(
    pipe, world, edit, sets, tmp_path
):
    table = measured(pipe, world, {"scaled": edit}, list(sets.values()), tmp_path / "r")
    attack_rows = sets["unlearn_diff"].rows
    baselines, shorter = {}, 0
    for name in ("random", "seed_search"):
        # on the edit that they were made against, pictures are drawn again as the search saw them
        parts = [row.tries[: beside.cost["images"]] for row, beside in zip(sets[name].rows, attack_rows, strict=True)]
        shorter += sum(len(part) < len(row.tries) for part, row in zip(parts, sets[name].rows, strict=True))
        own = [part if name == "seed_search" else part[1:] or part for part in parts]
        baselines[name] = np.mean([any(one.success for one in part) for part in own])
    rates = {name: cell(table, attack=name, rule="any_hit", metric="rate")["value"] for name in sets}
    advantage = cell(table, attack="unlearn_diff", rule="any_hit", metric="advantage")
    assert advantage["value"] == pytest.approx(rates["unlearn_diff"] - max(baselines.values()))
    assert advantage["ci_low"] <= advantage["value"] <= advantage["ci_high"]
    assert shorter, "some tries did not count"
    assert max(baselines.values()) < max(rates["random"], rates["seed_search"]), "and they made a difference"
    assert not (table["metric"].eq("advantage") & table["attack"].isin(["random", "seed_search"])).any()
    alone = measured(pipe, world, {"scaled": edit}, [sets["unlearn_diff"]], tmp_path / "alone")
    assert "advantage" not in set(alone["metric"])


def test_adaptive_sets_stay_with_their_edit_and_transfer_sets_go_to_all(pipe, world, edit, sets, tmp_path, caplog):
    other = ScaledWeight(0.9, name="other")
    transfer = attack(
        pipe, world["church"], method="random", k=2, images=1, judge=Colours(), vocab="open", n_prompts=2,
        protocol="transfer", **QUICK,
    )  # fmt: skip
    table = measured(pipe, world, {"scaled": edit, "other": other}, [sets["random"], transfer], tmp_path / "r")
    attacked = table[table["split"] == "attacked"]
    pairs = set(zip(attacked["edit"], attacked["protocol"], strict=True))
    assert pairs == {("scaled", "adaptive"), ("scaled", "transfer"), ("other", "transfer")}
    measured(pipe, world, {"other": other}, [sets["random"]], tmp_path / "none")
    assert "belongs to none" in caplog.text


def test_the_floor_is_drawn_on_the_unedited_model_and_stands_beside_the_attack(pipe, world, edit, sets, tmp_path):
    floor = attack(
        pipe, world["castle"], method="unlearn_diff", judge=Colours(), vocab="open", n_prompts=2, floor=True,
        protocol="transfer", name="never drawn", k=2, rounds=1, iterations=1, **QUICK,
    )  # fmt: skip
    table = measured(pipe, world, {"scaled": edit}, [sets["unlearn_diff"], floor], tmp_path / "r")
    own = cell(table, concept="never drawn", rule="any_hit", metric="rate")
    assert own["edit"] == "original"
    assert own["value"] == np.mean([bool(row.success) for row in floor])
    beside = cell(table, concept="church", rule="any_hit", metric="floor")
    assert (beside["edit"], beside["value"]) == ("scaled", own["value"])


def test_an_attack_is_drawn_once_whatever_is_asked_again(pipe, world, edit, sets, tmp_path):
    first = measured(pipe, world, {"scaled": edit}, [sets["random"]], tmp_path / "r")
    lines = (tmp_path / "r" / "images.jsonl").read_text().count("\n")
    again = measured(pipe, world, {"scaled": edit}, [sets["random"]], tmp_path / "r")
    assert (tmp_path / "r" / "images.jsonl").read_text().count("\n") == lines
    assert first.equals(again)


def test_the_rule_fresh_leaves_open_what_failed_verdicts_leave_open():
    rule = Fresh()
    assert rule.decide(np.array([1, 1, 1, 0, np.nan])) == 1
    assert rule.decide(np.array([1, 1, 0, 0, 0])) == 0
    assert np.isnan(rule.decide(np.array([1, 1, np.nan, 0, 0])))
    with pytest.raises(BadInput, match="cannot be met"):
        Fresh(2, 3)


def test_bad_input(pipe, world, edit, sets, tmp_path):
    with pytest.raises(BadInput, match="same name in a table"):
        measured(pipe, world, {"scaled": edit}, [sets["random"], sets["random"]], tmp_path / "r")
    with pytest.raises(BadInput, match="no attack set here"):
        measured(pipe, world, {"scaled": edit}, [tmp_path / "nothing"], tmp_path / "r")
    small = type(world)([world["castle"]])
    with pytest.raises(UnknownName, match="church"):
        evaluate(pipe, {"scaled": edit}, ["castle"], world=small, out=tmp_path / "r", attacks=[sets["random"]],
                 judge=Colours(), **QUICK)  # fmt: skip

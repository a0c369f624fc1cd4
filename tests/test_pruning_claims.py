"""What the claims about erasers that learn and about ConceptPrune compute from their tables."""

from __future__ import annotations

import sys

import numpy as np
import pandas as pd
import pytest

pytestmark = pytest.mark.usefixtures("claims")


def strengths(**methods: dict[int, tuple[float, float]]) -> pd.DataFrame:
    """Method -> iterations -> (shown, loss)."""
    rows = [
        {"method": name.replace("_", "-"), "iterations": n, "shown": shown, "loss": loss, "broken": 0.0}
        for name, points in methods.items()
        for n, (shown, loss) in points.items()
    ]
    return pd.DataFrame(rows)


def test_a_pair_is_matched_at_the_strongest_equal_erasure():
    from pruning_common import matched

    esd = {50: (0.5, 0.0), 100: (0.25, 0.02), 150: (0.04, 0.1)}
    found = matched(strengths(esd=esd, p_esd={50: (0.52, 0.0), 100: (0.27, 0.01), 150: (0.10, 0.0)}), "p-esd")
    assert found == (100, 100, True, 0.25, 0.27)
    dear = matched(strengths(esd=esd, p_esd={50: (0.52, 0.0), 100: (0.27, 0.03)}), "p-esd")
    assert dear[:3] == (50, 50, True), "the pruned one may not lose more elsewhere"
    apart = matched(strengths(esd=esd, p_esd={50: (0.9, 0.0), 100: (0.6, 0.0)}), "p-esd")
    assert apart[:3] == (50, 100, False), "nothing is equal: the nearest stand in, and say so"


def test_a_setting_is_chosen_within_the_bars_before_anything_else():
    from pruning_common import chosen

    tried = pd.DataFrame({"shown": [0.0, 0.2, 0.3], "loss": [0.4, 0.05, 0.0], "broken": [0.1, 0.2, 0.0]})
    assert chosen(tried).name == 1
    assert chosen(tried.iloc[[0, 2]]).name == 2, "what goes beyond a bar counts twice"


def test_robustness_is_one_less_the_ratio_of_rates_paired_by_prompt():
    from pruning_common import robustness

    prompts = np.repeat([f"prompt {i}" for i in range(12)], 3)
    base = pd.DataFrame({"prompt": prompts, "found": np.tile([1.0, 1.0, 0.0], 12)})
    pruned = base.assign(found=np.tile([1.0, 0.0, 0.0], 12))
    found = robustness(base, pruned, resamples=200)
    assert found["asr_base"] == pytest.approx(2 / 3)
    assert found["asr_pruned"] == pytest.approx(1 / 3)
    assert [found[key] for key in ("reduction", "low", "high")] == pytest.approx([0.5] * 3), "all prompts are alike"
    assert (found["n"], found["prompts"]) == (36, 12)

    base.loc[0, "found"] = np.nan
    assert robustness(base, pruned, resamples=200)["n"] == 35, "a pair with a failed verdict drops out of both sides"
    shuffled = np.random.default_rng(1).integers(0, 2, 36).astype(float)
    varied = robustness(base, pruned.assign(found=shuffled), resamples=500)
    assert varied["low"] < varied["reduction"] < varied["high"]


def test_a_base_that_stands_firm_decides_nothing():
    from pruning_common import robustness

    base = pd.DataFrame({"prompt": list("abcd"), "found": [0.0] * 4})
    found = robustness(base, base.assign(found=1.0), resamples=100)
    assert found["asr_base"] == 0
    assert np.isnan(found["low"])
    assert np.isnan(found["high"])


def test_a_gender_is_said_before_the_profession():
    from concept_prune_gender import said

    assert said("a drawing of an artist on blue", "artist", "woman") == "a drawing of a woman artist on blue"
    assert said("look at a doctor", "doctor", "man") == "look at a man doctor"


def test_reversal_counts_pictures_that_were_of_the_pruned_side_and_showed_the_profession():
    from concept_prune_gender import reversal

    pairs = pd.DataFrame({
        "prompt": list("abcde"), "shown": [1, 1, 1, 0, 1], "man": [False, False, True, False, False],
        "shown_edited": [1, 1, 1, 1, 0], "man_edited": [True, False, True, True, True],
    })  # fmt: skip
    found = reversal(pairs, "woman", "man")
    assert found["n"] == 3
    assert found["reversed"] == pytest.approx(1 / 3), "e became a man, but is no longer of the profession"
    assert found["lost"] == pytest.approx(1 / 3)
    assert found["originally"] == pytest.approx(3 / 5)


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("pruning_plain", ["--tune", "--gates", "hard-concrete"]),
        ("pruning_plain", ["--concepts", "church"]),
        ("esd_points", []),
        ("pruning_attacked", ["--kid", "--pairs", "p-esd"]),
        ("pruning_sensitivity", ["--seeds", "1"]),
        ("concept_prune_density", []),
        ("concept_prune_gender", ["--styles"]),
        ("concept_prune_five", []),
    ],
)
def test_every_row_says_what_it_will_take(script, words, monkeypatch, tmp_path, capsys):
    import importlib

    monkeypatch.setattr(sys, "argv", [script, "--plan", "--out", str(tmp_path), "--dtype", "bfloat16", *words])
    importlib.import_module(script).main()
    said = capsys.readouterr().out
    assert "pictures" in said
    assert "minutes of a core in bfloat16" in said
    assert not list(tmp_path.iterdir()), "a plan makes nothing"


def test_a_table_is_measured_in_parts(tmp_path):
    from keeping import updated

    file = tmp_path / "more" / "table.csv"
    first = pd.DataFrame({"concept": ["ink", "ink", "church"], "seed": [0, 1, 0], "shown": [0.12344, 0.2, 0.3]})
    assert len(updated(first, file, ["concept", "seed"])) == 3
    again = updated(
        pd.DataFrame({"concept": ["ink"], "seed": [1], "shown": [0.9], "n": [4]}), file, ["concept", "seed"]
    )
    assert again["shown"].tolist() == [0.1234, 0.3, 0.9], "what was measured again takes the place of the old row"
    pd.testing.assert_frame_equal(pd.read_csv(file), again)
    whole = updated(pd.DataFrame({"concept": ["ink"], "seed": [5], "shown": [0.5]}), file, ["concept"])
    assert whole["concept"].tolist() == ["church", "ink"], "all rows of a concept, where that is the key"

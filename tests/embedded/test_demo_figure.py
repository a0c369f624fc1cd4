"""The demo's own points stand on the committed sweep, which has other prompts and seeds."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

import probe
from probe.cli._demo_steps import CONCEPT, SETTINGS, Demo, _tradeoff

SWEEP = Path(__file__).parents[2] / "benchmarks" / "claims" / "concept_prune_sweep.csv"


def test_the_demo_stands_on_the_sweep() -> None:
    swept = pd.read_csv(SWEEP)
    assert set(swept["concept"]) == {CONCEPT}
    one = swept[swept["edit"] == swept["edit"].iloc[0]]
    own = one.assign(edit="published rule", seed_set=one["seed_set"] + 1)
    ax = Figure().add_subplot()
    _tradeoff(Demo({}, own, {"published rule": 0.1}), probe.concepts("emoji")[CONCEPT], SWEEP, ax)
    assert "published rule" in {text.get_text() for text in ax.texts}


def test_the_demos_settings_are_in_the_sweep() -> None:
    swept = pd.read_csv(SWEEP)
    same = swept[(swept["references"] == SETTINGS["references"]) & (swept["branches"] == SETTINGS["branches"])]
    assert SETTINGS["skill_ratio"] in set(same["skill_ratio"])

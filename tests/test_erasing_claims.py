"""What the claims about residual attention gates and about TRCE compute from what was judged."""

from __future__ import annotations

import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

import probe
from probe.errors import BadInput

pytestmark = pytest.mark.usefixtures("claims")

KEPT = ("elephant", "turtle", "banana", "chair")


def judged_rows(**shown: list[float]) -> pd.DataFrame:
    """Edit id -> its verdicts, one for each of `KEPT`."""
    return pd.DataFrame([
        {"edit_id": edit, "concept": name, "prompt": f"a drawing of a {name}", "seed": 1, "shown": value}
        for edit, values in shown.items()
        for name, value in zip(KEPT, values, strict=True)
    ])  # fmt: skip


def test_a_linear_method_that_loses_more_than_gates_has_a_positive_number():
    from resag_common import compared
    from resag_remaining import matched

    rows = judged_rows(gates=[1, 1, 1, 1], line=[1, 0, 0, 0], other=[1, 1, 1, 0])
    assert compared(rows, "gates", "line", ["mage"]).value == pytest.approx(0.75)
    table = pd.DataFrame({
        "method": ["resag", "uce", "uce", "spm"], "seed": [0, 0, 0, 0], "strength": [1.0, 1.0, 2.0, 1.0],
        "shown": [0.10, 0.30, 0.12, 0.50], "edit_id": ["gates", "other", "line", "other"],
    })  # fmt: skip
    found = matched(table, rows, ["mage"]).set_index(["method", "strength"])
    assert found.loc[("uce", 2.0), "loses_more"] == pytest.approx(0.75), "the strength of nearest rate is compared"
    assert found.loc[("uce", 2.0), "loses_more_low"] <= 0.75 <= found.loc[("uce", 2.0), "loses_more_high"]
    assert found["loses_more"].notna().sum() == 1, "spm erases too little to be compared"


def test_what_stands_beside_a_rate_is_weighed_by_pictures():
    from resag_common import beside

    cells = pd.DataFrame([
        {"metric": "broken", "value": 0.5, "n": 2}, {"metric": "broken", "value": 0.0, "n": 6},
        {"metric": "content_kept", "value": 1.0, "n": 1}, {"metric": "content_kept", "value": np.nan, "n": 0},
    ])  # fmt: skip
    found = beside(cells)
    assert found["broken"] == pytest.approx(1 / 8)
    assert found["content_kept"] == 1
    assert np.isnan(found["rate_second"])


def test_edits_of_other_settings_or_models_are_other_folders(monkeypatch, tmp_path):
    import keeping

    made = []

    class Edit:
        def save_pretrained(self, path):
            path.mkdir(parents=True)
            (path / "edit.json").write_text("{}")

    def make(training):
        made.append(training)
        return Edit()

    monkeypatch.setattr(keeping, "_model", lambda: "one")
    monkeypatch.setattr(keeping.erase, "load_edit", lambda path: path)
    for options in ({"eta": 1}, {"eta": 1}, {"eta": 2}):
        keeping.kept("uce of/two", options, make, tmp_path)
    assert len(made) == 2
    assert keeping.seconds("uce of/two", {"eta": 2}, tmp_path) >= 0
    monkeypatch.setattr(keeping, "_model", lambda: "another")
    keeping.kept("uce of/two", {"eta": 1}, make, tmp_path)
    assert len(set(made)) == 3


def test_a_missing_attack_set_is_named_with_what_makes_it(monkeypatch, tmp_path):
    import attack_sets

    (tmp_path / "attacks").mkdir()
    monkeypatch.setattr("probe._paths.data_dir", lambda: tmp_path)
    with pytest.raises(SystemExit, match=r"emoji/erase_10-mma-banned.*data\.build\.attacks --only erase_10"):
        attack_sets.transfer("erase_10")


def test_impossible_counts_are_refused(monkeypatch, capsys):
    import resag_growth

    monkeypatch.setattr(sys, "argv", ["resag_growth", "--plan", "--counts", "5", "21"])
    with pytest.raises(SystemExit):
        resag_growth.main()
    assert "erase_20 has 20 concepts, not 21" in capsys.readouterr().err


def test_more_without_adversaries_is_paired_by_prompt():
    from resag_robust import compared

    keys = {"attack": ["mma"] * 4, "concept": ["mage"] * 4, "prompt": list("abcd")}
    with_them = pd.DataFrame({**keys, "found": [0, 0, 1, np.nan]})
    without = pd.DataFrame({**keys, "found": [1, 0, 1, 1]}).iloc[::-1]
    found = compared("mma", with_them, without)
    assert found["value"] == pytest.approx(1 / 3)
    assert found["n"] == 3


# --- TRCE ---


def verdicts(*shown: float) -> pd.DataFrame:
    return pd.DataFrame({"prompt": [f"prompt {i}" for i in range(len(shown))], "seed": 1, "shown": shown})


def test_orderings_hold_fail_or_stay_undecided():
    from trce_orderings import below, together

    low, high, mixed = verdicts(*[0] * 12), verdicts(*[1] * 12), verdicts(*[0, 1] * 6)
    holds, fails = below("a", "explicit", low, high), below("a", "explicit", high, mixed)
    undecided = below("a", "explicit", mixed, verdicts(*[1, 0] * 6))
    assert (holds["difference"], holds["verdict"]) == (-1, "holds")
    assert (fails["verdict"], undecided["verdict"]) == ("fails", "undecided")
    assert holds["prompts"] == 12
    assert together("all", [holds, holds])["verdict"] == "holds"
    assert together("all", [holds, undecided])["verdict"] == "undecided"
    assert together("all", [holds, undecided, fails])["verdict"] == "fails"


def test_failed_verdicts_are_left_out_of_differences_and_trends():
    from trce_orderings import below, trend

    one, other = verdicts(0, 0, np.nan, 0), verdicts(1, 1, 0, np.nan)
    assert below("a", "explicit", one, other)["n"] == 2
    tables = [verdicts(1, 1, 1, np.nan), verdicts(1, 0, np.nan, 0), verdicts(0, 0, 0, 0)]
    found = trend([1, 2, 5], tables)
    assert found["spearman"] == -1
    assert (found["n"], found["n_failed"]) == (10, 2)
    assert found["low"] <= -1
    nothing = trend([1, 2], [verdicts(0, 0), verdicts(0, 0)])
    assert np.isnan(nothing["spearman"])
    assert np.isnan(nothing["low"])


def test_a_row_is_its_mean_over_training_seeds_on_the_samples_of_the_split(monkeypatch):
    import trce_orderings
    from trce_rows import Made, Row

    world = probe.concepts("emoji")
    row = Row("both", "trce", ("weapon",))
    one = Made(row, (SimpleNamespace(id="a"), SimpleNamespace(id="b")), (0,))
    samples = trce_orderings.cell_samples(world["weapon"], "explicit", world, limit=3)
    rows = pd.concat([
        samples[["prompt", "seed"]].assign(edit_id=name, shown=shown)
        for name, shown in {"a": [1.0, 0.0, np.nan], "b": [0.0, 0.0, np.nan], "c": [1.0, 1.0, 1.0]}.items()
    ])  # fmt: skip
    stray = rows.iloc[:1].assign(prompt="attacked")
    found = trce_orderings.on_split(pd.concat([rows, stray]), one, "explicit", world, 3, "test")
    assert found["shown"].tolist()[:2] == [0.5, 0.0]
    assert np.isnan(found["shown"].iloc[2]), "a failed verdict is no zero"


def test_both_stages_are_compared_with_every_other_row_under_transfer(monkeypatch):
    import trce_orderings
    from trce_rows import Made, Row, tables

    world = probe.concepts("emoji")
    table = tables(world)["methods"]
    shown = {"TRCE (T+V)": 0, "UCE": 1, "ESD": 1, "RECE": 0, "ConceptPrune": 1, "TRCE (T)": 1, "TRCE (V)": 1}

    def on_transfer(out, one, sets, pipe, rule):
        return verdicts(*[shown[one.row.name]] * 12).assign(attack="mma")

    kid = {"claim": "KID", "verdict": "holds"}
    monkeypatch.setattr(trce_orderings, "on_transfer", on_transfer)
    monkeypatch.setattr(trce_orderings, "kid_not_above", lambda *given: kid)
    rows = [Made(Row(row.name, row.method), (), (0,)) for row in table.rows]
    told = Namespace(tune=False, out="", kid=500)

    def claims(rows, **refused):
        decided = trce_orderings.claims("methods", None, world, table, rows, refused, [], told)
        return {row["claim"]: row["verdict"] for row in decided}

    whole = "TRCE (T+V) below every other row at KID not above UCE's"
    found = claims(rows)
    assert [found[f"TRCE (T+V) below {row}"] for row in ("UCE", "RECE")] == ["holds", "undecided"]
    assert found[whole] == "undecided"
    shown["RECE"] = 1
    assert claims(rows)[whole] == "holds"
    assert claims(rows[1:])[whole] == "undecided", "a row is missing"
    without = claims(rows[1:], ESD="collapsed")
    assert (without["TRCE (T+V) below ESD"], without[whole]) == ("undecided", "undecided")


def test_verdicts_of_other_tables_stay_in_the_file(tmp_path):
    from trce_orderings import write

    path = tmp_path / "trce_orderings.csv"
    write([{"claim": "a", "split": "explicit", "verdict": "holds"}], "tokens", path)
    write([{"claim": "b", "verdict": "fails"}], "methods", path)
    write([{"claim": "c", "split": "explicit", "verdict": "undecided"}], "tokens", path)
    assert sorted(pd.read_csv(path)["claim"]) == ["b", "c"]


def test_every_row_says_what_it_erases_and_what_it_is_told():
    from trce_rows import tables

    from data.build.settings import TEXT, TEXT_OF_MANY, VISUAL

    known = tables(probe.concepts("emoji"))
    assert {row.erased for row in known["several"].rows} == {("weapon", "intoxicants", "death", "gambling", "vermin")}
    assert {row.erased for row in known["styles"].rows} == {("ink",), ("twemoji",)}
    several = {row.name: row.options for row in known["several"].rows}
    assert several["TRCE (T)"] == TEXT_OF_MANY
    assert several["TRCE (T+V)"] == {**VISUAL, "text": TEXT_OF_MANY}
    assert {row.options["penalty"] for row in known["styles"].rows if row.method == "rece"} == {1e-3}
    assert [row.options["eta"] / TEXT["eta"] for row in known["eta"].rows] == pytest.approx([0.2, 0.5, 1, 2])
    learned = {row.name for row in known["methods"].rows if row.learned}
    assert learned == {"ESD", "TRCE (V)", "TRCE (T+V)"}


def test_seeds_are_trainings_of_what_is_random_and_seed_sets_of_what_is_not(monkeypatch):
    import trce_rows

    monkeypatch.setattr(trce_rows, "edit_of", lambda row, world, seed, args: SimpleNamespace(id=f"{row.name}{seed}"))
    told = Namespace(tune=False)
    random = trce_rows.made(trce_rows.Row("x", "trce"), {}, 3, told)
    solved = trce_rows.made(trce_rows.Row("x", "uce"), {}, 3, told)
    assert (len(random.edits), random.seed_sets) == (3, (0,))
    assert (len(solved.edits), solved.seed_sets) == (1, (0, 1, 2))
    assert trce_rows.made(trce_rows.Row("x", "trce"), {}, 1, Namespace(tune=True)).seed_sets == (1,)


def test_an_eraser_that_refuses_is_a_row_that_says_why(monkeypatch, tmp_path):
    import trce_tables
    from trce_rows import FRESH, Made, tables

    table = tables(probe.concepts("emoji"))["several"]

    def made(row, world, seeds, args):
        if row.name == "MACE (closed form)":
            raise BadInput("the edit destroys everyday prompts")
        return Made(row, (SimpleNamespace(id=row.name),), (0,))

    def evaluated(pipe, world, name, table, one, sets, args):
        rate = {"row": one.row.name, "split": "explicit", "metric": "rate", "attack": "none", "original": 0.9}
        return pd.DataFrame([{**rate, "value": 0.2, "ci_low": 0.1, "ci_high": 0.3}])

    monkeypatch.setattr(trce_tables, "made", made)
    monkeypatch.setattr(trce_tables, "evaluated", evaluated)
    monkeypatch.setattr(trce_tables, "opened", lambda args: (None, None))
    told = Namespace(tune=False, rows=None, seeds=1, csv=tmp_path, prompts=None, kid=0)
    trce_tables.run("several", replace(table, fresh=None), told)
    found = pd.read_csv(tmp_path / "trce_several.csv").set_index("row")
    assert len(found) == len(table.rows), "what comes after it is measured"
    assert np.isnan(found.loc["MACE (closed form)", "value"])
    assert "destroys everyday prompts" in found.loc["MACE (closed form)", "refused"]
    assert (tmp_path / "trce_several.png").is_file()
    assert FRESH == (5, 3)


def test_tuning_takes_other_seeds_and_the_other_half():
    from trce_rows import splits_of, tables

    table = tables(probe.concepts("emoji"))["tokens"]
    assert splits_of(table, Namespace(tune=True, prompts=7)) == {
        "explicit": 7, "implicit_phrase": 7, "preserve_fit": 7
    }  # fmt: skip
    reported = splits_of(table, Namespace(tune=False, prompts=None))
    assert reported["implicit_combination"] == 40
    assert reported["preserve_test"] == 100


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("resag_remaining", ["--methods", "resag", "uce"]),
        ("resag_parts", []),
        ("resag_robust", ["--no-adaptive"]),
        ("resag_growth", []),
        ("trce_tables", ["methods", "several", "tokens", "--seeds", "1"]),
        ("trce_tables", ["methods", "tokens", "--tune"]),
    ],
)
def test_every_row_says_what_it_will_take(script, words, monkeypatch, tmp_path, capsys):
    import importlib

    out = tmp_path / "out"
    monkeypatch.setattr(sys, "argv", [script, "--plan", "--out", str(out), "--dtype", "bfloat16", *words])
    importlib.import_module(script).main()
    said = capsys.readouterr().out
    assert "pictures" in said
    assert "minutes of a core in bfloat16" in said
    assert not Path(out).exists(), "a plan makes nothing"

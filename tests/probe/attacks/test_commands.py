"""Attack, evaluate, sensitivity and their figures by commands alone, on a tiny pipeline."""

from __future__ import annotations

import json

import pytest

from erase.cli import app as erase_app
from probe import compat
from probe._terminal import run
from probe._terminal._values import choices
from probe.attacks import AttackSet
from probe.cli import app
from probe.cli._attack import _OWN
from probe.testing import tiny_pipeline


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """A model, and an edit of it that `erase` made."""
    folder = tmp_path_factory.mktemp("shelf")
    compat.save_pipeline(tiny_pipeline(), folder / "model")
    model, few = ["--model", f"{folder}/model"], ["--steps", "2", "-q"]
    for name, prompt in {"target": "a church", "reference": "a house"}.items():
        assert run(app, ["record", prompt, *model, *few, "--out", f"{folder}/{name}"]) == 0
    assert run(app, ["score", f"{folder}/target", f"{folder}/reference", "-o", f"{folder}/map.zarr.zip"]) == 0
    assert (
        run(erase_app, ["prune-neurons", f"{folder}/map.zarr.zip", *model, "--top", "60", "-o", f"{folder}/edit"]) == 0
    )
    return folder


def test_an_option_takes_the_names_that_any_method_knows():
    known = {option.name: choices(option.annotation) for option in _OWN}
    assert known["begin"] == ("uniform", "random", "letters")
    assert known["where"] == ("prefix", "suffix", "insert", "alone")


@pytest.mark.slow
def test_an_attack_is_made_evaluated_and_looked_into(shelf, capsys):
    common = ["--model", f"{shelf}/model", "--steps", "2", "-q"]
    made = ["attack", "--concept", "church", "--edit", f"{shelf}/edit", "--method", "random", "--vocab", "open"]
    # the tiny encoder has 30 places, and its tokens are letters
    made += ["--prompt", "a church", "--prompt", "one church", "--images", "2", *common, "-o", f"{shelf}/attacks"]
    capsys.readouterr()
    assert run(app, [*made, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    found = AttackSet.load(shelf / "attacks")
    assert document["id"] == found.id
    assert [row["source"] for row in document["rows"]] == ["a church", "one church"]
    assert run(app, made) == 0  # again: nothing to do
    assert run(app, ["info", f"{shelf}/attacks"]) == 0
    assert "random on church" in capsys.readouterr().out

    words = [
        "evaluate",
        f"small={shelf}/edit",
        "--concept",
        "church",
        "--attacks",
        f"{shelf}/attacks",
        "--n-prompts",
        "1",
    ]
    words += ["--fresh-seeds", "1", "--fresh-needed", "1", "--metrics", "rate", "--resamples", "50", *common]
    assert run(app, [*words, "-o", f"{shelf}/result", "--json"]) == 0
    cells = json.loads(capsys.readouterr().out)["cells"]
    assert {"rate_before", "rate_text"} <= {cell["metric"] for cell in cells}

    words = ["sensitivity", f"{shelf}/edit", f"{shelf}/attacks", "--concept", "church", "--n-select", "2", *common]
    words += ["--recordings", f"{shelf}/recordings", "--overlays", "2", "-o", f"{shelf}/sens.zarr.zip"]
    assert run(app, words) == 0
    runs = [f"{name}={shelf}/recordings/own-{name}" for name in ("original", "plain")]
    assert run(app, ["plot", "relit", *runs, "-o", f"{shelf}/relit.png"]) == 0
    assert (shelf / "relit.png").stat().st_size > 2_000


def test_what_cannot_be_attacked_is_said_in_one_line(shelf, capsys):
    base = ["attack", "--concept", "church", "--model", f"{shelf}/model", "-q", "-o", f"{shelf}/none"]
    for words, said in {
        ("--method", "unlearn_dif"): "unlearn_diff",
        ("--budget", "0"): "budget",
        ("--images", "0", "--method", "random"): "at least 1",
        ("--prompt", "a church " * 9, "--method", "random"): "tokens",
    }.items():
        assert run(app, [*base, *words]) == 2
        assert said in capsys.readouterr().err
    assert not (shelf / "none").exists()


def test_a_dry_run_writes_nothing(shelf, capsys):
    assert run(app, ["attack", "--concept", "church", "--dry-run", "-o", f"{shelf}/dry"]) == 0
    assert "would run probe attack" in capsys.readouterr().out
    assert not (shelf / "dry").exists()

"""Gates by commands alone, on a tiny pipeline."""

from __future__ import annotations

import json

import pytest

import erase
import probe
from erase.cli import app
from probe._terminal import run
from probe.testing import tiny_pipeline
from tests.erase.gated.test_resag import QUICK

FEW = ["--stages", "2", "--iterations", "2", "--first-iterations", "3", "--adversary-iterations", "2",
       "--adversaries", "2",
       "--anchors", "3", "--anchor", "a building",
       "--templates", '["{}", "a photo of {}"]', "--general", "[]"]  # fmt: skip
KEEP = ["--preserve", "hut", "--preserve", "tree", "--preserve", "a thing"]


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shelf")
    probe.compat.save_pipeline(tiny_pipeline(), folder / "model")
    model = ["--model", f"{folder}/model"]
    assert (
        run(app, ["resag", "chapel", "fort", *FEW, *KEEP, "--gate-rank", "3", *model, "-q", "-o", f"{folder}/gates"])
        == 0
    )
    return folder


def document(capsys, *words):
    capsys.readouterr()
    code = run(app, [*map(str, words), "--json"])
    out, err = capsys.readouterr()
    assert (code, err) == (0, ""), out
    return json.loads(out)


def test_a_command_makes_what_the_function_makes(shelf):
    pipe = probe.load(str(shelf / "model"))
    options = QUICK | {"preserve": ["hut", "tree", "a thing"], "first_iterations": 3}
    assert erase.load_edit(shelf / "gates").id == erase.resag(pipe, ["chapel", "fort"], **options).id


def test_from_gates_to_files_and_back(shelf, tmp_path, capsys):
    model = ["--model", shelf / "model"]
    half = document(capsys, "scaled", shelf / "gates", "--strength", "0.5", "-o", tmp_path / "half")
    assert erase.load_edit(tmp_path / "half").id == half["id"]
    document(capsys, "export-resag", shelf / "gates", "--concept", "1", "-o", tmp_path / "one.safetensors")
    back = document(
        capsys,
        "import-resag",
        tmp_path / "one.safetensors",
        *model,
        "--key-mode",
        "independent",
        "-o",
        tmp_path / "back",
    )
    assert back["name"] == "resag-one"
    words = [*KEEP, "--anchor", "a building", "--general", "[]"]
    distilled = document(capsys, "distil", shelf / "gates", "chapel", "fort", *words,
                         "--adversary-iterations", "2", *model, "-o", tmp_path / "weights")  # fmt: skip
    assert set(distilled["report"]["concepts"]) == {"chapel", "fort"}
    document(capsys, "low-rank", "chapel", *FEW, *KEEP, *model, "-o", tmp_path / "linear")
    document(
        capsys,
        "spm",
        "chapel",
        "--iterations",
        "1",
        "--steps",
        "2",
        "--latent-anchors",
        "1",
        *model,
        "-o",
        tmp_path / "spm",
    )
    info = document(capsys, "info", shelf / "gates", tmp_path / "spm", tmp_path / "linear")
    assert [edit["changes"][0]["kind"] for edit in info["edits"]] == ["hook", "hook", "delta"]


def test_an_exported_gate_draws_from_its_folder(shelf, tmp_path, capsys):
    document(capsys, "export", shelf / "gates", "--model", shelf / "model", "-o", tmp_path / "model")
    drawn = document(
        capsys, "load-edited", tmp_path / "model", "--prompt", "a chapel", "--steps", "2", "-o", tmp_path / "images"
    )
    assert len(drawn["files"]) == 1
    assert drawn["edits"][0][1] == "resag-chapel+fort"


def test_what_is_there_is_refused_before_the_work(shelf, capsys):
    code = run(app, ["resag", "chapel", *FEW, "--model", f"{shelf}/model", "-q", "-o", f"{shelf}/gates"])
    assert code == 2
    assert "another edit" in capsys.readouterr().err


def test_templates_that_are_no_list_are_a_users_error(shelf, tmp_path, capsys):
    code = run(
        app, ["resag", "chapel", "--templates", "{},a photo of {}", "--model", f"{shelf}/model", "-o", f"{tmp_path}/x"]
    )
    assert code == 2
    assert "--templates cannot be read" in capsys.readouterr().err

"""The closed-form erasers by commands: the same edits as by functions, and what is refused."""

from __future__ import annotations

import json

import pytest

import erase
import probe
from erase.cli import app
from probe._terminal import run
from tests.erase.closed_form.worlds import KEEP, pipeline

LOOSE = ("--collapse", "inf")
SHORT = ("--cached", "2", "--retained", "2", "--kept", "1", "--steps", "2", "--epochs", "1", "--synonyms", "1")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "model"
    probe.compat.save_pipeline(pipeline(), folder)
    return folder


def document(capsys, *words):
    """The one JSON document of a command, and its exit code."""
    capsys.readouterr()
    code = run(app, [*map(str, words), "--json"])
    return code, json.loads(capsys.readouterr().out)


def test_a_command_makes_what_the_function_makes(model, tmp_path, capsys):
    keep = ",".join(KEEP)
    code, found = document(capsys, "uce", "zebra", "--anchor", "a hut", "--preserve", keep, *LOOSE, "--model", model,
                           "--out", tmp_path / "edit")  # fmt: skip
    assert code == 0, found
    pipe = probe.load(str(model))
    edit = erase.uce(pipe, "zebra", anchor="a hut", preserve=KEEP, collapse=float("inf"))
    assert found["id"] == edit.id == erase.load_edit(tmp_path / "edit").id
    assert found["report"]["damage"] == edit.report["damage"]


@pytest.mark.embedded
def test_names_of_the_world_are_concepts(model, tmp_path, capsys):
    code, found = document(capsys, "uce", "weapon", *LOOSE, "--model", model, "--out", tmp_path / "edit")
    assert code == 0, found
    edit = erase.load_edit(tmp_path / "edit")
    assert "hatchet" in edit.options["phrases"][0]
    assert edit.options["anchors"] == ["an umbrella"]


def test_a_preserve_cache_is_made_and_used(model, tmp_path, capsys):
    (tmp_path / "keep.txt").write_text("\n".join(KEEP))
    code, made = document(capsys, "preserve-cache", tmp_path / "keep.txt", "a cup", "--model", model,
                          "--out", tmp_path / "keep.safetensors")  # fmt: skip
    assert code == 0, made
    assert made["texts"] == len(KEEP) + 1
    small = ("--templates", "1", "--ridge", "0.01", *LOOSE, "--model", model)
    code, found = document(capsys, "trce-text", "zebra", "--anchor", "a hut", *small, "--out", tmp_path / "edit",
                           "--preserve", tmp_path / "keep.safetensors")  # fmt: skip
    assert code == 0, found
    inputs = erase.load_edit(tmp_path / "edit").provenance["identity"]["inputs"]
    assert inputs["preserve"] == made["id"]


@pytest.mark.parametrize("command", ["rece", "speed", "oce", "mace"])
def test_each_eraser_has_its_command(model, tmp_path, capsys, command):
    more = ("--ridge", "0.01", "--templates", "1") if command == "mace" else ()
    code, found = document(capsys, command, "zebra", "--anchor", "a hut", "--preserve", ",".join(KEEP), *more, *LOOSE,
                           "--model", model, "--out", tmp_path / "edit")  # fmt: skip
    assert code == 0, found
    assert erase.load_edit(tmp_path / "edit").method == command


def test_both_stages_by_commands(model, tmp_path, capsys):
    shared = ("zebra", "--anchor", "a hut", "--templates", "1", "--model", model)
    code, first = document(capsys, "trce-text", *shared, "--preserve", ",".join(KEEP), "--ridge", "0.01", *LOOSE,
                           "--out", tmp_path / "text")  # fmt: skip
    assert code == 0, first
    code, second = document(capsys, "trce-trajectory", *shared, *SHORT, "--first-stage", tmp_path / "text",
                            "--out", tmp_path / "both")  # fmt: skip
    assert code == 0, second
    assert erase.load_edit(tmp_path / "both").base_edits == [(first["id"], "trce_text")]
    text = "{ridge: 0.01, collapse: .inf}"
    code, both = document(capsys, "trce", *shared, *SHORT, "--preserve", ",".join(KEEP), "--text", text,
                          "--out", tmp_path / "trce")  # fmt: skip
    assert code == 0, both
    assert [part for part, _ in erase.load_edit(tmp_path / "trce").parts] == [first["id"], second["id"]]


def test_what_cannot_work_is_one_error_with_its_fix(model, tmp_path, capsys):
    code, found = document(capsys, "uce", "zebra", "--anchor", "zebra", "--model", model, "--out", tmp_path / "edit")
    assert (code, found["error"]["error"]) == (2, "BadInput")
    assert "another anchor" in found["error"]["fix"]
    code, found = document(capsys, "mace", "zebra", "--fuse", "zebra", "--model", model, "--out", tmp_path / "edit")
    assert (code, found["error"]["given"]) == (2, "zebra")
    code, found = document(capsys, "uce-debias", "cook", "--attribute", "gender/man", "--model", model,
                           "--out", tmp_path / "edit")  # fmt: skip
    assert (code, found["error"]["given"]) == (2, "gender/man")
    code, plan = document(capsys, "speed", "zebra", "--dry-run", "--out", tmp_path / "edit")
    assert (code, plan["dry_run"]) == (0, True)

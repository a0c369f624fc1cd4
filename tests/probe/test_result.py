from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from probe import formats
from probe._result import COLUMNS, drawn_with, open_result, read_results, result_images
from probe._result_rows import pack_scores, read_rows, unpack_scores
from probe.errors import BadInput, HeaderMismatch, StoreDamaged, UnknownName

IDENTITY = {"model": "a", "edits": {"one": "1"}, "judges": {"judge": "j"}, "metrics": {"rate": "rate/1"}}


def row(edit: str = "original", prompt: str = "a church", seed: int = 0, **more) -> dict:
    return {"edit": edit, "edit_id": edit, "concept": "church", "prompt_id": "church/explicit/0", "prompt": prompt,
            "seed": seed, "image": None, "judge": "j", "shown": 1, "scores": {}, "values": {}, **more}  # fmt: skip


def cells(edit: str, value: float) -> pd.DataFrame:
    words = dict.fromkeys(COLUMNS[:8], "none")
    numbers = dict.fromkeys(COLUMNS[9:], value)
    return pd.DataFrame([{**words, "seed_set": 0, **numbers, "edit": edit, "interval": "wilson"}])[list(COLUMNS)]


@given(st.lists(st.one_of(st.floats(0, 1), st.just(math.nan)), min_size=1, max_size=9))
def test_scores_come_back_as_stored(values):
    labels = [f"object/{i}" for i in range(len(values))]
    packed = pack_scores(np.array(values), labels)
    line = json.dumps({"scores": {"a": packed}}, allow_nan=False)
    found = unpack_scores([json.loads(line)], "a", labels)[0]
    assert np.allclose(found, values, atol=1e-4, equal_nan=True)
    again = pack_scores(found, labels)
    assert again == packed, "what is stored is read without a further loss"


def test_rows_and_images_survive_and_equal_images_are_kept_once(tmp_path):
    images = np.random.default_rng(0).integers(0, 255, (2, 4, 6, 3), dtype=np.uint8)
    with open_result(tmp_path / "r", IDENTITY, force=False) as store:
        store.add([row(seed=0), row(seed=1), row(seed=2)], images[[0, 1, 0]])
    assert len(list((tmp_path / "r" / "images").glob("*.png"))) == 2
    with open_result(tmp_path / "r", IDENTITY, force=False) as store:
        for seed, expected in enumerate(images[[0, 1, 0]]):
            assert np.array_equal(store.image(store.rows["original", "a church", seed]), expected)


def test_a_torn_last_line_is_cut_off_and_a_damaged_one_is_an_error(tmp_path):
    out = tmp_path / "r"
    image = np.zeros((1, 2, 2, 3), np.uint8)
    with open_result(out, IDENTITY, force=False) as store:
        store.add([row(seed=0)], image)
    with (out / "images.jsonl").open("a") as file:
        file.write('{"edit": "orig')
    with open_result(out, IDENTITY, force=False) as store:
        assert list(store.rows) == [("original", "a church", 0)]
        store.add([row(seed=1)], image)
    assert [found["seed"] for found in read_rows(out)] == [0, 1]
    (out / "images.jsonl").write_text('{"edit": "orig\n' + (out / "images.jsonl").read_text())
    with pytest.raises(StoreDamaged, match="line 1"):
        read_rows(out)


def test_the_last_row_of_an_image_counts(tmp_path):
    with open_result(tmp_path / "r", IDENTITY, force=False) as store:
        store.add([row(values={})], np.zeros((1, 2, 2, 3), np.uint8))
        store.add([{**store.rows["original", "a church", 0], "values": {"clip_score": 1.5}}])
    (found,) = read_rows(tmp_path / "r")
    assert found["values"] == {"clip_score": 1.5}
    assert found["image"] is not None


def test_cells_of_other_keys_stay(tmp_path):
    for edit, value in (("one", 0.25), ("two", 0.5), ("one", 0.75)):
        with open_result(tmp_path / "r", IDENTITY, force=False) as store:
            store.write_cells(cells(edit, value))
    found = read_results(tmp_path / "r")
    assert found[["edit", "value", "attack"]].values.tolist() == [["two", 0.5, "none"], ["one", 0.75, "none"]]


def test_more_edits_judges_and_metrics_may_join_but_none_may_change(tmp_path):
    out = tmp_path / "r"
    with open_result(out, IDENTITY, force=False):
        pass
    more = {**IDENTITY, "edits": {"two": "2"}, "judges": {"judge": "j", "second": "s"}, "metrics": {"broken": "b/1"}}
    with open_result(out, more, force=False):
        pass
    header = json.loads((out / "header.json").read_text())
    assert header["identity"]["edits"] == {"one": "1", "two": "2"}
    assert header["identity"]["metrics"] == {"rate": "rate/1", "broken": "b/1"}
    assert formats.check_header(header, "result", out) == 2
    for key, value in (("model", "b"), ("edits", {"one": "3"}), ("judges", {"judge": "k"}), ("extra", 1)):
        with pytest.raises(HeaderMismatch, match=key), open_result(out, {**IDENTITY, key: value}, force=False):
            pass


def test_force_replaces_another_identity_and_keeps_the_same_one(tmp_path):
    out = tmp_path / "r"
    with open_result(out, IDENTITY, force=False) as store:
        store.add([row()], np.zeros((1, 2, 2, 3), np.uint8))
    with open_result(out, IDENTITY, force=True) as store:
        assert len(store.rows) == 1
    with open_result(out, {**IDENTITY, "model": "b"}, force=True) as store:
        assert not store.rows


def test_a_folder_that_is_something_else_is_left_alone(tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    for force in (False, True):
        with pytest.raises(BadInput, match="no result"), open_result(tmp_path, IDENTITY, force=force):
            pass
    (tmp_path / "header.json").write_text(json.dumps({**formats.header("run"), "identity": {}}))
    with pytest.raises(BadInput, match="another kind"), open_result(tmp_path, IDENTITY, force=True):
        pass
    assert (tmp_path / "thesis.tex").read_text() == "years of work"
    with pytest.raises(BadInput, match="no result here"):
        read_results(tmp_path / "nowhere")


def test_one_process_writes_at_a_time(tmp_path):
    with (
        open_result(tmp_path / "r", IDENTITY, force=False),
        pytest.raises(BadInput, match="another process"),
        open_result(tmp_path / "r", IDENTITY, force=False),
    ):
        pass


def test_result_images_pairs_samples_and_puts_the_original_first(tmp_path):
    images = np.random.default_rng(0).integers(0, 255, (5, 2, 2, 3), dtype=np.uint8)
    with open_result(tmp_path / "r", IDENTITY, force=False) as store:
        store.add([row("one", seed=1, shown=0), row("one", seed=0, shown=None)], images[:2])
        store.add([row(seed=s) for s in range(3)], images[2:])
    rows, prompts, shown = result_images(tmp_path / "r", "church")
    assert list(rows) == ["original", "one"]
    assert np.array_equal(rows["original"], images[2:4])
    assert np.array_equal(rows["one"], images[[1, 0]])
    assert prompts == ["a church"] * 2
    assert shown == {"original": [True, True], "one": [False, False]}
    with pytest.raises(UnknownName, match="one"):
        result_images(tmp_path / "r", "church", edits=["on"])
    with pytest.raises(BadInput, match="no sample"):
        result_images(tmp_path / "r", "castle")


@pytest.mark.parametrize("version", range(1, formats.LAYOUT_VERSIONS["result"] + 1))
def test_results_of_every_layout_are_read(version):
    """Made by `probe.evaluate` on a tiny pipeline; never to be written again."""
    folder = Path(__file__).parents[1] / "formats" / f"result_v{version}"
    table = read_results(folder)
    assert list(table.columns) == list(COLUMNS)
    assert set(table["split"]) == {"explicit", "preserve_test"}
    assert set(table["attack"]) == {"none"}
    assert (table["n"] + table["n_failed"]).isin([1, 2]).all()
    rows, prompts, shown = result_images(folder, "church")
    assert {name: images.shape for name, images in rows.items()} == dict.fromkeys(
        ("original", "scaled"), (2, 16, 16, 3)
    )
    explicit = table[(table["split"] == "explicit") & (table["metric"] == "rate")].iloc[0]
    assert (np.mean(shown["original"]), np.mean(shown["scaled"])) == (explicit["original"], explicit["value"])
    assert all("church" in prompt for prompt in prompts)


def v1(tmp_path: Path) -> Path:
    return shutil.copytree(Path(__file__).parents[1] / "formats" / "result_v1", tmp_path / "r")


def test_a_result_of_layout_1_goes_on_as_one_of_layout_2(tmp_path):
    """Scores by role get the id of their judge, which the header knew."""
    out = v1(tmp_path)
    before = [json.loads(line) for line in (out / "images.jsonl").read_text().splitlines()]
    identity = json.loads((out / "header.json").read_text())["identity"]
    with open_result(out, identity, force=False) as store:
        for row in before:
            found = store.rows[row["edit_id"], row["prompt"], row["seed"]]
            assert found["scores"] == {"colours": row["scores"]["judge"]}
            assert (found["judge"], found["shown"]) == ("colours", row["shown"])
        assert "judge" not in json.loads((out / "images.jsonl").read_text().splitlines()[0]), "not yet"
    assert formats.check_header(json.loads((out / "header.json").read_text()), "result", out) == 2
    after = read_rows(out)
    assert len(after) == len(before)
    assert all(set(row["scores"]) == {"colours"} for row in after)


def test_an_upgrade_that_was_killed_before_the_header_is_made_again(tmp_path):
    out = v1(tmp_path)
    old = (out / "header.json").read_text()
    identity = json.loads(old)["identity"]
    with open_result(out, identity, force=False):
        pass
    rows = (out / "images.jsonl").read_text()
    (out / "header.json").write_text(old)
    with open_result(out, identity, force=False):
        pass
    assert (out / "images.jsonl").read_text() == rows


def test_another_judge_sets_the_cells_aside_and_nothing_else(tmp_path, caplog):
    out = v1(tmp_path)
    header = json.loads((out / "header.json").read_text())
    cells, identity = (out / "cells.csv").read_text(), header["identity"]
    other = {**identity, "judges": {"judge": "other"}}
    with pytest.raises(HeaderMismatch, match="rejudge=True"), open_result(out, other, force=False):
        pass
    with open_result(out, other, force=False, rejudge=True) as store:
        assert {row["judge"] for row in store.rows.values()} == {"colours"}
        assert (out / "cells.csv").exists(), "not yet"
    assert (out / f"cells-{header['id']}.csv").read_text() == cells
    assert "former judge" in caplog.text
    assert not (out / "cells.csv").exists()
    assert drawn_with(out) == {key: identity[key] for key in ("model", "lineage", "sampling")}
    with (
        pytest.raises(HeaderMismatch, match="edits"),
        open_result(out, {**other, "edits": {"scaled": "scaled-3"}}, force=False, rejudge=True),
    ):
        pass


def test_what_fails_before_anything_is_written_changes_nothing(tmp_path):
    out = v1(tmp_path)
    files = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    other = {**json.loads((out / "header.json").read_text())["identity"], "judges": {"judge": "other"}}
    with pytest.raises(ZeroDivisionError), open_result(out, other, force=False, rejudge=True):
        raise ZeroDivisionError
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file() and p.name != ".lock"} == files

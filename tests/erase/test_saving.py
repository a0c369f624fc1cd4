from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest
import torch

from erase import _saving, load_edit, prune_neurons, scaled, stack, truncated, uce
from probe import _paths, compat, load
from probe.errors import BadInput, StoreDamaged, UnknownName, WorkbenchError, WrongModel
from probe.testing import tiny_pipeline
from tests.erase.prune.maps import EARLY, norms, wanda_map
from tests.erase.snapshots import (
    FF,
    FF_DOWN,
    KEY,
    TEXT,
    edit_of,
    parameter,
    random_delta,
    random_mask,
    random_replace,
    raw,
)


@pytest.fixture
def edit(pipe):
    changes = [
        random_mask(pipe, FF),
        random_delta(pipe, KEY),
        random_delta(pipe, TEXT, rank=2),
        random_replace(pipe, FF_DOWN),
    ]
    return edit_of(pipe, *changes, name="every kind")


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_a_saved_edit_comes_back_with_the_same_id_bytes_and_effect(pipe, edit, tmp_path):
    folder = edit.save_pretrained(tmp_path / "deep" / "edit")
    again = load_edit(folder)
    assert (again.id, again.name, again.provenance, again.params) == (edit.id, edit.name, edit.provenance, edit.params)
    for one, other in zip(edit.changes, again.changes, strict=True):
        assert type(one) is type(other)
        assert one.shape == other.shape
        assert {k: raw(t) for k, t in one.tensors.items()} == {k: raw(t) for k, t in other.tensors.items()}
    with edit.applied(pipe):
        inside = [raw(parameter(pipe, param)) for param in edit.params]
    with again.applied(pipe):
        assert [raw(parameter(pipe, param)) for param in edit.params] == inside


def test_what_is_on_disk(edit, tmp_path):
    from safetensors.torch import load_file

    edit.save_pretrained(tmp_path / "edit")
    assert sorted(files(tmp_path / "edit")) == ["README.md", "edit.json", "edit.safetensors"]
    assert [path.name for path in tmp_path.iterdir()] == ["edit"]  # no temporary folder left
    header = json.loads((tmp_path / "edit" / "edit.json").read_text())
    assert (header["format"], header["layout_version"], header["id"]) == ("neuron-workbench/edit", 1, edit.id)
    tensors = load_file(tmp_path / "edit" / "edit.safetensors")
    assert sorted(tensors) == [
        f"delta/{KEY}",
        f"delta_down/{TEXT}",
        f"delta_up/{TEXT}",
        f"mask/{FF}",
        f"replace/{FF_DOWN}",
    ]
    assert tensors[f"mask/{FF}"].dtype == torch.uint8
    card = (tmp_path / "edit" / "README.md").read_text()
    assert edit.id in card
    assert FF in card


def test_a_stack_of_deltas_on_one_tensor_is_saved_whole(pipe, tmp_path):
    a = edit_of(pipe, random_delta(pipe, KEY, 0), name="a")
    b = edit_of(pipe, random_delta(pipe, KEY, 1), random_mask(pipe, FF, 0), name="b")
    c = edit_of(pipe, random_delta(pipe, KEY, 2, rank=2), random_mask(pipe, FF, 1), name="c")
    both = stack(a, b, c)
    again = load_edit(both.save_pretrained(tmp_path / "stack"))
    assert again.id == both.id
    assert again.parts == both.parts
    assert stack(load_edit(stack(a, b).save_pretrained(tmp_path / "ab")), c).id == both.id
    with a.applied(pipe), b.applied(pipe), c.applied(pipe):
        inside = [raw(parameter(pipe, param)) for param in (KEY, FF)]
    with again.applied(pipe):
        assert [raw(parameter(pipe, param)) for param in (KEY, FF)] == inside


def test_saving_again_is_no_error_and_other_content_is_never_lost(pipe, edit, tmp_path):
    folder, other = tmp_path / "edit", edit_of(pipe, random_mask(pipe, FF, 9))
    edit.save_pretrained(folder)
    before = files(folder)
    edit.save_pretrained(folder)
    assert files(folder) == before
    with pytest.raises(BadInput, match="another edit"):
        other.save_pretrained(folder)
    assert files(folder) == before
    other.save_pretrained(folder, force=True)
    assert load_edit(folder).id == other.id

    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    with pytest.raises(BadInput, match="no edit"):
        edit.save_pretrained(tmp_path / "thesis", force=True)
    assert files(tmp_path / "thesis") == {"chapter.txt": b"years of work"}


def test_no_space_left_leaves_nothing_half_written(edit, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(_saving, "card", full)  # the last of the three files
    with pytest.raises(WorkbenchError, match="no space left"):
        edit.save_pretrained(tmp_path / "edit")
    assert list(tmp_path.iterdir()) == []


# --- damage -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [0, 5, 100, -1])
def test_truncated_tensors_are_named(edit, tmp_path, keep):
    path = edit.save_pretrained(tmp_path / "edit") / "edit.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(StoreDamaged, match=r"edit\.safetensors"):
        load_edit(tmp_path / "edit")


def test_altered_bytes_are_noticed(edit, tmp_path):
    path = edit.save_pretrained(tmp_path / "edit") / "edit.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    with pytest.raises(StoreDamaged, match="was altered"):
        load_edit(tmp_path / "edit")


def edited_header(folder: Path, change) -> None:
    header = json.loads((folder / "edit.json").read_text())
    change(header)
    (folder / "edit.json").write_text(json.dumps(header))


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda h: h["provenance"]["identity"]["options"].update(k=1), "does not hash to its id"),
        (lambda h: h["changes"][0].update(param="unet.other.weight"), "altered"),
        (lambda h: h["changes"][0].update(shape=[1, 2]), "damaged"),
        (lambda h: h["changes"].pop(), "damaged"),
        (lambda h: h.pop("changes"), "damaged"),
        (lambda h: h.pop("format"), "not a file of the workbench"),
        (lambda h: h["changes"][0]["keys"].update(delta="delta/none"), "missing"),
    ],
)
def test_altered_descriptions_are_noticed(edit, tmp_path, change, error):
    folder = edit.save_pretrained(tmp_path / "edit")
    edited_header(folder, change)
    with pytest.raises(StoreDamaged, match=error):
        load_edit(folder)


def test_torn_descriptions_and_missing_tensors_are_damage(edit, tmp_path):
    folder = edit.save_pretrained(tmp_path / "edit")
    (folder / "edit.safetensors").unlink()
    with pytest.raises(StoreDamaged):
        load_edit(folder)
    (folder / "edit.json").write_text('{"format": "neuron-wo')
    with pytest.raises(StoreDamaged, match=r"edit\.json"):
        load_edit(folder)


def test_edits_of_a_newer_version_ask_for_an_upgrade(edit, tmp_path):
    folder = edit.save_pretrained(tmp_path / "edit")
    edited_header(folder, lambda h: h.update(layout_version=99))
    with pytest.raises(BadInput, match="upgrade"):
        load_edit(folder)


def test_unknown_edits_name_the_nearest(edit, tmp_path, monkeypatch):
    edit.save_pretrained(tmp_path / "edits" / "church-prune")
    with pytest.raises(BadInput, match=r"there is no edit here.*nearest: .*church-prune"):
        load_edit(tmp_path / "edits" / "curch-prune")
    with pytest.raises(BadInput, match="there is no edit here"):
        load_edit(tmp_path)
    monkeypatch.setattr(_paths, "data_dir", lambda: tmp_path)
    assert load_edit("emoji/church-prune").id == edit.id
    with pytest.raises(UnknownName, match="emoji/church-prune"):
        load_edit("emoji/church-esd")


def test_a_loaded_edit_of_another_model_names_the_tensor(edit, tmp_path):
    again = load_edit(edit.save_pretrained(tmp_path / "edit"))
    with pytest.raises(WrongModel, match=r"text_encoder\..*fc2\.weight has other values"):
        again.apply(tiny_pipeline(seed=1))


def test_user_text_stays_text_in_the_card(pipe, tmp_path):
    edit = edit_of(pipe, random_mask(pipe, FF), name="<script>\n# no heading `code`")
    card = (edit.save_pretrained(tmp_path / "edit") / "README.md").read_text()
    assert "# &lt;script> # no heading 'code'" in card.splitlines()


def test_the_card_names_the_concept_and_the_model(tmp_path):
    compat.save_pipeline(tiny_pipeline(), tmp_path / "small")
    pipe = load(tmp_path / "small")
    ours = uce(pipe, ["a church", "a hut"], preserve=["a tree"], collapse=float("inf"))
    half, together = scaled(ours, 0.5), stack(ours, edit_of(pipe, random_mask(pipe, FF)))
    for edit in (ours, truncated(ours, 1), half, together):
        again = load_edit(edit.save_pretrained(tmp_path / edit.id))
        assert (again.concepts, again.model) == (["a church", "a hut"], "small")
        card = (tmp_path / edit.id / "README.md").read_text()
        assert "- erases: a church, a hut" in card
        assert "- model: small (architecture of unet " in card
        assert 'probe.load("small")' in card
        assert "a church, a hut" in again._repr_html_()
        assert "small (architecture" in again._repr_html_()


def test_an_edit_of_a_map_names_the_map(pipe, tmp_path):
    nm = wanda_map(pipe, *norms(pipe, 1), EARLY[:1]).select(top=5)
    card = (prune_neurons(pipe, nm).save_pretrained(tmp_path / "edit") / "README.md").read_text()
    assert f"- erases: what neuron map {nm.id} finds" in card
    assert "- model: unnamed (architecture of unet " in card


FORMATS = Path(__file__).resolve().parents[1] / "formats"


def test_edits_of_layout_1_are_read():
    edit = load_edit(FORMATS / "edit-v1")
    assert (edit.id, edit.name) == ("411ed137c6676737", "edit of layout 1")
    assert [(change.kind, change.param) for change in edit.changes] == [
        ("delta", "unet.conv_in.bias"),
        ("delta", "unet.conv_in.bias"),
        ("mask", "unet.conv_in.weight"),
        ("replace", "unet.conv_out.bias"),
        ("delta", "unet.conv_out.weight"),
    ]
    assert [name for _, name in edit.parts] == ["every kind", "more"]


def test_an_edit_that_is_not_there_says_how_edits_are_made(edit, tmp_path):
    with pytest.raises(BadInput, match=r"there is no edit here.*fix: .*erase concept-prune"):
        load_edit(tmp_path / "edit")
    for name in ("x" * 300, "x" * 300 + "/edit"):
        with pytest.raises(BadInput, match="there is no edit here"):
            load_edit(tmp_path / name)
        with pytest.raises(BadInput, match="no such path"):
            edit.save_pretrained(tmp_path / name)

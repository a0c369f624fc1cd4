from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

import erase
import probe
from probe import compat
from probe.errors import BadInput, StoreDamaged, WrongModel
from probe.testing import tiny_pipeline
from tests.erase.snapshots import FF, KEY, TEXT, edit_of, parameter, random_delta, random_mask, raw


@pytest.fixture
def edit(pipe):
    return edit_of(pipe, random_mask(pipe, FF), random_delta(pipe, KEY), random_delta(pipe, TEXT, rank=1), name="both")


def same_weights(one, other):
    for name in ("unet", "text_encoder", "vae"):
        first, second = (getattr(pipe, name).state_dict() for pipe in (one, other))
        assert first.keys() == second.keys()
        assert all(raw(first[key]) == raw(second[key]) for key in first)


def test_the_original_weights_come_back_to_the_bit(pipe, edit, tmp_path):
    folder = edit.export(pipe, tmp_path / "erased", include_originals=True)
    assert raw(parameter(probe.load(folder), FF)) != raw(parameter(pipe, FF))
    same_weights(erase.restore(folder), pipe)
    erase.restore(folder, tmp_path / "original")
    same_weights(probe.load(tmp_path / "original"), pipe)


def test_also_zeros_infinities_and_half_precision(tmp_path):
    pipe = tiny_pipeline()
    with torch.no_grad():
        parameter(pipe, FF)[0, :3] = torch.tensor([-0.0, 1e5, 6e-8])
    with compat.quiet_libraries():
        pipe.to(torch.float16)
    edit = edit_of(pipe, random_mask(pipe, FF, share=0.9))
    folder = edit.export(pipe, tmp_path / "erased", include_originals=True)
    again = erase.restore(folder)
    assert parameter(again, FF).dtype == torch.float16
    same_weights(again, pipe)


def test_few_places_are_kept_and_not_the_tensor(pipe, tmp_path):
    edit = edit_of(pipe, random_mask(pipe, FF, share=0.02))
    folder = edit.export(pipe, tmp_path / "erased", include_originals=True)
    kept = load_file(folder / "originals.safetensors")
    assert set(kept) == {f"places/{FF}", f"values/{FF}"}
    size = parameter(pipe, FF).numel()
    assert sum(t.numel() * t.element_size() for t in kept.values()) < size / 8 + 0.04 * 4 * size
    same_weights(erase.restore(folder), pipe)


def test_every_edit_in_force_is_undone(pipe, edit, tmp_path):
    base = edit_of(pipe, random_delta(pipe, FF, seed=5), name="base")
    with base.applied(pipe):
        folder = edit.export(pipe, tmp_path / "erased", include_originals=True)
    same_weights(erase.restore(folder), pipe)
    assert [name for _, name in json.loads((folder / "originals.json").read_text())["edits"]] == ["base", "both"]


def test_without_originals_there_is_nothing_to_restore(pipe, edit, tmp_path):
    folder = edit.export(pipe, tmp_path / "erased")
    assert not (folder / "originals.json").exists()
    with pytest.raises(BadInput, match="include_originals"):
        erase.restore(folder)


def test_a_model_that_was_changed_since_is_named(pipe, edit, tmp_path):
    folder = edit.export(pipe, tmp_path / "erased", include_originals=True)
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    state = load_file(weights)
    name = FF.removeprefix("unet.")
    state[name] = state[name] + 1
    save_file(state, weights, metadata={"format": "pt"})
    with pytest.raises(WrongModel, match="mid_block"):
        erase.restore(folder)


@pytest.mark.parametrize("file", ["originals.json", "originals.safetensors"])
def test_torn_originals_are_named(pipe, edit, tmp_path, file):
    folder = edit.export(pipe, tmp_path / "erased", include_originals=True)
    (folder / file).write_bytes((folder / file).read_bytes()[:40])
    with pytest.raises(StoreDamaged, match=file):
        erase.restore(folder)


def test_a_model_at_the_output_path_is_not_replaced_unasked(pipe, edit, tmp_path):
    folder = edit.export(pipe, tmp_path / "erased", include_originals=True)
    compat.save_pipeline(tiny_pipeline(seed=4), tmp_path / "there")
    with pytest.raises(BadInput, match="exists"):
        erase.restore(folder, tmp_path / "there")
    erase.restore(folder, tmp_path / "there", force=True)
    same_weights(probe.load(tmp_path / "there"), pipe)

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

import erase
from probe.errors import BadInput, StoreDamaged, WrongModel
from probe.testing import tiny_pipeline
from tests.erase.snapshots import FF, KEY, TEXT, edit_of, parameter, random_delta, random_mask, raw, snapshot


@pytest.fixture
def edit(pipe):
    return edit_of(pipe, random_mask(pipe, FF), random_delta(pipe, KEY), random_delta(pipe, TEXT, rank=1), name="both")


def unet_state(pipe):
    return {name: tensor.detach().clone() for name, tensor in pipe.unet.state_dict().items()}


def same_effect(pipe, one, other):
    with one.applied(pipe):
        wanted = {param: raw(parameter(pipe, param)) for param in one.params}
    with other.applied(pipe):
        assert {param: raw(parameter(pipe, param)) for param in one.params} == wanted


def test_an_erased_pipeline_becomes_the_edit_that_made_it(pipe, edit, tmp_path):
    before = snapshot(pipe)
    found = erase.edit_from_checkpoint(pipe, edit.export(pipe, tmp_path / "erased"))
    assert snapshot(pipe) == before
    assert found.params == edit.params
    assert found.name == "erased"
    assert {change.kind for change in found.changes} == {"replace"}
    assert found.report["changed"] == 3
    assert found.report["compared"] > 100
    assert set(found.report["relative_change"]) == set(edit.params)
    same_effect(pipe, edit, found)
    assert erase.load_edit(found.save_pretrained(tmp_path / "edit")).id == found.id


@pytest.mark.parametrize("prefix", ["", "unet."])
def test_a_few_tensors_are_enough(pipe, edit, tmp_path, prefix):
    """As ESD and UCE release them."""
    with edit.applied(pipe):
        some = {prefix + name.removeprefix("unet."): parameter(pipe, name).detach().clone() for name in (FF, KEY)}
        some[prefix + "conv_in.bias"] = pipe.unet.conv_in.bias.detach().clone()
    save_file(some, tmp_path / "esd-church.safetensors")
    found = erase.edit_from_checkpoint(pipe, tmp_path / "esd-church.safetensors")
    assert found.params == tuple(sorted((FF, KEY)))
    assert found.name == "esd-church"


def test_a_networks_folder_and_a_named_component(pipe, edit, tmp_path):
    folder = edit.export(pipe, tmp_path / "erased")
    assert erase.edit_from_checkpoint(pipe, folder / "unet").params == tuple(sorted((FF, KEY)))
    text = erase.edit_from_checkpoint(pipe, folder / "text_encoder", component="text_encoder")
    assert text.params == (TEXT,)


def test_lower_precision_alone_changes_nothing(pipe, edit, tmp_path):
    half = {name: tensor.half() for name, tensor in unet_state(pipe).items()}
    save_file(half, tmp_path / "half.safetensors")
    with pytest.raises(BadInput, match="changes nothing"):
        erase.edit_from_checkpoint(pipe, tmp_path / "half.safetensors")
    name = KEY.removeprefix("unet.")
    save_file({**half, name: half[name] * 2}, tmp_path / "erased.safetensors")
    (change,) = erase.edit_from_checkpoint(pipe, tmp_path / "erased.safetensors").changes
    assert change.param == KEY
    assert change.value.dtype == torch.float16


def test_small_differences_may_be_tolerated(pipe, tmp_path):
    state = unet_state(pipe)
    name = KEY.removeprefix("unet.")
    moved = {key: tensor * (1.5 if key == name else 1 + 1e-6) for key, tensor in state.items()}
    save_file(moved, tmp_path / "m.safetensors")
    assert len(erase.edit_from_checkpoint(pipe, tmp_path / "m.safetensors").params) > 10
    assert erase.edit_from_checkpoint(pipe, tmp_path / "m.safetensors", tolerance=1e-4).params == (KEY,)


def test_convolutions_of_one_pixel_are_linears(tmp_path):
    pipe = tiny_pipeline("sd21")
    name = next(name for name in pipe.unet.state_dict() if name.endswith("proj_in.weight"))
    weight = pipe.unet.state_dict()[name]
    assert weight.ndim == 2
    save_file({name: (2 * weight)[:, :, None, None].contiguous()}, tmp_path / "m.safetensors")
    (change,) = erase.edit_from_checkpoint(pipe, tmp_path / "m.safetensors").changes
    assert torch.equal(change.value, 2 * weight)


def test_another_architecture_is_named(pipe, tmp_path):
    save_file(unet_state(tiny_pipeline("sdxl")), tmp_path / "xl.safetensors")
    with pytest.raises(WrongModel, match="architecture"):
        erase.edit_from_checkpoint(pipe, tmp_path / "xl.safetensors")
    name = KEY.removeprefix("unet.")
    save_file({name: torch.zeros(3, 3)}, tmp_path / "small.safetensors")
    with pytest.raises(WrongModel, match="attn2"):
        erase.edit_from_checkpoint(pipe, tmp_path / "small.safetensors")
    save_file({"lora.weight": torch.zeros(3, 3)}, tmp_path / "lora.safetensors")
    with pytest.raises(WrongModel, match="lora"):
        erase.edit_from_checkpoint(pipe, tmp_path / "lora.safetensors")


def test_what_runs_code_or_is_no_checkpoint_is_refused(pipe, tmp_path):
    (tmp_path / "esd.pt").write_bytes(b"\x80\x04")
    with pytest.raises(BadInput, match="pickled"):
        erase.edit_from_checkpoint(pipe, tmp_path / "esd.pt")
    with pytest.raises(BadInput, match="pickled"):
        erase.edit_from_checkpoint(pipe, tmp_path)
    with pytest.raises(BadInput, match="no such checkpoint"):
        erase.edit_from_checkpoint(pipe, tmp_path / "nothing")
    (tmp_path / "torn.safetensors").write_bytes(b"12345")
    with pytest.raises(StoreDamaged, match="torn"):
        erase.edit_from_checkpoint(pipe, tmp_path / "torn.safetensors")
    with pytest.raises(BadInput, match="tolerance"):
        erase.edit_from_checkpoint(pipe, tmp_path / "torn.safetensors", tolerance=2.0)


def test_replacements_and_deltas_do_not_mix(pipe, edit, tmp_path):
    from probe.errors import EditConflict

    found = erase.edit_from_checkpoint(pipe, edit.export(pipe, tmp_path / "erased"))
    with edit.applied(pipe), pytest.raises(EditConflict, match="both"):
        found.apply(pipe)

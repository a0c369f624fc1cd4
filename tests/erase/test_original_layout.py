from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

import erase
import probe
from erase import _original
from probe import compat
from probe.errors import BadInput, UnknownName, WorkbenchError
from probe.testing import meta_pipeline, tiny_pipeline
from tests.erase.snapshots import FF, KEY, edit_of, parameter, random_delta, random_mask, raw, snapshot
from tests.oracles import compvis
from tests.oracles.original_layout import original_layout


@pytest.fixture
def edit(pipe):
    return edit_of(pipe, random_mask(pipe, FF), random_delta(pipe, KEY), name="both")


def test_every_tensor_of_sd_15_has_its_name():
    published = meta_pipeline("sd15")
    canonical = [compat.canonical_name("unet", key) for key in published.unet.state_dict()]
    found = set(compat.original_names("unet", canonical, published.unet.config).values())
    assert found == compvis.unet()
    assert len(found) == 686
    text = [compat.canonical_name("text_encoder", key) for key in published.text_encoder.state_dict()]
    assert set(compat.original_names("text_encoder", text, None).values()) == compvis.text_encoder()


def test_every_tensor_of_the_published_vae_has_its_name():
    from diffusers import AutoencoderKL

    blocks = {"down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4}
    with torch.device("meta"):
        vae = AutoencoderKL(block_out_channels=(128, 256, 512, 512), layers_per_block=2, **blocks)
    found = compat.original_names("vae", vae.state_dict(), vae.config)
    assert set(found.values()) == compvis.vae()
    assert len(found) == 248


def test_the_file_holds_what_the_oracle_lists(pipe, edit, tmp_path):
    before = snapshot(pipe)
    file = edit.export(pipe, tmp_path / "erased.safetensors", layout="ldm")
    assert snapshot(pipe) == before
    found = load_file(file)
    with edit.applied(pipe):
        wanted = original_layout(pipe)
        assert found.keys() == wanted.keys()
        assert all(raw(found[key]) == raw(wanted[key]) for key in wanted)
    assert [path.name for path in tmp_path.iterdir()] == ["erased.safetensors"]


def test_diffusers_reads_the_file_as_the_edited_model(pipe, edit, tmp_path):
    compat.save_pipeline(pipe, tmp_path / "plain")
    file = edit.export(pipe, tmp_path / "erased.safetensors", layout="ldm")
    again = probe.load(file, config=tmp_path / "plain")
    with edit.applied(pipe):
        for param in (*edit.params, "unet.conv_out.bias", "vae.decoder.conv_in.weight"):
            assert raw(parameter(again, param)) == raw(parameter(pipe, param))


def test_and_it_comes_back_as_an_edit(pipe, edit, tmp_path):
    file = edit.export(pipe, tmp_path / "erased.safetensors", layout="ldm")
    again = erase.edit_from_checkpoint(pipe, file)
    assert again.params == edit.params
    with edit.applied(pipe):
        wanted = snapshot(pipe)["unet", FF.removeprefix("unet.")][3]
    with again.applied(pipe):
        assert raw(parameter(pipe, FF)) == wanted


@pytest.mark.parametrize("kind", ["sd21", "sdxl"])
def test_models_with_other_text_encoders_are_refused(kind, tmp_path):
    pipe = tiny_pipeline(kind)
    edit = edit_of(pipe, random_mask(pipe, f"unet.{probe.sites(pipe)[0].module}.weight"))
    with pytest.raises(BadInput, match=r"SD 1\.x"):
        edit.export(pipe, tmp_path / "erased.safetensors", layout="ldm")
    assert not list(tmp_path.iterdir())


def test_bad_input(pipe, edit, tmp_path):
    with pytest.raises(UnknownName, match="diffusers"):
        edit.export(pipe, tmp_path / "x", layout="diffuser")
    with pytest.raises(BadInput, match="one file"):
        edit.export(pipe, tmp_path / "x", layout="ldm")
    with pytest.raises(BadInput, match="folder"):
        edit.export(pipe, tmp_path / "x.safetensors", layout="ldm", include_originals=True)
    (tmp_path / "there.safetensors").write_bytes(b"mine")
    with pytest.raises(BadInput, match="here"):
        edit.export(pipe, tmp_path / "there.safetensors", layout="ldm")
    assert (tmp_path / "there.safetensors").read_bytes() == b"mine"


def test_a_file_that_reads_otherwise_is_an_error_and_leaves_nothing(pipe, edit, tmp_path, monkeypatch):
    plain = _original.tensors

    def torn(pipe):
        found = plain(pipe)
        key = next(iter(found))
        return {**found, key: found[key] + 1}

    monkeypatch.setattr(_original, "tensors", torn)
    before = snapshot(pipe)
    with pytest.raises(WorkbenchError, match="as it was written"):
        edit.export(pipe, tmp_path / "erased.safetensors", layout="ldm")
    assert not list(tmp_path.iterdir())
    assert snapshot(pipe) == before

from __future__ import annotations

import pytest
import torch
from diffusers import StableDiffusionPipeline

import probe
from erase import _export
from probe import compat
from probe.errors import BadInput, WorkbenchError
from probe.testing import tiny_pipeline
from tests.erase.snapshots import FF, KEY, TEXT, edit_of, parameter, random_delta, random_mask, raw, snapshot


@pytest.fixture
def edit(pipe):
    return edit_of(pipe, random_mask(pipe, FF), random_delta(pipe, KEY), random_delta(pipe, TEXT, rank=1), name="both")


def test_the_exported_pipeline_is_the_edited_one_and_the_original_is_untouched(pipe, edit, tmp_path):
    folder = edit.export(pipe, tmp_path / "erased")
    again = probe.load(folder)
    with edit.applied(pipe):
        for param in edit.params:
            assert raw(parameter(again, param)) == raw(parameter(pipe, param))
        edited = _export.probe_latent(pipe)
    assert torch.allclose(edited, _export.probe_latent(again), atol=1e-4)
    assert not torch.allclose(edited, _export.probe_latent(pipe), atol=1e-4)
    assert edit.id in (folder / "README.md").read_text()
    assert [path.name for path in tmp_path.iterdir()] == ["erased"]


def test_it_loads_without_the_workbench(pipe, edit, tmp_path):
    folder = edit.export(pipe, tmp_path / "erased")
    with compat.quiet_libraries():
        again = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
    with edit.applied(pipe):
        assert raw(again.unet.state_dict()[FF.removeprefix("unet.")]) == raw(parameter(pipe, FF))
    assert (folder / "tokenizer" / "vocab.json").is_file()


def test_an_edit_in_force_is_exported_as_it_stands(pipe, edit, tmp_path):
    with edit.applied(pipe):
        before = snapshot(pipe)
        folder = edit.export(pipe, tmp_path / "erased")
        assert snapshot(pipe) == before
        wanted = raw(parameter(pipe, FF))
    assert raw(parameter(probe.load(folder), FF)) == wanted


def test_networks_of_different_dtypes_are_compared_in_their_own(tmp_path):
    pipe = tiny_pipeline()
    with compat.quiet_libraries():
        pipe.vae.to(torch.float16)
        pipe.unet.to(torch.bfloat16)
        pipe.text_encoder.to(torch.bfloat16)
    edit = edit_of(pipe, random_mask(pipe, FF))
    again = probe.load(edit.export(pipe, tmp_path / "erased"), dtype="bfloat16")
    with edit.applied(pipe):
        assert raw(parameter(again, FF)) == raw(parameter(pipe, FF))


@pytest.mark.parametrize("loss", ["a tensor", "a latent"])
def test_an_export_that_does_not_reload_as_it_was_leaves_nothing(pipe, edit, tmp_path, monkeypatch, loss):
    if loss == "a tensor":
        save = compat.save_pipeline

        def lossy(pipe, folder):
            with edit_of(pipe, random_mask(pipe, "unet.conv_in.weight"), name="a bug").applied(pipe):
                return save(pipe, folder)

        monkeypatch.setattr(_export.compat, "save_pipeline", lossy)
        message = "does not reload as it was.*unet: conv_in.weight"
    else:
        latents = iter([torch.zeros(1), torch.ones(1)])
        monkeypatch.setattr(_export, "probe_latent", lambda _: next(latents))
        message = "another latent.*difference 1"
    before = snapshot(pipe)
    with pytest.raises(WorkbenchError, match=message):
        edit.export(pipe, tmp_path / "erased")
    assert list(tmp_path.iterdir()) == []
    assert snapshot(pipe) == before


def test_existing_folders_are_kept_unless_a_pipeline_is_to_be_replaced(pipe, edit, tmp_path):
    folder = tmp_path / "erased"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(BadInput, match="no pipeline"):
        edit.export(pipe, folder, force=True)
    assert [path.name for path in folder.iterdir()] == ["notes.txt"]
    other = edit.export(pipe, tmp_path / "other")
    with pytest.raises(BadInput, match="another pipeline"):
        edit.export(pipe, other)
    edit_of(pipe, random_mask(pipe, FF, 9)).export(pipe, other, force=True)
    assert raw(parameter(probe.load(other), KEY)) == raw(parameter(pipe, KEY))


def test_the_probe_leaves_scheduler_and_bars_as_they_were(pipe):
    scheduler, config = pipe.scheduler, dict(vars(pipe).get("_progress_bar_config", {}))
    first, second = _export.probe_latent(pipe), _export.probe_latent(pipe)
    assert torch.equal(first, second)
    assert pipe.scheduler is scheduler
    assert vars(pipe).get("_progress_bar_config", {}) == config

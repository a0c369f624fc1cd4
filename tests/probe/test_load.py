"""Loading: offline, safetensors only, and every way in which it can fail says what is missing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from probe import compat, fingerprint, load
from probe.errors import BadInput, StoreDamaged, UnknownName, WorkbenchError
from probe.testing import tiny_pipeline
from tests.oracles.original_layout import original_layout

UNET = "unet/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    return compat.save_pipeline(tiny_pipeline(), tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def folder(saved, tmp_path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(saved, tmp_path / "tiny"))


# --- what works -------------------------------------------------------------------------------------------------------


def test_a_folder(saved):
    pipe = load(str(saved))
    assert fingerprint(pipe).to_json() == fingerprint(tiny_pipeline()).to_json()
    assert pipe.safety_checker is None
    assert not any(m.training for part in (pipe.unet, pipe.vae, pipe.text_encoder) for m in part.modules())


def test_dtypes(saved):
    assert load(saved, dtype="bfloat16").unet.dtype == torch.bfloat16
    assert load(saved, dtype=torch.float64).text_encoder.dtype == torch.float64
    with pytest.raises(UnknownName, match=r"unknown dtype.*float16"):
        load(saved, dtype="float61")


def test_a_safety_checker_that_was_saved_is_left_out(folder):
    index = json.loads((folder / "model_index.json").read_text())
    index |= {"safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"], "requires_safety_checker": True}
    (folder / "model_index.json").write_text(json.dumps(index))
    (folder / "safety_checker").mkdir()
    assert load(folder).safety_checker is None


def test_weights_that_come_as_fp16_variant_only(folder):
    for file in folder.rglob("*.safetensors"):
        file.rename(file.with_suffix(".fp16.safetensors"))
    assert fingerprint(load(folder)).to_json() == fingerprint(tiny_pipeline()).to_json()


def test_a_variant_beside_the_plain_form_is_not_read(folder):
    zeros = {key: torch.zeros_like(tensor) for key, tensor in load_file(folder / UNET).items()}
    save_file(zeros, (folder / UNET).with_suffix(".fp16.safetensors"), metadata={"format": "pt"})
    assert fingerprint(load(folder)).to_json() == fingerprint(tiny_pipeline()).to_json()


def test_one_file_in_the_original_layout(saved, tmp_path):
    save_file(original_layout(tiny_pipeline()), tmp_path / "one.safetensors")
    pipe = load(tmp_path / "one.safetensors", config=saved)
    assert fingerprint(pipe).to_json() == fingerprint(tiny_pipeline()).to_json()
    assert pipe.safety_checker is None
    with pytest.raises(BadInput, match="config="):
        load(tmp_path / "one.safetensors")


@pytest.mark.parametrize("key", ["diffusion_model.input_blocks.0.0.weight", "text_model.final_layer_norm.bias"])
def test_one_file_that_lacks_a_tensor(saved, tmp_path, key):
    tensors = {name: t for name, t in original_layout(tiny_pipeline()).items() if not name.endswith(key)}
    save_file(tensors, tmp_path / "one.safetensors")
    with pytest.raises(StoreDamaged):
        load(tmp_path / "one.safetensors", config=saved)


@pytest.fixture
def hub_cache(saved, tmp_path, monkeypatch) -> Path:
    """A local hub cache with one pipeline, ``someone/tiny``."""
    from huggingface_hub import constants

    cache = tmp_path / "hub"
    commit = "0123456789abcdef0123456789abcdef01234567"
    repo = cache / "models--someone--tiny"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(commit)
    shutil.copytree(saved, repo / "snapshots" / commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    return cache


def test_a_hub_id_in_the_cache_asks_no_network(hub_cache, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)  # the test's network guard would raise
    assert fingerprint(load("someone/tiny")).to_json() == fingerprint(tiny_pipeline()).to_json()


def test_a_hub_id_that_is_not_in_the_cache(hub_cache, monkeypatch):
    import diffusers
    from huggingface_hub import constants

    asked = []

    def download(model, **options):
        asked.append((model, options["use_safetensors"]))
        raise OSError("no such repository")

    monkeypatch.setattr(diffusers.DiffusionPipeline, "download", download)
    with pytest.raises(UnknownName, match="HF_HUB_OFFLINE is set"):
        load("someone/else")
    assert asked == []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(UnknownName, match="not in the local cache, and the hub did not give it"):
        load("someone/else")
    assert asked == [("someone/else", True)]
    with pytest.raises(UnknownName, match="not in the local cache"):
        load("someone/tiny", revision="other")


def test_a_cached_pipeline_without_all_its_weights_is_completed(hub_cache, saved, monkeypatch):
    import diffusers
    from huggingface_hub import constants

    next(hub_cache.rglob(UNET)).unlink()
    with pytest.raises(UnknownName, match="weights are not all in the local cache"):
        load("someone/tiny")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(diffusers.DiffusionPipeline, "download", lambda *_, **__: str(saved))
    assert fingerprint(load("someone/tiny")).to_json() == fingerprint(tiny_pipeline()).to_json()


# --- names that are none ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["emoij", "Emoji"])
def test_unknown_names(name):
    with pytest.raises(UnknownName, match="unknown model") as error:
        load(name)
    assert "emoji" in error.value.nearest


def test_the_nearest_existing_folder_is_named(saved):
    with pytest.raises(UnknownName) as error:
        load(saved.parent / "tinny")
    assert error.value.nearest == (str(saved),)


def test_the_embedded_model_when_it_is_not_there(tmp_path, monkeypatch):
    import probe._load

    monkeypatch.setattr(probe._load, "emoji_dir", lambda: tmp_path)
    with pytest.raises(BadInput, match="make model"):
        load("emoji")


# --- folders that are no pipeline, or a damaged one -------------------------------------------------------------------


def cut(file: Path) -> None:
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2])


def drop(file: Path, key: str) -> None:
    tensors = load_file(file)
    del tensors[key]
    save_file(tensors, file, metadata={"format": "pt"})


def crop(file: Path, key: str) -> None:
    tensors = load_file(file)
    tensors[key] = tensors[key][:3].clone()
    save_file(tensors, file, metadata={"format": "pt"})


def reindex(folder: Path, **entries) -> None:
    file = folder / "model_index.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | entries))


DAMAGE = {
    "torn weights": (lambda f: cut(f / UNET), StoreDamaged, "safetensors file is torn", UNET),
    "torn text weights": (lambda f: cut(f / TEXT), StoreDamaged, "safetensors file is torn", TEXT),
    "empty weights": (lambda f: (f / UNET).write_bytes(b""), StoreDamaged, "safetensors file is torn", UNET),
    "torn config": (lambda f: cut(f / "unet/config.json"), StoreDamaged, "JSON file is torn", "unet/config.json"),
    "torn index": (lambda f: cut(f / "model_index.json"), StoreDamaged, "JSON file is torn", "model_index.json"),
    "a tensor less": (
        lambda f: drop(f / UNET, "conv_in.weight"),
        StoreDamaged,
        "weights are missing",
        "conv_in.weight",
    ),
    "a text tensor less": (
        lambda f: drop(f / TEXT, "text_model.final_layer_norm.bias"),
        StoreDamaged,
        "weights are missing",
        "final_layer_norm.bias",
    ),
    "another shape": (lambda f: crop(f / UNET, "conv_in.weight"), StoreDamaged, "cannot build", "conv_in.weight"),
    "no scheduler": (lambda f: shutil.rmtree(f / "scheduler"), BadInput, "part .* is missing", "scheduler/"),
    "no vocabulary": (lambda f: (f / "tokenizer/vocab.json").unlink(), BadInput, "is missing", "tokenizer/vocab.json"),
    "no config": (lambda f: (f / "vae/config.json").unlink(), BadInput, "is missing", "vae/config.json"),
    "no weights": (lambda f: (f / UNET).unlink(), BadInput, "lacks weights", "unet/"),
    "no index": (lambda f: (f / "model_index.json").unlink(), BadInput, "no pipeline", "model_index.json"),
    "pickled weights": (
        lambda f: (f / UNET).rename((f / UNET).with_suffix(".bin")),
        BadInput,
        "pickled weights only",
        "unet/diffusion_pytorch_model.bin",
    ),
    "code of its own": (
        lambda f: reindex(f, unet=["pipeline_of_mine", "Unet"]),
        BadInput,
        "run code",
        "pipeline_of_mine.Unet",
    ),
    "a class of its own": (
        lambda f: reindex(f, _class_name=["pipeline", "Mine"]),
        UnknownName,
        "class of pipeline",
        "StableDiffusionPipeline",
    ),
    "something else in diffusers": (
        lambda f: reindex(f, _class_name="UNet2DConditionModel"),
        UnknownName,
        "class of pipeline",
        "UNet2DConditionModel",
    ),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_spoilt_folders(folder, name):
    spoil, error, message, part = DAMAGE[name]
    spoil(folder)
    with pytest.raises(error, match=message) as caught:
        load(folder)
    assert isinstance(caught.value, WorkbenchError)
    assert part in caught.value.message


def test_a_folder_around_or_inside_a_pipeline_names_it(saved):
    with pytest.raises(BadInput, match="no pipeline") as error:
        load(saved.parent)
    assert error.value.nearest == (str(saved),)
    with pytest.raises(BadInput, match="no pipeline") as error:
        load(saved / "unet")
    assert str(saved) in error.value.nearest


@pytest.mark.parametrize("name", ["model.ckpt", "model.bin", "model.pt"])
def test_pickles_are_never_opened(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x80\x04 not even a pickle")
    for given in (tmp_path / name, tmp_path):
        with pytest.raises(BadInput, match="pickled weights only") as error:
            load(given)
        assert name in error.value.message
        assert error.value.fix


def test_files_that_are_no_model(tmp_path, saved):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(BadInput, match=r"folder or a \.safetensors file"):
        load(tmp_path / "notes.txt")
    (tmp_path / "torn.safetensors").write_bytes(b"12345678{")
    with pytest.raises(StoreDamaged, match="torn"):
        load(tmp_path / "torn.safetensors", config=saved)
    save_file({"x": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(StoreDamaged, match="cannot build"):
        load(tmp_path / "other.safetensors", config=saved)

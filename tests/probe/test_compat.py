"""Tokenizers and pipelines on disk, for transformers 4 and 5 alike."""

from __future__ import annotations

import json
import logging

import pytest
import torch
from safetensors import safe_open

from probe import compat, fingerprint, load
from probe.errors import BadInput
from probe.testing import tiny_pipeline

TEXTS = ["a church", "A  Photo, of\ta Church!", "it's 42nd & déjà vu — 漢字 🙂", "", "<|endoftext|> x", "\x00\x7f~¡¬®ÿ"]


# --- tokenizers -------------------------------------------------------------------------------------------------------


def test_byte_symbols_are_clips():
    symbols = compat.byte_symbols()
    assert len(set(symbols)) == 256
    assert symbols[0] == "!"
    assert symbols[ord("a") - ord("!")] == "a"
    assert all(not symbol.isspace() for symbol in symbols)


def test_base_tokens_have_clips_own_ids():
    """Ids of SD 1.x: "!" 0, "a</w>" 320."""
    vocab = compat.clip_vocab()
    assert (vocab["!"], vocab["a"], vocab["a</w>"]) == (0, 64, 320)
    assert (vocab[compat.BOS], vocab[compat.EOT]) == (512, 513)


def test_end_of_text_is_last_pads_and_is_all_that_is_special():
    tokenizer = compat.clip_tokenizer(merges=["c h", "ch u"], model_max_length=8)
    assert len(tokenizer) == 516
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (514, 515)
    assert tokenizer.pad_token_id == tokenizer.unk_token_id == 515
    assert tokenizer("chu", padding="max_length").input_ids[3:] == [515] * 5


def test_nothing_is_unknown():
    """Every byte has a token, so the end-of-text id never stands for an unknown character in mid-prompt."""
    tokenizer = compat.clip_tokenizer(model_max_length=512)
    characters = [chr(i) for i in (*range(32, 127), *range(161, 1000), 0x6F22, 0x1F642)]
    for character in characters:
        assert tokenizer.eos_token_id not in tokenizer(character).input_ids[1:-1], repr(character)


def test_merges_apply_in_order_of_rank():
    tokenizer = compat.clip_tokenizer(merges=["c h", ("ch", "u"), "t h</w>"])
    vocab = tokenizer.get_vocab()
    assert tokenizer("chut chath", add_special_tokens=False).input_ids == [
        *(vocab[token] for token in ("chu", "t</w>", "ch", "a", "th</w>"))
    ]


@pytest.mark.parametrize("merges", [[], ["c h", "u r", "ch ur", "t h</w>"]])
def test_saved_tokenizers_load_as_they_were(tmp_path, merges):
    from transformers import CLIPTokenizer

    tokenizer = compat.clip_tokenizer(merges=merges, model_max_length=32)
    compat.save_tokenizer(tokenizer, tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {
        "vocab.json",
        "merges.txt",
        "tokenizer_config.json",
        "special_tokens_map.json",
    }
    from_files = compat.clip_tokenizer(tmp_path / "vocab.json", tmp_path / "merges.txt", 32)
    for again in (CLIPTokenizer.from_pretrained(tmp_path), from_files):
        assert [again(text).input_ids for text in TEXTS] == [tokenizer(text).input_ids for text in TEXTS]
        assert again.model_max_length == 32
        assert compat.tokenizer_tables(again) == compat.tokenizer_tables(tokenizer)
    vocab, pairs = compat.tokenizer_tables(tokenizer)
    assert vocab == compat.clip_vocab(merges)
    assert [" ".join(pair) for pair in pairs] == merges


def test_bad_tables():
    with pytest.raises(BadInput, match=r"lacks tokens.*'ch'"):
        compat.clip_tokenizer(compat.clip_vocab(), ["c h"])
    with pytest.raises(BadInput, match="pair of tokens"):
        compat.clip_tokenizer(merges=["c h u"])


# --- pipelines on disk ------------------------------------------------------------------------------------------------


def test_layout_on_disk(tmp_path):
    folder = compat.save_pipeline(tiny_pipeline(), tmp_path / "model")
    assert {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()} == {
        "model_index.json",
        "scheduler/scheduler_config.json",
        "text_encoder/config.json",
        "text_encoder/model.safetensors",
        "tokenizer/merges.txt",
        "tokenizer/special_tokens_map.json",
        "tokenizer/tokenizer_config.json",
        "tokenizer/vocab.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/config.json",
        "vae/diffusion_pytorch_model.safetensors",
    }
    with safe_open(folder / "text_encoder/model.safetensors", "pt") as file:
        assert all(key.startswith("text_model.") for key in file.keys())  # noqa: SIM118 - no mapping
        assert file.metadata() == {"format": "pt"}
    index = json.loads((folder / "model_index.json").read_text())
    assert index["safety_checker"] == [None, None]
    assert index["requires_safety_checker"] is False
    assert index["_class_name"] == "StableDiffusionPipeline"


@pytest.mark.parametrize("kind", ["sd15", "sd21"])
def test_what_was_saved_loads_bit_for_bit(tmp_path, kind):
    pipe = tiny_pipeline(kind)
    again = load(compat.save_pipeline(pipe, tmp_path / "model"))
    assert fingerprint(again).to_json() == fingerprint(pipe).to_json()
    assert dict(again.scheduler.config).items() >= {
        (k, v) for k, v in pipe.scheduler.config.items() if not k.startswith("_")
    }
    assert [again.tokenizer(text).input_ids for text in TEXTS] == [pipe.tokenizer(text).input_ids for text in TEXTS]


def test_what_diffusers_itself_saves_loads_too(tmp_path):
    pipe = tiny_pipeline()
    with compat.quiet_libraries():
        pipe.save_pretrained(tmp_path / "model")
    assert fingerprint(load(tmp_path / "model")).to_json() == fingerprint(pipe).to_json()


def test_half_precision(tmp_path):
    pipe = tiny_pipeline()
    folder = compat.save_pipeline(pipe, tmp_path / "model", torch.float16)
    with safe_open(folder / "unet/diffusion_pytorch_model.safetensors", "pt") as file:
        assert {file.get_tensor(key).dtype for key in file.keys()} == {torch.float16}  # noqa: SIM118 - no mapping
    for again, dtype in ((load(folder), torch.float32), (load(folder, dtype="float16"), torch.float16)):
        for name in ("unet", "text_encoder", "vae"):
            tensors = getattr(again, name).state_dict()
            original = getattr(pipe, name).state_dict()
            assert tensors.keys() == original.keys()
            for key, tensor in tensors.items():
                assert tensor.dtype == dtype
                assert torch.equal(tensor, original[key].half().to(dtype))
    assert pipe.unet.dtype == torch.float32


def test_an_existing_path(tmp_path):
    pipe = tiny_pipeline()
    compat.save_pipeline(pipe, tmp_path / "model")
    with pytest.raises(BadInput, match="output path exists"):
        compat.save_pipeline(pipe, tmp_path / "model")
    other = tiny_pipeline(seed=1)
    compat.save_pipeline(other, tmp_path / "model", replace=True)
    assert fingerprint(load(tmp_path / "model")).to_json() == fingerprint(other).to_json()
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("keep")
    with pytest.raises(BadInput, match="output path exists"):
        compat.save_pipeline(pipe, tmp_path / "notes", replace=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "notes"]


def test_a_failed_save_leaves_nothing(tmp_path, monkeypatch):
    pipe = tiny_pipeline()
    monkeypatch.setattr(pipe.scheduler, "save_pretrained", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        compat.save_pipeline(pipe, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_quiet_libraries_leaves_settings_as_they_were():
    import diffusers.utils.logging as library

    library.set_verbosity(logging.INFO)
    library.enable_progress_bar()
    try:
        with compat.quiet_libraries():
            assert library.get_verbosity() == logging.ERROR
            assert not library.is_progress_bar_enabled()
        assert library.get_verbosity() == logging.INFO
        assert library.is_progress_bar_enabled()
    finally:
        library.set_verbosity_warning()


def test_a_unet_multiplies_in_another_type_and_stays_the_same_model():
    pipe = tiny_pipeline()
    inputs = compat.unet_inputs(pipe.unet.config)
    inputs["sample"] = torch.randn(inputs["sample"].shape, generator=torch.Generator().manual_seed(0))
    pipe.unet.requires_grad_(False)
    before, plain = fingerprint(pipe).to_json(), pipe.unet(**inputs).sample
    compat.multiply_in(pipe.unet, "bfloat16")
    found = pipe.unet(**inputs).sample
    assert found.dtype == torch.float32
    assert fingerprint(pipe).to_json() == before
    assert 0 < float((found - plain).norm() / plain.norm()) < 0.03
    torch.testing.assert_close(pipe.unet(**inputs, return_dict=False)[0], found)

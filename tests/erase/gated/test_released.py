"""Files in the layout of the released code, with made-up numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import erase
import probe
from erase.gated._projections import encoded
from erase.gated._released import KEY, QUERY, SCALER
from probe.errors import BadInput, StoreDamaged, WrongModel
from probe.testing import KINDS, tiny_pipeline
from tests.erase.gated.gates_to_try import gate
from tests.oracles.gates import residual


def made_up(pipe, *, rank=1, gate_rank=4, seed=0, width=None):
    """Tensors by key, as the release names and shapes them."""
    generator = torch.Generator().manual_seed(seed)
    d = width or pipe.unet.config.cross_attention_dim
    tensors = {
        "attention_gate.encoder_layer.slf_attn.attention_module1.w_qs.weight": (1, d, gate_rank),
        "attention_gate.encoder_layer.slf_attn.attention_module1.w_ks.weight": (1, d, gate_rank),
        "attention_gate.encoder_layer.slf_attn.gate.scaler.weight": (1, d, 1),
    }
    for name, module in pipe.unet.named_modules():
        if "attn2" in name and name.endswith((".to_k", ".to_v")):
            key = "lora_unet_" + name.replace(".", "_")
            tensors |= {
                f"{key}.lora_down.weight": (1, d, rank),
                f"{key}.lora_up.weight": (1, rank, module.out_features),
            }
            tensors[f"{key}.alpha"] = ()
    return {key: 0.3 * torch.randn(shape, generator=generator) for key, shape in tensors.items()}


@pytest.fixture(scope="module", params=list(KINDS))
def each(request):
    return tiny_pipeline(request.param)


@pytest.mark.parametrize("key_mode", ["tied", "independent"])
def test_a_file_does_what_its_numbers_say(each, tmp_path, key_mode):
    files = [tmp_path / f"{name}.safetensors" for name in "ab"]
    contents = [made_up(each, seed=seed, rank=2) for seed in range(2)]
    for file, tensors in zip(files, contents, strict=True):
        save_file(tensors, file, metadata={"rank": "2", "alpha": "1", "prompts": "x"})
    edit = erase.import_resag(each, files, key_mode=key_mode)
    assert (edit.name, edit.mergeable) == ("resag-a+b", False)
    assert edit.report["metadata"]["a"]["prompts"] == "x"
    module = "up_blocks.1.attentions.0.transformer_blocks.0.attn2.to_v"
    key = "lora_unet_" + module.replace(".", "_")
    concepts = [
        {
            "query": t[QUERY][0].double().numpy(), "key": t[QUERY if key_mode == "tied" else KEY][0].double().numpy(),
            "gate": t[SCALER][0, :, 0].double().numpy(), "down": [t[f"{key}.lora_down.weight"][0].double().numpy()],
            "up": [t[f"{key}.lora_up.weight"][0].double().numpy()], "alpha": [float(t[f"{key}.alpha"])],
        }
        for t in contents
    ]  # fmt: skip
    text, linear = encoded(each, ["a church"]), each.unet.get_submodule(module)
    with torch.no_grad():
        plain = linear(text)
        with edit.applied(each):
            added = (linear(text) - plain)[0]
    np.testing.assert_allclose(added.numpy(), residual(text[0].double().numpy(), concepts, 0), atol=2e-5)


def test_round_trips(pipe, tmp_path):
    tensors = made_up(pipe)
    save_file(tensors, tmp_path / "one.safetensors")
    edit = erase.import_resag(pipe, tmp_path / "one.safetensors", key_mode="independent")
    again = load_file(erase.export_resag(edit, tmp_path / "two.safetensors"))
    assert again.keys() == tensors.keys()
    assert all(torch.equal(again[key], tensors[key]) for key in tensors)

    ours = gate(pipe, concepts=3)
    back = erase.import_resag(
        pipe, erase.export_resag(ours, tmp_path / "ours.safetensors", concept=1), key_mode="independent"
    )
    for name, value in back.changes[0].values.items():
        assert torch.equal(value, ours.changes[0].values[name][1:2]), name
    with pytest.raises(BadInput, match="another"):
        erase.export_resag(ours, tmp_path / "ours.safetensors")
    erase.export_resag(ours, tmp_path / "ours.safetensors", force=True)


def test_what_the_layout_cannot_hold_is_refused(pipe, tmp_path):
    with pytest.raises(BadInput, match="strength"):
        erase.export_resag(erase.scaled(gate(pipe), 0.5), tmp_path / "x.safetensors")
    with pytest.raises(BadInput, match=r"no such concept.*0 to 0"):
        erase.export_resag(gate(pipe), tmp_path / "x.safetensors", concept=1)
    assert not list(tmp_path.iterdir())


def test_files_that_cannot_be_meant(pipe, tmp_path):
    path = tmp_path / "x.safetensors"

    def wrong(error, message, tensors=None, **options):
        save_file(tensors if tensors is not None else made_up(pipe, **options), path)
        with pytest.raises(error, match=message):
            erase.import_resag(pipe, path)

    wrong(WrongModel, "another width.*given: 16; expected: 32", width=16)
    few = made_up(pipe)
    wrong(BadInput, "lacks a tensor.*scaler", {key: t for key, t in few.items() if key != SCALER})
    wrong(WrongModel, "lacks.*attn9", few | {"lora_unet_down_blocks_0_attn9_to_k.alpha": torch.ones(())})
    wrong(BadInput, "another shape", few | {SCALER: torch.ones(1, 32, 2)})
    save_file(made_up(pipe, rank=1), path)
    save_file(made_up(pipe, rank=2), tmp_path / "y.safetensors")
    with pytest.raises(BadInput, match=r"different ranks.*x.safetensors and y.safetensors"):
        erase.import_resag(pipe, [path, tmp_path / "y.safetensors"])
    path.write_bytes(b"no tensors")
    with pytest.raises(StoreDamaged, match="cannot be read"):
        erase.import_resag(pipe, path)
    with pytest.raises(BadInput, match="no such file"):
        erase.import_resag(pipe, tmp_path / "z.safetensors")
    with pytest.raises(BadInput, match="no files"):
        erase.import_resag(pipe, [])


def test_the_published_module_names_are_those_of_the_release():
    from erase.gated._released import _key
    from probe.testing import meta_pipeline

    keys = [_key(f"unet.{site.module}.weight") for site in probe.sites(meta_pipeline("sd15"), ["xattn.k", "xattn.v"])]
    assert len(keys) == 32
    assert "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k" in keys
    assert "lora_unet_up_blocks_3_attentions_2_transformer_blocks_0_attn2_to_v" in keys

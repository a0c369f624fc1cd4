"""Sites: found by class, ordered by execution, selected by kind, glob, name."""

from __future__ import annotations

import json

import pytest
import torch

from probe import Site, TraceDict, sites
from probe.errors import BadInput, UnknownName, WrongModel
from probe.testing import tiny_pipeline


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline()


def test_feed_forward_sites_in_order_of_execution(pipe):
    found = sites(pipe)
    assert [(s.name.removeprefix("unet.").removesuffix(".transformer_blocks.0.ffn"), s.width) for s in found] == [
        ("down_blocks.0.attentions.0", 128),
        ("mid_block.attentions.0", 256),
        ("up_blocks.1.attentions.0", 128),
        ("up_blocks.1.attentions.1", 128),
    ]
    assert [s.order for s in found] == [0, 1, 2, 3]
    assert {(s.kind, s.component, s.io) for s in found} == {("ffn", "unet", "input")}


@pytest.mark.parametrize("kind", ["sd15", "sd21"])
def test_order_and_width_are_those_of_a_real_call(kind):
    pipe = tiny_pipeline(kind)
    found = [s for s in sites(pipe, "*") if s.component == "unet" and s.io != "processor"]
    fired, widths = [], {}

    def note(site):
        def hook(_module, args, output):
            fired.append(site)
            widths[site.name] = (args[0] if site.io == "input" else output).shape[-1]

        return site.resolve(pipe).register_forward_hook(hook)

    handles = [note(site) for site in found]
    pipe("a", num_inference_steps=1)
    for handle in handles:
        handle.remove()
    assert fired == found
    assert widths == {s.name: s.width for s in found}


def test_a_real_hook_sees_post_gate_neurons(pipe):
    """The site is what the last Linear multiplies: value times GELU(gate)."""
    site = sites(pipe)[1]
    geglu = site.module.removesuffix(".2") + ".0"
    with TraceDict(pipe.unet, [site.module, geglu], retain_input=True) as traces:
        pipe("a", num_inference_steps=1)
    assert torch.equal(traces[site.module].input, traces[geglu].output)
    assert traces[site.module].input.shape == (2, 16, 256)


def test_text_encoder_sites(pipe):
    found = sites(pipe, "mlp")
    assert [s.name for s in found] == [f"text_encoder.text_model.encoder.layers.{i}.mlp" for i in (0, 1)]
    assert [s.width for s in found] == [64, 64]
    assert all(s.resolve(pipe).in_features == 64 for s in found)


def test_selection(pipe):
    every = sites(pipe, "*")
    assert len({s.name for s in every}) == len(every) == 2 + 4 * 5
    mid = sites(pipe, "unet.mid_block.*")
    assert {s.kind for s in mid} == {"ffn", "xattn.k", "xattn.v", "xattn.prob", "xattn.out"}
    assert sites(pipe, [mid[-1].name]) == [mid[-1]] == sites(pipe, "unet.mid*.ffn")
    assert sites(pipe, ["ffn", "unet.mid_block.*", "mlp"]) == [
        s for s in every if s.kind in ("ffn", "mlp") or "mid_block" in s.name
    ]
    assert sites(pipe, ["mlp", "ffn"]) == sites(pipe, ["ffn", "mlp"])
    assert all(s.name.replace("_", "").replace(".", "").isalnum() for s in every)


def test_globs_match_whole_names(pipe):
    with pytest.raises(UnknownName):
        sites(pipe, "mid_block")


@pytest.mark.parametrize(
    ("select", "near"),
    [
        ("fnn", "ffn"),
        (
            "unet.mid_block.attentions.0.transformer_blocks.0.fnn",
            "unet.mid_block.attentions.0.transformer_blocks.0.ffn",
        ),
        (["ffn", "mpl"], "mlp"),
    ],
)
def test_unknown_sites_name_the_nearest(pipe, select, near):
    with pytest.raises(UnknownName, match="unknown site") as error:
        sites(pipe, select)
    assert near in error.value.nearest


def test_json_round_trip_ignores_what_a_store_adds(pipe):
    site = sites(pipe)[2]
    stored = json.loads(json.dumps(site.to_json() | {"offset": 384, "rows": 64}))
    assert Site.from_json(stored) == site


def test_no_hook_of_the_callers_fires_and_no_random_number_is_drawn():
    pipe = tiny_pipeline(seed=1)
    fired = []
    pipe.unet.register_forward_hook(lambda *_: fired.append(1))
    before = torch.random.get_rng_state()
    sites(pipe, "*")
    assert fired == []
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_site_of_another_model(pipe):
    site = sites(pipe)[0]
    wrong = Site.from_json(site.to_json() | {"module": "down_blocks.9.ff.net.2"})
    with pytest.raises(WrongModel, match="no such site"):
        wrong.resolve(pipe)
    with pytest.raises(WrongModel, match="another width"):
        Site.from_json(site.to_json() | {"width": 100}).resolve(pipe)


def test_what_is_no_pipeline(pipe):
    with pytest.raises(BadInput, match="pipeline with a UNet"):
        sites(pipe.unet)


def test_a_unet_that_is_not_what_its_config_says():
    pipe = tiny_pipeline()
    pipe.unet.mid_block.attentions[0].transformer_blocks[0] = torch.nn.Identity()
    with pytest.raises(WrongModel, match="mid_block"):
        sites(pipe)


@pytest.mark.parametrize(("model", "blocks", "neurons"), [("sd15", 16, 49_920), ("sdxl", 70, 332_800)])
def test_published_sizes(model, blocks, neurons):
    """Counts of the published architectures, on meta tensors."""
    from diffusers import UNet2DConditionModel

    sdxl = {
        "sample_size": 128,
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": [1, 2, 10],
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "attention_head_dim": [5, 10, 20],
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    }

    class Pipe:
        with torch.device("meta"):
            unet = UNet2DConditionModel(
                **({"sample_size": 64, "cross_attention_dim": 768} if model == "sd15" else sdxl)
            )

    found = sites(Pipe())
    assert len(found) == blocks
    assert sum(s.width for s in found) == neurons
    blocks_of = [s.name.split(".attentions")[0].split(".")[1] for s in found]
    assert list(dict.fromkeys(blocks_of)) == ["down_blocks", "mid_block", "up_blocks"]

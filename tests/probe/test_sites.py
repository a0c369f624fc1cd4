"""Sites: found by class, ordered by execution, selected by kind, glob, name."""

from __future__ import annotations

import json

import pytest
import torch

from probe import Site, TraceDict, sites
from probe._sites import KINDS as SITE_KINDS
from probe.errors import BadInput, UnknownName, WrongModel
from probe.testing import KINDS, TOPOLOGIES, tiny_pipeline


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


@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("kind", KINDS)
def test_order_and_width_are_those_of_a_real_call(kind, topology):
    """Text encoders, then the UNet; inside a block first k and v, last the feed-forward."""
    pipe = tiny_pipeline(kind, topology=topology)
    found = [s for s in sites(pipe, "*") if s.io != "processor"]
    fired, widths = [], {}

    def note(site):
        def hook(_module, args, output):
            fired.append(site)
            widths[site.name] = (args[0] if site.io == "input" else output).shape[-1]

        return site.resolve(pipe).register_forward_hook(hook)

    handles = [note(site) for site in found]
    pipe("a", num_inference_steps=1, guidance_scale=1.0)  # one call of each network
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


def test_both_text_encoders_of_sdxl():
    pipe = tiny_pipeline("sdxl")
    found = sites(pipe, "mlp")
    assert [s.name for s in found] == [
        f"{component}.text_model.encoder.layers.{i}.mlp"
        for component in ("text_encoder", "text_encoder_2")
        for i in (0, 1)
    ]
    assert [s.width for s in found] == [64, 64, 96, 96]
    assert [s.order for s in found] == [0, 1, 0, 1]
    assert all(s.resolve(pipe).in_features == s.width for s in found)


def test_text_encoders_may_be_absent():
    """Pipelines that are given embeddings need none, and SDXL's refiner has only the second."""
    pipe = tiny_pipeline("sdxl")
    pipe.text_encoder = None
    assert {s.component for s in sites(pipe, "*")} == {"text_encoder_2", "unet"}


@pytest.mark.parametrize("kind", KINDS)
def test_selection_by_kind_glob_and_name(kind):
    pipe = tiny_pipeline(kind)
    every = sites(pipe, "*")
    blocks, layers = len(sites(pipe)), len(sites(pipe, "mlp"))
    for wanted in SITE_KINDS:
        chosen = sites(pipe, wanted)
        assert chosen == [s for s in every if s.kind == wanted]
        assert len(chosen) == (layers if wanted == "mlp" else blocks)
        assert chosen == sites(pipe, f"*.{wanted}") == sites(pipe, [s.name for s in reversed(chosen)])
    assert sites(pipe, "unet.*") == [s for s in every if s.component == "unet"]
    assert sites(pipe, "*.transformer_blocks.0.xattn.?") == [
        s for s in every if s.kind in ("xattn.k", "xattn.v") and ".transformer_blocks.0." in s.name
    ]
    assert sites(pipe, ["unet.up_blocks.*.ffn", every[0].name]) == [
        every[0],
        *(s for s in every if s.kind == "ffn" and "up_blocks" in s.name),
    ]
    for site in every:
        assert sites(pipe, site.name) == [site]
        assert site.resolve(pipe) is not None


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

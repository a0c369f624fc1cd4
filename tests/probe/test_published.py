"""Sites at the size of published models: on meta tensors, on twins of the same topology, and once with real numbers."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from probe import sites
from probe.errors import UnknownName
from probe.testing import KINDS, PUBLISHED, meta_pipeline, published_config, tiny_pipeline

#: Written down from the papers and model cards: blocks, FF neurons, text-encoder layers and neurons, parameters.
SIZES = {
    "sd15": (16, 49_920, {"text_encoder": (12, 36_864)}, {"unet": 859_520_964, "text_encoder": 123_060_480}),
    "sd21": (16, 49_920, {"text_encoder": (23, 94_208)}, {"unet": 865_910_724, "text_encoder": 340_387_840}),
    "sdxl": (
        70,
        332_800,
        {"text_encoder": (12, 36_864), "text_encoder_2": (32, 163_840)},
        {"unet": 2_567_463_684, "text_encoder": 123_060_480, "text_encoder_2": 694_659_840},
    ),
}

#: Blocks in order of execution: path, attentions in it, transformer blocks in each, FF width.
PATHS = {
    "sd15": [
        ("down_blocks.0", 2, 1, 1280),
        ("down_blocks.1", 2, 1, 2560),
        ("down_blocks.2", 2, 1, 5120),
        ("mid_block", 1, 1, 5120),
        ("up_blocks.1", 3, 1, 5120),
        ("up_blocks.2", 3, 1, 2560),
        ("up_blocks.3", 3, 1, 1280),
    ],
    "sdxl": [
        ("down_blocks.1", 2, 2, 2560),
        ("down_blocks.2", 2, 10, 5120),
        ("mid_block", 1, 10, 5120),
        ("up_blocks.0", 3, 10, 5120),
        ("up_blocks.1", 3, 2, 2560),
    ],
}
PATHS["sd21"] = PATHS["sd15"]


@pytest.fixture(scope="module", params=KINDS)
def model(request):
    return request.param, meta_pipeline(request.param)


def test_the_configs_are_those_of_the_published_models(model):
    """A wrong entry would change the number of parameters, which model cards state."""
    kind, pipe = model
    assert {name: sum(p.numel() for p in part.parameters()) for name, part in vars(pipe).items()} == SIZES[kind][3]


def test_names_widths_and_order(model):
    kind, pipe = model
    expected = [
        (f"unet.{path}.attentions.{i}.transformer_blocks.{j}", width)
        for path, attentions, depth, width in PATHS[kind]
        for i in range(attentions)
        for j in range(depth)
    ]
    found = sites(pipe)
    assert [(s.name.removesuffix(".ffn"), s.width) for s in found] == expected
    assert [s.order for s in found] == list(range(len(found)))
    assert (len(found), sum(s.width for s in found)) == SIZES[kind][:2]
    channels = [width // 4 for _, width in expected]
    for of_attention in ("xattn.k", "xattn.v", "xattn.out"):
        assert [s.width for s in sites(pipe, of_attention)] == channels
    heads = [8] * 16 if kind == "sd15" else [c // 64 for c in channels]
    assert [s.width for s in sites(pipe, "xattn.prob")] == heads


def test_text_encoders(model):
    kind, pipe = model
    for component, (layers, neurons) in SIZES[kind][2].items():
        found = sites(pipe, f"{component}.*")
        assert [s.name for s in found] == [f"{component}.text_model.encoder.layers.{i}.mlp" for i in range(layers)]
        assert sum(s.width for s in found) == neurons
        assert all(s.resolve(pipe).in_features == s.width for s in found)


def test_twins_have_the_same_sites_and_heads(model):
    """What runs on a twin names the sites of the real model; only widths are smaller."""
    kind, pipe = model
    twin = tiny_pipeline(kind, topology="published")
    real, small = sites(pipe, "*"), sites(twin, "*")
    assert [s.name for s in small] == [s.name for s in real]
    assert [s.module for s in small] == [s.module for s in real]
    narrower = 20 if kind == "sd15" else 32
    for s, r in zip(small, real, strict=True):
        if s.kind == "xattn.prob":
            assert s.width == r.width
        elif s.component == "unet":
            assert s.width * narrower == r.width
    assert sum(p.numel() for p in twin.unet.parameters()) < 3e6


def test_a_config_is_a_copy():
    published_config("sdxl")["block_out_channels"] = None
    assert published_config("sdxl")["block_out_channels"] == (320, 640, 1280)
    assert set(PUBLISHED) == set(KINDS)


def test_unknown_models():
    with pytest.raises(UnknownName, match="nearest: sdxl"):
        meta_pipeline("sdx")
    with pytest.raises(UnknownName, match="component of sd15"):
        published_config("sd15", "text_encoder_2")


#: A pipeline whose UNet is SD 1.5's own; text encoder and VAE are small. Random weights, zeros would hide a wrong unit.
AT_FULL_SIZE = """
import json, resource, sys
import numpy as np, torch
from diffusers import UNet2DConditionModel
import probe
from probe.testing import published_config, tiny_pipeline
from probe.testing._published import text_encoder

pipe = tiny_pipeline()
config = published_config("sd15")
torch.manual_seed(0)
text = pipe.text_encoder.config.to_dict() | {"hidden_size": config["cross_attention_dim"]}
pipe.text_encoder = text_encoder("text_encoder", **text)
pipe.unet = UNet2DConditionModel(**config).eval()
run = probe.record(pipe, ["a church"], out=sys.argv[1], steps=1, height=32, width=32, images=False, progress=False)
ds = run.open()
print(json.dumps({
    "shape": ds["unit_norm"].shape,
    "finite": bool(np.isfinite(ds["unit_norm"].values).all()),
    "squares": [float(np.square(s["unit_norm"].values, dtype=float).sum(-1).max()) for s in probe.by_site(ds).values()],
    "rows": [row["rows"] for row in json.loads(ds.attrs["sites"])],
    "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024),
}))
"""


@pytest.mark.slow
def test_recording_a_unet_of_the_size_of_sd15(tmp_path):
    """16 x 16 latents; each token row was brought to length 1, so squares of a site sum to its number of token rows."""
    pytest.importorskip("resource")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", AT_FULL_SIZE, str(tmp_path / "run")],
        capture_output=True,
        text=True,
        check=True,
    )
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["shape"] == [1, 2, 1, 49_920]
    assert found["finite"]
    assert found["rows"] == [256, 256, 64, 64, 16, 16, 4, 16, 16, 16, 64, 64, 64, 256, 256, 256]
    assert found["squares"] == pytest.approx(found["rows"], rel=1e-3)
    assert found["peak"] < 8e9

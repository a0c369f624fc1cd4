"""Maps of words against sums made by hand from the same run; and the similarity of tokens."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from probe._record import record
from probe._sites import sites
from probe.attention import token_similarity, word_maps
from probe.errors import BadInput, UnknownName
from probe.testing import tiny_pipeline

# no merges: a word has as many tokens as letters; positions in "a cat on a hat": a 1, cat 2-4, on 5-6, a 7, hat 8-10
PROMPTS = ["a cat on a hat", "hat"]
CAT, A, END = [2, 3, 4], [1, 7], 11


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A run of positions and a run of words, of pictures twice as wide as high."""
    pipe, folder = tiny_pipeline(), tmp_path_factory.mktemp("runs")
    options = {"sites": "xattn.prob", "steps": 2, "height": 16, "width": 32, "progress": False, "seeds": 3}
    made = {
        "places": record(pipe, PROMPTS, out=folder / "places", **options),
        "words": record(pipe, PROMPTS, out=folder / "words", tokens=["cat", "a"], **options),
        "few": record(pipe, PROMPTS, out=folder / "few", tokens=[0, 2, 3], heads=[1], **options),
        "plain": record(pipe, PROMPTS, out=folder / "plain", **{**options, "sites": "*mid*.ffn"}),
    }
    return SimpleNamespace(pipe=pipe, sites=[site.name for site in sites(pipe, "xattn.prob")], **made)


def stored(run, site: str) -> np.ndarray:
    """(s t h y x token) of the branch cond."""
    group = next(name for name in run.groups if name.endswith(site))
    return run.open(group)["prob"].sel(branch="cond").values


def test_sub_tokens_are_summed_and_heads_and_layers_averaged(world) -> None:
    found = word_maps(world.places, ["cat", "a", "[SoT]", "[EoT]", "[PAD]"], samples=[0], pipe=world.pipe)
    attention = found["attention"]
    assert attention.dims == ("sample", "step", "word", "y", "x")
    assert attention.shape == (1, 2, 5, 8, 16), "the finest grid, in the aspect of the picture"
    assert found["timestep"].values.tolist() == [501, 1]
    assert found["prompt"].values.tolist() == PROMPTS[:1]
    fine = [name for name in world.sites if stored(world.places, name).shape[3] == 8]
    coarse = [name for name in world.sites if name not in fine]
    wanted = 0
    for name in world.sites:
        prob = stored(world.places, name)[0].mean(1)  # t y x token
        groups = (CAT, A, [0], [END], range(END + 1, 32))
        maps = np.stack([prob[..., list(places)].sum(-1) for places in groups], 1)
        if name in coarse:
            maps = torch.nn.functional.interpolate(torch.from_numpy(maps), (8, 16), mode="bilinear").numpy()
        wanted = wanted + maps / len(world.sites)
    np.testing.assert_allclose(attention.values[0], wanted, rtol=1e-4, atol=1e-6)
    (text,) = (word_maps(world.places, "cat on a hat", samples=[0], sites=fine, pipe=world.pipe)["attention"],)
    rest = word_maps(world.places, ["a", "[SoT]", "[EoT]", "[PAD]"], samples=[0], sites=fine, pipe=world.pipe)
    first = stored(world.places, fine[0])[0].mean(1)[..., 7]
    assert float(text.mean()) + float(rest["attention"].sum("word").mean()) > 1, "the second a counts in both"
    assert float(text.mean() + rest["attention"].sum("word").mean()) < 1 + 2 * first.max()


def test_a_run_of_words_needs_no_tokenizer_and_gives_the_same(world) -> None:
    kept = word_maps(world.words)
    assert kept["word"].values.tolist() == ["cat", "a"]
    found = word_maps(world.places, ["cat", "a"], pipe=world.pipe)
    np.testing.assert_allclose(kept["attention"].values, found["attention"].values, rtol=1e-4, atol=1e-7)
    assert np.isnan(kept["attention"].values[1]).all(), "the second prompt has neither word"
    assert not np.isnan(kept["attention"].values[0]).any()
    assert word_maps(world.places, "cat", pipe=world.pipe.tokenizer).sizes["word"] == 1


def test_filters_by_layer_head_and_step(world) -> None:
    name = world.sites[1]
    found = word_maps(world.words, "cat", samples=[0], sites="*mid*", heads=[2], window=(400, 0))
    assert found["timestep"].values.tolist() == [1]
    cat = stored(world.places, name)[0, 1, 2][..., CAT].sum(-1)
    np.testing.assert_allclose(found["attention"].values[0, 0, 0], cat, rtol=1e-4)
    apart = word_maps(world.words, "cat", samples=[0], by_site=True, size=(4, 8))
    assert apart["attention"].dims == ("sample", "site", "step", "word", "y", "x")
    assert apart["site"].values.tolist() == world.sites
    np.testing.assert_allclose(
        apart["attention"].sel(site=name).values[0, 1, 0], stored(world.words, name)[0, 1, ..., 0].mean(0), rtol=1e-4
    )
    np.testing.assert_allclose(
        apart["attention"].mean("site").values,
        word_maps(world.words, "cat", samples=[0], size=(4, 8))["attention"].values,
        rtol=1e-4,
    )
    fine = world.sites[0]
    smaller = apart["attention"].sel(site=fine).values[0, 0, 0]
    np.testing.assert_allclose(smaller.mean(), stored(world.words, fine)[0, 0, ..., 0].mean(), rtol=2e-2)


def test_every_word_of_one_prompt(world) -> None:
    found = word_maps(world.places, samples=[0], pipe=world.pipe)
    assert found["word"].values.tolist() == ["a", "cat", "on", "hat", "[EoT]"]
    kept = word_maps(world.few, ["[SoT]"])
    assert kept.sizes == {"sample": 2, "step": 2, "word": 1, "y": 8, "x": 16}
    uncond = word_maps(world.places, ["[EoT]"], samples=[0], branch="uncond", sites=world.sites[0], pipe=world.pipe)
    group = next(name for name in world.places.groups if name.endswith(world.sites[0]))
    wanted = world.places.open(group)["prob"].sel(branch="uncond").values[0, ..., 1].mean(1)  # its text is empty
    np.testing.assert_allclose(uncond["attention"].values[0, :, 0], wanted, rtol=1e-4)


def test_what_has_no_maps(world) -> None:
    for run, words, options, error, part in (
        (world.plain, "cat", {}, BadInput, "--sites xattn.prob"),
        (world.places, "cat", {}, BadInput, "give pipe="),
        (world.places, None, {}, BadInput, "give pipe="),
        (world.places, None, {"pipe": world.pipe}, BadInput, "different prompts"),
        (world.places, "hta", {"pipe": world.pipe}, BadInput, "nearest: hat"),
        (world.places, ["cat", "cat"], {"pipe": world.pipe}, BadInput, "different ones"),
        (world.few, "cat", {"pipe": world.pipe}, BadInput, "did not keep the tokens"),
        (world.few, "[SoT]", {"heads": [0]}, BadInput, "any of 1"),
        (world.words, None, {"samples": [2]}, BadInput, "0 to 1"),
        (world.words, None, {"window": (400, 300)}, BadInput, "around any of 501, 1"),
        (world.words, None, {"sites": "unet.mdi*"}, UnknownName, "unknown site"),
        (world.words, None, {"size": (0, 4)}, BadInput, "at least one place"),
        (world.words, None, {"hedas": [0]}, UnknownName, "nearest: heads"),
    ):
        with pytest.raises(error, match=part):
            word_maps(run, words, **options)


def test_similarity_is_the_cosine_of_what_the_unet_is_told(world) -> None:
    table = token_similarity(world.pipe, "a cat")
    names = ["0 [SoT]", "1 a", "2 c-", "3 a-", "4 t", "5 [EoT]"]
    assert table.index.tolist()[:6] == names
    assert table.columns.tolist()[-1] == "31 [EoT]"
    told, _ = world.pipe.encode_prompt("a cat", "cpu", 1, False)
    x = told[0].detach().double()
    wanted = torch.nn.functional.cosine_similarity(x[:, None], x[None], dim=-1)
    np.testing.assert_allclose(table.to_numpy(), wanted.numpy(), atol=1e-6)
    assert token_similarity(tiny_pipeline("sdxl"), "a cat").shape == (32, 32)
    with pytest.raises(BadInput, match="one prompt"):
        token_similarity(world.pipe, ["a", "b"])

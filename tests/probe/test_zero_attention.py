"""Zeroed attention against attention written out by hand; and that nothing of it outlives the block."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from probe import provenance
from probe._attending import OFF
from probe._generate import generate
from probe._record import record
from probe._samples import samples
from probe._sites import sites
from probe.attention import attention_zeroing, token_positions, zero_attention
from probe.errors import AmbiguousBatch, BadInput, UnknownName
from probe.guidance import condition, predict
from probe.protocols import EditLike
from probe.testing import tiny_pipeline
from probe.tokens import encode
from tests.oracles.attention import WrittenOut, put_in
from tests.probe.test_intervene import hooks_of

PROMPT = "a cat"  # SoT, a, c, a, t, then [EoT] from 5 to 31
END, LENGTH, STEPS = 5, 32, 2
ALL_EOT = list(range(END, LENGTH))


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline()


def latents(pipe, prompts=(PROMPT,), seeds=(7,), guidance=7.5, **options) -> np.ndarray:
    """What the last step makes, before the VAE: differences of one part in a million are seen."""
    noise = [torch.randn(4, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    given = {"num_inference_steps": STEPS, "guidance_scale": guidance, "output_type": "latent"} | options
    return pipe(list(prompts), latents=torch.stack(noise), **given).images.numpy()


def by_hand(pipe, gone, only=None, heads=None, renormalise=False, rows=(1,), **options) -> np.ndarray:
    """The same with attention written out: ``gone`` positions in the given rows of [uncond, cond]."""
    off = torch.zeros(2, LENGTH, dtype=torch.bool)
    for row in rows:
        off[row, gone] = True
    before = put_in(pipe, WrittenOut(off, heads, renormalise), only)
    try:
        return latents(pipe, **options)
    finally:
        pipe.unet.set_attn_processor(before)


@pytest.mark.parametrize(
    ("tokens", "options", "gone"),
    [
        ("sot", {}, [0]),
        ("keyword", {"keyword": "cat"}, [2, 3, 4]),
        ("first_eot", {}, [END]),
        ("all_eot", {}, ALL_EOT),
        ("all_eot", {"leave": 2}, ALL_EOT[2:]),
        ("all_eot", {"leave": 2, "leave_side": "last"}, ALL_EOT[:-2]),
        ("all_eot", {"leave": 99}, []),
        (3, {}, [3]),
        (["sot", "keyword", 1], {"keyword": ["cat", "a"]}, [0, 1, 2, 3, 4]),
    ],
)
def test_the_maps_of_chosen_tokens_are_zero(pipe, tokens, options, gone) -> None:
    with zero_attention(pipe, tokens, **options):
        found = latents(pipe)
    np.testing.assert_allclose(found, by_hand(pipe, gone), rtol=1e-4, atol=1e-5)
    assert np.allclose(found, latents(pipe), rtol=1e-4, atol=1e-5) == (not gone)
    assert token_positions(pipe.tokenizer, encode(pipe.tokenizer, PROMPT)[0], tokens, **_words(options)) == gone


def _words(options: dict) -> dict:
    word = options.get("keyword", ())
    return {**options, "keyword": [word] if isinstance(word, str) else word}


@pytest.mark.parametrize(("branch", "rows"), [("uncond", (0,)), (None, (0, 1))])
def test_branches_have_texts_of_their_own(pipe, branch, rows) -> None:
    """The uncond text is empty here: its first [EoT] is at position 1."""
    off = torch.zeros(2, LENGTH, dtype=torch.bool)
    off[1, END], off[0, 1] = 1 in rows, True
    before = put_in(pipe, WrittenOut(off))
    try:
        wanted = latents(pipe)
    finally:
        pipe.unet.set_attn_processor(before)
    with zero_attention(pipe, "first_eot", branch=branch):
        np.testing.assert_allclose(latents(pipe), wanted, rtol=1e-4, atol=1e-5)


def test_heads_layers_windows_and_what_is_left_summing_to_one(pipe) -> None:
    name = sites(pipe, "xattn.prob")[1].name
    close = {"rtol": 1e-4, "atol": 1e-5}
    with zero_attention(pipe, "all_eot", heads=[1, 3]):
        np.testing.assert_allclose(latents(pipe), by_hand(pipe, ALL_EOT, heads=[1, 3]), **close)
    with zero_attention(pipe, "all_eot", sites=name):
        np.testing.assert_allclose(latents(pipe), by_hand(pipe, ALL_EOT, only="mid_block"), **close)
    with zero_attention(pipe, "all_eot", renormalise=True):
        np.testing.assert_allclose(latents(pipe), by_hand(pipe, ALL_EOT, renormalise=True), **close)
    with zero_attention(pipe, "all_eot", renormalise=True, heads=[0]):
        np.testing.assert_allclose(latents(pipe), by_hand(pipe, ALL_EOT, renormalise=True, heads=[0]), **close)
    plain, whole = latents(pipe), by_hand(pipe, ALL_EOT)
    with zero_attention(pipe, "all_eot", window=(999, 0)):
        np.testing.assert_allclose(latents(pipe), whole, **close)
    with zero_attention(pipe, "all_eot", window=(999, 990)):
        np.testing.assert_array_equal(latents(pipe), plain)
    with zero_attention(pipe, "all_eot", window=(999, 400)):
        early = latents(pipe)
    assert not np.allclose(early, plain, **close)
    assert not np.allclose(early, whole, **close)


def test_prompts_of_other_lengths_and_several_images_of_each(pipe) -> None:
    prompts, close = ["a cat", "something else", ""], {"rtol": 1e-4, "atol": 1e-5}
    with zero_attention(pipe, "all_eot", leave=1):
        alone = [latents(pipe, [prompt], [seed]) for prompt in prompts for seed in (3, 4)]
        together = latents(pipe, prompts, [3, 4] * 3, num_images_per_prompt=2)
        unguided = latents(pipe, prompts[:1], [3], guidance=1.0)
    np.testing.assert_allclose(together, np.concatenate(alone), **close)
    assert not np.allclose(unguided, latents(pipe, prompts[:1], [3], guidance=1.0), **close)
    with zero_attention(pipe, "keyword", keyword="cat", absent="ignore"):
        ignored = latents(pipe, ["something else"], [3])
    np.testing.assert_array_equal(ignored, latents(pipe, ["something else"], [3]))


def test_a_loop_of_ones_own_says_prompts_and_branches(pipe) -> None:
    told = condition(pipe, [PROMPT], guidance=7.5)
    x, t = torch.ones(1, 4, 8, 8), torch.tensor(401)
    with torch.no_grad():
        off = torch.zeros(2, LENGTH, dtype=torch.bool)
        off[1, ALL_EOT] = True
        before = put_in(pipe, WrittenOut(off))
        wanted = predict(pipe, x, t, told)
        pipe.unet.set_attn_processor(before)
        with zero_attention(pipe, "all_eot", prompts=[PROMPT], branches=("uncond", "cond")):
            torch.testing.assert_close(predict(pipe, x, t, told), wanted, rtol=1e-4, atol=1e-5)
        with (
            pytest.raises(BadInput, match="encode prompts inside"),
            zero_attention(pipe, "all_eot", branches=("uncond", "cond")),
        ):
            predict(pipe, x, t, told)
        other = condition(pipe, ["a house"], guidance=7.5)
        with zero_attention(pipe, "all_eot", branches=("uncond", "cond")):
            predict(pipe, x, t, condition(pipe, [PROMPT], guidance=7.5))
            with pytest.raises(BadInput, match="encode prompts inside"):
                predict(pipe, x, t, other)
        with (
            pytest.raises(AmbiguousBatch, match="no multiple"),
            zero_attention(pipe, "all_eot", prompts=["a", "b"], branches=("uncond", "cond")),
        ):
            predict(pipe, x, t, told)


def test_gradients_pass_through(pipe) -> None:
    told = condition(pipe, [PROMPT], guidance=1.0)
    x = torch.ones(1, 4, 8, 8, requires_grad=True)
    text = told.text.detach().requires_grad_()
    with zero_attention(pipe, "all_eot", prompts=[PROMPT], branches=("cond",)):
        out = pipe.unet(x, 401, text).sample
    by_x, by_text = torch.autograd.grad(out.square().sum(), [x, text])
    assert by_x.abs().sum() > 0
    assert by_text[0, 1:END].abs().sum() > 0


def test_recorded_probabilities_are_those_it_works_with(pipe, tmp_path) -> None:
    options = {"sites": "xattn.prob", "steps": 1, "progress": False, "images": False, "seeds": 7}
    group = f"maps/000-{sites(pipe, 'xattn.prob')[0].name}"
    plain = record(pipe, [PROMPT], out=tmp_path / "plain", **options).open(group)["prob"].values[0, 1, 0]
    for name, renormalise in (("zero", False), ("less", True)):
        zeroing = attention_zeroing("all_eot", heads=[1], renormalise=renormalise)
        with zeroing.applied(pipe):
            run = record(pipe, [PROMPT], out=tmp_path / name, **options)
        assert run.identity["lineage"] == [[zeroing.id, "no attention to all_eot"]]
        found = run.open(group)["prob"].values[0, :, 0]
        assert (found[1, 1][..., ALL_EOT] == 0).all()
        kept = plain[1][..., :END]
        kept = kept / kept.sum(-1, keepdims=True) if renormalise else kept
        np.testing.assert_allclose(found[1, 1][..., :END], kept, rtol=1e-4)
        np.testing.assert_allclose(found[1, [0, 2]], plain[[0, 2]], rtol=1e-4)
        assert (found[0, 1][..., ALL_EOT] > 0).all(), "the uncond branch is left alone"


def test_sdxl_reads_both_encoders() -> None:
    xl = tiny_pipeline("sdxl")
    table = samples([PROMPT], 7)
    plain = generate(xl, table, steps=1, progress=False)
    with zero_attention(xl, "all_eot"):
        assert not np.array_equal(generate(xl, table, steps=1, progress=False), plain)
    with pytest.raises(BadInput, match="no text of branch uncond"), zero_attention(xl, "all_eot", branch=None):
        generate(xl, table, steps=1, progress=False)
    with zero_attention(xl, "all_eot", branch="uncond"):
        generate(xl, samples([PROMPT], 7, negative_prompt="a dog"), steps=1, progress=False)
    with pytest.raises(BadInput, match="different prompts"), zero_attention(xl, "all_eot"):
        xl(PROMPT, prompt_2="something longer", num_inference_steps=1)
    assert set(hooks_of_unet(xl)) == {0}


def hooks_of_unet(pipe) -> list[int]:
    return [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in pipe.unet.modules()]


@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt, "inside"])
@pytest.mark.parametrize("renormalise", [False, True])
def test_nothing_outlives_the_block(pipe, error, renormalise) -> None:
    weights = {name: tensor.clone() for name, tensor in pipe.unet.state_dict().items()}
    plain, before = latents(pipe), hooks_of(pipe)
    processors = dict(pipe.unet.attn_processors)

    def inside() -> None:
        with zero_attention(pipe, "all_eot"), zero_attention(pipe, "sot", renormalise=renormalise):
            assert all(hasattr(site.resolve(pipe), OFF) for site in sites(pipe, "xattn.prob"))
            latents(pipe)
            if error == "inside":
                told = torch.ones(1, LENGTH, 32)
                pipe(prompt_embeds=told, negative_prompt_embeds=told, num_inference_steps=1, output_type="latent")
            elif error is not None:
                raise error

    if error is None:
        inside()
    else:
        with pytest.raises(BadInput if error == "inside" else error):
            inside()
    assert hooks_of(pipe) == before
    assert provenance.lineage(pipe) == []
    assert pipe.unet.attn_processors == processors
    assert all(torch.equal(tensor, weights[name]) for name, tensor in pipe.unet.state_dict().items())
    np.testing.assert_array_equal(latents(pipe), plain)


def test_nested_zeroings_add_up(pipe) -> None:
    with zero_attention(pipe, "first_eot"), zero_attention(pipe, "sot"):
        nested = latents(pipe)
        assert len(provenance.lineage(pipe)) == 2
    with zero_attention(pipe, ["sot", "first_eot"]):
        np.testing.assert_allclose(nested, latents(pipe), rtol=1e-5, atol=1e-6)


def test_it_is_like_an_edit_and_its_id_says_what_it_does() -> None:
    one = attention_zeroing("all_eot")
    assert isinstance(one, EditLike)
    assert one.name == "no attention to all_eot"
    assert attention_zeroing(["sot", "all_eot"], leave=3).name == "no attention to sot + all_eot but 3"
    assert one.id == attention_zeroing(["all_eot"], name="other").id
    options = [
        {"leave": 1}, {"leave": 1, "leave_side": "last"}, {"heads": [0]}, {"window": (999, 500)}, {"branch": None},
        {"sites": "*mid*.xattn.prob"}, {"renormalise": True}, {"prompts": ["a"]}, {"branches": ("cond",)},
    ]  # fmt: skip
    ids = {one.id, attention_zeroing("sot").id, *(attention_zeroing("all_eot", **o).id for o in options)}
    assert len(ids) == len(options) + 2


def test_what_cannot_be_done(pipe) -> None:
    for tokens, options, part in (
        ("keyword", {}, "belong together"),
        ("sot", {"keyword": "cat"}, "belong together"),
        ("keyword", {"keyword": [" "]}, "not empty"),
        ("sot", {"leave": 1}, "a number of all_eot"),
        ("all_eot", {"leave": -1}, "a number of all_eot"),
        ("all_eot", {"heads": []}, "different ones"),
        ("all_eot", {"window": (1, 500)}, "larger timestep first"),
        ("all_eot", {"prompts": []}, "list of prompts"),
        ([], {}, "no token is named"),
    ):
        with pytest.raises(BadInput, match=part):
            attention_zeroing(tokens, **options)
    with pytest.raises(UnknownName, match="nearest: all_eot"):
        attention_zeroing("al_eot")
    with pytest.raises(UnknownName, match="nearest: heads"):
        attention_zeroing("sot", hedas=[1])
    for tokens, options, error, part in (
        ("sot", {"sites": "*.xattn.out"}, BadInput, "where there is attention"),
        ("sot", {"sites": "unet.mdi*"}, UnknownName, "unknown site"),
        ("sot", {"heads": [99]}, BadInput, "no such head"),
        (32, {}, BadInput, "no such position"),
    ):
        with pytest.raises(error, match=part), zero_attention(pipe, tokens, **options):
            pass
    with pytest.raises(BadInput, match=r"no keyword \(dog\) in the prompt.*a cat"):  # noqa: SIM117
        with zero_attention(pipe, "keyword", keyword="dog"):
            latents(pipe)
    with pytest.raises(BadInput, match="no token is left"):  # noqa: SIM117
        with zero_attention(pipe, list(range(LENGTH)), renormalise=True):
            latents(pipe)
    fused = tiny_pipeline()
    fused.unet.fuse_qkv_projections()
    with pytest.raises(BadInput, match="unfuse"), zero_attention(fused, "sot"):
        pass
    assert set(hooks_of(pipe).values()) == {0}

"""Every attack on every kind of tiny pipeline, and what each of them promises."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from probe import guidance
from probe.attacks import AttackSet, attack, images_of, read_prompts
from probe.attacks import _drawing as drawing
from probe.attacks._drawing import Drawing
from probe.attacks._ring_a_bell import concept_pairs
from probe.attacks._speaking import ids_of, told
from probe.errors import BadInput
from probe.testing import KINDS, tiny_pipeline
from tests.erase.snapshots import snapshot
from tests.probe.attacks.attacking import CHURCH, PROMPTS, QUICK, Opaque, Told, attacked
from tests.probe.measuring import ScaledWeight, concept

SMALL = {
    "p4d": {"k": 3, "iterations": 2, "every": 1},
    "ring_a_bell": {"k": 3, "population": 4, "generations": 2, "pairs": [("a church", "a house")]},
    "mma": {"k": 3, "iterations": 2, "swaps": 6, "ranked": 4},
    "inversion": {"iterations": 2, "batch": 2, "examples": 2},
    "tina": {"iterations": 1},
    "completion": {"starts": (0.5,)},
    "relearn": {"stops": (1, 2), "examples": 2},
}
CARRIERS = {"inversion": "embedding", "tina": "latents", "completion": "start", "relearn": "weights"}


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", SMALL)
def test_a_step_on_every_pipeline_is_kept_and_drawn_again_alike(kind, method, tmp_path):
    pipe = tiny_pipeline(kind)
    attacked(pipe, "random", images=1)  # SDXL's encoders keep hooks of their own from the first call on
    before, edit, judge = snapshot(pipe), ScaledWeight(0.5), Told()
    found = attacked(pipe, method, judge=judge, edit=edit, out=tmp_path / "set", **SMALL[method])
    assert snapshot(pipe) == before
    assert [row.source for row in found] == PROMPTS
    assert all(row.cost["images"] >= 1 and row.before is False for row in found)
    again = AttackSet.load(tmp_path / "set")
    assert [row.to_json() for row in again] == [row.to_json() for row in found]
    attacks = [row for row in found if row.carrier == CARRIERS.get(method, "tokens")]
    assert attacks or method not in CARRIERS
    # what is loaded draws the pictures that the judge saw
    images = images_of(pipe, again, Drawing(2, 7.5, (16, 16)), edit=edit)
    for image in images:
        assert min(np.abs(image.astype(int) - seen.astype(int)).max() for seen in judge.images) <= 1


def test_ps_projection_uses_the_gradient_at_the_projected_embedding(pipe):
    """PEZ: the update of the continuous embedding is AdamW's with the gradient taken at the nearest token."""
    from probe.attacks import _p4d as module
    from probe.attacks import attack_names, register_attack

    seen = {}

    def spy(search, *, k: int = 2) -> None:
        search.start()
        case = search.active[0]
        it = module._Attack(search, [case], [(-1,) * k], 0.1, 0.1, "noise")
        start = it.e.detach().clone()
        ids = it._nearest([0])
        x = torch.randn((1, 4, 8, 8), generator=case.rng)
        goal = torch.randn((1, 4, 8, 8), generator=case.rng)
        with search.edited(), module.differentiating(search.pipe):
            vectors = {n: table[ids].requires_grad_() for n, table in it.tables.items()}
            loss = (search.noise([case], x, 500, told(search.pipe, [(-1,) * k], vectors)) - goal).square().mean()
            gradient = torch.cat(torch.autograd.grad(loss, list(vectors.values())), -1)
            it._update([0], [case], 500, x, goal)
        # AdamW's first step is lr times the sign of the gradient, after decay
        seen["error"] = (it.e.detach() - (start * (1 - 0.1 * 0.1) - 0.1 * gradient.sign())).abs().max()
        seen["big"] = gradient.abs().min()

    if "pez spy" not in attack_names():
        register_attack("pez spy", spy)
    attacked(pipe, "pez spy", prompts=PROMPTS[:1])
    assert seen["big"] > 0
    assert seen["error"] < 2e-2  # AdamW's epsilon where a gradient is small


def test_p4d_k_keeps_the_words_and_frees_one_token_before_every_third(pipe):
    found = attacked(pipe, "p4d", form="k", iterations=1, every=1)
    for row in found:
        ids = ids_of(pipe.tokenizer, row.source)
        kept = [token for i, token in enumerate(row.token_ids) if i % 4]
        assert tuple(kept) == ids
        assert len(row.token_ids) == len(ids) + -(-len(ids) // 3)


def test_ring_a_bell_moves_towards_the_prompt_plus_the_concept_and_never_loses_the_best(pipe):
    options = {
        "k": 3,
        "population": 12,
        "pairs": [("a church", "a house"), ("church", "hut")],
        "prompts": PROMPTS[:1],
        "positions": "all",
    }
    losses = [attacked(pipe, "ring_a_bell", generations=n, **options).rows[0].loss for n in (1, 4, 12)]
    assert losses[0] >= losses[1] >= losses[2]
    row = attacked(pipe, "ring_a_bell", generations=4, **options).rows[0]
    with torch.no_grad():
        texts = ["a church", "a church", "a house", "church", "hut"]
        f = guidance.condition(pipe, texts, guidance=1.0).text
        target = f[0] + 3.0 * ((f[1] - f[2]) + (f[3] - f[4])) / 2
        own = told(pipe, [row.token_ids]).text[0]
    assert row.loss == pytest.approx(float((own - target).square().sum()), rel=1e-4)


def test_pairs_come_from_references_or_the_anchor():
    own = concept("church", references={"neighbour": tuple("abcdef")})
    assert concept_pairs(own) == list(zip(own.prompts["explicit"], "abcdef", strict=True))
    swapped = concept_pairs(concept("church", anchor="house"))
    assert swapped[0] == ("one church, tuning 0", "one house, tuning 0")
    with pytest.raises(BadInput, match="pairs"):
        concept_pairs(concept("church"))


def test_mma_without_a_swap_that_may_be_spelt_draws_anew_and_says_if_it_found_nothing(pipe, monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr("probe.attacks._mma._survives", lambda _search, _case, ids: seen.append(ids))
    attacked(pipe, "mma", out=tmp_path / "set", **{**SMALL["mma"], "k": 8})
    rows = AttackSet.load(tmp_path / "set").rows
    assert all(row.finished and row.prompt == row.source and row.loss is None for row in rows)
    apart = [sum(a != b for a, b in zip(seen[0], ids, strict=True)) for ids in seen]
    assert max(apart[:12]) > 2, "two swaps around one start differ in two tokens at most"


def test_mma_begins_from_random_tokens_or_from_single_letters(pipe, monkeypatch):
    seen = []
    monkeypatch.setattr("probe.attacks._mma._survives", lambda _search, _case, ids: seen.append(ids))
    tokens = [f"{sign}</w>" for sign in "abc0123456789"]
    options = {**SMALL["mma"], "iterations": 1, "k": 8, "prompts": PROMPTS[:1], "tokens": tokens}
    sets = {begin: attacked(pipe, "mma", begin=begin, **options) for begin in ("random", "letters")}
    known = pipe.tokenizer.convert_ids_to_tokens
    letters = [sum(token in tokens[:3] for token in known(list(ids))) for ids in seen]
    assert min(letters[-6:]) >= 7, "one swap from eight letters"
    assert max(letters[:-6]) < 7
    plain = attacked(pipe, "mma", **options)
    assert plain.id == sets["random"].id != sets["letters"].id
    assert "begin" not in plain.identity["options"], "sets that were made before there was a choice go on"
    with pytest.raises(BadInput, match="no letters"):
        attacked(pipe, "mma", begin="letters", **{**options, "tokens": ["1</w>", "a"]})


def test_mma_finds_tokens_whose_pooled_text_is_nearer_and_says_how_near(pipe):
    options = {"k": 3, "swaps": 24, "ranked": 16, "prompts": PROMPTS[:1]}
    losses = [attacked(pipe, "mma", iterations=n, **options).rows[0].loss for n in (1, 6)]
    assert losses[1] <= losses[0]
    row = attacked(pipe, "mma", iterations=6, **options).rows[0]
    with torch.no_grad():
        pooled = [
            told(pipe, [ids]).text[0, len(ids) + 1] for ids in (row.token_ids, ids_of(pipe.tokenizer, row.source))
        ]
    assert row.loss == pytest.approx(1 - float(torch.cosine_similarity(*pooled, dim=0)), abs=1e-5)
    again = ids_of(pipe.tokenizer, row.prompt)
    assert len(again) == len(row.token_ids)


def test_banned_words_are_in_no_text_that_an_attack_finds(pipe):
    letters = replace(CHURCH, surface_forms=("a", "e", "i", "o", "u"))
    for method in ("ring_a_bell", "mma", "p4d"):
        found = attack(pipe, letters, method=method, judge=Told(), **{**QUICK, "vocab": "banned"}, **SMALL[method])
        assert all(not set(row.prompt.split()) & set("aeiou") for row in found if row.loss is not None)
        assert found.vocab == "banned"


def test_an_inversion_is_one_word_for_all_prompts_and_its_cost_is_shared(pipe):
    found = attacked(pipe, "inversion", **SMALL["inversion"])
    rows = [row for row in found if row.carrier == "embedding"]
    assert len({row.tensors for row in rows}) <= 1
    assert all(-1 in row.token_ids for row in rows)
    assert found.table()["backwards"].tolist() == [2, 2]  # 2 updates of 2 pictures over 2 prompts


def test_the_inverted_latents_lead_back_to_the_picture(pipe):
    """DDIM backwards and forwards: more refinement, a smaller way off."""
    edit = ScaledWeight(0.9)
    x_0 = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(0))
    from probe.attacks import _tina as module
    from probe.attacks import attack_names, register_attack

    ways = {}

    def spy(search, *, refinements: int = 1) -> None:
        search.start()
        with search.edited(), module.differentiating(search.pipe):
            x_T, _ = module._inverted(search, search.active[:1], x_0, refinements, 1e-3, gradients=False)
        with edit.applied(search.pipe), torch.no_grad():
            back = drawing.ddim(search.pipe, x_T, told(search.pipe, [()]), 4)
        ways[refinements] = float((back - x_0).square().mean())

    if "tina spy" not in attack_names():
        register_attack("tina spy", spy)
    for n in (1, 8, 32):
        attacked(pipe, "tina spy", prompts=PROMPTS[:1], refinements=n, edit=edit, steps=4)
    assert ways[32] < 0.5 * ways[8] < 0.25 * ways[1]


def test_the_ddim_step_is_that_of_the_scheduler(pipe):
    x, noise = torch.randn((2, 1, 4, 8, 8), generator=torch.Generator().manual_seed(1))
    scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
    scheduler.set_timesteps(10)
    t = scheduler.timesteps[3]
    expected = scheduler.step(noise, t, x, return_dict=False)[0]
    now, then = (guidance.alpha_bar(pipe, int(i)) for i in (t, scheduler.timesteps[4]))
    assert torch.allclose(drawing.ddim_step(x, noise, now, then), expected, atol=1e-4)
    assert drawing.grid(pipe, 10)[::-1] == scheduler.timesteps.tolist()


@pytest.mark.parametrize("scheduler", ["DDIMScheduler", "PNDMScheduler", "DDPMScheduler"])
def test_a_completion_of_nothing_taken_is_the_originals_own_picture(scheduler):
    """Also where the scheduler remembers former steps, or draws noise."""
    import diffusers

    from probe import generate, samples

    pipe = tiny_pipeline()
    own = {"skip_prk_steps": True} if scheduler == "PNDMScheduler" else {}
    pipe.scheduler = getattr(diffusers, scheduler).from_config(pipe.scheduler.config, **own)
    judge = Told()
    attacked(pipe, "completion", judge=judge, starts=(0.25, 0.75), steps=4, prompts=PROMPTS[:1])
    expected = generate(pipe, samples(PROMPTS[:1]), steps=4, progress=False)
    assert len(judge.images) == 3
    for image in judge.images:
        assert np.abs(image.astype(int) - expected[0].astype(int)).max() <= 1


def test_the_last_step_of_a_completion_is_the_edited_models(pipe):
    judge = Told()
    attacked(pipe, "completion", judge=judge, starts=(0.99,), prompts=PROMPTS[:1], edit=ScaledWeight(0.0))
    taken, plain = Told(), Told()
    attacked(pipe, "completion", judge=taken, starts=(0.99,), prompts=PROMPTS[:1])
    attacked(pipe, "completion", judge=plain, starts=(0.01,), prompts=PROMPTS[:1])
    assert np.abs(taken.images[1].astype(int) - plain.images[1].astype(int)).max() <= 1
    assert not np.array_equal(judge.images[1], taken.images[1])


def test_every_sample_of_a_denoising_loss_has_a_timestep_of_its_own(pipe):
    from probe.attacks import attack_names, register_attack
    from probe.attacks._inversion import Shared

    x_0 = torch.randn((6, 4, 8, 8), generator=torch.Generator().manual_seed(0))
    losses = []

    def spy(search) -> None:
        share, ids = Shared(search, search.active), [search.active[0].source_ids]
        with torch.no_grad():
            losses.append(share.denoising_loss(x_0, share.told(ids * 6), torch.Generator().manual_seed(3)))
            rng = torch.Generator().manual_seed(3)
            times, noise = torch.randint(1000, (6,), generator=rng).tolist(), torch.randn(x_0.shape, generator=rng)
            assert len(set(times)) > 1
            own = share.told(ids)
            for x, eps, t in zip(x_0[:, None], noise[:, None], times, strict=True):
                x_t = guidance.noised(x, eps, guidance.alpha_bar(search.pipe, t))
                losses.append((drawing.noise_at(search.pipe, x_t, t, own) - eps).square().mean())

    if "loss spy" not in attack_names():
        register_attack("loss spy", spy)
    attacked(pipe, "loss spy", prompts=PROMPTS[:1])
    assert float(losses[0]) == pytest.approx(float(torch.stack(losses[1:]).mean()), rel=1e-4)


def test_relearning_goes_on_from_stop_to_stop_and_moves_only_the_named_layers(pipe):
    options = {"examples": 2, "prompts": PROMPTS[:1], "lr": 1e-3, "layers": "attn2.to_k"}
    at_once = attacked(pipe, "relearn", stops=(3,), **options)
    in_parts = attacked(pipe, "relearn", stops=(1, 3), judge=Rising(), **options)
    last = [found.tensors[found.rows[0].tensors] for found in (at_once, in_parts)]
    assert set(last[0]) == {n for n, _ in pipe.unet.named_parameters() if "attn2.to_k" in n}
    assert all(torch.allclose(last[0][n], last[1][n], atol=1e-5) for n in last[0])
    assert any(float(t.abs().max()) > 1e-4 for t in last[0].values())


class Rising(Told):
    """The later the picture, the more of the concept: the last one found is kept."""

    def __call__(self, images):
        scores = super().__call__(images)
        scores[:, 0] = [0.1 + 0.01 * (self.seen - len(images) + i) for i in range(len(images))]
        return scores


def test_gradient_free_attacks_work_on_an_edit_that_gives_none_and_others_say_so(pipe):
    edit = Opaque(0.5)
    for method in ("ring_a_bell", "mma", "completion"):
        assert len(attacked(pipe, method, edit=edit, **SMALL[method])) == 2
    assert len(attacked(pipe, "tina", edit=edit, refine="fixed_point", iterations=1)) == 2
    for method in ("p4d", "inversion", "relearn", "tina"):
        with pytest.raises(BadInput, match="gradients"):
            attacked(pipe, method, edit=edit, **SMALL[method])


def test_bad_options(pipe):
    with pytest.raises(BadInput, match="share of the steps"):
        attacked(pipe, "completion", starts=(0.0,))
    with pytest.raises(BadInput, match="ascend"):
        attacked(pipe, "relearn", stops=(3, 2))
    with pytest.raises(BadInput, match="called so"):
        attacked(pipe, "relearn", layers="no such layer", stops=(1,), examples=1)


def test_published_prompts_bring_their_seeds_and_guidance(pipe, tmp_path):
    table = {"adv_prompt": ["q w a church", "x"], "sd_seed": [7, ""], "sd_guidance_scale": ["3.5", ""]}
    pd.DataFrame(table).to_csv(tmp_path / "theirs.csv", index=False)
    found = read_prompts(tmp_path / "theirs.csv", pipe, CHURCH, seed=4)
    assert [(row.seed, row.guidance, row.prompt) for row in found] == [(7, 3.5, "q w a church"), (4, 7.5, "x")]
    assert (found.method, found.protocol, found.name) == ("theirs", "transfer", "church")
    from probe import generate, samples

    expected = generate(
        pipe, samples({"prompt": ["q w a church"], "seed": [7], "guidance": [3.5]}), steps=2, progress=False
    )
    drawn = images_of(pipe, found, Drawing(2, 7.5, (16, 16)))
    assert np.abs(drawn[0].astype(int) - expected[0].astype(int)).max() <= 1


def test_published_prompts_of_one_target_are_all_kept(pipe, tmp_path):
    table = {"adv_prompt": ["q w", "x y", "x z"], "target_prompt": ["a church", "a church", "a church by the sea"]}
    pd.DataFrame(table).to_csv(tmp_path / "theirs.csv", index=False)
    found = read_prompts(tmp_path / "theirs.csv", pipe, CHURCH)
    assert [(row.source, row.prompt) for row in found] == list(zip(*reversed(table.values()), strict=True))
    found.save(tmp_path / "set")
    assert [row.to_json() for row in AttackSet.load(tmp_path / "set")] == [row.to_json() for row in found]


def test_published_prompts_that_cannot_be_read_are_named(pipe, tmp_path):
    file = tmp_path / "theirs.csv"
    with pytest.raises(BadInput, match="no file of prompts"):
        read_prompts(file, pipe, CHURCH)
    pd.DataFrame({"text": ["a" * 31, "b"]}).to_csv(file, index=False)
    with pytest.raises(BadInput, match="no column of prompts"):
        read_prompts(file, pipe, CHURCH)
    with pytest.raises(BadInput, match=r"31 tokens in row 1.*at most 30"):
        read_prompts(file, pipe, CHURCH, columns={"prompt": "text"})
    found = read_prompts(file, pipe, CHURCH, columns={"prompt": "text"}, too_long="drop")
    assert [row.prompt for row in found] == ["b"]
    with pytest.raises(BadInput, match="no such column"):
        read_prompts(file, pipe, CHURCH, columns={"prompt": "txt"})

from __future__ import annotations

import pytest
import torch

import erase
import probe
from erase.learn import Weights, parts_of, train
from erase.learn._ac_loss import AcObjective, BosBlocked
from erase.learn._clean import Pictures
from erase.learn._pairs import TEMPLATES, pairs
from probe.errors import BadInput
from probe.testing import tiny_pipeline
from tests.erase.learn.kit import FEW_PICTURES, schedule
from tests.erase.snapshots import snapshot
from tests.oracles import erasers as oracle

KINDS = ("sd15", "sd21", "sdxl")
PAIR = (("a church", "a building"),)


@pytest.fixture(scope="module", params=KINDS)
def any_pipe(request):
    pipe = tiny_pipeline(request.param)
    probe.generate(pipe, probe.samples(["a church"]), steps=1, progress=False)
    return pipe


def objective(pairs=PAIR, **changed):
    options = {
        "variant": "model", "anchor_by": "student", "prior": 0.0, "images": 2, "steps": 3, "scale": 6.0,
        "batch_size": 1, "seed": 0, "folder": None,
    }  # fmt: skip
    return AcObjective(pairs, *{**options, **changed}.values())


def point(pipe, n=1):
    pictures = Pictures(pipe, ["a building"], n=2, steps=3, scale=6.0, seed=0, folder=None)
    return pictures.batch(0, n)


# --- The loss ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["sd15", "sd21"])
@pytest.mark.parametrize("variant", ["model", "noise"])
def test_the_loss_before_learning_is_known(kind, variant):
    pipe = tiny_pipeline(kind)
    student = Weights(pipe, parts_of(pipe, "x-strict"))
    with student.in_force(0):
        found = objective(variant=variant).loss(pipe, student)(0)["erase"]
    drawn = point(pipe)
    of_target, of_anchor = (oracle.epsilon_of(pipe, drawn.x, int(drawn.timesteps[0]), text) for text in PAIR[0])
    wanted = of_anchor if variant == "model" else drawn.noise.flatten().tolist()
    assert float(found.detach()) == pytest.approx(oracle.mean_square(of_target, wanted), rel=1e-3)


def test_prior_preservation_is_the_diffusion_loss_on_further_pictures(pipe):
    student = Weights(pipe, parts_of(pipe, "x-strict"))
    with student.in_force(0):
        found = objective(prior=0.2).loss(pipe, student)(0)
    drawn = point(pipe, 2)
    predicted = oracle.epsilon_of(pipe, drawn.x[1:], int(drawn.timesteps[1]), "a building")
    assert float(found["prior"].detach()) == pytest.approx(
        0.2 * oracle.mean_square(predicted, drawn.noise[1:].flatten().tolist()), rel=1e-3
    )


def gradients(pipe, student, loss):
    with schedule().learning(pipe), student.in_force(0):
        sum(loss(0).values()).backward()
    found = {name: leaf.grad for name, leaf in student.leaves.items()}
    for leaf in student.leaves.values():
        leaf.grad = None
    return found


def test_the_same_prompt_gives_no_loss_and_no_gradient(pipe):
    student = Weights(pipe, parts_of(pipe, "x-strict"))
    loss = objective((("a church", "a church"),)).loss(pipe, student)
    with student.in_force(0):
        assert float(loss(0)["erase"].detach()) == 0
    assert all(not grad.any() for grad in gradients(pipe, student, loss).values())


def test_the_anchor_is_the_moving_students(pipe):
    losses = {}
    for by in ("student", "teacher"):
        student = Weights(pipe, parts_of(pipe, "x-strict"))
        loss = objective(anchor_by=by).loss(pipe, student)
        with student.in_force(0):
            start = float(loss(0)["erase"].detach())
            with torch.no_grad():
                for leaf in student.leaves.values():
                    leaf.mul_(1.5)
            losses[by] = start, float(loss(0)["erase"].detach())
    assert losses["student"][0] == losses["teacher"][0]
    assert losses["student"][1] != losses["teacher"][1]


# --- BOS --------------------------------------------------------------------------------------------------------------


def keys_and_values(pipe, student):
    """What a loss on the first token's keys and values, and on all others', leaves as gradients."""
    grads = {}
    for which in ("first", "others"):
        outputs = []
        with schedule().learning(pipe), student.in_force(0):
            hooks = [
                site.resolve(pipe).register_forward_hook(lambda _m, _a, output, seen=outputs: seen.append(output))
                for site in probe.sites(pipe, ["xattn.k", "xattn.v"])
            ]
            told = probe.guidance.condition(pipe, ["a church"], guidance=1.0)
            probe.guidance.predict(pipe, torch.randn(1, 4, 8, 8), 500, told)
            for hook in hooks:
                hook.remove()
            rows = slice(0, 1) if which == "first" else slice(1, None)
            total = sum(output[:, rows].square().sum() for output in outputs)
            if total.requires_grad:
                total.backward()
        grads[which] = [None if leaf.grad is None else leaf.grad.clone() for leaf in student.leaves.values()]
        for leaf in student.leaves.values():
            leaf.grad = None
    return grads


def test_no_gradient_passes_the_first_tokens_key_and_value(pipe):
    weights = Weights(pipe, parts_of(pipe, "x-strict"))
    plain, blocked = keys_and_values(pipe, weights), keys_and_values(pipe, BosBlocked(pipe, weights))
    assert all(grad is not None and grad.any() for grad in plain["first"])
    assert all(grad is None or not grad.any() for grad in blocked["first"]), "exactly zero"
    assert all(torch.equal(a, b) for a, b in zip(plain["others"], blocked["others"], strict=True))


def test_blocking_changes_gradients_and_no_prediction(pipe):
    before = snapshot(pipe)
    weights = Weights(pipe, parts_of(pipe, "x-strict"))
    loss = objective().loss(pipe, weights)
    with weights.in_force(0):
        plain = float(loss(0)["erase"].detach())
    with BosBlocked(pipe, weights).in_force(0):
        assert float(loss(0)["erase"].detach()) == plain
    one, other = gradients(pipe, weights, loss), gradients(pipe, BosBlocked(pipe, weights), loss)
    assert any(not torch.equal(one[name], other[name]) for name in one)
    assert snapshot(pipe) == before


# --- A training -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["model", "noise"])
def test_an_iteration_on_every_kind_of_model(any_pipe, variant):
    before = snapshot(any_pipe)
    edit = erase.ablating_concepts(
        any_pipe, "church", anchor="a building", variant=variant, prior=0.5, iterations=1, **FEW_PICTURES
    )
    assert snapshot(any_pipe) == before
    assert edit.params == tuple(sorted(part.param for part in parts_of(any_pipe, "x-strict")))
    assert set(edit.report["losses"]) == {"iteration", "loss", "erase", "prior"}
    with edit.applied(any_pipe):
        assert snapshot(any_pipe) != before


def test_the_defaults_are_the_releases(pipe):
    edit = erase.ablating_concepts(pipe, "church", anchor="a building", iterations=1, pictures=2, progress=False)
    told = edit.options
    assert (told["optimiser"], told["weight_decay"], told["clip"], told["batch_size"]) == ("adamw", 0.01, 1.0, 8)
    assert told["lr"] == pytest.approx(2e-6 * 8)
    assert told["block_bos"] is True


def test_a_training_is_resumed_with_its_pictures(pipe, tmp_path):
    few = {**FEW_PICTURES, "anchor": "a building", "training": tmp_path / "one"}
    erase.ablating_concepts(pipe, "church", iterations=2, **few)
    longer = erase.ablating_concepts(pipe, "church", iterations=4, **few)
    whole = erase.ablating_concepts(pipe, "church", iterations=4, **{**few, "training": tmp_path / "whole"})
    assert longer.id == whole.id


def test_noise_is_added_at_every_timestep_of_training(pipe):
    pictures = Pictures(pipe, ["a building", "a tower"], n=3, steps=2, scale=6.0, seed=0, folder=None)
    assert pictures.which == [0, 1, 0]
    batch = pictures.batch(0, 500)
    assert int(batch.timesteps.max()) > 950
    assert int(batch.timesteps.min()) < 50
    i = int(batch.timesteps.argmax())
    a = float(pipe.scheduler.alphas_cumprod[batch.timesteps[i]])
    x_0 = (batch.x[i] - (1 - a) ** 0.5 * batch.noise[i]) / a**0.5
    assert min(float((x_0 - known).abs().max()) for known in pictures.x_0) < 1e-2


# --- Pairs ------------------------------------------------------------------------------------------------------------


def test_a_concepts_prompts_with_its_anchor_in_place_of_every_form():
    world = probe.concepts("emoji")
    found = pairs(world["church"], None, None)
    assert ("look at a church", "look at a building") in found
    assert len(found) == 40
    assert all("church" not in other and "chapel" not in other for _, other in found)
    swords = pairs(world["weapon"], None, None)
    assert any(other.startswith("we can see an umbrella") for _, other in swords)


def test_a_style_without_an_anchor_gives_up_its_phrase():
    found = pairs(probe.concepts("emoji")["ink"], None, None)
    assert found[0] == ("a simple image of an airplane in ink style", "a simple image of an airplane")


def test_whole_words_are_exchanged_with_their_article():
    found = pairs("cat", "a dog", ["The cat sat", "a catalogue and a CAT", "concatenate"])
    assert found == [("The cat sat", "a dog sat"), ("a catalogue and a CAT", "a catalogue and a dog")]
    assert pairs("grumpy cat", "a cat", None)[0] == ("grumpy cat", "a cat")
    assert len(pairs("cat", "a dog", None)) == len(TEMPLATES)
    assert pairs(["cat", "fox"], "a dog", ["a cat", "a fox"]) == [("a cat", "a dog"), ("a fox", "a dog")]
    assert pairs("x", None, [("one", "two")]) == [("one", "two")]


@pytest.mark.parametrize(
    ("given", "anchor", "prompts", "said"),
    [
        ("church", None, None, "no anchor"),
        ("church", "a church", None, "the target"),
        ("church", "a house", ["a road"], "names church"),
        ("church", "a house", [("one", "one")], "the target"),
        ("church", "a house", [("one", 2)], "two texts"),
        ("church", "a house", [], "no prompt"),
    ],
)
def test_pairs_that_cannot_be_made(given, anchor, prompts, said):
    with pytest.raises(BadInput, match=said):
        pairs(given, anchor, prompts)


def test_what_is_preserved_is_retained(pipe):
    options = {**FEW_PICTURES, "iterations": 2, "anchor": "a building", "retain": 1.0, "preserve": ["a road"]}
    losses = erase.ablating_concepts(pipe, "church", **options).report["losses"]
    assert losses["retain"][0] < 1e-9 < losses["retain"][1], "the student starts as the model, and moves"


@pytest.mark.parametrize(("name", "value"), [("prior", -1.0), ("pictures", 0), ("batch_size", 0), ("lr", -1.0)])
def test_numbers_out_of_range(pipe, name, value):
    with pytest.raises(BadInput):
        erase.ablating_concepts(pipe, "church", anchor="a house", **{**FEW_PICTURES, name: value})


def test_a_frozen_anchor_differs_after_the_first_step_only(pipe):
    curves = []
    for by in ("student", "teacher"):
        student = Weights(pipe, parts_of(pipe, "x-strict"))
        loss = objective(anchor_by=by).loss(pipe, student)
        curves.append(train(pipe, student, loss, schedule(2), progress=False)["loss"].tolist())
    assert curves[0][0] == curves[1][0]
    assert curves[0][1] != curves[1][1]

"""TRCE (V): margins, targets and teacher by hand, the points it draws, and one training on tiny pipelines."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import yaml

import erase
from erase import steering
from erase.closed_form._points import Draws, spread, steering_points
from erase.closed_form._texts import Pair
from erase.closed_form._trce_trajectory import VISUAL, steering_loss
from erase.learn import parts_of
from probe import guidance
from probe.errors import BadInput, EditOrderError
from tests.erase.closed_form.worlds import KEEP, pipeline
from tests.erase.snapshots import snapshot
from tests.oracles import closed_form as oracle

KINDS = ("sd15", "sd21", "sdxl")
PAIRS = [Pair("a cat", "a hut"), Pair("one cat", "one hut")]
#: Few of everything; the margin keeps the hinge open, whatever tiny models of random weights predict.
SHORT = {"cached": 2, "retained": 2, "kept": 2, "steps": 4, "epochs": 1, "lr": 1e-3, "margin": 10.0, "progress": False}


@pytest.fixture(scope="module", params=KINDS)
def any_pipe(request):
    return pipeline(request.param)


@pytest.fixture
def file(tmp_path):
    content = {"concept": "cat", "templates": ["{}", "see {}"], "pairs": [["a cat", "a hut"], ["one cat", "one hut"]]}
    (tmp_path / "cat.yaml").write_text(yaml.safe_dump(content))
    return tmp_path / "cat.yaml"


def draws(seed=0, **changed):
    how = {
        "trajectories": 2,
        "retained": 2,
        "iterations": 3,
        "batch": 2,
        "kept": 2,
        "early": 2,
        "steps": 4,
        "seed": seed,
    }
    return Draws.of(**how | changed)


def points(pipe, found, **changed):
    how = {"steps": 4, "scale": 3.0, "beta": 15.0, "shifted": False, "advance": lambda n: None}
    return steering_points(pipe, PAIRS, found, **how | changed)


# --- the formulas -----------------------------------------------------------------------------------------------------


def latents(*values):
    return torch.tensor(values, dtype=torch.float64).reshape(len(values), 1, 1, -1)


def test_triplet_by_hand_on_two_latents():
    """mse to safe 0.5 and 0, to unsafe 2 and 0.125: 0.5 - 2 + 0.01 < 0, and 0 - 0.125 + 0.2 > 0."""
    prediction, safe = latents([1.0, 0.0], [1.0, 1.0]), latents([0.0, 0.0], [1.0, 1.0])
    unsafe = latents([1.0, 2.0], [1.0, 1.5])
    found = steering.triplet(prediction, safe, unsafe, 0.01)
    assert found.tolist() == [0.0, 0.0]
    wider = steering.triplet(prediction, safe, unsafe, 0.2)
    torch.testing.assert_close(wider, torch.tensor([0.0, 0.075], dtype=torch.float64))


@pytest.mark.parametrize("seed", range(5))
def test_triplet_and_targets_agree_with_the_slow_twin(seed):
    generator = torch.Generator().manual_seed(seed)
    p, s, u = (torch.randn(2, 4, 3, 3, generator=generator, dtype=torch.float64) for _ in range(3))
    expected = [oracle.triplet(*(x[i].numpy() for x in (p, s, u)), 0.3) for i in range(2)]
    np.testing.assert_allclose(steering.triplet(p, s, u, 0.3).numpy(), expected)
    np.testing.assert_allclose(steering.enhanced(p, s, 15.0).numpy(), oracle.guided(p.numpy(), s.numpy(), 15.0))


def test_the_gradient_leads_towards_safe_and_away_from_unsafe():
    p, s, u = (torch.tensor(x).reshape(1, 1, 1, 1).double() for x in (0.0, 1.0, -1.0))
    p.requires_grad_()
    steering.triplet(p, s, u, 0.01).sum().backward()
    assert float(p.grad) == pytest.approx(-4.0)  # -2 (s - p) + 2 (u - p)


# --- the points -------------------------------------------------------------------------------------------------------


def denoised(pipe, prompt, seed, steps, scale):
    """x_t at every step of one DDIM run, by the pipeline's own call."""
    seen = []

    def keep(pipe, step, timestep, inputs):
        seen.append(inputs["latents"].clone())
        return inputs

    shape = (1, 4, 8, 8)
    start = torch.randn(shape[1:], generator=torch.Generator().manual_seed(seed))[None]
    pipe(prompt, num_inference_steps=steps, guidance_scale=scale, latents=start.clone(), output_type="latent",
         callback_on_step_end=keep)  # fmt: skip
    return [start, *seen]


def test_points_are_those_of_the_pipelines_own_denoising(any_pipe):
    before = snapshot(any_pipe)
    found = draws()
    drawn = points(any_pipe, found)
    runs = [denoised(any_pipe, pair.source, noise, 4, 3.0) for pair, noise in zip(PAIRS, found.noises, strict=True)]
    times = any_pipe.scheduler.timesteps
    assert len(drawn.x) == len(PAIRS)
    for i, (row, step) in enumerate(zip(found.rows.tolist(), found.steps.tolist(), strict=True)):
        assert drawn.texts[i] == PAIRS[row].source
        torch.testing.assert_close(drawn.x[i], runs[row][step][0], atol=1e-4, rtol=1e-4)
        assert drawn.timesteps[i] == times[step]
    assert int(found.steps.max()) < 2  # the early half
    assert int(draws(kept=50).kept_steps.max()) > 1  # all steps
    assert snapshot(any_pipe) == before


def test_released_points_are_one_step_late(any_pipe):
    found = draws(redrawn=True)
    drawn = points(any_pipe, found, shifted=True)
    run = denoised(any_pipe, PAIRS[0].source, found.noises[0], 4, 3.0)
    i = found.rows.tolist().index(0)
    step = int(found.steps[i])
    torch.testing.assert_close(drawn.x[i], run[step + 1][0], atol=1e-4, rtol=1e-4)
    assert drawn.timesteps[i] == any_pipe.scheduler.timesteps[step]
    times = any_pipe.scheduler.timesteps[found.kept_steps]
    more = drawn.kept_timesteps - times
    assert bool(((more >= 0) & (more < 250)).all())
    assert bool((more > 0).any())


def epsilon(pipe, x, timestep, text):
    """The model's noise at x, by the UNet's own call; of v_prediction by definition."""
    told = guidance.condition(pipe, ["x"], guidance=2.0).part("uncond") if not text else None
    told = told or guidance.condition(pipe, [text], guidance=1.0)
    more = {} if told.added is None else {"added_cond_kwargs": told.added}
    with torch.no_grad():
        found = pipe.unet(x[None], timestep, encoder_hidden_states=told.text, **more).sample[0]
    if pipe.scheduler.config.prediction_type == "v_prediction":
        share = pipe.scheduler.alphas_cumprod[timestep]
        found = share.sqrt() * found + (1 - share).sqrt() * x
    return found.double().numpy()


def test_targets_are_those_of_the_untouched_model(any_pipe):
    drawn = points(any_pipe, found := draws())
    x, timestep, row = drawn.x[0], int(drawn.timesteps[0]), int(found.rows[0])
    empty = epsilon(any_pipe, x, timestep, "")
    for target, text in ((drawn.safe, PAIRS[row].target), (drawn.unsafe, PAIRS[row].source)):
        expected = oracle.guided(empty, epsilon(any_pipe, x, timestep, text), 15.0)
        np.testing.assert_allclose(target[0].numpy(), expected, atol=1e-3)
    kept = epsilon(any_pipe, drawn.kept_x[0], int(drawn.kept_timesteps[0]), "")
    np.testing.assert_allclose(drawn.kept_noise[0].numpy(), kept, atol=1e-5)


def test_the_loss_by_hand(any_pipe):
    drawn = points(any_pipe, found := draws())
    with torch.no_grad():
        terms = steering_loss(any_pipe, drawn, 0.01, 100.0)(1)
    total = []
    for i in found.order[1].tolist():
        x, timestep = drawn.x[i], int(drawn.timesteps[i])
        for text in (PAIRS[int(found.rows[i])].source, ""):
            prediction = epsilon(any_pipe, x, timestep, text)
            safe, unsafe = (t[i].double().numpy() for t in (drawn.safe, drawn.unsafe))
            total.append(oracle.triplet(prediction, safe, unsafe, 0.01))
    assert float(terms["erase"]) == pytest.approx(np.mean(total), rel=1e-3)
    assert float(terms["retain"]) < 1e-8  # nothing is trained yet


def test_the_ablation_takes_the_distance_from_safe_alone():
    pipe = pipeline()
    drawn = points(pipe, found := draws())
    with torch.no_grad():
        terms = steering_loss(pipe, drawn, 0.01, 100.0, "safe")(1)
    total = []
    for i in found.order[1].tolist():
        for text in (PAIRS[int(found.rows[i])].source, ""):
            prediction = epsilon(pipe, drawn.x[i], int(drawn.timesteps[i]), text)
            total.append(((prediction - drawn.safe[i].double().numpy()) ** 2).mean())
    assert float(terms["erase"]) == pytest.approx(np.mean(total), rel=1e-3)


@pytest.mark.parametrize("redrawn", [False, True])
def test_every_trajectory_is_visited_once_an_epoch_and_the_seed_decides(redrawn):
    found = draws(trajectories=6, iterations=9, batch=2, redrawn=redrawn)
    visited = found.rows[found.order].flatten().reshape(3, 6)
    assert [sorted(epoch.tolist()) for epoch in visited] == [list(range(6))] * 3
    assert len({tuple(epoch.tolist()) for epoch in visited}) == 3
    again, other = draws(trajectories=6, iterations=9), draws(1, trajectories=6, iterations=9)
    assert torch.equal(again.steps, draws(trajectories=6, iterations=9).steps)
    assert not torch.equal(again.order, other.order)
    assert again.noises != other.noises


def test_references_are_asked_for_once_whatever_the_epochs():
    """Of three epochs of 2 trajectories with 4 kept points an iteration: 3 rows a draw, 1 a kept point, no more."""
    pipe, calls = pipeline(), []
    found = draws(iterations=6, batch=1, kept=4, early=1, steps=1)  # at the first step nothing is denoised
    assert found.kept_order.shape == (6, 4)
    assert sorted(found.kept_order[:2].flatten().tolist()) == list(range(8))
    hook = pipe.unet.register_forward_pre_hook(lambda _module, args: calls.append(len(args[0])))
    drawn = points(pipe, found, steps=1)
    assert sum(calls) == 3 * 2 + 8
    calls.clear()
    steering_loss(pipe, drawn, 0.01, 100.0)(5)
    hook.remove()
    assert calls == [2 + 4]
    more = draws(iterations=6, batch=1, kept=4, redrawn=True)
    assert (len(more.rows), len(more.kept_rows)) == (6, 24)


def test_prompts_take_turns():
    chosen = spread(PAIRS, 5, 0)
    counts = [chosen.count(pair) for pair in PAIRS]
    assert sorted(counts) == [2, 3]


def test_a_cache_at_sd_size_is_small():
    """400 kept and 100 erased trajectories, three epochs: x_t and references of the draws alone."""
    found = draws(trajectories=100, retained=400, iterations=300, batch=1, kept=4)
    latent = 4 * 64 * 64 * 4
    assert len(found.rows) * (3 * latent) + len(found.kept_rows) * (2 * latent) < 1e9 / 12


# --- training ---------------------------------------------------------------------------------------------------------


def test_only_visual_layers_are_trained(any_pipe):
    trained = {part.param for part in parts_of(any_pipe, VISUAL)}
    expected = {
        f"unet.{name}"
        for name, _ in any_pipe.unet.named_parameters()
        if "attn1" in name or ("attn2" in name and "to_q" in name)
    }
    assert trained == expected
    assert any("attn1.to_out.0.bias" in param for param in trained)


def test_one_training(any_pipe, file):
    before = snapshot(any_pipe)
    edit = erase.trce_trajectory(any_pipe, "cat", augment=file, **SHORT)
    assert snapshot(any_pipe) == before
    assert {change.param for change in edit.changes} <= {part.param for part in parts_of(any_pipe, VISUAL)}
    assert any(change.dense().abs().max() > 0 for change in edit.changes)
    assert edit.options["iterations"] == 2
    again = erase.trce_trajectory(any_pipe, "cat", augment=file, **SHORT)
    assert again.id == edit.id


def test_training_turns_predictions_to_the_safe_side(file):
    pipe = pipeline()
    long = SHORT | {"epochs": 12, "lr": 1e-2, "retain": 0.0, "margin": 10.0, "beta": 3.0}
    edit = erase.trce_trajectory(pipe, "cat", augment=file, **long)
    curve = edit.report["losses"]["erase"]
    assert np.mean(curve[-4:]) < np.mean(curve[:4])


def test_retaining_holds_unconditional_predictions(file):
    pipe = pipeline()
    long = SHORT | {"epochs": 6, "lr": 3e-3, "margin": 10.0}
    free, held = (
        erase.trce_trajectory(pipe, "cat", augment=file, **long | {"retain": retain}) for retain in (1e-9, 1e4)
    )
    drawn = points(pipe, draws())

    def moved(edit):
        with edit.applied(pipe), torch.no_grad():
            return float(steering_loss(pipe, drawn, 0.0, 1.0)(0)["retain"])

    assert moved(held) < moved(free) / 2


def test_released_training_is_another(file):
    pipe = pipeline()
    edit = erase.trce_trajectory(pipe, "cat", augment=file, variant="released", **SHORT | {"epochs": 2})
    assert edit.options["optimiser"] == "adamw"
    assert edit.options["weight_decay"] == 0.01
    assert edit.options["accumulate"]
    assert edit.id != erase.trce_trajectory(pipe, "cat", augment=file, **SHORT | {"epochs": 2}).id


# --- both stages ------------------------------------------------------------------------------------------------------


def test_both_stages_with_the_untouched_model_as_teacher(any_pipe, file):
    """References are drawn before the first stage is applied, and the second applies on top of it alone."""
    loose = {"collapse": float("inf"), "ridge": 1e-3}
    first = erase.trce_text(any_pipe, "cat", augment=file, preserve=KEEP, **loose)
    alone = erase.trce_trajectory(any_pipe, "cat", augment=file, **SHORT)
    second = erase.trce_trajectory(any_pipe, "cat", augment=file, first_stage=first, **SHORT)
    assert second.base_edits == [(first.id, "trce_text")]
    begun = [one.report["losses"]["loss"][0] for one in (alone, second)]
    assert begun[0] != begun[1], "the first stage has moved what is predicted"
    if not getattr(any_pipe.config, "force_zeros_for_empty_prompt", False):
        assert second.report["losses"]["retain"][0] > 0, "and for the empty prompt, which eps* keeps"
    assert alone.report["losses"]["retain"][0] < 1e-8
    with pytest.raises(EditOrderError), second.applied(any_pipe):
        pass
    both = erase.trce(any_pipe, "cat", augment=file, preserve=KEEP, text=loose, **SHORT)
    assert [part for part, _ in both.parts] == [first.id, second.id]
    assert both.name == "trce"
    before = snapshot(any_pipe)
    with both.applied(any_pipe):
        pass
    assert snapshot(any_pipe) == before


def test_released_keeps_what_the_first_stage_predicts(file):
    pipe, loose = pipeline(), {"collapse": float("inf"), "ridge": 1e-3}
    first = erase.trce_text(pipe, "cat", augment=file, preserve=KEEP, **loose)
    edit = erase.trce_trajectory(pipe, "cat", augment=file, first_stage=first, variant="released", **SHORT)
    assert edit.report["losses"]["retain"][0] < 1e-8
    both = erase.trce(pipe, "cat", augment=file, preserve=KEEP, text=loose, variant="released", **SHORT)
    assert both.id


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"cached": 0}, "cached must be"),
        ({"early": 1.5}, "early is the share"),
        ({"early": 0.1}, "early is the share"),
        ({"beta": 0.0}, "beta must be"),
        ({"margin": -1.0}, "margin must not"),
        ({"anchor": "cat"}, "target equals"),
    ],
)
def test_bad_input(options, match):
    with pytest.raises(BadInput, match=match):
        erase.trce_trajectory(pipeline(), "cat", **{"anchor": "a hut"} | SHORT | options)

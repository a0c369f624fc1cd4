from __future__ import annotations

import pytest
import torch

import erase
import probe
from erase import losses
from erase.learn import Weights, parts_of
from erase.learn._eraser import checked_preserve
from erase.learn._esd_loss import EsdObjective
from probe.errors import BadInput, UnknownName
from probe.testing import tiny_pipeline
from tests.erase.learn.kit import FEW, sampling
from tests.erase.snapshots import snapshot
from tests.oracles import erasers as oracle

KINDS = ("sd15", "sd21", "sdxl")


@pytest.fixture(scope="module", params=KINDS)
def any_pipe(request):
    pipe = tiny_pipeline(request.param)
    probe.generate(pipe, probe.samples(["a church"]), steps=1, progress=False)  # hooks that SDXL's encoders get once
    return pipe


# --- The loss ---------------------------------------------------------------------------------------------------------


def known_loss(pipe, *, eta=1.0, erase_from=None, at="bin", **options):
    """The loss before anything was learned, the point it was taken at, and its predictions by hand."""
    student = Weights(pipe, parts_of(pipe, "x"))
    objective = EsdObjective.of(["church"], None, anchor=None, eta=eta, erase_from=erase_from)
    where = sampling(timesteps=at, **options)
    batch = where.points(pipe, objective.texts).batch(0, student)
    with student.in_force(0):
        found = objective.loss(pipe, student, where)(0)["erase"]
    timestep = int(batch.timesteps[0])
    noises = {
        text: oracle.epsilon_of(pipe, batch.x, timestep, text) for text in ("", "church", *filter(None, [erase_from]))
    }
    return float(found.detach()), noises


@pytest.mark.parametrize("kind", ["sd15", "sd21"])
@pytest.mark.parametrize("eta", [0.0, 1.0, 2.5])
def test_the_loss_of_a_student_that_is_the_teacher_is_known(kind, eta):
    found, noises = known_loss(tiny_pipeline(kind), eta=eta)
    expected = oracle.esd(noises["church"], noises[""], noises["church"], eta)
    assert found == pytest.approx(expected, rel=1e-3)
    assert expected == pytest.approx((1 + eta) ** 2 * oracle.mean_square(noises["church"], noises[""]), rel=1e-6)


def test_erasing_from_a_text_trains_that_text(pipe):
    found, noises = known_loss(pipe, erase_from="a road")
    wanted = oracle.esd_released(noises["a road"], noises[""], noises["church"], scale=2.0)
    assert found == pytest.approx(oracle.mean_square(noises["a road"], wanted), rel=1e-3)


def test_a_pair_has_its_own_anchor(pipe):
    student = Weights(pipe, parts_of(pipe, "x"))
    kinds = {
        "pair": {"prompts": [("a church", "a house")]},
        "anchor": {"prompts": ["a church"], "anchor": "a house"},
        "other": {"prompts": [("a church", "a barn")]},
    }
    found = {
        name: EsdObjective.of(
            ["church"], kind["prompts"], anchor=kind.get("anchor"), eta=1.0, erase_from=None
        ).loss(pipe, student, sampling())(0)["erase"].item()
        for name, kind in kinds.items()
    }  # fmt: skip
    assert found["pair"] == found["anchor"] != found["other"]


def test_the_newer_release_counts_one_more():
    null, concept = torch.randn(2, 1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    for eta in (0.0, 1.0):
        ours = losses.esd_target(null, concept, eta)
        released = oracle.esd_released(
            concept.flatten().tolist(), null.flatten().tolist(), concept.flatten().tolist(), scale=eta + 1
        )
        assert torch.allclose(ours.flatten(), torch.tensor(released), atol=1e-5)
        assert torch.allclose(losses.esd_target(null, concept, eta, start=concept), ours, atol=1e-5)


def test_a_region_of_the_loss_counts_alone():
    one, other = torch.zeros(1, 4, 2, 2), torch.arange(16.0).view(1, 4, 2, 2)
    valid = torch.tensor([[[[1.0, 0.0], [0.0, 0.0]]]])
    assert float(losses.mean_square(one, other, valid)) == pytest.approx((0 + 16 + 64 + 144) / 4)
    assert float(losses.mean_square(one, other)) == pytest.approx(sum(i * i for i in range(16)) / 16)


# --- One training -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("x_t", ["cached", "student", "teacher"])
def test_an_iteration_on_every_kind_of_model(any_pipe, x_t):
    before = snapshot(any_pipe)
    edit = erase.esd(any_pipe, "church", iterations=1, x_t=x_t, batch_size=2, **FEW)
    assert snapshot(any_pipe) == before
    assert edit.report["losses"]["loss"][0] > 0
    assert edit.params == tuple(sorted(part.param for part in parts_of(any_pipe, "x")))
    with edit.applied(any_pipe):
        assert snapshot(any_pipe) != before
    assert snapshot(any_pipe) == before


def test_training_brings_the_loss_down(pipe):
    edit = erase.esd(
        pipe, "church", iterations=40, train="full", timestep="grid", **{**FEW, "lr": 1e-3, "steps": 1, "cached": 1}
    )
    curve = edit.report["losses"]["loss"]
    assert curve[-1] < 0.2 * curve[0]


def test_checkpointing_changes_no_number(pipe):
    plain, again = (erase.esd(pipe, "church", iterations=2, checkpointing=how, **FEW) for how in (False, True))
    assert not pipe.unet.is_gradient_checkpointing
    for one, other in zip(plain.changes, again.changes, strict=True):
        assert torch.allclose(one.dense(), other.dense(), atol=1e-6)


def test_seeds_decide_and_nothing_else_does(pipe):
    torch.manual_seed(1)
    one = erase.esd(pipe, "church", iterations=2, **FEW)
    torch.manual_seed(2)
    assert erase.esd(pipe, "church", iterations=2, **FEW).id == one.id
    assert erase.esd(pipe, "church", iterations=2, seed=1, **FEW).id != one.id


def test_a_concept_is_all_its_surface_forms(pipe):
    world = probe.concepts("emoji")
    edit = erase.esd(pipe, [world["church"], "a road"], iterations=1, **FEW)
    assert edit.options["texts"] == ["church", "chapel", "a road"]
    assert edit.provenance["identity"]["inputs"]["concepts"] == ["church", "a road"]


@pytest.mark.slow
def test_retain_holds_what_is_preserved(pipe):
    few = {**FEW, "lr": 1e-3}
    edit = erase.esd(pipe, "church", iterations=3, retain=2.0, preserve=["a house"], **few)
    assert edit.report["losses"]["retain"][0] == 0
    assert edit.report["losses"]["retain"][-1] > 0
    world = probe.concepts("emoji")
    default = erase.esd(pipe, world["castle"], iterations=1, retain=2.0, **few)
    assert "castle" not in default.options["preserve"]
    assert "butterfly" in default.options["preserve"]


# --- x_t --------------------------------------------------------------------------------------------------------------


def test_cached_points_are_those_of_the_sampler(pipe):
    points = sampling(timesteps="grid", guidance=1.0).points(pipe, ["church"])
    student = Weights(pipe, parts_of(pipe, "x"))
    batch = points.batch(3, student)
    ((row, step),) = batch.keys
    assert points.x.shape == (2, 4, 4, 8, 8)
    assert torch.equal(batch.x[0], points.x[row, step])
    assert batch.timesteps.tolist() == [[751, 501, 251, 1][step]]
    assert points.batch(3, student).keys == batch.keys


def test_timesteps_lie_between_a_step_and_the_one_before_it(pipe):
    points = sampling(cached=40).points(pipe, ["church"])
    assert points.timesteps.shape == (40, 4)
    bins = [(751, 999), (501, 750), (251, 500), (1, 250)]
    for step, (low, high) in enumerate(bins):
        of_step = points.timesteps[:, step]
        assert low <= int(of_step.min())
        assert int(of_step.max()) <= high
        assert len(of_step.unique()) > 20


@pytest.mark.parametrize("by", ["student", "teacher"])
def test_fresh_points_are_those_of_who_denoises(pipe, by):
    fresh = sampling(x_t=by, timesteps="grid", batch_size=2).points(pipe, ["church"])
    student = Weights(pipe, parts_of(pipe, "x"))
    iteration = next(i for i in range(30) if int(fresh.batch(i, student).timesteps[0]) < 751)
    with student.in_force(iteration):
        plain = fresh.batch(iteration, student)
        with torch.no_grad():
            for leaf in student.leaves.values():
                leaf.mul_(1.5)
        moved = fresh.batch(iteration, student)
    assert torch.equal(plain.timesteps, moved.timesteps)
    assert torch.equal(plain.x, moved.x) == (by == "teacher")


def test_a_stored_trajectory_brings_its_own_prompts(pipe, tmp_path):
    stored = probe.trajectories(
        pipe, ["a church on a hill", "a church"], out=tmp_path / "x", steps=3, guidance=3.0, progress=False
    )
    edit = erase.esd(pipe, "church", iterations=2, trajectory=stored, **FEW)
    assert edit.options["trajectory"] == stored.id
    assert edit.id == erase.esd(pipe, "church", iterations=2, trajectory=str(tmp_path / "x"), **FEW).id
    with pytest.raises(BadInput, match="cached"):
        erase.esd(pipe, "church", trajectory=stored, x_t="student", **FEW)


def test_teacher_predictions_are_made_once(pipe):
    calls = []
    hook = pipe.unet.register_forward_pre_hook(lambda _m, _a: calls.append(torch.is_grad_enabled()))
    try:
        few = {**FEW, "cached": 1, "steps": 2}
        erase.esd(pipe, "church", iterations=8, **few)
    finally:
        hook.remove()
    assert sum(calls) == 8, "one student's pass an iteration"
    assert len(calls) - sum(calls) <= 2 + 2, "two steps drawn, two points predicted"


# --- Bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"train": "esd-x"}, "no parameter"),
        ({"train": ["x", "xx"]}, "xx"),
        ({"anchor": "church"}, "anchor"),
        ({"eta": float("nan")}, "eta"),
        ({"cached": 0}, "cached"),
        ({"batch_size": 0}, "batch_size"),
        ({"retain": 1.0}, "retain"),
        ({"retain": -1.0, "preserve": ["a house"]}, "retain"),
        ({"prompts": []}, "no texts"),
        ({"prompts": [("a church", "a house"), "a church"]}, "two texts"),
        ({"prompts": [("a church", "a church")]}, "anchor"),
        ({"prompts": [("a church", "a house")], "anchor": "a barn"}, "their own anchors"),
        ({"clip_norm": 0.0}, "clip"),
        ({"training": "x", "save_every": 0}, "save_every"),
    ],
)
def test_what_cannot_work_is_refused_before_any_work(pipe, options, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = snapshot(pipe)
    with pytest.raises(BadInput, match=said):
        erase.esd(pipe, "church", **{**FEW, **options})
    assert snapshot(pipe) == before


def test_concepts_that_are_none(pipe):
    for wrong in ([], [3], "", 7):
        with pytest.raises(BadInput):
            erase.esd(pipe, wrong, **FEW)
    with pytest.raises(UnknownName, match="iterations"):
        erase.esd(pipe, "church", iteration=3)


def test_what_is_retained_never_names_what_is_erased():
    world = probe.concepts("emoji")
    kept, _ = checked_preserve(None, [world["ink"]], 1.0)
    found = kept.prompts(40)
    assert len(found) >= 40
    assert any("style" in prompt for prompt in found)
    assert not [prompt for prompt in found if "ink" in prompt.split()]

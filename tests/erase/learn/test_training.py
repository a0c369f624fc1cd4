from __future__ import annotations

import json

import pandas as pd
import pytest
import torch

import erase
from erase.learn import Weights, parts_of, train
from erase.learn._folder import training_alone
from probe.errors import BadInput, HeaderMismatch, StoreDamaged, WorkbenchError
from tests.erase.learn.kit import FEW, schedule
from tests.erase.snapshots import KEY, raw, snapshot


@pytest.fixture
def student(pipe):
    return Weights(pipe, parts_of(pipe, "x-strict"))


def squares(student, scale=1.0):
    """A loss whose minimum is at zero, and another term."""

    def loss(iteration):
        leaves = student.leaves.values()
        return {"size": scale * sum(leaf.square().sum() for leaf in leaves), "count": torch.tensor(float(iteration))}

    return loss


def test_the_curve_has_every_term_and_falls(pipe, student):
    told = []
    curve = train(pipe, student, squares(student), schedule(5), progress=lambda *at: told.append(at))
    assert list(curve.columns) == ["iteration", "loss", "size", "count"]
    assert curve["iteration"].tolist() == [0, 1, 2, 3, 4]
    assert curve["loss"].tolist() == pytest.approx((curve["size"] + curve["count"]).tolist())
    assert curve["size"].is_monotonic_decreasing
    assert told[-1] == (5, 5)


@pytest.mark.parametrize("options", [{}, {"in_backward": True}], ids=["after", "in the backward pass"])
def test_adam_is_that_of_torch(pipe, student, options):
    by_hand = [leaf.detach().clone().requires_grad_() for leaf in student.leaves.values()]
    optimiser = torch.optim.Adam(by_hand, lr=1e-2)
    for _ in range(3):
        optimiser.zero_grad()
        sum(leaf.square().sum() for leaf in by_hand).backward()
        optimiser.step()
    train(pipe, student, squares(student), schedule(3, **options), progress=False)
    for ours, theirs in zip(student.leaves.values(), by_hand, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-7)
        assert ours.grad is None


def test_gradients_are_clipped_together(pipe):
    sizes = []
    for clip in (None, 1e-3):
        student = Weights(pipe, parts_of(pipe, "x-strict"))
        start = {name: leaf.detach().clone() for name, leaf in student.leaves.items()}
        how = schedule(1, lr=1.0, clip=clip, betas=(0.0, 0.0))
        seen = {}

        def loss(_iteration, student=student, seen=seen):
            for name, leaf in student.leaves.items():
                leaf.register_hook(lambda grad, name=name: seen.setdefault(name, grad.clone()))
            return {"size": sum(leaf.square().sum() for leaf in student.leaves.values())}

        train(pipe, student, loss, how, progress=False)
        sizes.append((start, seen))
    total = torch.stack([grad.norm() for grad in sizes[0][1].values()]).norm()
    assert float(total) > 1e-3
    with pytest.raises(BadInput, match="backward"):
        schedule(1, clip=1.0, in_backward=True)


def test_float16_losses_are_scaled_and_overflow_is_skipped(pipe, student):
    start = student.leaves[KEY].detach().clone()
    curve = train(pipe, student, squares(student, scale=1e36), schedule(3, precision="float16"), progress=False)
    assert len(curve) == 3
    assert torch.equal(student.leaves[KEY], start), "2^16 times this overflows: the step is left out"
    train(pipe, student, squares(student), schedule(1, precision="float16"), progress=False)
    assert not torch.equal(student.leaves[KEY], start)


@pytest.mark.parametrize(("name", "value"), [("lr", 0), ("lr", float("nan")), ("iterations", 0), ("iterations", -3)])
def test_numbers_that_are_not_positive_are_refused(pipe, name, value):
    with pytest.raises(BadInput, match=name):
        erase.esd(pipe, "church", **{**FEW, name: value})


def test_a_loss_without_the_leaves_is_an_error(pipe, student):
    with pytest.raises(WorkbenchError, match="depends"):
        train(pipe, student, lambda _: {"constant": torch.tensor(1.0)}, schedule(1), progress=False)


# --- On disk ----------------------------------------------------------------------------------------------------------


def options(folder, **changed):
    return {**FEW, "train": "x-strict", "iterations": 6, "save_every": 2, "training": folder, **changed}


@pytest.mark.parametrize("method", ["esd", pytest.param("differentiable_prune", marks=pytest.mark.slow)])
def test_resume_equals_an_uninterrupted_training(pipe, tmp_path, method, monkeypatch):
    more = {"retain": 0.5, "preserve": ["a house"]}
    function = getattr(erase, method)
    whole = function(pipe, "church", **options(tmp_path / "whole", **more))
    before = snapshot(pipe)

    def cut(done, _total):
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match=r"interrupted: the last good state, after 4 .*; repeat the same call"):
        function(
            pipe,
            "church",
            **options(
                tmp_path / "cut",
                **more,
            )
            | {"progress": cut},
        )
    assert snapshot(pipe) == before
    state = json.loads((tmp_path / "cut" / "state" / "state.json").read_text())
    assert len(state["curve"]) == 4
    again = function(pipe, "church", **options(tmp_path / "cut", **more))
    assert again.id == whole.id
    assert again.report["losses"] == whole.report["losses"]
    for one, other in zip(whole.changes, again.changes, strict=True):
        assert raw(one.dense()) == raw(other.dense())
    pd.testing.assert_frame_equal(
        pd.read_csv(tmp_path / "whole" / "losses.csv"), pd.read_csv(tmp_path / "cut" / "losses.csv")
    )


def test_checkpoints_are_edits_of_shorter_trainings(pipe, tmp_path):
    erase.esd(pipe, "church", **options(tmp_path / "long", checkpoints=[3]))
    short = erase.esd(pipe, "church", **options(tmp_path / "short", iterations=3))
    kept = erase.load_edit(tmp_path / "long" / "checkpoints" / "3")
    assert kept.id == short.id
    assert kept.options["iterations"] == 3


def test_a_finished_training_goes_on_for_more_iterations(pipe, tmp_path):
    erase.esd(pipe, "church", **options(tmp_path / "one", iterations=3))
    longer = erase.esd(pipe, "church", **options(tmp_path / "one", iterations=6))
    assert longer.id == erase.esd(pipe, "church", **options(tmp_path / "other", iterations=6)).id
    with pytest.raises(BadInput, match="gone further"):
        erase.esd(pipe, "church", **options(tmp_path / "one", iterations=2))


def test_another_training_is_not_gone_on_with(pipe, tmp_path):
    erase.esd(pipe, "church", **options(tmp_path / "one", iterations=1))
    with pytest.raises(HeaderMismatch, match="lr"):
        erase.esd(pipe, "church", **options(tmp_path / "one", iterations=1, lr=1e-3))
    erase.esd(pipe, "church", **options(tmp_path / "one", iterations=1, lr=1e-3, force=True))
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "to mother.txt").write_text("dear mother")
    for force in (False, True):
        with pytest.raises(BadInput, match="no training"):
            erase.esd(pipe, "church", **options(tmp_path / "letters", force=force))
    assert (tmp_path / "letters" / "to mother.txt").exists()


def test_one_process_at_a_time_trains_in_a_folder(pipe, tmp_path):
    with training_alone(tmp_path / "one"):
        with pytest.raises(WorkbenchError, match="training in this folder") as raised:
            erase.esd(pipe, "church", **options(tmp_path / "one", iterations=1))
        assert not (tmp_path / "one").exists(), "refused before anything is written"
        erase.esd(pipe, "church", **options(tmp_path / "other", iterations=1))
    assert str(tmp_path / "one") in raised.value.message
    erase.esd(pipe, "church", **options(tmp_path / "one", iterations=1))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "other"], "the lock is gone"


def test_a_torn_state_is_named(pipe, tmp_path):
    erase.esd(pipe, "church", **options(tmp_path / "one", iterations=2))
    state = tmp_path / "one" / "state" / "state.safetensors"
    state.write_bytes(state.read_bytes()[:100])
    with pytest.raises(StoreDamaged, match="state"):
        erase.esd(pipe, "church", **options(tmp_path / "one", iterations=4))


def test_a_loss_that_is_not_finite_stops_and_leaves_the_last_good_state(pipe, tmp_path, monkeypatch):
    from erase import losses

    plain, calls = losses.mean_square, []

    def sometimes(one, other, *rest):
        calls.append(1)
        return plain(one, other, *rest) * (float("nan") if len(calls) == 4 else 1.0)

    monkeypatch.setattr(losses, "mean_square", sometimes)
    before = snapshot(pipe)
    with pytest.raises(WorkbenchError, match="not finite") as raised:
        erase.esd(pipe, "church", **options(tmp_path / "one", checkpoints=[2]))
    assert snapshot(pipe) == before
    assert "iteration 3" in raised.value.message
    assert "after 2 iterations" in raised.value.message
    assert str(tmp_path / "one" / "checkpoints" / "2") in raised.value.message
    kept = erase.load_edit(tmp_path / "one" / "checkpoints" / "2")
    assert all(change.dense().isfinite().all() for change in kept.changes)


@pytest.mark.parametrize("in_backward", [False, True])
def test_a_gradient_that_is_not_finite_updates_nothing(pipe, student, in_backward):
    start = {name: leaf.detach().clone() for name, leaf in student.leaves.items()}

    def loss(_iteration):
        for leaf in student.leaves.values():
            leaf.register_hook(lambda grad: grad * float("inf"))
        return {"size": sum(leaf.square().sum() for leaf in student.leaves.values())}

    with pytest.raises(WorkbenchError, match="gradient"):
        train(pipe, student, loss, schedule(1, in_backward=in_backward), progress=False)
    assert all(torch.equal(leaf, start[name]) for name, leaf in student.leaves.items())

"""The recipe's training loop: being interrupted is the normal case."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from data.build.training import Trainer, keep_ema


def trainer(folder: Path, **options) -> Trainer:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))

    def loss(net: torch.nn.Module, iteration: int) -> torch.Tensor:
        x = torch.randn(16, 4)  # drawn from (seed, iteration) by the loop
        return (net(x) - x.sum(1, keepdim=True)).square().mean()

    return Trainer("toy", model, loss, folder, iterations=300, lr=1e-2, warmup=10, save_every=50, **options)


@pytest.mark.slow
def test_resumed_training_follows_the_uninterrupted_one_to_the_bit(tmp_path: Path) -> None:
    whole = trainer(tmp_path / "whole")
    whole.run()
    trainer(tmp_path / "parts").run(until=120)
    again = trainer(tmp_path / "parts")
    assert again.iteration == 120
    again.run()
    assert all(torch.equal(again.ema[n], p) for n, p in whole.ema.items())
    assert all(torch.equal(again.params[n], p) for n, p in whole.params.items())


@pytest.mark.slow
def test_the_loss_falls_and_its_curve_is_kept(tmp_path: Path) -> None:
    t = trainer(tmp_path)
    t.run()
    rows = [line.split(",") for line in (tmp_path / "toy_loss.csv").read_text().splitlines()]
    assert rows[0] == ["iteration", "loss", "lr", "seconds"]
    assert float(rows[-1][1]) < 0.5 * float(rows[1][1])


def test_continues_from_committed_weights_with_fresh_moments_and_warm_up(tmp_path: Path) -> None:
    first = trainer(tmp_path / "a")
    first.run(until=150)
    keep_ema(first.state_file, tmp_path / "toy_ema.safetensors", torch.float32)
    second = trainer(tmp_path / "b")
    second.resume_from(tmp_path / "toy_ema.safetensors")
    assert second.iteration == second.started_at == 150
    assert all(torch.equal(second.params[n], first.ema[n]) for n in first.ema)
    assert second.lr_at(150) == pytest.approx(second.lr_at(159) / 10, rel=0.15)
    second.run(until=200)
    assert second.iteration == 200


def test_a_time_limit_stops_training(tmp_path: Path) -> None:
    t = trainer(tmp_path, max_seconds=0.0)
    t.run()
    assert t.iteration == 0

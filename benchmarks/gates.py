"""What residual attention gates cost: the rows of the gates' table in `benchmarks/README.md`, measured and kept there.

    python benchmarks/gates.py [row ...]      # all rows by default; --list names them

Both sides of a ratio run in one process, in turn, as in `rows.py`. Rows are kept in `benchmarks/results/gates.csv`;
a row that is measured again replaces the old one. Gates have made-up numbers where only their cost is asked for.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from rows import HERE, PROMPTS, STEPS, Rows, bare, emoji, in_turn, ratio, registering, run_rows, sd15

import erase
import probe
from erase.gated import _learning as learning
from erase.gated._projections import Projections, projections_of
from erase.gated._resag import hook_of
from erase.gated._settings import Settings

ROWS: Rows = {}
row = registering(ROWS)
TOKENS = 77

#: Published settings for characters; how long stages are does not matter here.
PUBLISHED = {
    "rank": 1, "gate_rank": 16, "alpha": 1.0, "key_mode": "independent", "gate": "learned", "eta": 0.3,
    "anchor_weight": 1e5, "anchors": 32, "mix": True, "noise": 0.001, "stages": 5, "iterations": 450,
    "first_iterations": 1800, "lr": 3e-5, "first_lr": 3e-4, "warm_up": 5, "adversaries": 16, "adversary_weight": 1.0,
    "adversary_iterations": 450, "adversary_lr": 0.01, "keep_adversaries": "latest", "seed": 0,
}  # fmt: skip


def gates(pipe: Any, concepts: int) -> Any:
    """An edit of so many concepts at the published ranks, with made-up numbers."""
    how, projections = Settings(**PUBLISHED), projections_of(pipe)
    generator = torch.Generator().manual_seed(0)
    made = []
    for n in range(concepts):
        values = learning.initial(projections, how, str(n))
        made.append({name: 1e-3 * torch.randn(value.shape, generator=generator) for name, value in values.items()})
    hook = hook_of(projections, made, how, 0.0)
    return erase._edit.make_edit(pipe, [hook], name=f"{concepts}", method="made up", options={})


def inference(concepts: int, pairs: int = 5) -> list[dict[str, Any]]:
    pipe, size = sd15(TOKENS), {"height": 64, "width": 64}
    edit = gates(pipe, concepts)

    def gated(_out: Path) -> None:
        with edit.applied(pipe):
            bare(pipe, PROMPTS[:1], STEPS, size)

    with tempfile.TemporaryDirectory() as folder:
        taken = in_turn(gated, lambda out: bare(pipe, PROMPTS[:1], STEPS, size), pairs, Path(folder))
    return [ratio(taken) | {"bar": f"at most {1.03 if concepts == 1 else 1.05}"}]


@row
def inference_one(_folder: Path) -> list[dict[str, Any]]:
    """A pipeline call with one gate applied over the unedited one, SD-1.5-size UNet in float32, 30 steps, guided."""
    return inference(1)


@row
def inference_fifty(_folder: Path) -> list[dict[str, Any]]:
    """A pipeline call with 50 gates applied over the unedited one, SD-1.5-size UNet in float32, 30 steps, guided."""
    return inference(50)


@row
def training_embedded(folder: Path) -> list[dict[str, Any]]:
    """Seconds to learn one concept (church) on the embedded model, at the settings of benchmarks/claims."""
    from data.build.settings import RESAG

    pipe, church = emoji(), probe.concepts("emoji")["church"]
    taken = []
    for seed in range(3):
        start = time.perf_counter()
        erase.resag(pipe, church, seed=seed, progress=False, **RESAG)
        taken.append(time.perf_counter() - start)
    return [{"value": sorted(taken)[1], "low": min(taken), "high": max(taken), "unit": "s", "n": len(taken),
             "bar": "below 120", "note": "least and most of three"}]  # fmt: skip


@row
def training_sd14(folder: Path) -> list[dict[str, Any]]:
    """An iteration that computes unedited and edited projections anew over one of ours, SD 1.4 size, 16 adversaries."""
    pipe, how = sd15(TOKENS), Settings(**PUBLISHED | {"first_iterations": 2, "stages": 1})
    projections = projections_of(pipe)
    generator = torch.Generator().manual_seed(0)
    d = projections.width

    def texts(rows: int) -> torch.Tensor:
        return torch.randn(rows, TOKENS, d, generator=generator)

    lesson = learning.Lesson("x", texts(4), texts(4), texts(64), texts(1))
    adversaries = 0.01 * texts(how.adversaries)

    def ours(_out: Path) -> None:
        values = learning.initial(projections, how, "x")
        learning.erase_stage(values, adversaries, lesson, projections, how, 0, lambda _: None)

    taken = in_turn(lambda out: direct_stage(lesson, adversaries, projections, how), ours, 5, folder)
    return [ratio(taken) | {"bar": "at least 2", "note": ratio(taken)["note"] + " for two iterations"}]


def direct_stage(lesson: Any, adversaries: torch.Tensor, projections: Projections, how: Settings) -> None:
    """The same iterations as the release makes them: one pass of all projections without gates, and one with."""
    values = learning.initial(projections, how, "x")
    trained = [value.requires_grad_() for value in values.values()]
    optimiser = torch.optim.AdamW(trained, lr=how.first_lr)
    drawn = torch.Generator().manual_seed(0)
    m = len(adversaries)
    for _ in range(how.first_iterations):
        target, neutral = lesson.target[:1], lesson.neutral[:1]
        anchors = learning.gate_losses.anchors(lesson.pool, how.anchors, drawn, noise=how.noise, mix=how.mix)
        rows = torch.cat([target, target + adversaries, lesson.empty, anchors])
        features = learning.features(values, rows, how)
        parts = []
        for i, weight in enumerate(projections.weights):
            with torch.no_grad():
                plain, goal = rows @ weight.mT, neutral @ weight.mT
                goal = goal + how.eta * (goal - plain[:1])
            edited = rows @ weight.mT + features @ values["down"][i] @ values[f"up.{i}"]
            missed = torch.cat([goal - edited[: 1 + m], plain[1 + m :] - edited[1 + m :]]).square().sum((1, 2))
            weighed = missed[0] + how.adversary_weight * missed[1 : 1 + m].mean()
            parts.append(projections.shares[i] * (weighed + how.anchor_weight * missed[1 + m :].mean()))
        optimiser.zero_grad(set_to_none=True)
        torch.stack(parts).sum().backward()
        optimiser.step()


if __name__ == "__main__":
    run_rows(ROWS, __doc__ or "", HERE / "results" / "gates.csv", "gates")

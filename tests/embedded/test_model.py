"""The embedded model keeps what its card and the demo say, within bounds, on a small sample."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import probe
from probe._paths import emoji_dir
from probe.cli import _demo_steps as steps
from probe.cli._demo import summary, verdicts

pytestmark = [pytest.mark.slow, pytest.mark.embedded]


@pytest.fixture(scope="module")
def pipe():
    return probe.load("emoji")


@pytest.fixture(scope="module")
def world() -> probe.World:
    return probe.concepts("emoji")


def test_benchmark_objects_are_drawn(pipe, world: probe.World) -> None:
    """One held-out prompt of 24 listed objects, each of which the list vouches for at 0.90."""
    names = world.lists["benchmark_objects"][:24]
    prompts = [world[n].test["explicit"][7] for n in names]
    images = probe.generate(pipe, probe.samples(prompts, seeds=77), batch_size=24, progress=False)
    judge = probe.detector("emoji_cnn")
    scores = judge(images)
    hits = [judge.hits(scores[i : i + 1], f"object/{n}")[0] for i, n in enumerate(names)]
    assert np.mean(hits) >= 0.75


def test_the_demo_keeps_its_bounds_on_a_small_sample(pipe, world: probe.World, tmp_path: Path) -> None:
    size = steps.Size(recorded=20, images={"explicit": 20, "preserve_test": 20}, keep=False)
    demo = steps.run_demo(pipe, world[steps.CONCEPT], world, tmp_path, size, progress=False)
    held = {c["claim"]: c["held"] for c in verdicts(demo.table, "plain", steps.CONCEPT)}
    assert all(held.values()), held
    assert set(summary(demo.table, demo.densities)["edit"]) == {"published rule", "random mask"}


@pytest.mark.parametrize("name", ["emoji_cnn", "emoji_nearest"])
def test_a_judge_names_clean_renders(name: str) -> None:
    from data.build.judges import labels, render_pool

    images, targets = render_pool(620, 5)
    judge = probe.detector(name)
    assert list(judge.labels) == labels()
    best = judge.best(judge(images), "object")
    assert np.mean(best == targets[:, 0].numpy()) >= 0.95


def test_weights_are_small_and_in_half_precision() -> None:
    from safetensors import safe_open

    folder = emoji_dir()
    files = list(folder.rglob("*.safetensors"))
    assert sum(f.stat().st_size for f in files) <= 40e6
    for file in (folder / "pipeline").rglob("*.safetensors"):
        with safe_open(file, "np") as f:
            assert {f.get_slice(k).get_dtype() for k in f.keys()} <= {"F16", "I64"}  # noqa: SIM118

"""Runs of the tiny pipeline that several tests read; whoever writes makes its own."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from probe._record import record
from probe.testing import tiny_pipeline

TARGET = ["a church on a hill", "a church by the sea", "a church"]
REFERENCE = ["a house on a hill", "a house by the sea", "a house"]
STEPS, GUIDANCE = 2, 7.5


@pytest.fixture(scope="session")
def recorded(tmp_path_factory):
    """Target and reference runs: FF sites, text encoder, images; 3 samples each, 2 steps, seeds 5, 6, 7."""
    pipe, folder = tiny_pipeline(), tmp_path_factory.mktemp("runs")
    options = {"sites": ["ffn", "mlp"], "steps": STEPS, "guidance": GUIDANCE, "seeds": [5, 6, 7], "batch_size": 2}
    runs = {
        name: record(pipe, prompts, out=folder / name, progress=False, **options)
        for name, prompts in (("target", TARGET), ("reference", REFERENCE))
    }
    return SimpleNamespace(pipe=pipe, options=options, **runs)

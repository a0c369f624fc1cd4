"""Erasers that learn on the embedded model: how gates start, and that a short training erases."""

from __future__ import annotations

import pytest

import probe
from erase.learn import Gates, parts_of
from erase.learn._prune import LARGEST_START, change_at_start

pytestmark = [pytest.mark.slow, pytest.mark.embedded]


@pytest.mark.parametrize("train", ["x", "x-strict", "ffn", ["x", "ffn"]], ids=str)
def test_gates_hardly_change_the_prediction_at_the_start(train) -> None:
    pipe = probe.load("emoji")
    for seed in range(2):
        parts = parts_of(pipe, train, weights_only=True)
        gates = Gates(pipe, parts, kind="hard-concrete", by_unit=False, init=5, seed=seed)
        assert 0 < change_at_start(pipe, gates, seed) <= LARGEST_START

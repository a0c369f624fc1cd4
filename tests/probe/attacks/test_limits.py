"""What a limit or an interruption leaves of a search: everything found until then, judged where that may be paid."""

from __future__ import annotations

import numpy as np
import pytest

from probe.attacks import AttackSet
from probe.testing import tiny_pipeline
from tests.probe.attacks.attacking import PROMPTS, Told, attacked

LONG = {
    "mma": {"k": 3, "iterations": 60, "swaps": 24, "ranked": 16, "prompts": PROMPTS[:1]},
    "ring_a_bell": {"k": 3, "generations": 60, "population": 6, "pairs": [("a church", "a house")]},
    "inversion": {"iterations": 60, "batch": 2, "examples": 2},
}
ITERATIONS = {"mma": "iterations", "ring_a_bell": "generations", "inversion": "iterations"}


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline()


@pytest.mark.parametrize(
    ("method", "budget"),
    [
        ("mma", {"texts": 90}),
        ("ring_a_bell", {"texts": 40}),
        ("inversion", {"texts": 9}),
        ("inversion", {"backwards": 3}),
        ("inversion", {"forwards": 20}),
    ],
)
def test_what_a_limit_ends_is_judged_and_kept(pipe, method, budget):
    found = attacked(pipe, method, budget=budget, **LONG[method])
    (count, limit), *_ = budget.items()
    for row in found:
        assert row.finished
        assert row.success is False, "judged, and not shown"
        assert row.carrier == "embedding" if method == "inversion" else row.prompt != row.source
        assert row.cost["images"] == 2
        assert limit // 2 < row.cost[count] <= limit


@pytest.mark.parametrize("method", ["mma", "ring_a_bell", "inversion"])
def test_what_may_not_be_judged_any_more_is_kept_unjudged(pipe, method):
    options = {**LONG[method], ITERATIONS[method]: 3}
    for row in attacked(pipe, method, budget={"images": 1}, **options):
        assert row.finished
        assert row.success is None
        assert row.carrier == "embedding" if method == "inversion" else row.loss is not None


@pytest.mark.parametrize("method", ["unlearn_diff", "p4d"])
def test_no_round_is_begun_whose_picture_cannot_be_paid(pipe, method):
    options = {"unlearn_diff": {"k": 2, "rounds": 3, "iterations": 1}, "p4d": {"k": 2, "iterations": 3, "every": 1}}
    each = {"unlearn_diff": 1, "p4d": 2}[method]
    # the prompt as it is, the target, one round with its picture, and another without
    budget = {"forwards": 4 + 4 + (each + 4) + each}
    found = attacked(pipe, method, budget=budget, **options[method])
    assert [row.cost["forwards"] for row in found] == [budget["forwards"] - each] * 2
    assert [row.cost["images"] for row in found] == [2, 2]


@pytest.mark.parametrize(
    ("method", "work"),
    [
        ("mma", "probe.attacks._mma._gradient"),
        ("ring_a_bell", "probe.attacks._ring_a_bell._losses"),
        ("inversion", "probe.attacks._inversion.Shared.went_back"),
    ],
)
def test_an_interrupt_within_a_search_keeps_the_best_until_then(pipe, tmp_path, monkeypatch, method, work):
    import pkgutil

    options = {**LONG[method], "prompts": PROMPTS[:1], ITERATIONS[method]: 3}
    whole = attacked(pipe, method, judge=Told(np.inf), **options)
    plain, calls = pkgutil.resolve_name(work), []

    def cut(*args):
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append(1)
        return plain(*args)

    monkeypatch.setattr(work, cut)
    with pytest.raises(KeyboardInterrupt):
        attacked(pipe, method, out=tmp_path / "set", **{**options, ITERATIONS[method]: 60})
    (kept,) = AttackSet.load(tmp_path / "set").rows
    (same,) = whole.rows
    assert not kept.finished
    assert kept.success is None
    assert (kept.token_ids, kept.loss, kept.tensors) == (same.token_ids, same.loss, same.tensors)
    assert kept.prompt != kept.source

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from probe import stats
from probe.errors import BadInput
from tests.oracles.stats import bootstrap_limits, wilson_limits


@given(st.integers(1, 300), st.data(), st.sampled_from([0.8, 0.95, 0.99]))
@settings(max_examples=60, deadline=None)
def test_wilson_solves_the_score_equation(n, data, level):
    k = data.draw(st.integers(0, n))
    found = stats.wilson(k, n, level)
    assert found.value == k / n
    assert (found.low, found.high) == pytest.approx(wilson_limits(k, n, level), abs=1e-9)


def test_the_bar_of_the_demo_10_of_100_has_an_upper_limit_under_018():
    assert stats.wilson(10, 100).high < 0.18 < stats.wilson(11, 100).high


def test_no_measurements_give_nan_not_zero():
    for found in (stats.wilson(0, 0), stats.rate([], []), stats.cluster_bootstrap([np.nan, np.nan], "ab")):
        assert np.isnan([found.value, found.low, found.high]).all()
        assert (found.n, found.kind) == (0, "none")
    assert stats.cluster_bootstrap([np.nan, np.nan], "ab").n_failed == 2


def test_cluster_bootstrap_agrees_with_drawing_clusters_one_by_one():
    rng = np.random.default_rng(3)
    clusters = [f"prompt {i}" for i in range(20) for _ in range(1 + i % 4)]
    values = rng.normal(size=len(clusters)) + np.array([hash_free_effect(c) for c in clusters])
    values[5] = np.nan
    found = stats.cluster_bootstrap(values, clusters, resamples=20_000)
    low, high = bootstrap_limits(values.tolist(), clusters, 0.95, 20_000, seed=1)
    assert found.value == pytest.approx(np.nanmean(values))
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.03)
    assert (found.n, found.n_failed) == (len(values) - 1, 1)


def hash_free_effect(cluster: str) -> float:
    return int(cluster.split()[1]) / 10


def test_clusters_widen_the_interval_of_repeated_measurements():
    values = np.repeat([0.0, 1.0] * 10, 5)
    by_prompt = stats.rate(values, np.repeat(np.arange(20), 5))
    by_image = stats.rate(values, np.arange(100))
    assert (by_prompt.kind, by_image.kind) == ("cluster_bootstrap", "wilson")
    assert by_prompt.high - by_prompt.low > 1.8 * (by_image.high - by_image.low)


def test_one_measurement_per_prompt_after_a_failure_is_wilson_again():
    found = stats.rate([1, 0, np.nan, 1], ["a", "b", "a", "c"])
    assert found.kind == "wilson"
    assert (found.value, found.n, found.n_failed) == (pytest.approx(2 / 3), 3, 1)


@pytest.mark.parametrize("hit", [0.0, 1.0])
def test_a_unanimous_rate_keeps_an_honest_interval(hit):
    found = stats.rate([hit] * 40, np.repeat(np.arange(20), 2))
    expected = stats.wilson(int(hit * 20), 20)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_unanimous_differences_keep_an_honest_interval():
    u = stats.wilson(0, 30).high
    same = stats.paired_difference([1.0] * 30, [1.0] * 30, range(30), bounds=(0.0, 1.0))
    lost = stats.paired_difference([1.0] * 30, [0.0] * 30, range(30), bounds=(0.0, 1.0))
    assert (same.value, same.low, same.high) == pytest.approx((0, -u, u))
    assert (lost.value, lost.low, lost.high) == pytest.approx((-1, -1, -1 + 2 * u))
    unbounded = stats.paired_difference([20.0] * 3, [18.0] * 3, range(3))
    assert (unbounded.low, unbounded.high) == (-2, -2)
    assert np.isnan(stats.cluster_bootstrap([1.0, 2.0], ["a", "a"]).low)


def test_a_paired_difference_is_narrower_than_the_rates_it_joins_and_drops_half_failed_pairs():
    rng = np.random.default_rng(0)
    before = (rng.random(200) < 0.7).astype(float)
    after = before.copy()
    after[:10] = 0.0
    found = stats.paired_difference(before, after, np.arange(200), bounds=(0.0, 1.0))
    assert found.value == pytest.approx((after - before).mean())
    assert found.low < found.value < found.high <= 0
    assert found.high - found.low < stats.rate(after, np.arange(200)).high - stats.rate(after, np.arange(200)).low
    before[0], after[1] = np.nan, np.nan
    assert stats.paired_difference(before, after, np.arange(200)).n_failed == 2


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=30), st.randoms(use_true_random=False))
@settings(max_examples=40, deadline=None)
def test_relabelling_clusters_changes_nothing_and_the_seed_decides(values, random):
    clusters = [random.randrange(5) for _ in values]
    first = stats.cluster_bootstrap(values, clusters, resamples=200, seed=7)
    again = stats.cluster_bootstrap(values, [f"name {c}" for c in clusters], resamples=200, seed=7)
    assert np.array_equal(first[:3], again[:3], equal_nan=True)
    assert np.isnan(first.low) or first.low - 1e-9 <= first.value <= first.high + 1e-9 or len(set(clusters)) < 5


def test_resampling_in_blocks_is_the_same_stream(monkeypatch):
    rng = np.random.default_rng(1)
    values, clusters = rng.normal(size=50), np.arange(50)
    whole = stats.cluster_bootstrap(values, clusters, resamples=999)
    monkeypatch.setattr(stats, "_BLOCK", 500)
    assert stats.cluster_bootstrap(values, clusters, resamples=999) == whole


def test_the_bootstrap_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(5)
    clusters = np.repeat(np.arange(40), 3)
    covered = 0
    for trial in range(200):
        truth_by_prompt = rng.beta(2, 2, size=40)
        hits = (rng.random(120) < truth_by_prompt[clusters]).astype(float)
        found = stats.rate(hits, clusters, resamples=400, seed=trial)
        covered += found.low <= 0.5 <= found.high
    assert 0.90 <= covered / 200 <= 0.99


@pytest.mark.parametrize(
    "call",
    [
        lambda: stats.wilson(3, 2),
        lambda: stats.wilson(1, 2, level=95.0),
        lambda: stats.rate([0.5], ["a"]),
        lambda: stats.rate([1.0, 0.0], ["a"]),
        lambda: stats.cluster_bootstrap([np.inf], ["a"]),
        lambda: stats.cluster_bootstrap([1.0, 2.0], "ab", resamples=0),
        lambda: stats.paired_difference([1.0], [1.0, 0.0], "ab"),
    ],
)
def test_bad_input_is_named(call):
    with pytest.raises(BadInput):
        call()

"""KID, Frechet distance and paired distance of features: against loops, closed forms and what they must be blind to."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from probe import stats
from probe.errors import BadInput
from probe.metrics import feature_distance, frechet, kid
from tests.oracles import metrics as oracle

sizes = st.tuples(st.integers(2, 7), st.integers(2, 7), st.integers(1, 9), st.integers(0, 2**32 - 1))


def two(m, n, d, seed):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(m, d)), rng.normal(0.5, 2.0, size=(n, d))


@given(sizes)
@settings(deadline=None)
def test_kid_is_that_of_its_slow_twin(size):
    x, y = two(*size)
    assert kid(x, y) == pytest.approx(oracle.kid(x.tolist(), y.tolist()), abs=1e-9, rel=1e-9)


@given(sizes)
@settings(deadline=None)
def test_frechet_is_that_of_its_slow_twin(size):
    x, y = two(*size)
    covariances = [np.atleast_2d(np.cov(z, rowvar=False)) for z in (x, y)]
    expected = oracle.frechet(x.mean(0), covariances[0], y.mean(0), covariances[1])
    assert frechet(x, y) == pytest.approx(expected, abs=1e-4, rel=1e-4)
    assert frechet(x, y) == pytest.approx(frechet(y, x), abs=1e-9)
    assert frechet(x, x) == pytest.approx(0, abs=1e-9)


def test_kid_is_unbiased_for_what_two_normal_distributions_have_between_them():
    """However few the pictures: 4,000 estimates from 3 against 4 of them average to the closed form."""
    means, sds = [(0.2, -0.1), (0.6, 0.3)], [(0.5, 0.7), (0.8, 0.4)]
    p, q = ([oracle.normal_moments(m, s) for m, s in zip(*of, strict=True)] for of in zip(means, sds, strict=True))
    expected = oracle.kid_of_independent(p, q)
    rng = np.random.default_rng(0)
    found = [kid(rng.normal(means[0], sds[0], (3, 2)), rng.normal(means[1], sds[1], (4, 2))) for _ in range(4000)]
    error = np.std(found) / np.sqrt(len(found))
    assert abs(np.mean(found) - expected) < 4 * error
    assert error < expected / 8, "the test would see nothing"
    assert oracle.kid_of_independent(p, p) == 0
    same = [kid(rng.normal(means[0], sds[0], (3, 2)), rng.normal(means[0], sds[0], (4, 2))) for _ in range(4000)]
    assert abs(np.mean(same)) < 4 * np.std(same) / np.sqrt(len(same))


def test_frechet_tends_to_what_two_normal_distributions_have_between_them():
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(3, 3))
    m, n, c, d = np.zeros(3), np.array([1.0, 0.0, -1.0]), mix @ mix.T, np.diag([1.0, 4.0, 0.25])
    x, y = rng.multivariate_normal(m, c, 40_000), rng.multivariate_normal(n, d, 40_000)
    assert frechet(x, y) == pytest.approx(oracle.frechet(m, c, n, d), rel=0.02)
    few = [frechet(x[i : i + 4], y[i : i + 4]) for i in range(0, 800, 4)]
    assert np.mean(few) > 1.05 * frechet(x, y), "biased upwards with few pictures, as its text says"


def test_one_dimension_by_hand():
    x, y = np.array([[0.0], [2.0]]), np.array([[1.0], [3.0]])
    assert frechet(x, y) == pytest.approx(1.0)  # equal variances, means one apart
    assert kid(x, y) == pytest.approx(1 + 64 - 2 * (1 + 1 + 27 + 343) / 4)


@given(sizes)
@settings(deadline=None)
def test_paired_distance_is_that_of_its_slow_twin(size):
    m, _, d, seed = size
    x, y = two(m, m, d, seed)
    x[0] = 0
    y[-1] = np.nan
    expected = [oracle.feature_distance(a.tolist(), b.tolist()) for a, b in zip(x, y, strict=True)]
    found = feature_distance(x, y)
    assert np.allclose(found, expected, equal_nan=True)
    assert np.isnan(found[[0, -1]]).all()
    assert np.allclose(feature_distance(x[1:], 3 * x[1:]), 0)


@pytest.mark.parametrize("rows", [0, 1])
def test_too_few_pictures_have_no_distance(rows):
    x, y = np.ones((rows, 3)), np.zeros((5, 3))
    assert np.isnan([kid(x, y), kid(y, x), frechet(x, y), frechet(y, x)]).all()


# --- intervals from halves --------------------------------------------------------------------------------------------


def mean(x):
    return float(np.mean(x)) if len(x) else np.nan


def test_halves_give_a_mean_the_interval_that_theory_gives_it():
    x = np.random.default_rng(0).normal(size=400)
    found = stats.half_samples(mean, [x], [list(range(400))], subsets=2000)
    assert found.value == x.mean()
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * x.std() / 20, rel=0.06)
    smaller = stats.half_samples(mean, [x], [list(range(400))], subsets=2000, largest=40)
    assert smaller.high - smaller.low == pytest.approx(found.high - found.low, rel=0.1)


def test_halves_cover_the_truth_where_prompts_repeat():
    """Four pictures of each of 30 prompts: in 95 of 100 worlds the interval should hold the true mean."""
    rng = np.random.default_rng(1)
    held = 0
    for _ in range(200):
        x = np.repeat(rng.normal(size=30), 4) + 0.1 * rng.normal(size=120)
        found = stats.half_samples(mean, [x], [np.repeat(np.arange(30), 4).tolist()], level=0.95)
        held += found.low <= 0 <= found.high
    assert 0.88 <= held / 200 <= 0.99


def test_a_half_holds_the_same_prompts_in_every_set():
    seen = []

    def statistic(a, b):
        seen.append((set(a), set(b)))
        return float(len(a))

    a, b = np.array(list("aabbccdd")), np.array(list("dcba"))
    found = stats.half_samples(statistic, [a, b], [list(a), list(b)], subsets=30, average=True)
    assert all(x == y for x, y in seen)
    assert {len(x) for x, _ in seen[1:]} == {2}
    assert (found.value, found.n, found.kind) == (4.0, 8, "half_samples"), "the mean over subsets, if that is asked for"


@pytest.mark.parametrize(("rows", "kind"), [(0, "none"), (1, "half_samples"), (3, "half_samples")])
def test_too_few_for_halves(rows, kind):
    x = np.random.default_rng(0).normal(size=(rows, 2))
    found = stats.half_samples(kid, [x, x + 1], [list(range(rows))] * 2, average=True)
    assert np.isnan([found.low, found.high]).all()
    assert np.isnan(found.value) == (rows < 2), "three rows have a distance, their halves of one have none"
    assert (found.n, found.kind) == (rows, kind)
    with pytest.raises(BadInput, match="two subsets"):
        stats.half_samples(mean, [x], [list(range(rows))], subsets=1)

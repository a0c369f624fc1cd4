"""The maths of erased_delta and sensitivity, against definitions, on planted values and on noise."""

from __future__ import annotations

import numpy as np
import pytest

from probe.errors import BadInput
from probe.scores import _reactivation as maths
from tests.oracles import sensitivity as oracle

N, SAMPLES, STEPS = 40, 12, 3


def drawn(seed, level, spread=0.05):
    rng = np.random.default_rng(seed)
    return level + spread * rng.normal(size=(SAMPLES, STEPS, N))


def test_differences_are_means_of_contributions():
    fan_out = np.random.default_rng(9).random(N)
    a, b = drawn(0, 1.0), drawn(1, 0.4)
    contributions = [maths.contribution(x, fan_out) for x in (a, b)]
    assert np.allclose(maths.fall(*contributions), oracle.mean_difference(a, b, fan_out))
    assert np.allclose(maths.rise(contributions[1], contributions[0]), oracle.mean_difference(a, b, fan_out))


def test_a_sample_that_was_not_measured_is_left_out():
    a, b = drawn(0, 1.0), drawn(1, 0.4)
    a[0] = np.nan
    assert np.allclose(maths.fall(a, b), oracle.mean_difference(a[1:], b[1:], np.ones(N)))


@pytest.mark.parametrize("back", [0.0, 0.5, 1.0])
def test_the_ratio_is_the_share_that_came_back(back):
    """Planted: the edit takes 0.6 of what the concept's neurons had, the attack gives ``back`` of it again."""
    original, plain, attacked = drawn(0, 1.0), drawn(1, 0.4), drawn(2, 0.4 + 0.6 * back)
    given, taken = (attacked - plain).sum((1, 2)), (original - plain).sum((1, 2))
    found = maths.reactivation(given, taken, range(SAMPLES))
    assert found.value == pytest.approx(oracle.ratio_of_sums(given, taken))
    assert found.value == pytest.approx(back, abs=0.03)
    assert found.low <= found.value <= found.high
    assert found.low <= back + 0.03
    assert found.high >= back - 0.03


@pytest.mark.parametrize("seed", range(8))
def test_selected_on_noise_and_measured_on_other_noise_the_interval_covers_zero(seed):
    a = [drawn((seed, i), 1.0, 0.3) for i in range(2)]
    chosen = maths.highest(maths.fall(*a).mean(0), 5)
    b = [drawn((seed, i), 1.0, 0.3) for i in range(2, 5)]
    given, taken = (b[2] - b[1])[:, :, chosen].sum((1, 2)), (b[0] - b[1])[:, :, chosen].sum((1, 2))
    found = maths.reactivation(given, taken, range(SAMPLES), level=0.99)
    assert found.low <= 0 <= found.high
    # on the noise that they were selected on, what the edit took is above 0 by construction
    assert maths.fall(*a)[:, chosen].mean() > 0


def test_samples_of_one_prompt_are_drawn_together():
    rng = np.random.default_rng(0)
    given, taken = np.repeat(rng.normal(0.5, 0.3, 6), 4), np.ones(24)
    alone = maths.reactivation(given, taken, range(24))
    together = maths.reactivation(given, taken, np.repeat(range(6), 4).tolist())
    assert together.high - together.low > 1.5 * (alone.high - alone.low)
    assert (alone.n, together.n) == (24, 6)


def test_no_interval_where_the_denominator_may_be_zero():
    rng = np.random.default_rng(1)
    found = maths.reactivation(rng.normal(size=10), rng.normal(0.01, 1, 10), range(10))
    assert (found.low, found.high) == (-np.inf, np.inf)
    nothing = maths.reactivation(np.array([np.nan]), np.array([1.0]), ["a"])
    assert nothing.n == 0
    assert np.isnan([nothing.value, nothing.low, nothing.high]).all()


def test_the_highest_are_those_that_lost_most_and_never_those_that_lost_nothing():
    score = np.array([0.1, np.nan, 0.5, -1.0, 0.3])
    assert np.flatnonzero(maths.highest(score, 2)).tolist() == [2, 4]
    with pytest.raises(BadInput, match="3 of 5"):
        maths.highest(score, 4)


def test_matched_neurons_are_others_of_the_same_site_and_of_a_like_level():
    rng = np.random.default_rng(2)
    level, sites = rng.random(200), np.repeat([0, 1], 100)
    chosen = np.zeros(200, bool)
    chosen[[3, 50, 150]] = True
    found = maths.matched(chosen, level, sites, seed=0)
    assert found.sum() == 3
    assert not (found & chosen).any()
    assert sorted(sites[found]) == [0, 0, 1]
    ranks = [np.argsort(np.abs(level - level[i]) + 10 * (sites != sites[i])) for i in np.flatnonzero(chosen)]
    near = {int(j) for order in ranks for j in order[:14]}
    assert set(np.flatnonzero(found)) <= near

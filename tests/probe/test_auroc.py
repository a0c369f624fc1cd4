"""auroc against scikit-learn and counted pairs; its bootstrap against samples written down as often as drawn."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import rankdata
from sklearn.metrics import roc_auc_score

from probe.errors import BadInput
from probe.scores import _ranks as ranks
from probe.scores import score
from tests.oracles import scores as oracle
from tests.probe.made_runs import made_run


def values(samples: int, n: int, levels: int | None, seed: int) -> np.ndarray:
    """Continuous values, or so few levels that most are tied; some negative, some zeros of either sign."""
    made = np.random.default_rng(seed)
    if levels is None:
        return made.standard_normal((samples, n)).astype(np.float32)
    found = made.integers(-levels, levels + 1, size=(samples, n)).astype(np.float32)
    found[0] = -0.0
    return found


@pytest.mark.parametrize("levels", [None, 1, 6])
def test_auroc_is_that_of_scikit_learn(levels: int | None) -> None:
    target, reference = values(23, 11, levels, 0) + np.float32(0.5 if levels is None else 0), values(17, 11, levels, 1)
    nm = score(made_run(target), made_run(reference), method="auroc", intervals=0)
    labels = [1] * 23 + [0] * 17
    wanted = [roc_auc_score(labels, np.concatenate([target[:, j], reference[:, j]])) for j in range(11)]
    np.testing.assert_allclose(nm.dataset["score"].values[0], wanted, rtol=1e-6)
    assert wanted[3] == pytest.approx(oracle.auroc(target[:, 3].tolist(), reference[:, 3].tolist()))
    np.testing.assert_allclose(nm.dataset["target"].values[0], target.mean(0), rtol=1e-4, atol=1e-6)
    assert np.isnan(nm.dataset["ci_low"].values).all()


@pytest.mark.parametrize("levels", [None, 2])
def test_rank_sums_are_those_of_scipy(levels: int | None) -> None:
    x = values(40, 9, levels, 3)
    x[5, 4] = np.nan
    group = np.random.default_rng(0).integers(0, 4, 40)
    found = ranks.rank_sums(x, group, 4)
    for j in range(9):
        for g in range(4):
            wanted = rankdata(x[:, j])[group == g].sum() if j != 4 else np.nan
            np.testing.assert_allclose(found[g, j], wanted)


def test_weights_are_repetitions() -> None:
    inside, outside = values(12, 1, 3, 0)[:, 0], values(15, 1, 3, 1)[:, 0]
    made = np.random.default_rng(2)
    times = [made.integers(0, 4, size=(size, 6)).astype(np.float32) for size in (12, 15)]
    times[0][:, 5] = 0
    found = ranks.weighted_auroc(inside, outside, *times)
    for r in range(6):
        wanted = oracle.repeated_auroc(inside.tolist(), outside.tolist(), times[0][:, r], times[1][:, r])
        np.testing.assert_allclose(found[r], wanted)
    assert np.isnan(found[5])


def test_whole_prompts_are_drawn() -> None:
    clusters = np.repeat([7, 3, 9], [2, 1, 3])
    weights = ranks.cluster_weights(clusters, 200, np.random.default_rng(0))
    assert (weights[:2] == weights[0]).all()
    assert (weights[3:] == weights[3]).all()
    assert (weights[[0, 2, 3]].sum(0) == 3).all()
    assert weights.mean() == pytest.approx(1, abs=0.1)


def test_intervals_hold_the_estimate_and_only_the_highest_have_one() -> None:
    target, reference = values(40, 30, None, 0) + np.linspace(0, 1, 30, dtype=np.float32), values(40, 30, None, 1)
    nm = score(made_run(target), made_run(reference), method="auroc", intervals=8, resamples=400)
    frame = nm.to_dataframe().sort_values("score", ascending=False)
    best, rest = frame.head(8), frame.tail(22)
    assert (best["ci_low"] < best["score"]).all()
    assert (best["score"] < best["ci_high"]).all()
    assert rest[["ci_low", "ci_high"]].isna().all(axis=None)
    assert nm.report["intervals"] == 8
    # Hanley and McNeil's standard error of an AUROC near 0.75 with 40 + 40 samples is 0.055
    width = (best["ci_high"] - best["ci_low"]).mean() / (2 * 1.96)
    assert width == pytest.approx(0.055, rel=0.35)


def test_seeds_of_one_prompt_count_as_one_cluster() -> None:
    target, reference = values(12, 3, None, 0) + np.float32(0.5), values(12, 3, None, 1)
    alone = score(made_run(target), made_run(reference), method="auroc")
    copied = [made_run(np.repeat(v, 5, axis=0), seeds_per_prompt=5) for v in (target, reference)]
    repeated = score(*copied, method="auroc")
    for name in ("score", "ci_low", "ci_high"):
        np.testing.assert_allclose(repeated.dataset[name], alone.dataset[name], atol=1e-6)


def test_exchanged_runs_give_the_complement() -> None:
    target, reference = (made_run(values(20, 5, 3, seed)) for seed in (0, 1))
    a, b = score(target, reference, method="auroc"), score(reference, target, method="auroc")
    np.testing.assert_allclose(a.dataset["score"], 1 - b.dataset["score"], rtol=1e-6)


def test_too_few_samples_for_what_is_asked() -> None:
    target, reference = (made_run(values(9, 4, None, seed)) for seed in (0, 1))
    with pytest.raises(BadInput, match=r"9 samples of 9 prompts.*at least 10 prompts.*intervals=0"):
        score(target, reference, method="auroc")
    score(target, reference, method="auroc", intervals=0)
    with pytest.raises(BadInput, match="at least 2 samples"):
        score(target.isel(sample=[0]), reference, method="auroc", intervals=0)
    with pytest.raises(BadInput, match="bootstrap"):
        score(target, reference, method="auroc", level=1.0)

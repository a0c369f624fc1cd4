"""What each method makes of a planted truth: 20 causal neurons, 5 copies, 20 decoys that pass nothing on."""

from __future__ import annotations

import numpy as np
import pytest

from probe.scores import score
from probe.testing import planted_runs
from probe.testing._planted import Planted


@pytest.fixture(scope="module", params=[1.0, 2.0, 4.0])
def planted(request: pytest.FixtureRequest) -> Planted:
    return planted_runs(request.param)


def quality(chosen: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """Precision and recall of chosen places."""
    right = len(np.intersect1d(chosen, truth))
    return right / len(chosen), right / len(truth)


def best(scores: np.ndarray, count: int) -> np.ndarray:
    return np.argsort(-scores, kind="stable")[:count]


def test_what_was_planted(planted: Planted) -> None:
    assert len(planted.causal) == 20
    assert len(planted.decoys) == 20
    assert len(planted.responding) == 45
    silent = np.flatnonzero(planted.target["fan_out"].values == 0)
    np.testing.assert_array_equal(silent, np.sort(planted.decoys))
    cond = planted.target["absmean"].sel(branch="cond").values
    np.testing.assert_array_equal(cond[..., planted.twins[:, 0]], cond[..., planted.twins[:, 1]])


def test_contrast_finds_what_responds_and_cannot_tell_decoys(planted: Planted) -> None:
    nm = score(planted.target, planted.reference, method="contrast")
    chosen = np.flatnonzero(nm.select(fdr=0.01).selected())
    precision, recall = quality(chosen, planted.responding)
    assert precision >= 0.95
    assert recall >= (0.95 if planted.effect >= 2 else 0.9)
    assert len(np.intersect1d(chosen, planted.decoys)) >= (19 if planted.effect >= 2 else 17)
    expected = planted.effect / np.sqrt(2)
    assert nm.dataset["score"].values[0, planted.causal].mean() == pytest.approx(expected, rel=0.15)


def test_auroc_finds_what_responds_and_cannot_tell_decoys(planted: Planted) -> None:
    nm = score(planted.target, planted.reference, method="auroc", intervals=0)
    chosen = best(nm.dataset["score"].values[0], len(planted.responding))
    precision, recall = quality(chosen, planted.responding)
    assert min(precision, recall) >= 0.95
    assert len(np.intersect1d(chosen, planted.decoys)) >= 18


def test_linear_finds_what_responds_counts_a_pair_once_and_cannot_tell_decoys(planted: Planted) -> None:
    nm = score(planted.target, planted.reference, method="linear")
    scores = nm.dataset["score"].values[0].copy()
    if planted.effect >= 2:
        alone = np.setdiff1d(planted.responding, planted.twins)
        assert scores[planted.twins].max(axis=1).mean() < scores[alone].mean(), "copies share what one would have"
        scores[planted.twins[:, 0]] += scores[planted.twins[:, 1]]
        scores[planted.twins[:, 1]] = -1
        once = np.setdiff1d(planted.responding, planted.twins[:, 1])
        chosen = best(scores, len(once))
        assert min(quality(chosen, once)) >= 0.95
        assert len(np.intersect1d(chosen, planted.decoys)) >= 18
    assert nm.report["accuracy"] > 0.95


def test_wanda_tells_decoys(planted: Planted) -> None:
    nm = score(planted.target, planted.reference, method="wanda", branches="cond")
    scores = nm.dataset["score"].values.mean(0)
    assert len(np.intersect1d(best(scores, 20), planted.decoys)) <= 1
    if planted.effect >= 2:
        assert min(quality(best(scores, len(planted.carrying)), planted.carrying)) >= 0.95

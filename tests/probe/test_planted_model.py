"""What each method makes of a model whose truth is known: 20 causal neurons, 5 copies, 20 decoys that pass nothing on.

Run with ``-s`` or ``-rP`` for the numbers that docs/methods/scores.md quotes.
"""

from __future__ import annotations

import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from probe._generate import generate
from probe._record import record
from probe._sites import sites
from probe._trace import Trace
from probe.errors import BadInput
from probe.scores import score
from probe.scores._judge import judged
from probe.testing import planted_model

logger = logging.getLogger(__name__)
PAIRS = 100


@pytest.fixture(
    scope="module",
    params=[2.0, *(pytest.param(effect, marks=pytest.mark.slow) for effect in (1.0, 4.0))],
    ids=lambda effect: f"{effect:g} sd",
)
def planted(request, tmp_path_factory):
    """A planted model and runs of 100 pairs; what was found of it is logged at the end."""
    model, folder = planted_model(request.param), tmp_path_factory.mktemp("runs")
    options = {"steps": model.steps, "guidance": model.guidance, "batch_size": 50, "images": False, "progress": False}
    tables = {"target": model.samples(PAIRS), "reference": model.samples(PAIRS, concept=False, first_seed=5000)}
    kept = ("absmean", "unit_norm", "mean")
    runs = {
        name: record(model.pipe, table, out=folder / name, reduce=kept, **options) for name, table in tables.items()
    }
    return SimpleNamespace(model=model, window=model.window, **runs)


def best(scores, count):
    return np.argsort(-np.nan_to_num(scores, nan=-np.inf), kind="stable")[:count]


def quality(chosen, truth):
    """Precision and recall of chosen places."""
    right = len(np.intersect1d(chosen, truth))
    return right / len(chosen), right / len(truth)


def told(method, effect, scores, truth, decoys):
    """Precision and recall of as many of the highest as are true, and decoys among the 20 highest; logged."""
    precision, recall = quality(best(scores, len(truth)), truth)
    fooled = len(np.intersect1d(best(scores, 20), decoys))
    logger.info("%s at %g sd: precision %.3f, recall %.3f, decoys %d", method, effect, precision, recall, fooled)
    return precision, recall, fooled


def scores_of(nm):
    return nm.dataset["score"].values.mean(0)


def test_what_was_planted(planted):
    model = planted.model
    assert (len(model.causal), len(model.twins), len(model.decoys)) == (20, 5, 20)
    assert len(model.responding) == 45
    target, reference = (
        run.open()["absmean"].sel(branch="cond").isel(step=0).values for run in (planted.target, planted.reference)
    )
    rise = (target.mean(0) - reference.mean(0)) / reference.std(0, ddof=1)
    assert rise[model.responding].mean() == pytest.approx(model.effect, rel=0.1)
    others = np.setdiff1d(np.arange(len(rise)), model.responding)
    assert np.abs(rise[others]).max() < 0.7, "no more than chance"
    np.testing.assert_allclose(target[:, model.twins[:, 0]], target[:, model.twins[:, 1]], rtol=1e-4)
    fan_out = planted.target.open()["fan_out"].values
    np.testing.assert_array_equal(np.flatnonzero(fan_out == 0), np.sort(model.decoys))


def test_no_other_path_leads_from_the_concept_to_the_picture(planted):
    """With the planted neurons silent, "zorse" and "horse" give the same prediction, but for a rounding."""
    model, site = planted.model, sites(planted.model.pipe, "ffn")[-1]
    unet, kept = model.pipe.unet, site.resolve(model.pipe).weight.detach().clone()
    start = sum(s.width for s in sites(model.pipe, "ffn")[:-1])

    def predictions():
        made = []
        for concept in (True, False):
            with Trace(unet, "conv_out", keep="all") as trace:
                generate(
                    model.pipe, model.samples(4, concept=concept), steps=1, guidance=1.0, decode=False, progress=False
                )
            made.append(trace.outputs[0])
        return float((made[0] - made[1]).abs().mean())

    as_it_is = predictions()
    try:
        with torch.no_grad():
            site.resolve(model.pipe).weight[:, torch.from_numpy(model.carrying - start)] = 0
        silenced = predictions()
    finally:
        with torch.no_grad():
            site.resolve(model.pipe).weight.copy_(kept)
    assert silenced < 0.02 * as_it_is


def test_the_judge_tells_pictures_apart(planted):
    model = planted.model
    options = {"steps": model.steps, "guidance": model.guidance, "batch_size": 50, "progress": False}
    rates, means = [], []
    for concept in (True, False):
        images = generate(model.pipe, model.samples(50, concept=concept), **options)
        log_odds, shown = judged(model.judge, images, model.judge.labels[:1])
        rates.append(shown.mean())
        means.append(log_odds.mean())
        pixels = torch.from_numpy(images).permute(0, 3, 1, 2) / 255
        found = model.judge.log_odds(pixels, model.judge.labels[:1])[:, 0].numpy()
        inside = np.abs(found) < 10
        np.testing.assert_allclose(found[inside], log_odds[inside], rtol=1e-2, atol=1e-3)
    logger.info("rates at %g sd: %.2f with the concept, %.2f without", model.effect, *rates)
    assert rates[0] - rates[1] > 0.2
    assert means[0] > 0 > means[1]


def test_contrast_finds_what_responds_and_cannot_tell_decoys(planted):
    model = planted.model
    nm = score(planted.target, planted.reference, method="contrast", window=planted.window)
    chosen = np.flatnonzero(nm.select(fdr=0.01).selected())
    precision, recall = quality(chosen, model.responding)
    logger.info("contrast (fdr) at %g sd: precision %.3f, recall %.3f", model.effect, precision, recall)
    assert precision >= 0.95
    assert recall >= (0.95 if model.effect >= 2 else 0.9)
    assert len(np.intersect1d(chosen, model.decoys)) >= 18
    assert scores_of(nm)[model.causal].mean() == pytest.approx(model.effect / np.sqrt(2), rel=0.15)


def test_auroc_finds_what_responds_and_cannot_tell_decoys(planted):
    model = planted.model
    nm = score(planted.target, planted.reference, method="auroc", intervals=0, window=planted.window)
    precision, recall, _ = told("auroc", model.effect, scores_of(nm), model.responding, model.decoys)
    assert min(precision, recall) >= 0.95
    assert len(np.intersect1d(best(scores_of(nm), 45), model.decoys)) >= 18


def test_linear_finds_what_responds_counts_a_pair_once_and_cannot_tell_decoys(planted):
    model = planted.model
    nm = score(planted.target, planted.reference, method="linear", window=planted.window)
    scores = scores_of(nm)
    scores[model.twins[:, 0]] += scores[model.twins[:, 1]]
    scores[model.twins[:, 1]] = -1
    once = np.setdiff1d(model.responding, model.twins[:, 1])
    precision, recall, _ = told("linear", model.effect, scores, once, model.decoys)
    assert nm.report["accuracy"] > 0.95
    if model.effect >= 2:
        assert min(precision, recall) >= 0.95
        assert len(np.intersect1d(best(scores, 40), model.decoys)) >= 18


def test_wanda_tells_decoys(planted):
    model = planted.model
    nm = score(planted.target, planted.reference, method="wanda", branches="cond")
    precision, recall, fooled = told("wanda", model.effect, scores_of(nm), model.carrying, model.decoys)
    assert fooled <= 1
    if model.effect >= 2:
        assert min(precision, recall) >= 0.95


@pytest.mark.parametrize("objective", ["noise", "detector"])
def test_gradient_tells_decoys(planted, objective):
    model = planted.model
    goal = {"objective": objective, "detector": model.judge, "concept": "zorse", "window": planted.window}
    sampling = {"steps": model.steps, "guidance": model.guidance, "batch_size": 24}
    nm = score(
        model.samples(24),
        planted.reference,
        method="gradient",
        pipe=model.pipe,
        intervals=0,
        progress=False,
        **goal,
        **sampling,
    )
    scores = scores_of(nm)
    name = f"gradient ({objective})"
    precision, recall, fooled = told(name, model.effect, scores, model.carrying, model.decoys)
    assert (scores[model.decoys] == 0).all()
    assert fooled <= 1
    if model.effect >= 2:
        assert min(precision, recall) >= 0.95


@pytest.mark.slow
def test_causal_tells_decoys(planted):
    """The 45 that contrast finds, and 19 others of the same site."""
    model = planted.model
    found = score(planted.target, planted.reference, method="contrast", window=planted.window)
    rows = scores_of(found).copy()
    rows[: found.offsets[-2]] = -np.inf
    candidates = {found.sites[-1].name: (best(rows, 64) - found.offsets[-2]).tolist()}
    nm = score(
        planted.target,
        planted.reference,
        method="causal",
        pipe=model.pipe,
        concept="zorse",
        detector=model.judge,
        candidates=candidates,
        n_samples=8,
        progress=False,
    )
    scores = scores_of(nm)
    precision, recall, fooled = told("causal", model.effect, scores, model.carrying, model.decoys)
    assert fooled <= 1
    assert np.nanmax(np.abs(scores[model.decoys])) == 0
    if model.effect >= 2:
        assert min(precision, recall) >= 0.95


def test_an_effect_is_positive():
    with pytest.raises(BadInput, match="positive number of standard deviations"):
        planted_model(0)

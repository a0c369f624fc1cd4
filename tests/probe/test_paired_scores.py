"""contrast and linear against their definitions; what they refuse."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import false_discovery_control, permutation_test

from probe.errors import BadInput, HeaderMismatch
from probe.scores import _linear, score
from probe.scores import _paired as paired
from tests.oracles import scores as oracle
from tests.probe.made_runs import made_run

rng = np.random.default_rng(0)


def two_runs(pairs: int = 14, seeds: int = 2, n: int = 7, shift: float = 0.6):
    """Target and reference values (s n), on a grid so that some are equal."""
    made = np.random.default_rng(1)
    values = [(made.integers(0, 30, size=(pairs * seeds, n)) / 8).astype(np.float32) for _ in range(2)]
    values[0][:, :3] += shift
    return values


def test_contrast_equals_its_definition() -> None:
    target, reference = two_runs()
    widths = (4, 3)
    nm = score(
        made_run(target, widths, seeds_per_prompt=2),
        made_run(reference, widths, seeds_per_prompt=2),
        method="contrast",
        flips=64,
        seed=3,
    )
    ids = np.repeat(np.arange(14), 2).tolist()
    differences = [oracle.pair_differences(target[:, j].tolist(), ids, reference[:, j].tolist(), ids) for j in range(7)]
    signs = paired.random_signs(64, 14, 3).astype(int).tolist()
    p = oracle.pooled_p(differences[:4], signs) + oracle.pooled_p(differences[4:], signs)
    found = {name: nm.dataset[name].values[0] for name in ("score", "p_value", "q_value", "target", "reference")}
    np.testing.assert_allclose(found["score"], [oracle.standardised(d) for d in differences], rtol=1e-4)
    np.testing.assert_allclose(found["p_value"], p, rtol=1e-5)
    np.testing.assert_allclose(found["q_value"], oracle.benjamini_hochberg(p), rtol=1e-5)
    np.testing.assert_allclose(found["target"], target.mean(0), rtol=1e-5)
    np.testing.assert_allclose(found["target"] - found["reference"], np.mean(differences, axis=1), rtol=1e-3)
    assert nm.windows == [(999, 0)]
    assert nm.report["pairs"] == 14


def test_benjamini_hochberg_is_that_of_scipy_and_keeps_nan() -> None:
    p = np.append(rng.uniform(size=50), np.nan)
    q = paired.benjamini_hochberg(p)
    np.testing.assert_allclose(q[:-1], false_discovery_control(p[:-1]))
    assert np.isnan(q[-1])


def test_one_neuron_has_the_p_value_of_scipys_permutation_test() -> None:
    d = (rng.normal(0.7, 1, size=12)).astype(np.float32)
    every = np.array(np.meshgrid(*[[1, -1]] * 12)).reshape(12, -1).T.astype(np.float32)
    found = paired.sign_flip_p(d[:, None], every)[0]
    exact = permutation_test(
        (d, np.zeros_like(d)),
        lambda a, b, axis: np.mean(a - b, axis=axis),
        permutation_type="samples",
        alternative="greater",
        vectorized=True,
        n_resamples=np.inf,
    ).pvalue
    assert found == pytest.approx(exact, abs=2 / len(every))


def test_p_values_of_noise_are_uniform() -> None:
    """Also where neurons differ in scale and shape, and half of them are dead."""
    made = np.random.default_rng(5)
    d = made.standard_normal((20, 2000)).astype(np.float32) * made.uniform(0.01, 100, 2000).astype(np.float32)
    d[:, 1000:] = 0
    p = paired.sign_flip_p(d, paired.random_signs(500, 20, 0))
    for cut in (0.01, 0.1, 0.5):
        assert (p[:1000] <= cut).mean() == pytest.approx(cut, abs=4 * np.sqrt(cut / 1000))
    assert (p[1000:] == 1).all()


def test_no_false_discoveries_among_noise_and_all_of_a_strong_effect() -> None:
    made = np.random.default_rng(2)
    target, reference = made.normal(size=(2, 30, 400)).astype(np.float32)
    target[:, :20] += 3
    nm = score(made_run(target), made_run(reference), method="contrast", flips=500).select(fdr=0.01)
    assert nm.selected()[:20].all()
    assert nm.selected().sum() <= 22


def test_flipping_the_runs_flips_the_score() -> None:
    target, reference = (made_run(v, seeds_per_prompt=2) for v in two_runs())
    a, b = score(target, reference, method="contrast"), score(reference, target, method="contrast")
    np.testing.assert_allclose(a.dataset["score"], -b.dataset["score"], rtol=1e-5)


def test_a_window_and_a_branch_are_what_they_say() -> None:
    values = rng.uniform(size=(12, 2, 3, 5)).astype(np.float32)
    reference = rng.uniform(size=(12, 2, 3, 5)).astype(np.float32)
    for options, taken in (
        ({"window": (999, 500)}, (slice(None), 1, slice(0, 2))),
        ({"window": (300, 0)}, (slice(None), 1, slice(2, 3))),
        ({"branches": "both"}, (slice(None), slice(None), slice(None))),
    ):
        nm = score(made_run(values), made_run(reference), method="contrast", **options)
        axes = tuple(range(1, values[taken].ndim - 1))
        expected = [v[taken].mean(axes) for v in (values, reference)]
        np.testing.assert_allclose(nm.dataset["target"].values[0], expected[0].mean(0), rtol=1e-5)
        np.testing.assert_allclose(
            nm.dataset["score"].values[0],
            [oracle.standardised((expected[0] - expected[1])[:, j].tolist()) for j in range(5)],
            rtol=1e-3,
        )
        assert nm.windows == [tuple(options.get("window", (999, 0)))]


def test_pairs_are_found_by_their_coordinate() -> None:
    target, reference = two_runs(seeds=1)
    order = np.random.default_rng(0).permutation(14)
    a = score(made_run(target), made_run(reference), method="contrast")
    b = score(made_run(target), made_run(reference).isel(sample=order), method="contrast")
    np.testing.assert_allclose(a.dataset["score"], b.dataset["score"], rtol=1e-5)
    fewer = score(made_run(target), made_run(reference).isel(sample=order[:11]), method="contrast")
    assert fewer.report["pairs"] == 11


def test_samples_that_were_not_measured_leave_with_their_pair() -> None:
    target, reference = two_runs(seeds=1)
    missing = target.copy()
    missing[4] = np.nan
    rest = np.delete(np.arange(14), 4)
    a = score(made_run(missing), made_run(reference), method="contrast")
    b = score(made_run(target).isel(sample=rest), made_run(reference), method="contrast")
    np.testing.assert_allclose(a.dataset["score"], b.dataset["score"], rtol=1e-6)
    missing = target.copy()
    missing[4, 2] = np.nan  # one neuron of one sample: that neuron was not measured
    found = score(made_run(missing), made_run(reference), method="contrast")
    assert np.isnan(found.dataset["score"].values[0]).tolist() == [j == 2 for j in range(7)]
    assert np.isnan(found.dataset["q_value"].values[0, 2])
    assert found.report["not_measured"] == 1


def test_pieces_give_what_one_piece_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = [made_run(v, (3, 2, 2), seeds_per_prompt=2) for v in two_runs(pairs=20)]
    for method in ("contrast", "auroc", "linear"):
        whole = score(*runs, method=method)
        with monkeypatch.context() as patch:
            patch.setattr("probe.scores._window._HELD", 1)
            patch.setattr("probe._recorded._BLOCK", 1)
            patch.setattr("probe.scores._ranks._AT_ONCE", 1)
            parts = score(*runs, method=method)
        for name in whole.dataset:
            np.testing.assert_allclose(parts.dataset[name], whole.dataset[name], rtol=1e-5, atol=1e-6)


def test_smallest_q_is_reached_by_the_clearest_neuron() -> None:
    made = np.random.default_rng(2)
    target, reference = made.normal(size=(2, 40, 300)).astype(np.float32)
    target[:, 7] += 50
    nm = score(made_run(target), made_run(reference), method="contrast", flips=200)
    assert nm.dataset["q_value"].values.min() == pytest.approx(nm.report["smallest_q"], rel=1e-5)
    with pytest.raises(BadInput, match="could reach this false discovery rate"):
        nm.select(fdr=nm.report["smallest_q"] / 2)


def test_discoveries_are_the_units_below_the_rate() -> None:
    target, reference = two_runs(seeds=1)
    nm = score(made_run(target), made_run(reference), method="contrast", flips=3000)
    q = nm.dataset["q_value"].values
    chosen = nm.select(fdr=0.3)
    np.testing.assert_array_equal(chosen.dataset["selected"].values, q <= np.float32(0.3))
    assert chosen.provenance["identity"]["selection"] == [{"of": nm.id, "select": {"fdr": 0.3}}]
    assert chosen.report == nm.report
    for options, part in (({"fdr": 1.0}, r"\(0, 1\)"), ({"fdr": 0.1, "top": 3}, "one of top, quantile, fdr and units")):
        with pytest.raises(BadInput, match=part):
            nm.select(**options)
    without = score(made_run(target), made_run(reference), method="auroc", intervals=0)
    with pytest.raises(BadInput, match=r'no q-values.*an? auroc map.*method="contrast"'):
        without.select(fdr=0.1)


def test_too_few_pairs() -> None:
    target, reference = (made_run(v) for v in two_runs(pairs=9, seeds=1))
    with pytest.raises(BadInput, match=r"9 values.*at least 10"):
        score(target, reference, method="contrast")
    target, reference = (made_run(v) for v in two_runs(pairs=19, seeds=1))
    with pytest.raises(BadInput, match=r"19 values.*at least 20"):
        score(target, reference, method="linear")


@pytest.mark.parametrize("method", ["contrast", "auroc", "linear"])
def test_what_cannot_be_scored(method: str) -> None:
    target, reference = (made_run(v) for v in two_runs(pairs=20, seeds=1))
    with pytest.raises(BadInput, match=r"no step of the run.*801, 501, 201"):
        score(target, reference, method=method, window=(150, 0))
    with pytest.raises(BadInput, match=r"no unit_norm.*unit_norm"):
        score(target, reference, method=method, reducer="unit_norm")
    with pytest.raises(HeaderMismatch, match="guidance"):
        score(target, made_run(two_runs(pairs=20, seeds=1)[1], guidance=3.0), method=method)
    with pytest.raises(BadInput, match="no judge's scores"):
        score(target, reference, method=method, only_shown=0.5)


@pytest.mark.parametrize("method", ["contrast", "auroc", "linear"])
def test_only_samples_that_show_the_concept(method: str) -> None:
    values, reference = two_runs(pairs=40, seeds=1)
    shown = np.random.default_rng(3).uniform(0.2, 1, size=40)
    seen = np.flatnonzero(shown >= 0.5)
    a = score(made_run(values, shown=shown), made_run(reference), method=method, only_shown=0.5, seed=1)
    b = score(made_run(values, shown=shown).isel(sample=seen), made_run(reference), method=method, seed=1)
    np.testing.assert_allclose(a.dataset["score"], b.dataset["score"])
    with pytest.raises(BadInput, match="on no sample"):
        score(made_run(values, shown=shown), made_run(reference), method=method, only_shown=1.5)


def test_linear_equals_its_definition() -> None:
    made = np.random.default_rng(4)
    target, reference = made.normal(size=(2, 24, 9)).astype(np.float32)
    target[:, 1] += 1.5
    target[:, 5] -= 1.0
    options = {"screened": 6, "subsamples": 8, "strength": 0.5}
    nm = score(made_run(target, (5, 4)), made_run(reference, (5, 4)), method="linear", seed=2, **options)
    halves = _linear.random_halves(8, 24, 2)
    wanted = oracle.selection_frequency(target.tolist(), reference.tolist(), halves, 6, 0.5)
    np.testing.assert_allclose(nm.dataset["score"].values[0], wanted, atol=1e-6)
    assert wanted[1] == 1
    assert wanted[5] < 0
    assert 0.5 < nm.report["accuracy"] <= 1


def test_a_probe_of_noise_is_no_better_than_chance_on_the_other_half() -> None:
    """Screening outside the folds would let it see the answer."""
    made = np.random.default_rng(6)
    target, reference = made.normal(size=(2, 40, 2000)).astype(np.float32)
    nm = score(made_run(target), made_run(reference), method="linear", subsamples=10, screened=50)
    assert nm.report["accuracy"] == pytest.approx(0.5, abs=0.1)

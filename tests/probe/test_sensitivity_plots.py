"""Figures of a sensitivity: what stands where in the Axes, and what they refuse."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from matplotlib import pyplot

from probe import NeuronMap
from probe._relighting import XT
from probe._relit import CONDITIONS, GROUPS, Collected
from probe.errors import BadInput, UnknownName
from probe.plots import plot_concept_neurons, plot_sensitivity, plot_sensitivity_profile
from probe.scores._reactivation import QUANTITIES, Ratio

N, STEPS = 6, 3


@pytest.fixture(autouse=True)
def _closed():
    yield
    pyplot.close("all")


@pytest.fixture(scope="module")
def sens(tmp_path_factory):
    """A map of two sites with made up numbers."""
    from probe._sites import Site

    sites = [Site(f"unet.{b}.ffn", "ffn", "unet", f"{b}.ff.net.2", "input", 3, i) for i, b in enumerate(("down", "up"))]
    chosen = np.array([True, False, False, False, True, False])
    data = Collected(sites, np.array([900, 500, 100]))
    of_site = np.repeat([0, 1], 3)
    levels = {"original": 1.0, "plain": 0.4, "adversarial": 0.8, "random_prefix": 0.45}
    for kind in XT:
        for form in QUANTITIES:
            values = {name: np.full((2, STEPS, N), level) for name, level in levels.items()}
            data.add(kind, form, values, chosen, of_site)
            ratios = {"concept": Ratio(0.7, 0.5, 0.9, 2), "random_prefix": Ratio(0.1, -np.inf, np.inf, 2)}
            data.add_ratios(kind, form, ratios)
    nm = NeuronMap.build(
        method="sensitivity",
        score=np.zeros((STEPS, N)),
        windows=[(t, t) for t in (900, 500, 100)],
        sites=sites,
        identity={"model": {}},
        selected=np.broadcast_to(chosen, (STEPS, N)),
    )
    return NeuronMap(data.into(nm.dataset))


def test_ratios_stand_with_their_intervals_and_controls_that_were_not_measured_have_no_point(sens):
    ax = plot_sensitivity(sens)
    points = [line for line in ax.lines if line.get_marker() == "o"]
    assert np.allclose(np.column_stack(points[0].get_data()), [(0, 0.7), (2, 0.1)])
    assert ax.get_xticklabels()[0].get_text().startswith("concept neurons")
    assert len(ax.get_xticklabels()) == len(GROUPS)
    low, high = ax.get_ylim()
    assert low <= 0
    assert high >= 1
    both = plot_sensitivity({"esd": sens, "prune": sens}, xt="own", quantity="raw")
    assert [text.get_text() for text in both.get_legend().get_texts()] == ["esd", "prune"]


def test_levels_are_shares_of_the_originals(sens):
    ax = plot_concept_neurons(sens)
    concept, others = ax.lines[:2]
    at = [CONDITIONS.index(c) for c in ("original", "plain", "adversarial", "random_prefix")]
    assert np.allclose(concept.get_ydata()[at], [1, 0.4, 0.8, 0.45])
    assert np.isnan(others.get_ydata()[CONDITIONS.index("failed")])


@pytest.mark.parametrize(("over", "count"), [("site", 2), ("step", STEPS)])
def test_profiles_run_over_sites_or_steps(sens, over, count):
    ax = plot_sensitivity_profile(sens, over)
    assert [len(line.get_ydata()) for line in ax.lines] == [count] * 3
    assert np.allclose(ax.lines[1].get_ydata(), 0.4)


def test_what_is_no_sensitivity_is_refused(sens, tmp_path):
    other = NeuronMap(sens.dataset.assign_attrs(method="wanda"))
    for draw in (plot_sensitivity, plot_concept_neurons, plot_sensitivity_profile):
        with pytest.raises(BadInput, match="of a sensitivity"):
            draw(other)
    with pytest.raises(UnknownName, match="axis of a profile"):
        plot_sensitivity_profile(sens, "layer")
    with pytest.raises(BadInput, match="no sensitivity"):
        plot_sensitivity({})


def test_files_give_the_same_figures_on_the_command_line(sens, tmp_path):
    from probe._terminal import run
    from probe.cli import app

    sens.save(tmp_path / "a.zarr.zip")
    assert isinstance(sens.dataset, xr.Dataset)
    for kind in ("sensitivity", "concept-neurons", "by-layer", "by-step"):
        words = ["plot", kind, str(tmp_path / "a.zarr.zip"), "-o", str(tmp_path / f"{kind}.png")]
        assert run(app, words) == 0
        assert (tmp_path / f"{kind}.png").stat().st_size > 5_000

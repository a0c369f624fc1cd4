"""Figures of a sensitivity: what stands where in the Axes, and what they refuse."""

from __future__ import annotations

import numpy as np
import pandas as pd
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
    # prompts 0 and 1 were attacked with success; 2 failed, and everything is ten times as high there
    levels = {"original": 1.0, "plain": 0.4, "adversarial": 0.8, "random_prefix": 0.45, "failed": 0.5}
    pairs = {"adversarial": [0, 1], "failed": [2]}
    tables = {name: pd.DataFrame({"pair": (at := pairs.get(name, [2, 0, 1])), "prompt_id": at}) for name in levels}
    for kind in XT:
        for form in QUANTITIES:
            own = 0.5 if form == "raw" else 1
            values = {
                name: own * level * np.where(tables[name]["pair"] == 2, 10, 1)[:, None, None] * np.ones((1, STEPS, N))
                for name, level in levels.items()
            }
            data.add(kind, form, values, tables, chosen, of_site)
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


def test_levels_are_shares_of_the_originals_on_the_same_prompts(sens):
    ax = plot_concept_neurons(sens)
    concept, plain, others = ax.lines[:3]
    at = [CONDITIONS.index(c) for c in ("original", "plain", "adversarial", "random_prefix", "failed")]
    assert np.allclose(concept.get_ydata()[at], [1, 0.4, 0.8, 0.45, 0.5])
    assert np.isnan(others.get_ydata()[CONDITIONS.index("non_concept")])
    assert np.allclose(plain.get_ydata()[[0, 1, 2]], 0.4), "under attacks, random tokens and failed attacks"
    assert np.allclose(sens.dataset["level"].sel(xt="own", quantity="contribution", condition="original"), 1)
    assert np.allclose(sens.dataset["baseline"].sel(of="plain", condition="failed", quantity="contribution"), 4)


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
    with pytest.raises(UnknownName, match="kind of x_t"):
        plot_sensitivity(sens, xt="share")
    with pytest.raises(BadInput, match="no sensitivity"):
        plot_sensitivity({})


def test_files_give_the_same_figures_on_the_command_line(sens, tmp_path, capsys):
    from probe._terminal import run
    from probe.cli import app
    from probe.cli._figures import FIGURES

    sens.save(tmp_path / "a.zarr.zip")
    assert isinstance(sens.dataset, xr.Dataset)
    for kind in ("sensitivity", "concept-neurons", "by-layer", "by-step"):
        words = ["plot", kind, str(tmp_path / "a.zarr.zip"), "-o", str(tmp_path / f"{kind}.png")]
        assert run(app, words) == 0
        assert (tmp_path / f"{kind}.png").stat().st_size > 5_000
    options = {"title": None, "xt": "own", "quantity": "raw"}
    lines = {
        kind: FIGURES[kind].draw([str(tmp_path / "a.zarr.zip")], options).lines for kind in ("by-layer", "by-step")
    }
    assert all(np.allclose(drawn[0].get_ydata(), 0.5) for drawn in lines.values())
    words = ["plot", "by-step", str(tmp_path / "a.zarr.zip"), "-o", str(tmp_path / "raw.png")]
    assert run(app, [*words, "--xt", "own", "--quantity", "raw"]) == 0
    assert (tmp_path / "raw.png").read_bytes() != (tmp_path / "by-step.png").read_bytes()
    assert run(app, [*words, "--quantity", "row"]) == 2
    assert "raw" in capsys.readouterr().err

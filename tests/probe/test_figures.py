"""Figures of findings, on small made data: what is drawn, not only that something is."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import xarray as xr
from matplotlib.figure import Figure

from probe import plots
from probe._neuron_map import NeuronMap
from probe.errors import BadInput, UnknownName
from tests.probe.made_runs import MODEL, made_run, made_sites


@pytest.fixture(autouse=True)
def _no_screen_and_no_leaks():
    from matplotlib import pyplot

    before = dict(mpl.rcParams)
    pyplot.switch_backend("Agg")
    yield
    pyplot.close("all")
    changed = {k for k, v in mpl.rcParams.items() if before[k] != v} - {"backend", "backend_fallback"}
    assert not changed, "a plot changed global settings"


def made_map(scores: np.ndarray, *widths: int, method: str = "made") -> NeuronMap:
    windows = [(900.0 - i, 900.0 - i) for i in range(len(scores))]
    identity = {"method": method, "model": MODEL}
    return NeuronMap.build(method=method, score=scores, windows=windows, sites=made_sites(*widths), identity=identity)


def texts(ax) -> list[str]:
    return [text.get_text() for text in ax.texts]


# --- ranked scores ---


def test_ranks_masses_and_names_of_a_map():
    nm = made_map(np.array([[1.0, -3.0, np.nan, 5.0, 0.0], [3.0, -1.0, np.nan, 7.0, 0.0]]), 3, 2)
    table = plots.ranked_scores(nm.select(top=2))
    assert table["score"].tolist() == [6, 2, 0, -2]
    assert table["mass"].tolist() == [0.75, 1, 1, 1]
    assert table["neuron"].tolist() == [3, 0, 4, 1]
    assert table["site"].tolist() == ["unet.block1.ffn", "unet.block0.ffn", "unet.block1.ffn", "unet.block0.ffn"]
    assert table["unit"].tolist() == [0, 0, 1, 1]
    assert table["selected"].tolist() == [True, True, False, False]
    assert plots.ranked_scores(nm, over="max")["score"].tolist() == [7, 3, 0, -1]
    assert plots.ranked_scores(-np.ones(2))["mass"].isna().all()


def test_the_ranked_curve_draws_every_score_the_cut_and_the_share():
    scores = np.array([[4.0, 1.0, 3.0, 2.0, 0.0]])
    ax = plots.plot_ranked_scores(made_map(scores, 5).select(top=2), title="church", named=1)
    ax.figure.canvas.draw()
    (above,) = ax.child_axes
    assert ax.lines[0].get_xydata().tolist() == [[1, 4], [2, 3], [3, 2], [4, 1], [5, 0]]
    assert above.lines[0].get_ydata() == pytest.approx([40, 70, 90, 100, 100])
    assert [part.lines[-1].get_xdata()[0] for part in (ax, above)] == [2.5, 2.5]
    assert texts(ax) == ["first 2: 70 % of all score", "1. unet.block0.ffn [0]"]
    assert above.get_title(loc="left") == "church"
    assert ax.get_xlabel() == "rank of the neuron (of 5)"
    assert "first 3: 90 % of all score" in texts(plots.plot_ranked_scores(scores[0], cut=3))


def test_the_ranked_curve_says_what_its_score_counts():
    scores = np.array([[4.0, 1.0, 3.0]])
    labels = [
        plots.plot_ranked_scores(nm).get_ylabel()
        for nm in (made_map(scores, 3), made_map(scores, 3, method="contrast"))
    ]
    assert labels == ["score", "score (standard deviations)"]


def test_a_selection_that_is_no_cut_is_marked_neuron_by_neuron():
    nm = made_map(np.array([[4.0, 1.0, 3.0]]), 3)
    lower = nm.select(top=2).difference(nm.select(top=1))
    ax = plots.plot_ranked_scores(lower)
    assert ax.lines[1].get_xydata().tolist() == [[2, 3]]
    assert ax.get_legend().get_texts()[0].get_text() == "selected: 1"


# --- activations ---


def test_histograms_share_bins_and_say_how_far_they_are_apart():
    ax = plots.plot_activations([2.0, 3.0, 4.0, np.nan], [0.0, 1.0, 2.0], bins=4, names=("church", "house"))
    target, reference = ax.patches
    assert target.get_data().edges.tolist() == reference.get_data().edges.tolist() == [0, 1, 2, 3, 4]
    assert target.get_data().values == pytest.approx([0, 0, 100 / 3, 200 / 3])
    assert reference.get_data().values == pytest.approx([100 / 3, 100 / 3, 100 / 3, 0])
    assert [line.get_xdata()[0] for line in ax.lines] == [3, 1]
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["church, 3 samples (1 not measured)", "house, 3 samples"]
    assert ax.get_legend().get_title().get_text() == f"AUROC {8.5 / 9:.2f}; dashed: medians"
    assert reference.get_hatch(), "the two differ without colour too"


def test_separation_counts_pairs():
    rng = np.random.default_rng(0)
    a, b = rng.integers(0, 5, 30), rng.integers(0, 5, 20)
    pairs = [(x > y) + (x == y) / 2 for x in a for y in b]
    assert plots.separation(a, b) == pytest.approx(np.mean(pairs))
    assert np.isnan(plots.separation(np.array([np.nan]), b))


# --- examples of a neuron ---


def test_examples_are_the_highest_and_those_around_quantiles():
    values = np.arange(12.0)[::-1].copy()
    values[0] = np.nan  # the rest: 10, 9, ... 0 at positions 1 to 11
    rows = plots.neuron_examples(values, per_row=3, quantiles=(0.5, 0.0))
    assert {name: values[chosen].tolist() for name, chosen in rows.items()} == {
        "highest": [10, 9, 8],
        "quantile 0.5": [6, 5, 4],
        "quantile 0": [2, 1, 0],
    }
    assert plots.neuron_examples([1.0], per_row=8, quantiles=())["highest"].tolist() == [0]


def test_the_grid_of_examples_shows_pictures_maps_and_values():
    rng = np.random.default_rng(1)
    pictures = rng.integers(0, 255, (5, 6, 4, 3), dtype=np.uint8)
    maps = rng.random((5, 3, 2))
    maps[4] = 50  # never shown: must not stretch the scale
    values = [0.5, 0.1, 0.9, 0.3, np.nan]
    ax = plots.plot_neuron_examples(pictures, values, maps=maps, per_row=2, quantiles=(0.0,))
    ax.figure.canvas.draw()
    drawn = [image.get_array() for image in ax.images]
    order = [2, 0, 3, 1]
    assert [np.array_equal(drawn[3 * i], pictures[s]) for i, s in enumerate(order)] == [True] * 4
    assert [np.array_equal(drawn[3 * i + 2], maps[s]) for i, s in enumerate(order)] == [True] * 4
    assert {image.get_clim() for image in ax.images[2::3]} == {(0.0, maps[:4].max())}
    assert texts(ax) == ["0.9", "0.5", "highest", "0.3", "0.1", "quantile 0"]
    left, right, bottom, top = ax.images[0].get_extent()
    assert (top - bottom) / (right - left) == pytest.approx(6 / 4)
    assert len(plots.plot_neuron_examples(pictures, values, per_row=2).images) == 8
    ax = plots.plot_neuron_examples(pictures, values, rows={"these": [3, 1]})
    np.testing.assert_array_equal([image.get_array() for image in ax.images], pictures[[3, 1]])
    assert texts(ax)[-1] == "these"


# --- maps over pictures ---


def test_overlays_have_one_scale_and_keep_the_aspect_of_the_picture():
    rng = np.random.default_rng(2)
    picture, maps = rng.integers(0, 255, (8, 16, 3), dtype=np.uint8), rng.random((2, 3, 4, 8))
    maps[0, 0, 0, 0] = np.nan
    ax = plots.plot_overlays(picture, maps, rows=["a", "b"], columns=["x", "y", "z"], title="t")
    over = [image for image in ax.images if image.get_array().ndim == 2]
    assert len(over) == 6
    drawn = np.stack([image.get_array().filled(np.nan) for image in over])
    np.testing.assert_array_equal(drawn, maps.reshape(6, 4, 8))
    assert {image.get_clim() for image in over} == {(0.0, np.nanmax(maps))}
    assert {tuple(np.round(np.diff(image.get_extent())[[0, 2]], 9)) for image in ax.images} == {(1.0, 0.5)}
    assert sum(np.array_equal(image.get_array(), picture) for image in ax.images) == 2, "one plain picture a row"
    assert texts(ax) == ["a", "b", "x", "y", "z"]
    assert ax.get_title(loc="left") == "t"


def test_overlays_take_a_picture_for_each_column_and_limits():
    rng = np.random.default_rng(3)
    pictures, maps = rng.integers(0, 255, (2, 8, 8, 3), dtype=np.uint8), rng.random((1, 2, 4, 4)) - 0.5
    ax = plots.plot_overlays(pictures, maps, rows=["a"], columns=["x", "y"])
    plain = [image for image in ax.images if image.get_array().dtype == np.uint8]
    assert [np.array_equal(i.get_array(), p) for i, p in zip(plain, pictures, strict=True)] == [True, True]
    assert plain[0].get_extent()[2] > ax.images[1].get_extent()[2], "the plain row is above"
    over = [image for image in ax.images if image.get_array().ndim == 2]
    far = np.abs(maps).max()
    assert over[0].get_clim() == (-far, far), "zero is the middle of two colours"
    assert over[0].get_cmap().name.startswith("PuOr")
    bare = plots.plot_overlays(None, maps, rows=["a"], columns=["x", "y"], limits=(-1, 1))
    assert [image.get_clim() for image in bare.images] == [(-1, 1), (-1, 1)]


def made_words(samples: int = 2, steps: int = 4, words=("a", "church")) -> xr.Dataset:
    rng = np.random.default_rng(4)
    values = rng.random((samples, steps, len(words), 3, 5))
    coords = {
        "word": ("word", list(words)),
        "timestep": ("step", [900, 600, 300, 1][:steps]),
        "prompt": ("sample", [f"prompt {i}" for i in range(samples)]),
    }
    return xr.Dataset({"attention": (("sample", "step", "word", "y", "x"), values)}, coords=coords)


def test_word_maps_have_words_across_and_steps_down_on_one_scale():
    words = made_words()
    ax = plots.plot_word_maps(words, np.zeros((6, 10, 3), np.uint8), sample=1, steps=2)
    over = [image for image in ax.images if image.get_array().ndim == 2]
    values = words["attention"].values[1]
    wanted = values.reshape(2, 2, 2, 3, 5).mean(1).reshape(4, 3, 5)
    assert [np.allclose(i.get_array(), m) for i, m in zip(over, wanted, strict=True)] == [True] * 4
    assert len({image.get_clim() for image in over}) == 1
    assert texts(ax) == ["t 900-600", "t 300-1", "a", "church"]
    assert ax.get_title(loc="left") == "prompt 1"
    assert texts(plots.plot_word_maps(words, steps=4))[:2] == ["t 900", "t 600"]


# --- tables ---


def test_overlap_writes_the_lower_triangle():
    names = ["church", "castle", "ink"]
    table = pd.DataFrame([[1, 0.4, 0.1], [0.4, 1, np.nan], [0.1, np.nan, 1]], index=names, columns=names)
    ax = plots.plot_overlap(table, title="top 50")
    assert texts(ax) == ["0.40", "0.10", "none"]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["castle", "ink"]
    assert [t.get_text() for t in ax.get_xticklabels()] == ["church", "castle"]
    drawn = ax.images[0].get_array()
    assert np.array_equal(drawn.filled(-1), [[0.4, -1], [0.1, -1]])
    assert ax.images[0].get_clim() == (0, 0.4), "the diagonal does not set the scale"


def test_similarity_draws_every_pair():
    names = ["0 [SoT]", "1 church", "2 [EoT]"]
    cosines = np.array([[1, 0.1, 0.2], [0.1, 1, 0.6], [0.2, 0.6, 1]])
    ax = plots.plot_token_similarity(pd.DataFrame(cosines, index=names, columns=names))
    assert np.array_equal(ax.images[0].get_array(), cosines)
    assert ax.images[0].get_clim() == (0, 1)
    assert [t.get_text() for t in ax.get_yticklabels()] == names
    signed = pd.DataFrame(cosines * [[1, -1, 1], [-1, 1, 1], [1, 1, 1]], index=names, columns=names)
    assert plots.plot_token_similarity(signed).images[0].get_clim() == (-1, 1)


def curves() -> pd.DataFrame:
    rows = [("wanda", 10, 0.9), ("wanda", 100, 0.3), ("random 1", 10, 0.95), ("random 1", 100, 0.94)]
    table = pd.DataFrame(rows, columns=["method", "k", "value"])
    return table.assign(ci_low=table["value"] - 0.1, ci_high=table["value"] + 0.05, original=0.96)


def test_ablation_curves_draw_points_intervals_controls_and_the_untouched_rate():
    ax = plots.plot_ablation_curves(curves(), title="church")
    wanda, random = ax.containers
    assert wanda.lines[0].get_ydata().tolist() == [0.9, 0.3]
    assert random.lines[0].get_linestyle() == "--"
    assert wanda.lines[0].get_xdata() == pytest.approx([1, 2], abs=0.02), "k is logarithmic"
    bars = wanda.lines[2][0].get_segments()
    assert [bar[:, 1].tolist() for bar in bars] == [pytest.approx([0.8, 0.95]), pytest.approx([0.2, 0.35])]
    assert [t.get_text() for t in ax.get_xticklabels()] == ["10", "100"]
    names = [text.get_text() for text in ax.get_legend().get_texts()]
    assert sorted(names) == ["random 1", "untouched", "wanda"]
    assert next(line for line in ax.lines if line.get_label() == "untouched").get_ydata()[0] == pytest.approx(0.96)
    other = curves().rename(columns={"k": "left"}).assign(left=[0, 4, 0, 4], ci_low=np.nan)
    assert plots.plot_ablation_curves(other, x="left").get_xlabel() == "left"


def test_rates_stand_side_by_side():
    table = pd.DataFrame(
        [("none", "explicit", 0.9), ("[EoT]", "explicit", 0.1), ("none", "implicit", 0.7)],
        columns=["variant", "split", "value"],
    ).assign(ci_low=0.0, ci_high=1.0)
    ax = plots.plot_rates(table, title="weapon")
    explicit, implicit = ax.containers
    assert explicit.lines[0].get_xdata().tolist() == [0.9, 0.1]
    assert explicit.lines[0].get_ydata().round().tolist() == [0, 1]
    assert implicit.lines[0].get_xdata().tolist() == [0.7]
    assert [t.get_text() for t in ax.get_yticklabels()] == ["none", "[EoT]"]
    assert ax.yaxis_inverted()


# --- readings ---


def test_a_neurons_values_are_means_over_the_window_of_one_branch():
    rng = np.random.default_rng(5)
    values = rng.random((4, 2, 3, 5)).astype(np.float32)  # branches uncond, cond; timesteps 801, 501, 201
    run = made_run(values, (2, 3))
    found = plots.values_of_neuron(run, "unet.block1.ffn", 2, window=(900, 500))
    assert found == pytest.approx(values[:, 1, :2, 4].mean(1), rel=1e-6)
    both = plots.values_of_neuron(run, "unet.block0.ffn", 1, branches="both")
    assert both == pytest.approx(values[..., 1].mean((1, 2)), rel=1e-6)
    with pytest.raises(UnknownName, match=r"nearest: unet\.block1\.ffn"):
        plots.values_of_neuron(run, "unet.blok1.ffn", 0)
    with pytest.raises(BadInput, match="outside its site"):
        plots.values_of_neuron(run, "unet.block1.ffn", 3)
    with pytest.raises(BadInput, match="no step"):
        plots.values_of_neuron(run, "unet.block1.ffn", 0, window=(400, 300))


@pytest.mark.parametrize(
    "draw",
    [
        lambda: plots.plot_ranked_scores(np.full(3, np.nan)),
        lambda: plots.plot_ranked_scores(np.ones(3), cut=4),
        lambda: plots.ranked_scores(np.ones((2, 3))),
        lambda: plots.ranked_scores(np.ones(3), over="vote"),
        lambda: plots.ranked_scores(made_map(np.ones((1, 2)), 2), variable="p_value"),
        lambda: plots.plot_activations([np.nan], [1.0]),
        lambda: plots.plot_activations([1.0], [1.0], bins=0),
        lambda: plots.neuron_examples([1.0, 2.0], quantiles=(1.5,)),
        lambda: plots.neuron_examples([np.nan]),
        lambda: plots.plot_neuron_examples(np.zeros((2, 4, 4, 3), np.uint8), [1.0]),
        lambda: plots.plot_neuron_examples(np.zeros((2, 4, 4), np.uint8), [1.0, 2.0]),
        lambda: plots.plot_overlays(None, np.zeros((1, 2, 4, 4)), rows=["a"], columns=["x"]),
        lambda: plots.plot_overlays(None, np.full((1, 1, 4, 4), np.nan), rows=["a"], columns=["x"]),
        lambda: plots.plot_overlays(np.zeros((4, 4)), np.zeros((1, 1, 4, 4)), rows=["a"], columns=["x"]),
        lambda: plots.plot_word_maps(made_words(), sample=2),
        lambda: plots.plot_word_maps(made_words(), steps=5),
        lambda: plots.plot_overlap(pd.DataFrame([[1.0]], index=["a"], columns=["a"])),
        lambda: plots.plot_overlap(pd.DataFrame([[1, 0.2], [0.1, 1]], index=list("ab"), columns=list("ab"))),
        lambda: plots.plot_overlap(pd.DataFrame([[1, 2], [2, 1]], index=list("ab"), columns=list("ab"))),
        lambda: plots.plot_token_similarity(pd.DataFrame([[1.0, 3], [3, 1]], index=list("ab"), columns=list("ab"))),
        lambda: plots.plot_token_similarity(pd.DataFrame([[1.0, 0], [0, 1]], index=list("ab"), columns=list("bc"))),
        lambda: plots.plot_ablation_curves(curves().drop(columns="k")),
        lambda: plots.plot_ablation_curves(pd.concat([curves(), curves()])),
        lambda: plots.plot_ablation_curves(curves().assign(value=np.nan)),
        lambda: plots.plot_rates(curves(), rows="variant"),
    ],
)
def test_what_cannot_be_drawn_is_an_error(draw):
    with pytest.raises(BadInput):
        draw()


@pytest.mark.parametrize(
    "draw",
    [
        lambda ax: plots.plot_ranked_scores(np.ones(3), ax=ax),
        lambda ax: plots.plot_activations([1.0, 2.0], [1.0], ax=ax),
        lambda ax: plots.plot_neuron_examples(np.zeros((1, 4, 4, 3), np.uint8), [1.0], ax=ax),
        lambda ax: plots.plot_overlays(None, np.zeros((1, 1, 4, 4)), rows=["a"], columns=["x"], ax=ax),
        lambda ax: plots.plot_word_maps(made_words(), ax=ax),
        lambda ax: plots.plot_overlap(pd.DataFrame(np.eye(2), index=list("ab"), columns=list("ab")), ax=ax),
        lambda ax: plots.plot_token_similarity(pd.DataFrame(np.eye(2), index=list("ab"), columns=list("ab")), ax=ax),
        lambda ax: plots.plot_ablation_curves(curves(), ax=ax),
        lambda ax: plots.plot_rates(curves(), rows="method", by="k", ax=ax),
    ],
)
def test_every_figure_is_drawn_on_the_axes_it_is_given(draw):
    ax = Figure(layout="constrained").subplots()
    assert draw(ax) is ax
    ax.figure.canvas.draw()


# --- losses ---


def made_curve(n: int, **terms) -> pd.DataFrame:
    curve = pd.DataFrame({"iteration": range(n), **terms})
    curve.insert(1, "loss", curve.drop(columns="iteration").sum(axis=1))
    return curve


def test_one_training_shows_its_terms_and_several_their_losses():
    one = made_curve(40, erase=np.linspace(2, 1, 40), sparsity=np.full(40, 0.5), retain=np.zeros(40))
    ax = plots.plot_losses(one, over=4)
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["loss", "erase", "sparsity"]
    means = {line.get_label(): line.get_ydata() for line in ax.lines if not line.get_label().startswith("_")}
    assert means["erase"][10] == pytest.approx(one["erase"][7:11].mean())
    assert ax.get_yscale() == "log"
    both = plots.plot_losses({"esd": one, "ac": made_curve(10, erase=np.ones(10))})
    assert [text.get_text() for text in both.get_legend().get_texts()] == ["esd", "ac"]
    assert plots.plot_losses(made_curve(3, erase=np.ones(3))).get_legend() is None, "one term is the loss"


@pytest.mark.parametrize("curves", [{}, pd.DataFrame({"iteration": [], "loss": []}), pd.DataFrame({"loss": [1.0]})])
def test_what_is_no_loss_curve_is_refused(curves):
    with pytest.raises(BadInput):
        plots.plot_losses(curves)


def test_a_training_on_disk_is_drawn_by_its_folder(tmp_path):
    import json

    from probe import formats
    from probe._terminal import run
    from probe.cli import app

    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "training.json").write_text(json.dumps(formats.header("training")))
    assert run(app, ["plot", str(tmp_path / "a"), "-o", str(tmp_path / "none.png")]) == 2, "nothing was kept yet"
    for name in ("a", "b"):
        made_curve(5, erase=np.ones(5)).to_csv(tmp_path / name / "losses.csv", index=False)
    assert run(app, ["plot", str(tmp_path / "a"), "-o", str(tmp_path / "one.png")]) == 0
    files = [f"esd={tmp_path / 'a'}", str(tmp_path / "b")]
    assert run(app, ["plot", "losses", *files, "-o", str(tmp_path / "two.png")]) == 0
    assert (tmp_path / "two.png").stat().st_size > 5_000

from __future__ import annotations

import json
from itertools import pairwise

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import xarray as xr

from probe import plots
from probe.errors import BadInput, UnknownName

SITES = [
    "unet.down_blocks.1.attentions.0.transformer_blocks.0.ffn",
    "unet.mid_block.attentions.0.transformer_blocks.0.ffn",
    "unet.up_blocks.0.attentions.1.transformer_blocks.3.ffn",
]


@pytest.fixture(autouse=True)
def _no_screen_and_no_leaks():
    from matplotlib import pyplot

    before = dict(mpl.rcParams)
    pyplot.switch_backend("Agg")
    yield
    pyplot.close("all")
    changed = {k for k, v in mpl.rcParams.items() if before[k] != v} - {"backend", "backend_fallback"}
    assert not changed, "a plot changed global settings"


def neuron_map(scores: np.ndarray, site: list[int]) -> xr.Dataset:
    windows = len(scores)
    times = np.linspace(967, 10, windows).round()
    return xr.Dataset(
        {"score": (("window", "neuron"), scores.astype(np.float32))},
        coords={
            "t_max": ("window", times),
            "t_min": ("window", times),
            "site": ("neuron", np.array(site, dtype=np.int16)),
        },
        attrs={"sites": json.dumps([{"name": name} for name in SITES])},
    )


def test_layer_step_table_averages_the_highest_neurons_of_each_layer_and_skips_nan():
    scores = np.zeros((2, 7))
    scores[0] = [5, 1, 1, 1, 3, np.nan, np.nan]
    scores[1] = [0, 0, -4, 0, np.nan, -1, -3]
    table = plots.layer_step_table(neuron_map(scores, [0, 0, 0, 0, 1, 2, 2]), top=0.5)
    assert table.index.tolist() == SITES
    assert table.columns.tolist() == ["967", "10"]
    expected = [[3, 0], [3, np.nan], [np.nan, -1]]
    assert np.allclose(table.to_numpy(), expected, equal_nan=True)
    everything = plots.layer_step_table(neuron_map(scores, [0, 0, 0, 0, 1, 2, 2]), top=None)
    assert np.allclose(everything.to_numpy(), [[2, -1], [3, np.nan], [np.nan, -2]], equal_nan=True)


def test_layer_step_scores_draws_the_table_and_its_margins():
    scores = np.arange(30, dtype=float).reshape(5, 6)
    ax = plots.plot_layer_step_scores(neuron_map(scores, [0, 0, 1, 1, 2, 2]), top=None, title="church")
    ax.figure.canvas.draw()
    drawn = ax.images[0].get_array()
    assert np.allclose(drawn, scores.reshape(5, 3, 2).mean(-1).T)
    above, right, _ = ax.child_axes
    assert [bar.get_height() for bar in above.patches] == pytest.approx(scores.mean(1))
    assert [bar.get_width() for bar in right.patches] == pytest.approx(scores.reshape(5, 3, 2).mean((0, 2)))
    assert [t.get_text() for t in ax.get_yticklabels()] == ["down 1.0", "mid 0", "up 0.1.3"]
    assert [t.get_text() for t in ax.get_xticklabels()][:1] == ["967"]
    assert above.get_title(loc="left") == "church"


def test_a_score_of_both_signs_is_centred_on_zero_and_missing_cells_are_grey():
    table = pd.DataFrame([[1.0, -3.0], [np.nan, 2.0]], index=SITES[:2], columns=[967, 10])
    ax = plots.plot_layer_step_scores(table, label="rise")
    assert ax.images[0].get_clim() == (-3, 3)
    assert ax.images[0].get_array().mask.tolist() == [[False, False], [True, False]]


def test_short_names_fall_back_to_whole_ones_when_they_collide():
    density = pd.Series([0.1, 0.02], index=[SITES[0], SITES[0].replace("ffn", "xattn.out")])
    ax = plots.plot_layer_density(density)
    assert [t.get_text() for t in ax.get_yticklabels()] == list(density.index)
    assert [bar.get_width() for bar in ax.patches] == pytest.approx([10, 2])


@pytest.mark.parametrize(
    ("name", "short"),
    [
        (SITES[0], "down 1.0"),
        ("text_encoder.encoder.layers.11.mlp", "text 11"),
        ("text_encoder_2.encoder.layers.3.mlp", "text 2 3"),
        ("something else", "something else"),
    ],
)
def test_short_site(name, short):
    assert plots.short_site(name) == short


def test_before_after_shows_every_image_frames_hits_and_writes_a_shared_prompt_once():
    rng = np.random.default_rng(0)
    rows = {name: rng.integers(0, 255, (3, 8, 8, 3), dtype=np.uint8) for name in ("original", "edited")}
    hits = {"original": [True, True, False], "edited": [False, False, True]}
    ax = plots.plot_before_after(rows, ["a church", "a church", "a <b> $x$ dog"], shown=hits, title="erased")
    ax.figure.canvas.draw()
    shown = [image.get_array() for image in ax.images]
    assert all(np.array_equal(a, b) for a, b in zip(shown, [*rows["original"], *rows["edited"]], strict=True))
    frames = [patch.get_linewidth() > 1 for patch in ax.patches[:6]]
    assert frames == [True, True, False, False, False, True]
    texts = [text.get_text() for text in ax.texts]
    assert texts.count("a church") == 1
    assert {"original", "edited", "judge: concept shown"} <= set(texts)


def test_prompts_above_twelve_pictures_do_not_touch():
    prompt = "draw one clean illustration of a kitchen knife please the noto way on a pink background"
    rows = {"original": np.zeros((12, 8, 8, 3), dtype=np.uint8)}
    ax = plots.plot_before_after(rows, [f"{i} {prompt}" for i in range(12)])
    ax.figure.canvas.draw()
    spans = [text.get_window_extent() for text in ax.texts if "knife" in text.get_text()]
    assert len(spans) == 12
    assert all(left.x1 < right.x0 for left, right in pairwise(spans))


def results(**rates: tuple[float, float]) -> pd.DataFrame:
    rows = []
    for edit, (rate, loss) in rates.items():
        common = {"edit": edit, "attack": "none", "concept": "church", "seed_set": 0, "metric": "rate"}
        rows.append({**common, "split": "explicit", "value": rate, "ci_low": rate - 0.05, "ci_high": rate + 0.1,
                     "original": 0.95, "difference": rate - 0.95, "diff_low": -1.0, "diff_high": 0.0})  # fmt: skip
        rows.append({**common, "split": "preserve_test", "value": 0.9 - loss, "ci_low": 0.8, "ci_high": 1.0,
                     "original": 0.9, "difference": -loss, "diff_low": -loss - 0.02,
                     "diff_high": -loss + 0.04})  # fmt: skip
    return pd.DataFrame(rows)


def test_tradeoff_points_turn_paired_differences_into_losses():
    points = plots.tradeoff_points(results(published=(0.2, 0.08), keep=(0.25, 0.02))).set_index("edit")
    assert points.loc["published", ["rate", "rate_low", "rate_high"]].tolist() == pytest.approx([0.2, 0.15, 0.3])
    assert points.loc["keep", ["loss", "loss_low", "loss_high"]].tolist() == pytest.approx([0.02, -0.02, 0.04])


def test_tradeoff_labels_each_setting_and_marks_the_unedited_model():
    ax = plots.plot_tradeoff(results(published=(0.2, 0.08), keep=(0.25, 0.02), random=(0.9, 0.0)), bars=(0.25, 0.1))
    ax.figure.canvas.draw()
    assert {"published", "keep", "random", "unedited", "better"} == {text.get_text() for text in ax.texts}
    drawn = {
        (round(x, 6), round(y, 6)) for line in ax.lines for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)
    }
    assert {(0.2, 0.08), (0.25, 0.02), (0.9, 0.0), (0.95, 0.0)} <= drawn


def test_a_sweep_labels_its_front_and_the_highlighted_setting():
    table = results(**{f"k{i}": (i / 20, 0.2 - i / 100) for i in range(14)}, worse=(0.9, 0.3), demo=(0.8, 0.29))
    table["skill_ratio"] = table["edit"].map(lambda edit: f"ratio {edit}")
    table["window"] = "early"
    ax = plots.plot_tradeoff(table, label="skill_ratio", group="window", highlight=["demo"])
    texts = {text.get_text() for text in ax.texts}
    assert {"ratio k0", "ratio k13", "demo"} <= texts
    assert not {"ratio worse", "ratio demo"} & texts
    assert ax.get_legend().get_title().get_text() == "window"


def test_the_front_is_what_no_other_point_beats():
    rng = np.random.default_rng(0)
    cost, loss = rng.integers(0, 5, (2, 40)).astype(float)
    cost[3], loss[7] = np.nan, np.nan
    wanted = []
    for i in range(40):
        beaten = any(
            cost[j] <= cost[i] and loss[j] <= loss[i] and (cost[j] < cost[i] or loss[j] < loss[i]) for j in range(40)
        )
        wanted.append(not beaten and i not in (3, 7))
    assert plots.pareto_front(cost, loss).tolist() == wanted


def test_pareto_fills_the_front_and_joins_it_in_steps():
    table = results(strong=(0.1, 0.3), mild=(0.4, 0.05), beaten=(0.5, 0.2))
    ax = plots.plot_pareto(table)
    assert {"strong", "mild", "beaten", "unedited"} == {text.get_text() for text in ax.texts}
    filled = {
        tuple(map(float, xy))
        for line in ax.lines
        if line.get_marker() == "o" and line.get_markerfacecolor() != "white"
        for xy in np.round(line.get_xydata(), 6)
    }
    assert filled == {(0.1, 0.3), (0.4, 0.05)}
    front = next(line for line in ax.lines if line.get_label() == "_front").get_xydata()
    corners = {tuple(map(float, xy)) for xy in np.round(front, 6)}
    assert {(0.1, 0.3), (0.4, 0.3), (0.4, 0.05), (0.95, 0.05), (0.95, 0.0)} <= corners
    named = plots.plot_pareto(table, erasers={"strong": "esd", "mild": "esd", "beaten": "uce"})
    assert [text.get_text() for text in named.get_legend().get_texts()] == ["esd", "uce"]
    with pytest.raises(UnknownName, match="strong"):
        plots.plot_pareto(table, erasers={"strog": "esd"})


def test_tradeoff_refuses_what_it_cannot_pair():
    table = results(a=(0.2, 0.1))
    two = pd.concat([table, table.assign(concept="castle")])
    for bad, words in [
        (two, "one concept"),
        (table[table["split"] == "explicit"], "lonely"),
        (pd.concat([table, table]), "twice"),
        (pd.concat([table, table.assign(seed_set=1)]), "one seed_set"),
    ]:
        with pytest.raises(BadInput, match=words):
            plots.plot_tradeoff(bad)
    assert len(plots.tradeoff_points(two, concept="castle")) == 1
    with pytest.raises(BadInput, match="no column 'window'"):
        plots.plot_tradeoff(table, group="window")


def test_every_plot_draws_on_the_axes_it_is_given():
    from matplotlib.figure import Figure

    images = {"original": np.zeros((1, 4, 4, 3), dtype=np.uint8)}
    for draw in (
        lambda ax: plots.plot_layer_step_scores(pd.DataFrame([[1.0]], index=["a"], columns=[999]), ax=ax),
        lambda ax: plots.plot_layer_density({"a": 0.5}, ax=ax),
        lambda ax: plots.plot_before_after(images, ["a"], ax=ax),
        lambda ax: plots.plot_tradeoff(results(a=(0.2, 0.1)), ax=ax),
        lambda ax: plots.plot_pareto(results(a=(0.2, 0.1)), ax=ax),
    ):
        ax = Figure(layout="constrained").subplots()
        assert draw(ax) is ax


@pytest.mark.parametrize(
    "draw",
    [
        lambda: plots.plot_layer_step_scores(pd.DataFrame()),
        lambda: plots.layer_step_table(neuron_map(np.ones((1, 2)), [0, 1]), top=0),
        lambda: plots.layer_step_table(neuron_map(np.ones((1, 2)), [0, 1]), variable="p_value"),
        lambda: plots.plot_layer_density({}),
        lambda: plots.plot_before_after({}, ["a"]),
        lambda: plots.plot_before_after({"a": np.zeros((2, 4, 4, 3), dtype=np.uint8)}, ["only one"]),
    ],
)
def test_nothing_to_draw_is_an_error(draw):
    with pytest.raises(BadInput):
        draw()

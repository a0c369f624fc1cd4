from __future__ import annotations

import errno
import json
import math
import os
import zipfile

import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from probe._neuron_map import NeuronMap
from probe._sites import Site
from probe.errors import BadInput, HeaderMismatch, StoreDamaged, UnknownName, WorkbenchError, WrongModel
from tests.oracles.sets import best, chosen

MODEL = {"architecture": {"unet": "aa"}, "weights": {"unet": "bb"}, "dtype": "float32"}
SITES = [
    Site(f"unet.b{i}.ffn", "ffn", "unet", f"b{i}.ff.net.2", "input", width, i) for i, width in enumerate((3, 5, 2))
]
N = 10
WINDOWS = [(801, 801), (501, 501), (1, 1)]


def neuron_map(scores=None, *, seed=0, model=MODEL, sites=SITES, **options):
    rng = np.random.default_rng(seed)
    n = sum(site.width for site in sites)
    scores = rng.normal(size=(3, n)) if scores is None else np.asarray(scores, float)
    evidence = {"target": rng.random(scores.shape), "reference": rng.random(scores.shape)}
    return NeuronMap.build(
        method="test",
        score=scores,
        windows=WINDOWS[: len(scores)],
        sites=sites,
        identity={"method": "test", "model": model, "seed": seed},
        fan_out=np.arange(n),
        evidence=evidence,
        **options,
    )


def with_selection(selected, seed=0):
    return neuron_map(seed=seed, selected=selected)


UNITS = [(site.name, unit) for site in SITES for unit in range(site.width)]
selections = st.lists(st.lists(st.booleans(), min_size=N, max_size=N), min_size=3, max_size=3)
ways = st.sampled_from(["any", "all", "vote"])


# --- what it is ---


def test_a_map_knows_its_sites_windows_and_origin():
    nm = neuron_map()
    assert nm.sites == SITES
    assert nm.offsets == [0, 3, 8, 10]
    assert nm.windows == WINDOWS
    assert nm.method == "test"
    assert nm.provenance["identity"]["model"] == MODEL
    assert len(nm.id) == 16
    assert nm.id == neuron_map().id != neuron_map(seed=1).id
    assert nm.dataset["score"].dtype == np.float32
    assert nm.dataset["site"].dtype == np.int16
    assert [part.sizes["neuron"] for part in nm.by_site().values()] == [3, 5, 2]


@pytest.mark.parametrize("missing", ["score", "t_max", "site"])
def test_a_dataset_without_its_parts_is_no_map(missing):
    with pytest.raises(BadInput, match=missing):
        NeuronMap(neuron_map().dataset.drop_vars(missing))


def test_a_map_holds_every_neuron_of_its_sites():
    with pytest.raises(BadInput, match="4 neurons"):
        NeuronMap(neuron_map().dataset.isel(neuron=slice(4)))


def test_unknown_evidence_is_refused():
    with pytest.raises(UnknownName, match="p_value"):
        NeuronMap.build(
            method="x",
            score=np.zeros((1, N)),
            windows=[(1, 1)],
            sites=SITES,
            identity={},
            evidence={"pvalue": np.zeros((1, N))},
        )


def test_tables():
    scores = np.arange(30.0).reshape(3, N)
    scores[:, 4] = [np.nan, 6, np.nan]
    nm = neuron_map(scores)
    table = nm.to_dataframe()
    assert list(table) == ["site", "unit", "fan_out", "score", "target", "reference"]
    assert table["site"].tolist() == [name for name, _ in UNITS]
    assert table["unit"].tolist() == [unit for _, unit in UNITS]
    assert table["score"].tolist()[:5] == [10, 11, 12, 13, 6]
    assert nm.to_dataframe("max")["score"].tolist()[:5] == [20, 21, 22, 23, 6]
    each = nm.select(top=1).to_dataframe(over=None)
    assert len(each) == 30
    assert each["t_max"].unique().tolist() == [801, 501, 1]
    np.testing.assert_array_equal(each["score"].to_numpy().reshape(3, N), scores.astype(np.float32))
    assert each["selected"].sum() == 3


def test_what_a_file_says_is_shown_escaped():
    nm = neuron_map()
    nm.dataset.attrs["method"] = "<script>alert(1)</script>"
    page = nm._repr_html_()
    assert "<script>" not in page
    assert "<b>NeuronMap &lt;script&gt;" in page


def test_it_shows_itself_briefly():
    nm = neuron_map().select(top=4)
    assert "3 windows x 10 neurons, 4 selected" in repr(nm)
    page = nm._repr_html_()
    assert "unet.b1.ffn" in page
    assert len(page) < 6000


# --- selections ---

scored = st.lists(
    st.lists(st.sampled_from([math.nan, -1.0, 0.0, 0.5, 0.5, 2.0]), min_size=N, max_size=N), min_size=1, max_size=3
)


@given(scored, st.integers(1, N))
@settings(max_examples=30, deadline=None)
def test_top_takes_the_highest_and_never_nan(scores, count):
    nm = neuron_map(scores)
    joined = [
        sum(known) / len(known) if (known := [v for v in column if v == v]) else math.nan
        for column in zip(*scores, strict=True)
    ]
    if sum(v == v for v in joined) < count:
        with pytest.raises(BadInput, match="top"):
            nm.select(top=count)
        return
    found = nm.select(top=count).dataset["selected"].values
    assert all(set(np.flatnonzero(window)) == best([np.float32(v) for v in joined], count) for window in found)


def test_each_window_by_itself():
    scores = [[0, 1, 2, 3, 4, 5, 6, 7, 8, 9], [9, 8, 7, 6, 5, 4, 3, 2, 1, 0]]
    found = neuron_map(scores).select(top=2, over=None).dataset["selected"].values
    assert [np.flatnonzero(window).tolist() for window in found] == [[8, 9], [0, 1]]
    assert np.flatnonzero(neuron_map(scores).select(top=2, over="max").selected()).tolist() == [0, 9]


def test_a_quantile_selects_its_share():
    scores = np.arange(N)[None].astype(float)
    assert np.flatnonzero(neuron_map(scores).select(quantile=0.8).selected()).tolist() == [8, 9]
    scores[0, 9] = np.nan
    assert np.flatnonzero(neuron_map(scores).select(quantile=0.8).selected()).tolist() == [7, 8]


@pytest.mark.parametrize(
    "options", [{}, {"top": 2, "quantile": 0.5}, {"top": 0}, {"top": 11}, {"quantile": 0.0}, {"quantile": 1.0}]
)
def test_selections_that_cannot_be(options):
    with pytest.raises(BadInput):
        neuron_map().select(**options)


def test_a_selection_is_a_new_map_with_its_own_id():
    nm = neuron_map()
    few, more = nm.select(top=2), nm.select(top=3)
    assert "selected" not in nm.dataset
    assert len({nm.id, few.id, more.id}) == 3
    assert few.id == nm.select(top=2).id
    assert few.provenance["identity"]["selection"] == [
        {"of": nm.id, "select": {"top": 2, "quantile": None, "over": "mean"}}
    ]
    with pytest.raises(BadInput, match="select"):
        nm.selected()
    with pytest.raises(UnknownName, match="vote"):
        few.selected("votes")


# --- set algebra ---


@given(selections, selections, ways)
@settings(max_examples=30, deadline=None)
def test_set_algebra_is_that_of_sets(ours, theirs, over):
    a, b = with_selection(ours), with_selection(theirs, seed=1)
    x, y = chosen(ours, UNITS, over), chosen(theirs, UNITS, over)
    for found, wanted in (
        (a.union(b, over), x | y),
        (a.intersection(b, over), x & y),
        (a.difference(b, over), x - y),
    ):
        table = found.to_dataframe()
        assert set(table.loc[table["selected"], ["site", "unit"]].itertuples(index=False, name=None)) == wanted
    expected = len(x & y) / len(x | y) if x | y else math.nan
    assert a.jaccard(b, over) == pytest.approx(expected, nan_ok=True)


def test_a_combination_spans_both_maps_and_keeps_the_scores_of_the_first():
    a, b = neuron_map().select(top=3), neuron_map(seed=1).select(top=3)
    both = a.union(b)
    assert both.windows == [(801, 1)]
    assert both.method == "union"
    np.testing.assert_array_equal(both.to_dataframe()["score"], a.to_dataframe()["score"])
    assert both.provenance["identity"]["selection"][-1] == {"of": [a.id, b.id], "operation": "union", "over": "any"}
    assert both.union(a).intersection(b).jaccard(b) == 1.0


@pytest.mark.parametrize("operation", ["union", "intersection", "difference", "jaccard"])
def test_maps_of_different_models_or_sites_are_not_combined(operation):
    ours = neuron_map().select(top=2)
    other = neuron_map(model=MODEL | {"weights": {"unet": "cc"}}).select(top=2)
    with pytest.raises(WrongModel, match=r"model\.weights\.unet"):
        getattr(ours, operation)(other)
    renamed = [SITES[0], Site("unet.x.ffn", "ffn", "unet", "x", "input", 5, 1), SITES[2]]
    with pytest.raises(HeaderMismatch, match=r"unet\.x\.ffn"):
        getattr(ours, operation)(neuron_map(sites=renamed).select(top=2))
    with pytest.raises(HeaderMismatch, match="sites"):
        getattr(ours, operation)(neuron_map(sites=SITES[:2]).select(top=2))


# --- files ---


@pytest.mark.parametrize("name", ["church.zarr", "church.zarr.zip"])
def test_round_trip(tmp_path, name):
    scores = np.random.default_rng(3).normal(size=(3, N))
    scores[1, 2] = np.nan
    nm = neuron_map(scores).select(top=3)
    path = nm.save(tmp_path / name)
    loaded = NeuronMap.load(path)
    xr.testing.assert_identical(loaded.dataset, nm.dataset)
    assert loaded.id == nm.id
    assert loaded.sites == nm.sites
    assert loaded.dataset["selected"].dtype == bool
    assert path.is_file() == name.endswith("zip")
    assert [p.name for p in tmp_path.iterdir()] == [name]
    again = loaded.select(top=2).save(tmp_path / ("again-" + name))
    assert NeuronMap.load(again).selected().sum() == 2


def test_equal_maps_make_equal_zip_files(tmp_path):
    nm = neuron_map()
    a, b = nm.save(tmp_path / "a.zarr.zip"), nm.save(tmp_path / "b.zarr.zip")
    assert a.read_bytes() == b.read_bytes()


@given(data=st.data())
@settings(max_examples=8, deadline=None)
def test_any_map_survives_the_disk(tmp_path_factory, data):
    widths = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    sites = [Site(f"unet.b{i}.ffn", "ffn", "unet", f"b{i}", "input", w, i) for i, w in enumerate(widths)]
    values = st.floats(width=32, allow_nan=True, allow_infinity=False)
    row = st.lists(values, min_size=sum(widths), max_size=sum(widths))
    nm = neuron_map(data.draw(st.lists(row, min_size=1, max_size=3)), sites=sites)
    path = nm.save(tmp_path_factory.mktemp("maps") / "a.zarr.zip")
    xr.testing.assert_identical(NeuronMap.load(path).dataset, nm.dataset)


@pytest.mark.parametrize("name", ["a.zarr", "a.zarr.zip"])
def test_a_path_that_is_taken(tmp_path, name):
    path = neuron_map().save(tmp_path / name)
    neuron_map().save(path)  # the same map: nothing to do
    with pytest.raises(BadInput, match=r"another neuron map.*force=True"):
        neuron_map(seed=1).save(path)
    neuron_map(seed=1).save(path, force=True)
    assert NeuronMap.load(path).id == neuron_map(seed=1).id
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(BadInput, match="is no neuron map"):
        neuron_map().save(tmp_path / "notes", force=True)
    assert (tmp_path / "notes").read_text() == "mine"
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([name, "notes"])


def test_no_space_left(tmp_path, monkeypatch):
    async def full_disk(self, key, value, *args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    old = neuron_map().save(tmp_path / "old.zarr")
    monkeypatch.setattr(zarr.storage.LocalStore, "set", full_disk)
    for name in ("a.zarr", "a.zarr.zip"):
        with pytest.raises(WorkbenchError, match="no space left"):
            neuron_map().save(tmp_path / name)
    with pytest.raises(WorkbenchError, match="no space left"):
        neuron_map(seed=1).save(old, force=True)
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == ["old.zarr"]
    assert NeuronMap.load(old).id == neuron_map().id


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_truncated_zip_is_damage(tmp_path, share):
    path = neuron_map().save(tmp_path / "a.zarr.zip")
    os.truncate(path, int(path.stat().st_size * share))
    with pytest.raises(StoreDamaged, match=r"a\.zarr\.zip"):
        NeuronMap.load(path)


def test_a_missing_or_torn_chunk_is_damage(tmp_path):
    path = neuron_map().save(tmp_path / "a.zarr")
    chunk = path / "target" / "c" / "0" / "0"
    data = chunk.read_bytes()
    chunk.write_bytes(data[:-6])
    with pytest.raises(StoreDamaged):
        NeuronMap.load(path)
    chunk.unlink()
    with pytest.raises(StoreDamaged, match="target"):
        NeuronMap.load(path)
    chunk.write_bytes(data)
    NeuronMap.load(path)
    os.truncate(path / "zarr.json", 30)
    with pytest.raises(StoreDamaged):
        NeuronMap.load(path)


def test_what_is_no_map_is_said(tmp_path):
    with pytest.raises(BadInput, match="no neuron map here"):
        NeuronMap.load(tmp_path / "nothing.zarr")
    with zipfile.ZipFile(tmp_path / "other.zarr.zip", "w") as archive:
        archive.writestr("a.txt", "x")
    with pytest.raises(StoreDamaged):
        NeuronMap.load(tmp_path / "other.zarr.zip")
    zarr.create_group(tmp_path / "foreign")
    with pytest.raises(StoreDamaged, match="not a file of the workbench"):
        NeuronMap.load(tmp_path / "foreign")
    zarr.create_group(tmp_path / "run", attributes={"format": "neuron-workbench/run", "layout_version": 1})
    with pytest.raises(BadInput, match="a run"):
        NeuronMap.load(tmp_path / "run")
    newer = neuron_map().save(tmp_path / "newer")
    header = json.loads((newer / "zarr.json").read_text())
    header["attributes"]["layout_version"] = 99
    (newer / "zarr.json").write_text(json.dumps(header))
    with pytest.raises(BadInput, match="upgrade"):
        NeuronMap.load(newer)


def test_units_by_name_are_selected_in_every_window():
    nm = neuron_map()
    site = nm.sites[1]
    found = nm.select(units={site.name: [1, 0, 1]})
    wanted = nm.offsets[1] + np.array([0, 1])
    assert np.flatnonzero(found.selected("all")).tolist() == wanted.tolist()
    assert found.id != nm.id
    assert found.id == nm.select(units={site.name: [0, 1]}).id
    for units, says in (({}, "no neuron"), ({site.name: []}, "no neuron"), ({site.name: [site.width]}, "outside")):
        with pytest.raises(BadInput, match=says):
            nm.select(units=units)
    with pytest.raises(UnknownName, match=site.name):
        nm.select(units={site.name + "x": [0]})
    with pytest.raises(BadInput, match="one of top"):
        nm.select(units={site.name: [0]}, top=1)

"""The concept x neuron table against scikit-learn; what is made of it."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from probe._samples import samples
from probe.errors import BadInput, UnknownName
from probe.scores import Selectivity, selectivity
from tests.probe.made_runs import made_run

CONCEPTS = np.array(["church", "ink", "castle", "church", "ink", "castle", "church", "ink", "castle", "ink"])


def run(levels: int | None = None, n: int = 7, repeats: int = 3, **options: object):
    made = np.random.default_rng(0)
    concepts = np.tile(CONCEPTS, repeats)
    size = (len(concepts), n)
    values = made.standard_normal(size) if levels is None else made.integers(0, levels, size=size)
    values = values.astype(np.float32)
    values[:, 0] += 4 * (concepts == "church")
    values[:, 1] += 4 * (concepts != "ink")
    table = samples([f"a {c} {i}" for i, c in enumerate(concepts)])
    table["concept"] = concepts.astype(object)
    return values, concepts, made_run(values, (4, n - 4), table=table, **options)


@pytest.mark.parametrize("levels", [None, 2])
def test_every_cell_is_one_against_the_rest(levels: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    values, concepts, ds = run(levels)
    monkeypatch.setattr("probe.scores._window._HELD", 1)
    table = selectivity(ds)
    assert table.concepts == ["church", "ink", "castle"]
    for i, name in enumerate(table.concepts):
        wanted = [roc_auc_score(concepts == name, values[:, j]) for j in range(7)]
        np.testing.assert_allclose(table.dataset["auroc"].values[i], wanted, rtol=1e-5)
    assert table.dataset["samples"].values.tolist() == [9, 12, 9]


def test_weighted_by_pairs_a_neurons_mean_is_a_half() -> None:
    table = selectivity(run(3)[2])
    count = table.dataset["samples"].values
    weights = count * (count.sum() - count)
    np.testing.assert_allclose(weights @ table.dataset["auroc"].values / weights.sum(), 0.5, rtol=1e-5)


def test_what_is_this_neuron_for() -> None:
    table = selectivity(run()[2])
    first = table.neuron("unet.block0.ffn", 0)
    assert first.index[0] == "church"
    assert first.iloc[0] > 0.95
    frame = table.to_dataframe(threshold=0.65)
    assert frame.loc[0, ["site", "unit", "concept", "concepts"]].tolist() == ["unet.block0.ffn", 0, "church", 1]
    assert frame.loc[1, "concepts"] == 2
    with pytest.raises(UnknownName, match="block0"):
        table.neuron("unet.blok0.ffn", 0)
    with pytest.raises(BadInput, match="outside its site"):
        table.neuron("unet.block0.ffn", 4)


def test_maps_of_chosen_concepts_and_generalists() -> None:
    table = selectivity(run()[2])
    nm = table.neuron_map("church", threshold=0.9)
    assert np.flatnonzero(nm.selected()).tolist() == [0]
    np.testing.assert_allclose(nm.dataset["score"].values[0], table.dataset["auroc"].values[0])
    assert nm.windows == [(999, 0)]
    both = table.generalists(threshold=0.65, at_least=2)
    assert np.flatnonzero(both.selected()).tolist() == [1]
    assert table.generalist_share(threshold=0.65, at_least=2) == pytest.approx(1 / 7)
    assert nm.id != both.id
    assert nm.provenance["identity"]["model"]["weights"].keys() == {"unet"}
    with pytest.raises(UnknownName, match="church"):
        table.neuron_map("churhc")
    with pytest.raises(BadInput, match="1 to 3"):
        table.generalists(at_least=4)
    with pytest.raises(BadInput, match="threshold"):
        table.neuron_map(threshold=1.1)


def test_saved_and_loaded(tmp_path) -> None:
    table = selectivity(run()[2], window=(999, 500))
    for name in ("table", "table.zarr.zip"):
        table.save(tmp_path / name)
        back = Selectivity.load(tmp_path / name)
        assert back.id == table.id
        assert back.concepts == table.concepts
        np.testing.assert_array_equal(back.dataset["auroc"], table.dataset["auroc"])
        assert [site.name for site in back.sites] == [site.name for site in table.sites]


def test_only_samples_that_show_their_concept() -> None:
    values, concepts, _ = run()
    shown = np.random.default_rng(1).uniform(size=len(concepts))
    found = selectivity(run(shown=shown)[2], only_shown=0.3)
    seen = shown.astype(np.float32) >= 0.3
    wanted = roc_auc_score(concepts[seen] == "church", values[seen, 0])
    assert float(found.dataset["auroc"].values[0, 0]) == pytest.approx(wanted, rel=1e-5)


def test_what_cannot_be_compared() -> None:
    _, concepts, ds = run(repeats=1)
    with pytest.raises(BadInput, match=r"several concepts.*'church'"):
        selectivity(ds.isel(sample=np.flatnonzero(concepts == "church")))
    with pytest.raises(BadInput, match=r"two samples.*castle"):
        selectivity(ds.isel(sample=[0, 1, 2, 3, 4, 6, 7]))
    with pytest.raises(BadInput, match="no step of the run"):
        selectivity(ds, window=(10, 0))
    with pytest.raises(BadInput, match="no norm"):
        selectivity(ds, reducer="norm")


def test_it_shows_itself_briefly() -> None:
    page = selectivity(run()[2])._repr_html_()
    assert "3 concepts x 7 neurons" in page
    assert "neurons from 0.8 on" in page
    assert page.count("<table") == 2

"""Split halves and overlaps: what two halves must agree on, what is stored, what is refused."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.stats import spearmanr

from probe._neuron_map import NeuronMap
from probe.errors import BadInput, HeaderMismatch
from probe.scores import overlap, score, stability
from probe.scores._runs import recorded
from probe.scores._stability import agreement, prompt_halves, seed_halves
from tests.probe.made_runs import made_run


def two_runs(pairs: int = 40, seeds: int = 2, effect: float = 2.0, noise: float = 1.0, n: int = 60):
    made = np.random.default_rng(0)
    values = noise * made.normal(size=(2, pairs * seeds, n)).astype(np.float32)
    values[0] += effect * np.linspace(-1, 1, n, dtype=np.float32)
    return [made_run(v, seeds_per_prompt=seeds) for v in values]


def test_agreement_is_spearman_and_jaccard() -> None:
    made = np.random.default_rng(1)
    a, b = made.integers(0, 9, size=(2, 50)).astype(np.float32)
    found = agreement(np.append(a, np.nan), np.append(b, 3), top=(5, 60))
    assert found["rank_correlation"] == pytest.approx(spearmanr(a, b).statistic)
    highest = [set(pd.Series(x).sort_values(ascending=False, kind="stable").index[:5]) for x in (a, b)]
    assert found["jaccard_5"] == pytest.approx(len(highest[0] & highest[1]) / len(highest[0] | highest[1]))
    assert np.isnan(found["jaccard_60"])
    assert np.isnan(agreement(np.ones(4), b[:4], top=(1,))["rank_correlation"])


def test_halves_are_halves() -> None:
    runs = [recorded(ds, "unet", "absmean") for ds in two_runs(pairs=10, seeds=4)]
    for halves, name in ((prompt_halves, "pair"), (seed_halves, "seed")):
        first, second = halves(runs, np.random.default_rng(0))
        for run, a, b in zip(runs, first, second, strict=True):
            assert sorted([*a, *b]) == list(range(40))
            labels = run.ds[name].values
            assert not set(labels[a]) & set(labels[b])
            assert len(set(labels[a])) == len(set(labels)) // 2
        in_runs = [set(run.ds[name].values[a]) for run, a in zip(runs, first, strict=True)]
        assert in_runs[0] == in_runs[1], "pairs stay together"


@pytest.mark.parametrize("method", ["contrast", "auroc"])
def test_an_effect_is_stable_and_noise_is_not(method: str) -> None:
    for effect, low, high in ((3.0, 0.9, 1.0), (0.0, -0.4, 0.4)):
        runs = two_runs(effect=effect)
        found = stability(score(*runs, method=method), *runs, top=(10,), halvings=2).report["stability"]
        for kind in ("prompts", "seeds"):
            assert low <= found[kind]["rank_correlation"] <= high
            assert (found[kind]["jaccard_10"] > 0.4) == (effect > 0)


def test_it_is_stored_with_the_map_and_changes_nothing_else(tmp_path) -> None:
    runs = two_runs()
    nm = score(*runs, method="contrast", flips=100).select(fdr=0.05)
    nm.save(tmp_path / "map.zarr.zip")
    found = stability(nm, *runs, halvings=1)
    assert found.id == nm.id
    assert found.report["pairs"] == nm.report["pairs"]
    assert "stability" not in nm.report
    with pytest.raises(BadInput, match="another neuron map is here"):
        found.save(tmp_path / "map.zarr.zip")
    found.save(tmp_path / "map.zarr.zip", force=True)
    back = NeuronMap.load(tmp_path / "map.zarr.zip")
    assert back.report == found.report
    assert back.select(top=3).report["stability"] == found.report["stability"]


def test_why_a_split_could_not_be_made() -> None:
    runs = two_runs(pairs=14, seeds=1)
    found = stability(score(*runs, method="contrast"), *runs, halvings=1).report["stability"]
    assert "at least 10" in found["prompts"]["reason"]
    assert "one seed only" in found["seeds"]["reason"]


def test_other_runs_than_those_of_the_map() -> None:
    runs = two_runs()
    nm = score(*runs, method="contrast")
    with pytest.raises(BadInput, match="the reference is not the run of the map"):
        stability(nm, runs[0], two_runs(pairs=30)[1])
    with pytest.raises(BadInput, match="nothing can be compared"):
        stability(nm, *runs, halvings=0)


def test_overlap_is_the_jaccard_index_of_every_two() -> None:
    runs = two_runs(n=30)
    nm = score(*runs, method="contrast", flips=50)
    maps = {"five": nm.select(top=5), "ten": nm.select(top=10), "all": nm.select(top=30)}
    table = overlap(maps)
    assert table.to_dict() == table.T.to_dict()
    assert np.diag(table).tolist() == [1, 1, 1]
    assert table.loc["five", "ten"] == pytest.approx(5 / 10)
    assert table.loc["ten", "all"] == pytest.approx(10 / 30)
    with pytest.raises(BadInput, match="at least two"):
        overlap({"five": nm.select(top=5)})
    with pytest.raises(BadInput, match="no selection"):
        overlap({"a": nm, "b": nm})
    other = score(*two_runs(n=20), method="contrast", flips=50).select(top=2)
    with pytest.raises(HeaderMismatch, match="different sites"):
        overlap({"a": maps["five"], "b": other})

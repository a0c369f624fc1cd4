"""The parts of benchmarks/claims/ablation_curves.py that decide what its random neurons are worth."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest

from probe._neuron_map import NeuronMap
from probe._sites import Site

FILE = Path(__file__).parents[1] / "benchmarks" / "claims" / "ablation_curves.py"
WIDTHS = (400, 800)


@pytest.fixture(scope="module")
def claim() -> ModuleType:
    spec = importlib.util.spec_from_file_location("ablation_curves", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def made_map(scores: np.ndarray, method: str) -> NeuronMap:
    sites = [Site(f"unet.s{i}.ffn", "ffn", "unet", f"s{i}", "input", width, i) for i, width in enumerate(WIDTHS)]
    return NeuronMap.build(method=method, score=scores[None], windows=[(999, 0)], sites=sites, identity={"model": {}})


@pytest.fixture
def maps() -> dict[str, NeuronMap]:
    """One method likes the first site, the other the second; a third chooses five neurons only."""
    n = sum(WIDTHS)
    falling = 1 + np.arange(n, dtype=np.float32)[::-1]
    sparse = np.where(np.arange(n) % 250 == 3, 1, 0).astype(np.float32)
    few = np.where(np.arange(n) < 12, 1, np.nan).astype(np.float32)
    return {
        name: made_map(score, name)
        for name, score in {"first": falling, "last": falling[::-1], "sparse": sparse, "few": few}.items()
    }


def neurons_of(point) -> np.ndarray:
    """Places on the neuron axis."""
    start = {"unet.s0.ffn": 0, "unet.s1.ffn": WIDTHS[0]}
    return np.sort([start[site] + unit for site, units in point.units.items() for unit in units])


def test_the_top_of_a_method_is_what_it_puts_above_nothing(claim, maps):
    found = {(p.method, p.k, p.mode): p for p in claim.points(maps, np.ones(1200), (10, 50), 0)}
    assert neurons_of(found["first", 10, "mean"]).tolist() == list(range(10))
    assert neurons_of(found["last", 10, "mean"]).tolist() == list(range(1190, 1200))
    assert neurons_of(found["sparse", 50, "zero"]).tolist() == [3, 253, 503, 753, 1003]
    assert ("few", 10, "mean") in found
    assert ("few", 50, "mean") not in found, "it scored 12 neurons"
    assert ("first", 10, "zero") not in found


def test_random_neurons_have_site_and_activation_of_those_they_stand_for(claim, maps):
    active = np.random.default_rng(0).lognormal(sigma=2, size=1200)
    del maps["few"]
    points = claim.points(maps, active, (10,), 2)
    chosen = np.concatenate([neurons_of(p) for p in points if p.method != "random"])
    first, second = (neurons_of(p) for p in points if p.method == "random")
    assert not np.isin([first, second], chosen).any()
    assert len(set(first)) == len(set(second)) == 10
    assert first.tolist() != second.tolist()
    free = np.setdiff1d(np.arange(1200), chosen)
    site = np.repeat([0, 1], WIDTHS)
    pool = np.flatnonzero(site == 0)[:8]
    found = claim.matched(pool, 4, site, active, pool, seed=3)
    assert (site[found] == 0).all()
    gap = np.abs(np.log(np.sort(active[found])) - np.log(np.sort(active[pool]))[:, None]).min(0).mean()
    blind = np.abs(np.log(active[free]) - np.log(active[pool]).mean()).mean()
    assert gap < blind / 2, "nearer than any neuron would be"
    crowded = claim.matched(pool, 4, site, active, np.arange(399), seed=3)
    assert 399 in crowded, "what is in nobody's top comes first"
    assert not np.isin(crowded, pool).any()
    with pytest.raises(SystemExit, match="no neuron is left"):
        claim.matched(np.arange(400), 4, site, active, np.arange(400), seed=0)


def test_rows_and_figure(claim, maps, tmp_path):
    points = claim.points(maps, np.ones(1200), (10, 50), 2)
    facts = {f"edit {i}": point for i, point in enumerate(points)}
    cell = {"seed_set": 0, "value": 0.5, "ci_low": 0.25, "ci_high": 0.75, "n": 4, "n_failed": 0, "original": 1.0,
            "difference": -0.5, "diff_low": -1.0, "diff_high": 0.0, "concept": "church"}  # fmt: skip
    table = pd.DataFrame(
        {**cell, "edit": edit, "split": split, "metric": metric}
        for edit in facts
        for split in ("explicit", "preserve_test", "preserve_test/style")
        for metric in ("rate", "broken")
    )
    found = claim.rows(table, "church", facts)[claim.COLUMNS]
    assert len(found) == 2 * len(points)
    assert {"method", "k", "rate", "low", "high", "concept", "mode"} <= set(found.columns)
    sparse = found[(found["method"] == "sparse") & (found["mode"] == "mean")]
    assert sparse.set_index("k")["silenced"].to_dict() == {10: 5, 50: 5}
    found.to_csv(tmp_path / "made.csv", index=False)
    claim.draw(pd.read_csv(tmp_path / "made.csv"), tmp_path / "made.png")
    claim.draw(found, tmp_path / "made.png")
    assert (tmp_path / "made.png").stat().st_size > 5000

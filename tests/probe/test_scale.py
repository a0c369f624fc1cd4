"""Runs larger than memory: dask arrays behind the same dataset, and the same scores to the bit."""

from __future__ import annotations

import importlib.util

import pytest

from probe._run import open_run
from probe.errors import MissingExtra
from probe.scores import score


@pytest.mark.parametrize("chunks", [{}, "auto", {"sample": 2}])
def test_scores_of_dask_arrays_equal_those_of_arrays_in_memory(recorded, chunks):
    pytest.importorskip("dask")
    lazy = [open_run(run, chunks=chunks) for run in (recorded.target, recorded.reference)]
    assert all(lazy[0][name].chunks is not None for name in lazy[0].data_vars)
    assert lazy[0]["prompt"].chunks is None  # coordinates are read
    assert lazy[0].identical(open_run(recorded.target))
    assert score(*lazy).dataset.identical(score(recorded.target, recorded.reference).dataset)


def test_dask_is_asked_for_by_name(recorded, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(MissingExtra, match=r"neuron-workbench\[scale\]"):
        open_run(recorded.target, chunks={}, codecs="zarr")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the cluster
def test_scores_on_a_cluster_equal_those_in_memory(recorded):
    distributed = pytest.importorskip("distributed")
    options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}
    with distributed.LocalCluster(**options) as cluster, distributed.Client(cluster) as client:
        lazy = [open_run(run, chunks={}) for run in (recorded.target, recorded.reference)]
        total = lazy[0]["absmean"].sum(("branch", "step")).compute()
        assert client.scheduler_info()["workers"]
        assert total.identical(open_run(recorded.target)["absmean"].sum(("branch", "step")).compute())
        assert score(*lazy).dataset.identical(score(recorded.target, recorded.reference).dataset)

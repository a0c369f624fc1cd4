"""Runs larger than memory: dask arrays behind the same dataset, and the same scores to the bit."""

from __future__ import annotations

import importlib.util
import os

import pytest

from probe._run import open_run
from probe.errors import MissingExtra
from probe.scores import score


def same(a, b):
    assert a.id == b.id
    assert a.dataset.equals(b.dataset)


@pytest.mark.parametrize("chunks", [{}, "auto"])
def test_scores_of_dask_arrays_equal_those_of_arrays_in_memory(recorded, chunks):
    pytest.importorskip("dask")
    lazy = [open_run(run, chunks=chunks) for run in (recorded.target, recorded.reference)]
    assert all(lazy[0][name].chunks is not None for name in lazy[0].data_vars)
    assert lazy[0]["prompt"].chunks is None  # coordinates are read
    assert lazy[0].identical(open_run(recorded.target))
    same(score(*lazy), score(recorded.target, recorded.reference))


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
        total = lazy[0]["absmean"].max(("branch", "step")).compute()
        assert len(client.run(os.getpid)) == 2  # it ran there: a client is what dask computes with
        assert total.identical(open_run(recorded.target)["absmean"].max(("branch", "step")).compute())
        same(score(*lazy), score(recorded.target, recorded.reference))

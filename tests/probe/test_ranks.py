"""Ranks of one job share a run, each its own units; two jobs do not."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from probe import _opening
from probe._locks import Rank
from probe._record import record, verify
from probe._run import Run, open_run
from probe._store import RunStore
from probe.errors import BadInput, HeaderMismatch, WorkbenchError
from probe.testing import tiny_pipeline
from tests.probe.test_record import MANY, SMALL, same_bits
from tests.probe.test_store import empty, fill

ROOT = Path(__file__).resolve().parents[2]
JOB = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
LONG = [*MANY, *(f"more {i}" for i in range(8))]  # 19 samples: units of 8, 8 and 3


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline()


@pytest.fixture(scope="module")
def whole(pipe, tmp_path_factory):
    return record(pipe, LONG, out=tmp_path_factory.mktemp("whole") / "run", **SMALL)


@pytest.fixture
def be_rank(monkeypatch):
    def be(index, world):
        for name, value in {**JOB, "RANK": str(index), "WORLD_SIZE": str(world)}.items():
            monkeypatch.setenv(name, value)

    return be


def test_the_environment_says_who_this_is():
    assert Rank.of_environment({}).owns(7)
    second = Rank.of_environment({**JOB, "RANK": "1", "WORLD_SIZE": "3"})
    assert [unit for unit in range(7) if second.owns(unit)] == [1, 4]
    assert not second.first
    assert second.job != Rank.of_environment({"RANK": "1", "WORLD_SIZE": "3", "MASTER_PORT": "1"}).job
    for wrong in ({"RANK": "3", "WORLD_SIZE": "3"}, {"RANK": "x"}, {"RANK": "1"}):
        with pytest.raises(BadInput, match="WORLD_SIZE"):
            Rank.of_environment(wrong)


def test_each_rank_makes_its_units_and_another_number_of_ranks_resumes(pipe, tmp_path, be_rank, whole):
    be_rank(0, 2)
    first = record(pipe, LONG, out=tmp_path / "run", **SMALL)
    assert RunStore(first.path).done.tolist() == [True, False, True]
    be_rank(2, 3)
    record(pipe, LONG, out=tmp_path / "run", **SMALL)  # unit 2 is there: nothing to make
    assert RunStore(first.path).done.tolist() == [True, False, True]
    be_rank(1, 2)
    told = []
    run = record(pipe, LONG, out=tmp_path / "run", **SMALL | {"progress": lambda n, total: told.append((n, total))})
    assert told[0] == (0, 8)
    assert told[-1] == (8, 8)
    assert run.complete
    same_bits(run, whole)


def test_a_rank_waits_for_the_first(pipe, tmp_path, be_rank, monkeypatch):
    be_rank(1, 2)
    monkeypatch.setattr(_opening, "PATIENCE", 0.5)
    with pytest.raises(WorkbenchError, match="the first rank has not made the run"):
        record(pipe, LONG, out=tmp_path / "run", **SMALL)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(_opening, "PATIENCE", 60.0)
    plan = {"identity": {"samples": {"n": 5}, "reducers": ["norm", "max"]}}

    class Plan:
        store, identity = RunStore, plan["identity"]

    late = threading.Timer(0.5, lambda: empty(tmp_path / "run"))
    late.start()
    place = RunStore(empty(tmp_path / "other").path).place.__class__(tmp_path / "run")
    store = _opening.open_or_create(place, Plan(), force=False, extend=False, rank=Rank(1, 2))
    late.join()
    assert store.id == "abc"
    Plan.identity = {**plan["identity"], "reducers": ["norm"]}
    with pytest.raises(HeaderMismatch, match="reducers"):
        _opening.open_or_create(place, Plan(), force=False, extend=False, rank=Rank(1, 2))


def test_ranks_do_not_replace(pipe, tmp_path, be_rank):
    be_rank(0, 2)
    with pytest.raises(BadInput, match="several ranks cannot replace"):
        record(pipe, ["a"], out=tmp_path / "run", force=True, **SMALL)


def test_ranks_of_a_job_write_side_by_side_and_two_jobs_do_not(tmp_path):
    store = empty(tmp_path / "run")
    one, two = Rank(0, 2, "job"), Rank(1, 2, "job")
    stray = store.path / "unet" / "norm" / "c" / "0.1234.partial"
    stray.parent.mkdir(parents=True, exist_ok=True)
    with store.locked(one):
        stray.write_bytes(b"on its way")
        with RunStore(store.path).locked(two):
            assert stray.exists()  # the other rank may be writing it
            for other in (one, Rank(2, 3, "other"), Rank()):
                with pytest.raises(WorkbenchError, match="another process"), RunStore(store.path).locked(other):
                    pass
    with store.locked(Rank(2, 3, "other")):
        assert not stray.exists()
    fill(store, range(3))


RANKED = """
import sys
from probe._record import record
from probe.testing import tiny_pipeline
from tests.probe.test_ranks import LONG
from tests.probe.test_record import SMALL
record(tiny_pipeline(), LONG, out=sys.argv[1], **SMALL)
"""


@pytest.mark.slow
def test_two_processes_share_a_run(tmp_path, whole):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    children = [
        subprocess.Popen(
            [sys.executable, "-c", RANKED, str(tmp_path / "run")],
            cwd=ROOT,
            env={**os.environ, **JOB, "MASTER_PORT": port, "RANK": str(rank), "WORLD_SIZE": "2"},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (1, 0)
    ]
    for child in children:
        _, err = child.communicate(timeout=300)
        assert child.returncode == 0, err
    assert Run(tmp_path / "run").complete
    assert verify(tmp_path / "run") == []
    same_bits(tmp_path / "run", whole)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert open_run(tmp_path / "run").sizes["sample"] == len(LONG)

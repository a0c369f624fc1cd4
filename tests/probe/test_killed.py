"""kill -9 while a run is being written, at the worst moments; then reopen, resume, and compare every bit."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from probe._record import open_run, record, verify
from probe._run import Run
from probe._store import RunStore
from probe.testing import tiny_pipeline
from tests.probe.test_record import same_bits
from tests.probe.test_store import empty, fill

ROOT = Path(__file__).resolve().parents[2]

#: Kills this process inside the writing of the n-th key that matches, before or after its bytes are on disk.
KILLER = """
import os, signal, sys
import zarr
path, pattern, count, after = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4] == "after"
write, seen = zarr.storage.LocalStore.set, []

async def deadly(self, key, value, *args):
    if pattern in key:
        seen.append(key)
    if len(seen) == count and not after:
        os.kill(os.getpid(), signal.SIGKILL)
    await write(self, key, value, *args)
    if len(seen) == count:
        os.kill(os.getpid(), signal.SIGKILL)

zarr.storage.LocalStore.set = deadly
"""

STORE = (
    KILLER
    + """
from tests.probe.test_store import RunStore, fill
fill(RunStore(path), range(3))
"""
)

PIPELINE = (
    KILLER
    + """
from probe._record import record
from probe.testing import tiny_pipeline
from tests.probe.test_killed import OPTIONS, PROMPTS
record(tiny_pipeline(), PROMPTS, out=path, **OPTIONS)
"""
)

PROMPTS = [f"prompt {i}" for i in range(19)]  # two units of 8 samples and one of 3
OPTIONS = {"steps": 2, "batch_size": 2, "progress": False, "sites": ["ffn", "mlp"]}


def killed(program, *arguments):
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == -signal.SIGKILL, done.stderr


@pytest.mark.parametrize(
    ("pattern", "count", "moment", "done"),
    [
        ("unet/norm/c/", 10, "before", [True, False, False]),  # 8 chunks a unit: inside the second unit
        ("images/image/c/", 2, "after", [True, False, False]),  # all chunks written but a coordinate and the flag
        ("done/c/1", 1, "after", [True, True, False]),
    ],
)
def test_a_killed_writer_leaves_whole_units_and_no_others(tmp_path, pattern, count, moment, done):
    store = empty(tmp_path / "run")
    killed(STORE, store.path, pattern, count, moment)
    assert RunStore(store.path).done.tolist() == done
    assert verify(store.path) == []
    partly = open_run(store.path, incomplete="drop")
    assert partly["norm"].isel(branch=0, neuron=0).values.tolist() == list(range(2 * sum(done)))
    fill(RunStore(store.path), [unit for unit in range(3) if not done[unit]])
    assert open_run(store.path)["norm"].isel(branch=0, neuron=0).values.tolist() == [0, 1, 2, 3, 4]
    assert verify(store.path) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("pattern", "count", "moment", "done"),
    [
        ("zarr.json", 12, "after", None),  # while the store is being created, still under its temporary name
        ("unet/unit_norm/c/", 3, "before", 8),  # inside the second unit, 2 chunks each
        ("unet/absmean/c/", 6, "after", 16),  # last unit: chunks written, flag not
    ],
)
def test_a_killed_recording_resumes_with_the_same_bits(tmp_path, pattern, count, moment, done):
    killed(PIPELINE, tmp_path / "run", pattern, count, moment)
    if done is None:
        assert not (tmp_path / "run").exists()
    else:
        assert Run(tmp_path / "run").done == done
    pipe, told = tiny_pipeline(), []
    resumed = record(pipe, PROMPTS, out=tmp_path / "run", **OPTIONS | {"progress": lambda n, total: told.append(n)})
    assert told[0] == (done or 0)
    whole = record(pipe, PROMPTS, out=tmp_path / "whole", **OPTIONS)
    assert resumed.id == whole.id
    for group in whole.groups:
        same_bits(resumed, whole, group)
    assert verify(resumed.path) == []
    assert not list(resumed.path.rglob("*.partial"))

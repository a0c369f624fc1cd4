"""kill -9 while a run is being written, at the worst moments; then reopen, resume, and compare every bit."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from probe._places import place_of
from probe._record import open_run, record, verify
from probe._run import Run
from probe._store import RunStore
from probe._writer import Writer
from probe.testing import tiny_pipeline
from tests.probe.test_record import same_bits
from tests.probe.test_store import empty, fill, values

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
    due = len(seen) == count  # of this write: several run at once
    if due and not after:
        os.kill(os.getpid(), signal.SIGKILL)
    await write(self, key, value, *args)
    if due:
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
from probe._places import place_of
from probe._record import record
from probe.testing import tiny_pipeline
from tests.probe.test_killed import OPTIONS, PROMPTS
record(tiny_pipeline(), PROMPTS, out=path, **OPTIONS)
"""
)

#: Writes a run as the recorder does, from its creation on, and says when it begins; killed from outside.
WRITING = """
import sys
from tests.probe.test_killed import writing
print("begun", flush=True)
writing(sys.argv[1])
"""

#: Samples and the seconds within which the child is killed; it needs about as long.
N_WRITTEN, MOMENTS = 60, 1.5

PROMPTS = [f"prompt {i}" for i in range(19)]  # two units of 8 samples and one of 3
OPTIONS = {"steps": 2, "batch_size": 2, "progress": False, "sites": ["ffn", "mlp"]}


def killed(program, *arguments):
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == -signal.SIGKILL, done.stderr


def writing(path):
    """Create or resume a run of 30 units, all but done ones, through the writer thread."""
    place = place_of(path)
    with place.creating():
        store = RunStore(place) if place.occupied() else empty(place, N_WRITTEN)
    with store.locked(), Writer(store) as writer:
        for unit in np.flatnonzero(~store.done).tolist():
            writer.put(unit, values(store.rows(unit)), {"unet.a.ffn": 64, "unet.b.ffn": 16})


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    path = tmp_path_factory.mktemp("uninterrupted") / "run"
    writing(path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(25))
def test_a_writer_killed_at_any_moment_leaves_whole_units(tmp_path, uninterrupted, seed):
    path = tmp_path / "run"
    child = subprocess.Popen([sys.executable, "-c", WRITING, str(path)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "begun\n"
    time.sleep(random.Random(seed).uniform(0, MOMENTS))
    child.kill()
    child.wait()
    child.stdout.close()
    done = RunStore(path).done if path.exists() else np.zeros(30, bool)
    if path.exists():
        assert verify(path) == []  # nothing marked is missing or torn
        partly, whole = open_run(path, incomplete="drop"), open_run(uninterrupted)
        kept = np.flatnonzero(np.repeat(done, 2))
        for name in ("norm", "max"):
            assert partly[name].values.tobytes() == whole[name].values[kept].tobytes()
        assert np.isfinite(open_run(path, incomplete="nan")["norm"].values[kept]).all()  # and nothing else is torn
    chunks = path / "unet" / "norm" / "c"
    before = {file: file.stat().st_mtime_ns for file in chunks.rglob("*") if file.is_file() and file.suffix == ""}
    writing(path)
    for group in ("unet", "images"):
        same_bits(path, uninterrupted, group)
    again = {int(file.relative_to(chunks).parts[0]) for file in before if file.stat().st_mtime_ns != before[file]}
    assert not again & set(np.flatnonzero(np.repeat(done, 2)).tolist())  # only what was missing is made
    assert not list(path.rglob("*.partial"))
    assert [entry.name for entry in tmp_path.iterdir()] == ["run"]


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
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "whole"]  # nothing hidden is left beside

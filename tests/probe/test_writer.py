"""The writer thread: overlaps, stops the run when it fails, and notices what is not finite."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest

from probe._run import Run, open_run, verify
from probe._store import RunStore
from probe._writer import Writer
from tests.probe.test_store import empty, values

ROWS = {"unet.a.ffn": 64, "unet.b.ffn": 16}


def put(writer, unit):
    writer.put(unit, values(writer.store.rows(unit)), ROWS)


def test_the_next_unit_is_made_while_one_is_written(tmp_path, monkeypatch):
    store, going = empty(tmp_path / "run"), threading.Event()
    write = RunStore.write

    def slow(self, *args, **kwargs):
        assert threading.current_thread().name.startswith("probe-writer")
        assert going.wait(10)
        write(self, *args, **kwargs)

    monkeypatch.setattr(RunStore, "write", slow)
    with store.locked(), Writer(store) as writer:
        put(writer, 0)
        assert not store.done.any()  # back before anything is written: here the next unit is made
        writer.check()
        going.set()
        put(writer, 1)
        assert store.done.tolist()[:1] == [True]  # the queue is bounded: one at a time
        put(writer, 2)
    assert RunStore(store.path).done.all()
    assert writer.bytes == sum(a.nbytes for u in range(3) for g in values(store.rows(u)).values() for a in g.values())
    assert writer.rate > 0
    assert verify(store.path) == []


def put_once(writer):
    put(writer, 0)


def put_twice(writer):
    put(writer, 0)
    put(writer, 1)
    raise AssertionError("the second put knows of the error of the first")


def wait_and_check(writer):
    put(writer, 0)
    end = time.monotonic() + 10
    while time.monotonic() < end:  # as the recorder does, batch by batch
        writer.check()
    raise AssertionError("an error is known without putting more")


def test_nan_that_is_meant_is_not_reported(tmp_path, caplog):
    store = empty(tmp_path / "run")
    spoiled = values(store.rows(0))
    norm = spoiled["unet"]["norm"]
    norm[0, 0] = np.nan
    meant = np.zeros((2, 2, *(1,) * (norm.ndim - 2)), bool)
    meant[0, 0] = True
    with store.locked(), Writer(store) as writer:
        writer.put(0, spoiled, ROWS, {"unet": {"norm": meant}})
    assert store.nonfinite == []
    assert "NaN" not in caplog.text
    spoiled["unet"]["norm"][0, 0] = np.inf  # infinity is never meant
    with store.locked(), Writer(store) as writer:
        writer.put(0, spoiled, ROWS, {"unet": {"norm": meant}})
    assert {entry["array"] for entry in store.nonfinite} == {"norm"}


def interrupted(writer):
    put(writer, 0)
    raise KeyboardInterrupt


def test_an_error_of_the_writer_is_the_callers(tmp_path, monkeypatch):
    store = empty(tmp_path / "run")

    def broken(self, unit, *args, **kwargs):
        raise OSError(5, "the disk is gone")

    monkeypatch.setattr(RunStore, "write", broken)
    for attempt in (wait_and_check, put_twice, put_once):
        with pytest.raises(OSError, match="the disk is gone"), Writer(store) as writer:
            attempt(writer)
    assert not RunStore(store.path).done.any()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("probe-writer")]


def test_what_was_put_is_written_when_the_run_ends_early(tmp_path):
    store = empty(tmp_path / "run")
    with pytest.raises(KeyboardInterrupt), Writer(store) as writer:
        interrupted(writer)
    assert RunStore(store.path).done.tolist() == [True, False, False]


def test_a_stopped_unit_is_not_done(tmp_path):
    store = empty(tmp_path / "run")
    store.write(0, values(store.rows(0)), stop=lambda: True)
    assert not RunStore(store.path).done.any()


def test_chunks_are_on_disk_before_a_durable_unit_is_done(tmp_path, monkeypatch):
    store, events = empty(tmp_path / "run"), []
    sync = type(store.place).sync

    def noted(self, keys):
        keys = list(keys)
        events.append((sorted(keys), bool(store.done[0])))
        assert all((self.path / key).is_file() for key in keys)
        sync(self, keys)

    monkeypatch.setattr(type(store.place), "sync", noted)
    store.write(0, values(store.rows(0)), durable=True)
    (chunks, before), (flag, after) = events
    assert (before, after, flag) == (False, True, ["done/c/0"])
    assert {
        f"unet/{name}/c/{s}/{b}/{n}" for name in ("norm", "max") for s in (0, 1) for b in (0, 1) for n in (0, 1)
    } < {*chunks}
    assert "images/image/c/0/0/0/0" in chunks
    assert "unet/shown/c/0" in chunks


def test_nan_and_infinity_are_reported_with_site_and_step(tmp_path, caplog):
    store = empty(tmp_path / "run")
    bad = values(store.rows(1))
    bad["unet"]["norm"][1, 0, 2] = np.inf
    bad["unet"]["max"][0, 1, 0] = np.nan
    with store.locked(), Writer(store) as writer:
        put(writer, 0)
        writer.put(1, bad, ROWS)
        put(writer, 2)
    (said,) = [record.message for record in caplog.records if record.levelname == "WARNING"]
    assert "unet.b.ffn, sample 3 (norm), and 1 other places" in said
    found = Run(store.path).info["nonfinite"]
    assert found == [
        {"group": "unet", "array": "norm", "site": "unet.b.ffn", "steps": [], "samples": [3]},
        {"group": "unet", "array": "max", "site": "unet.a.ffn", "steps": [], "samples": [2]},
    ]
    assert "unet.b.ffn" in Run(store.path)._repr_html_()
    assert not np.isfinite(open_run(store.path)["norm"].values).all()
    store.write(1, values(store.rows(1)))  # made again, and fine
    assert "nonfinite" not in Run(store.path).info

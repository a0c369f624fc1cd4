"""The store by itself: what is marked done is there, what is not there is noticed, and nothing half-made is left."""

from __future__ import annotations

import errno
import os
import shutil

import numpy as np
import pandas as pd
import pytest
import zarr
from filelock import FileLock

from probe._groups import Group
from probe._run import open_run, verify
from probe._store import RunStore
from probe.errors import BadInput, StoreDamaged, UnknownName, WorkbenchError

N, UNIT = 5, 2
NEURONS = 4


def empty(path, n=N, **options):
    """A run of two groups, units of 2 samples, chunks of 1 sample."""
    samples = pd.DataFrame({"prompt": [f"prompt {i}" for i in range(n)], "seed": range(n)})
    sites = pd.DataFrame(
        {"name": ["unet.a.ffn", "unet.b.ffn"], "kind": "ffn", "component": "unet", "module": ["a", "b"], "io": "input"}
        | {"width": [1, 3], "order": [0, 1], "group": "unet", "offset": [0, 1], "rows": 0}
    )
    coords = {
        "site": ("neuron", np.array([0, 1, 1, 1], np.int16)),
        "branch": ("branch", np.array(["uncond", "cond"], object)),
    }
    groups = [
        Group("unet", ("norm", "max"), "float32", ("branch", "neuron"), (2, NEURONS), (1, 1, 2), coords),
        Group("images", ("image",), "uint8", ("y", "x", "rgb"), (2, 2, 3), (2, 2, 2, 3), {}),
    ]
    identity = {"samples": {"n": n}, "reducers": ["norm", "max"]}
    return RunStore.create(
        path, identity=identity, info={}, id="abc", unit=UNIT, samples=samples, sites=sites, groups=groups, **options
    )


def values(rows):
    n = rows.stop - rows.start
    base = np.arange(rows.start, rows.stop, dtype=np.float32)[:, None, None] + np.zeros((n, 2, NEURONS), np.float32)
    shown = np.full(n, np.nan, np.float32)
    images = np.zeros((n, 2, 2, 3), np.uint8)  # equal to the fill value: must still count as written
    return {"unet": {"norm": base, "max": -base, "shown": shown}, "images": {"image": images, "shown": shown}}


def fill(store, units):
    with store.locked():
        store.set_rows({"unet.a.ffn": 64, "unet.b.ffn": 16})
        for unit in units:
            store.write(unit, values(store.rows(unit)))
    return store


def chunks(bad):
    return [chunk.chunk for chunk in bad]


@pytest.fixture(scope="module")
def template(tmp_path_factory):
    return fill(empty(tmp_path_factory.mktemp("template") / "run"), range(3)).path


@pytest.fixture
def full(tmp_path, template):
    return RunStore(shutil.copytree(template, tmp_path / "run"))


def test_written_units_come_back_and_the_others_are_nan(tmp_path):
    store = fill(empty(tmp_path / "run"), [0, 2])
    assert store.done.tolist() == [True, False, True]
    with pytest.raises(BadInput, match="3 of 5 samples"):
        open_run(store.path)
    kept = open_run(store.path, incomplete="drop")
    assert kept["prompt"].values.tolist() == ["prompt 0", "prompt 1", "prompt 4"]
    assert kept["norm"].isel(branch=0, neuron=0).values.tolist() == [0, 1, 4]
    every = open_run(store.path, incomplete="nan")
    assert every["done"].values.tolist() == [True, True, False, False, True]
    assert np.isnan(every["max"].values[2:4]).all()
    assert np.isfinite(every["max"].values[[0, 1, 4]]).all()


def test_datasets_explain_themselves(full):
    ds = open_run(full.path)
    assert ds["norm"].dims == ("sample", "branch", "neuron")
    assert ds["norm"].dtype == np.float32
    assert ds["branch"].values.tolist() == ["uncond", "cond"]
    assert {"prompt", "seed", "shown", "site", "branch"} <= set(ds.coords)
    assert '"rows": 64' in ds.attrs["sites"]
    assert open_run(full.path, "images")["image"].dtype == np.uint8


def test_stored_as_promised(full):
    array = zarr.open_array(full.path / "unet" / "norm", mode="r")
    assert array.metadata.dimension_names == ("sample", "branch", "neuron")
    assert array.chunks == (1, 1, 2)
    assert np.isnan(array.fill_value)
    codecs = [codec.to_dict()["name"] for codec in array.metadata.codecs]
    assert codecs == ["bytes", "blosc", "crc32c"]
    done = zarr.open_array(full.path / "done", mode="r")
    assert (done.dtype, done.chunks) == (np.uint8, (1,))


def test_unknown_groups_and_modes_name_the_known(full):
    with pytest.raises(UnknownName, match="images, unet"):
        open_run(full.path, "text_encoder")
    with pytest.raises(UnknownName, match="drop"):
        open_run(full.path, incomplete="dropp")


def test_a_missing_chunk_is_found_without_reading(full):
    (full.path / "unet" / "norm" / "c" / "3" / "1" / "0").unlink()
    with pytest.raises(StoreDamaged, match=r"unet/norm/c/3/1/0.*repair"):
        open_run(full.path)
    assert chunks(verify(full.path)) == ["unet/norm/c/3/1/0"]


@pytest.mark.parametrize("length", [0, 5])
def test_a_truncated_chunk_is_found_by_verify(full, length):
    os.truncate(full.path / "unet" / "max" / "c" / "4" / "0" / "1", length)
    assert chunks(verify(full.path)) == ["unet/max/c/4/0/1"]
    assert full.done.all()  # looking changes nothing


def test_a_flipped_bit_is_found_by_verify_and_its_unit_made_again(full):
    chunk = full.path / "images" / "image" / "c" / "1" / "0" / "0" / "0"
    data = bytearray(chunk.read_bytes())
    data[len(data) // 2] ^= 1
    chunk.write_bytes(data)
    assert chunks(verify(full.path, repair=True)) == ["images/image/c/1/0/0/0"]
    assert full.done.tolist() == [True, False, True]
    fill(full, [1])
    assert verify(full.path) == []


@pytest.mark.parametrize(
    "torn", ["unet/prompt/c/0", "unet/site/c/0", "unet/max/zarr.json", "images/zarr.json", "sites/name/c/0", "done/c/0"]
)
def test_what_belongs_to_no_unit_is_damage_for_good(full, torn):
    os.truncate(full.path / torn, (full.path / torn).stat().st_size // 2)
    for look in (open_run, verify):
        with pytest.raises(StoreDamaged, match="run cannot be read"):
            look(full.path)


@pytest.mark.parametrize("name", ["unet/site", "sites/width"])
def test_an_array_that_is_gone_is_named(full, name):
    shutil.rmtree(full.path / name)
    for look in (open_run, verify):
        with pytest.raises(StoreDamaged, match=f"missing.*{name.split('/')[1]}"):
            look(full.path)


def test_a_torn_coordinate_of_samples_can_be_made_again(full):
    os.truncate(full.path / "unet" / "shown" / "c" / "1", 3)
    with pytest.raises(StoreDamaged, match=r"unet/shown/c/1.*repair"):
        open_run(full.path)
    assert chunks(verify(full.path, repair=True)) == ["unet/shown/c/1"]
    fill(full, [1])
    assert verify(full.path) == []


def test_a_short_last_unit_can_be_written_over_a_torn_chunk(full):
    torn = full.path / "images" / "image" / "c" / "2" / "0" / "0" / "0"
    os.truncate(torn, 3)
    full.forget([2])
    fill(full, [2])
    assert verify(full.path) == []


def test_no_space_left_marks_nothing_done(tmp_path, monkeypatch):
    store = fill(empty(tmp_path / "run"), [0])
    write, calls = zarr.storage.LocalStore.set, []

    async def full_disk(self, key, value, *args):
        calls.append(key)
        if len(calls) > 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        await write(self, key, value, *args)

    with monkeypatch.context() as patch:
        patch.setattr(zarr.storage.LocalStore, "set", full_disk)
        with pytest.raises(WorkbenchError, match=r"no space left on the disk.*run.*same call again"):
            fill(store, [1])
    assert len(calls) > 3
    assert RunStore(store.path).done.tolist() == [True, False, False]
    fill(store, [1, 2])
    assert verify(store.path) == []
    assert open_run(store.path)["norm"].isel(branch=1, neuron=2).values.tolist() == [0, 1, 2, 3, 4]


def test_no_space_left_while_creating_leaves_nothing(tmp_path, monkeypatch):
    async def full_disk(self, key, value, *args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(zarr.storage.LocalStore, "set", full_disk)
        with pytest.raises(WorkbenchError, match="no space left"):
            empty(tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_a_run_larger_than_the_disk_is_refused_before_it_starts(tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 100})
    monkeypatch.setattr("probe._places.shutil.disk_usage", lambda _path: usage)
    with pytest.raises(WorkbenchError, match=r"100 bytes free.*expected"):
        empty(tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_one_writer_at_a_time(full):
    with FileLock(full.path / "done" / ".lock"), pytest.raises(WorkbenchError, match="another process"):
        fill(full, [0])
    fill(full, [0])


def test_leftovers_of_a_killed_writer_are_removed(full):
    stray = full.path / "unet" / "norm" / "c" / "0" / "0" / "0.1234.partial"
    stray.write_bytes(b"half")
    fill(full, [0])
    assert not stray.exists()


def test_sites_that_see_other_numbers_of_tokens_are_damage(full):
    with full.locked(), pytest.raises(StoreDamaged, match="token rows"):
        full.set_rows({"unet.a.ffn": 64, "unet.b.ffn": 17})


def test_extending_keeps_whole_units_and_repeats_the_short_one(full):
    longer = pd.DataFrame({"prompt": [f"prompt {i}" for i in range(8)], "seed": range(8)})
    store = full.extend(identity={"samples": {"n": 8}, "reducers": ["norm", "max"]}, id="def", samples=longer)
    assert (store.id, store.n_samples) == ("def", 8)
    assert store.done.tolist() == [True, True, False, False]
    fill(store, [2, 3])
    ds = open_run(store.path)
    assert ds["norm"].isel(branch=0, neuron=0).values.tolist() == list(range(8))
    assert ds["prompt"].values.tolist() == longer["prompt"].tolist()


def test_an_interrupted_extension_is_said_and_can_be_repeated(full, monkeypatch):
    longer = pd.DataFrame({"prompt": [f"prompt {i}" for i in range(8)], "seed": range(8)})
    resize = zarr.Array.resize

    def interrupted(self, shape):
        if self.path == "unet/max":
            raise KeyboardInterrupt
        resize(self, shape)

    with monkeypatch.context() as patch:
        patch.setattr(zarr.Array, "resize", interrupted)
        with pytest.raises(KeyboardInterrupt):
            full.extend(identity={"samples": {"n": 8}}, id="def", samples=longer)
    fill(RunStore(full.path), [2])
    with pytest.raises(StoreDamaged, match="extend=True"):
        open_run(full.path)
    store = RunStore(full.path).extend(identity={"samples": {"n": 8}}, id="def", samples=longer)
    fill(store, [2, 3])
    assert open_run(store.path)["norm"].isel(branch=0, neuron=0).values.tolist() == list(range(8))


@pytest.mark.parametrize("damage", ["nothing", "file", "folder", "truncated", "foreign", "header"])
def test_what_is_no_run_is_said(full, tmp_path, damage):
    path = tmp_path / "other"
    if damage == "file":
        path.write_text("notes")
    elif damage == "folder":
        path.mkdir()
        (path / "notes.txt").write_text("mine")
    elif damage == "truncated":
        path = full.path
        os.truncate(path / "zarr.json", 40)
    elif damage == "foreign":
        zarr.create_group(path)
    elif damage == "header":
        path = full.path
        zarr.open_group(path).attrs.update(identity={})
    with pytest.raises(BadInput if damage == "nothing" else StoreDamaged, match=path.name):
        RunStore(path)


def test_what_zarr_is_set_to_is_never_changed(tmp_path, monkeypatch):
    found, write = set(), zarr.storage.LocalStore.set

    async def noting(self, key, value, *args):
        found.add(zarr.config.get("array.write_empty_chunks"))
        await write(self, key, value, *args)

    monkeypatch.setattr(zarr.storage.LocalStore, "set", noting)
    assert fill(empty(tmp_path / "run"), range(3)).missing() == []
    assert found == {False}

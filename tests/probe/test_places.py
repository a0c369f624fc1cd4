"""Runs at URLs: the memory filesystem, and S3 as a test server speaks it."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from probe._headers import half_created
from probe._places import Folder, is_url, place_of
from probe._rechunk import rechunk
from probe._run import Run, open_run, verify
from probe._store import RunStore
from probe.errors import BadInput, MissingExtra, StoreDamaged
from tests.probe.test_store import empty, fill


@pytest.fixture
def memory():
    import fsspec

    fs = fsspec.filesystem("memory")
    yield "memory://bucket/run"
    fs.rm("/bucket", recursive=True) if fs.exists("/bucket") else None


@pytest.fixture
def s3(monkeypatch):
    boto3 = pytest.importorskip("boto3")
    server_module = pytest.importorskip("moto.server")
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
    }.items():
        monkeypatch.setenv(name, value)
    boto3.client("s3").create_bucket(Bucket="bucket")
    yield "s3://bucket/runs/one"
    server.stop()


def lives(url, folder):
    """A run at ``url`` is made, interrupted, resumed, read, verified, replaced and copied as one in a folder is."""
    with pytest.raises(BadInput, match="no run here"):
        RunStore(url)
    store = fill(empty(url), [0, 2])
    assert store.done.tolist() == [True, False, True]
    with pytest.raises(BadInput, match="3 of 5 samples"):
        open_run(url)
    fill(RunStore(url), [1])
    local = fill(empty(folder / "run"), range(3))
    for group in ("unet", "images"):
        ours, theirs = open_run(url, group), open_run(local.path, group)
        assert ours.identical(theirs)
    run = Run(url)
    assert (run.path, run.name, run.done) == (url, url.rpartition("/")[2], 5)
    assert "5 of 5 recorded" in run._repr_html_()
    assert url in repr(run)
    assert verify(url) == []
    assert place_of(url).sizes().keys() - local.place.sizes().keys() == set()
    copy = rechunk(url, out=f"{url}-copy", progress=False)
    assert open_run(copy)["norm"].identical(open_run(url)["norm"])
    assert open_run(rechunk(copy, out=folder / "copy", progress=False))["norm"].identical(open_run(url)["norm"])
    with pytest.raises(FileExistsError):
        empty(url)
    assert RunStore(url).done.all()
    assert not empty(url, replace=True).done.any()


def test_on_the_memory_filesystem(memory, tmp_path):
    lives(memory, tmp_path)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the S3 client and the test server
def test_on_an_s3_server(s3, tmp_path):
    lives(s3, tmp_path)


def test_the_header_of_a_remote_run_comes_last(memory, monkeypatch):
    import probe._store as module

    copy = module.copy_store

    def killed(*args):
        copy(*args)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(module, "copy_store", killed)
        with pytest.raises(KeyboardInterrupt):
            empty(memory)
    with pytest.raises(StoreDamaged, match="not a file of the workbench"):
        RunStore(memory)
    assert half_created(place_of(memory))
    assert not half_created(empty(memory, replace=True).place)


def test_recording_to_a_url(recorded, memory):
    from probe._record import record
    from tests.probe.conftest import TARGET
    from tests.probe.test_record import same_bits

    run = record(recorded.pipe, TARGET, out=memory, progress=False, **recorded.options)
    same_bits(run, recorded.target)
    assert record(recorded.pipe, TARGET, out=memory, progress=False, **recorded.options).id == run.id


def test_a_remote_chunk_that_is_gone_is_named(memory):
    import fsspec

    fill(empty(memory), range(3))
    fsspec.filesystem("memory").rm("/bucket/run/unet/norm/c/3/1/0")
    with pytest.raises(StoreDamaged, match=r"unet/norm/c/3/1/0 \(unet.a.ffn to unet.b.ffn, sample 3\)"):
        open_run(memory)


def test_which_paths_are_urls(tmp_path):
    assert is_url("s3://bucket/run")
    assert not is_url("runs/a:b")
    assert not is_url("C:\\runs\\church")
    assert not is_url(tmp_path)
    assert place_of(f"file://{tmp_path}") == Folder(tmp_path)
    with pytest.raises(BadInput, match="no such kind of URL"):
        place_of("nonsense://bucket/run")


def test_a_missing_package_is_named(monkeypatch):
    import fsspec

    def absent(*_args, **_options):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec, "url_to_fs", absent)
    with pytest.raises(MissingExtra, match=r"neuron-workbench\[remote\]"):
        place_of("s3://bucket/run")


@pytest.mark.parametrize("codecs", ["auto", "zarr", "zarrs"])
def test_every_pipeline_reads_the_same_numbers_and_finds_damage(tmp_path, codecs):
    pytest.importorskip("zarrs")
    store = fill(empty(tmp_path / "run"), range(3))
    ds = open_run(store.path, codecs=codecs)
    assert ds["norm"].isel(branch=1, neuron=2).values.tolist() == [0, 1, 2, 3, 4]
    assert ds["max"].isel(sample=[0, 3], neuron=[1, 3]).values[:, 0].tolist() == [[0, 0], [-3, -3]]
    chunk = store.path / "unet" / "norm" / "c" / "3" / "1" / "0"
    data = bytearray(chunk.read_bytes())
    data[-6] ^= 1
    chunk.write_bytes(data)
    with pytest.raises(Exception, match=r"(?i)checksum"):
        open_run(store.path, codecs=codecs)["norm"].load()
    assert np.isfinite(open_run(store.path, codecs=codecs)["norm"].isel(sample=0)).all()


def test_zarrs_is_asked_for_by_name_only_where_it_is(tmp_path, monkeypatch):
    from probe import _codecs

    store = fill(empty(tmp_path / "run"), range(3))
    monkeypatch.setattr(_codecs, "_installed", lambda: False)
    assert open_run(store.path)["norm"].shape == (5, 2, 4)
    with pytest.raises(MissingExtra, match=r"neuron-workbench\[fast\]"):
        open_run(store.path, codecs="zarrs")

"""What a recording survives, and what outlives it: nothing in the pipeline, everything committed on disk."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr

import probe
from probe._chunks import readable_size
from probe._record import dry_run, record, verify
from probe._run import Run, open_run
from probe._skeleton import skeleton
from probe._store import RunStore
from probe._terminal import run as run_command
from probe.cli import app
from probe.errors import BadInput, StoreDamaged, WorkbenchError
from probe.testing import tiny_pipeline
from tests.erase.snapshots import snapshot
from tests.probe.test_record import MANY, SMALL, same_bits

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def pipe(tmp_path_factory):
    pipe = tiny_pipeline()
    record(pipe, ["a"], out=tmp_path_factory.mktemp("first") / "run", **SMALL)  # a call leaves its arguments behind
    return pipe


def state(pipe):
    """Everything of a pipeline that a call might change."""
    settings = {key: str(value) for key, value in vars(pipe).items() if not isinstance(value, torch.nn.Module)}
    rest = (id(pipe.scheduler), dict(pipe.scheduler.config), pipe.scheduler.num_inference_steps)
    return snapshot(pipe), settings, rest, torch.is_grad_enabled(), torch.get_rng_state().tolist()


class Stopped:
    """Progress that ends the recording in the middle of its second unit."""

    def __init__(self, error):
        self.error = error

    def __call__(self, done, total):
        if done >= 10:
            raise self.error


def test_nothing_in_the_pipeline_outlives_success_error_or_interruption(pipe, tmp_path):
    pipe.unet.train()
    before = state(pipe)
    for i, error in enumerate((RuntimeError("broken"), KeyboardInterrupt())):
        with pytest.raises(type(error)) as raised:
            record(pipe, MANY, out=tmp_path / str(i), **SMALL | {"progress": Stopped(error), "sites": ["ffn", "mlp"]})
        assert state(pipe) == before
        assert RunStore(tmp_path / str(i)).done.tolist() == [True, False]  # what was made is kept
    said = str(raised.value)
    assert said.startswith("recording interrupted")
    assert "8 of 11 samples are kept" in said
    assert "repeat the same call to resume" in said
    record(pipe, MANY, out=tmp_path / "whole", **SMALL)
    assert state(pipe) == before
    with RunStore(tmp_path / "0").locked():  # the lock is free
        pipe.unet.eval()


def test_an_error_of_the_writer_ends_the_recording(pipe, tmp_path, monkeypatch):
    before, write, calls = state(pipe), zarr.storage.LocalStore.set, []

    async def full_disk(self, key, value, *args):
        if key.startswith("unet/") and "/c/" in key and (tmp_path / "run" / "done" / "c" / "0").exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        calls.append(key)
        await write(self, key, value, *args)

    made = []
    options = SMALL | {"progress": lambda done, total: made.append(done)}
    many = [*MANY, *MANY, *MANY]
    with monkeypatch.context() as patch:
        patch.setattr(zarr.storage.LocalStore, "set", full_disk)
        with pytest.raises(WorkbenchError, match=r"no space left on the disk.*same call again"):
            record(pipe, many, out=tmp_path / "run", **options)
    assert made[-1] < len(many)
    assert state(pipe) == before
    assert RunStore(tmp_path / "run").done.tolist() == [True, False, False, False, False]
    record(pipe, many, out=tmp_path / "run", **SMALL)
    assert verify(tmp_path / "run") == []


def test_permission_denied_names_the_path(pipe, tmp_path, monkeypatch):
    async def closed(self, key, value, *args):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    with monkeypatch.context() as patch:
        patch.setattr(zarr.storage.LocalStore, "set", closed)
        with pytest.raises(BadInput, match=r"cannot be written.*run.*another path"):
            record(pipe, ["a"], out=tmp_path / "run", **SMALL)
    assert list(tmp_path.iterdir()) == []


def test_a_flipped_byte_is_named_with_chunk_site_and_samples(pipe, tmp_path, capsys):
    run = record(pipe, ["a", "b", "c"], out=tmp_path / "run", **SMALL)
    chunk = run.path / "unet" / "absmean" / "c" / "0" / "1" / "0" / "0"
    data = bytearray(chunk.read_bytes())
    data[len(data) // 2] ^= 4
    chunk.write_bytes(data)
    (bad,) = verify(run)
    names = [site.name for site in probe.sites(pipe)]
    assert (bad.chunk, list(bad.samples), list(bad.sites)) == ("unet/absmean/c/0/1/0/0", [0, 1, 2], names)
    assert str(bad) == f"unet/absmean/c/0/1/0/0 ({names[0]} to {names[-1]}, samples 0 to 2)"
    assert run_command(app, ["verify", str(run.path)]) == 2
    assert f"{names[0]} to {names[-1]}, samples 0 to 2" in capsys.readouterr().err
    assert run_command(app, ["verify", str(run.path), "--repair", "--json"]) == 0
    (said,) = json.loads(capsys.readouterr().out)["bad"]
    assert (said["unit"], said["first"], said["last"], said["sites"]) == (0, 0, 2, names)


@pytest.mark.parametrize("gone", ["unet/site/c/0", "unet/prompt/c/0", "sites/offset/c/0", "unet/timestep/c/0"])
def test_a_coordinate_that_is_gone_is_no_zero(pipe, tmp_path, gone):
    run = record(pipe, ["a"], out=tmp_path / "run", **SMALL | {"sites": "unet.mid_block.*.ffn"})
    (run.path / gone).unlink()
    for look in (open_run, verify, lambda path: record(pipe, ["a"], out=path, **SMALL | {"sites": "unet.mid*ffn"})):
        with pytest.raises(StoreDamaged, match=f"coordinates of the run are missing.*{gone}"):
            look(run.path)


def test_a_killed_creation_is_cleaned_up_and_a_running_one_is_not(pipe, tmp_path):
    left = tmp_path / ".run.0123abcd.partial"
    (left / "unet").mkdir(parents=True)
    others = [tmp_path / ".other.0123abcd.partial", tmp_path / ".run.old", tmp_path / ".run.0123abcd.old"]
    for other in others:
        other.mkdir()
    record(pipe, ["a"], out=tmp_path / "run", **SMALL)
    assert not left.exists()
    assert all(other.exists() for other in others)  # the last is all there is of a run that was being replaced
    record(pipe, ["a"], out=tmp_path / "run", **SMALL)
    assert [other.exists() for other in others] == [True, True, False]


def test_a_run_over_the_limit_is_refused_with_what_to_change(pipe, tmp_path):
    with pytest.raises(BadInput, match=r"larger than max_gb.*unet/\w+.*which is 1 samples.*fewer samples.*max_gb=1"):
        record(pipe, ["a", "b"], out=tmp_path / "run", **SMALL | {"max_gb": 3.1e-5})
    assert list(tmp_path.iterdir()) == []


def test_the_size_is_logged_and_exact(pipe, tmp_path, caplog):
    caplog.set_level("INFO", "probe")
    run = record(pipe, ["a", "b"], out=tmp_path / "run", **SMALL | {"images": True})
    stored = sum(open_run(run, group)[name].nbytes for group in run.groups for name in open_run(run, group).data_vars)
    assert f"2 samples take {readable_size(stored)} before compression" in caplog.text
    assert "samples/s" in caplog.text


def test_a_dry_run_tells_the_plan_and_touches_nothing(pipe, tmp_path, capsys, monkeypatch):
    probe.compat.save_pipeline(pipe, tmp_path / "model")
    run = record(pipe, ["a", "b"], out=tmp_path / "real", steps=3, progress=False)
    for file in (tmp_path / "model").rglob("*.safetensors"):
        file.unlink()  # no weight is needed
    command = ["record", "a", "b", "--model", f"{tmp_path}/model", "--steps", "3", "--dry-run"]
    before = sorted(tmp_path.rglob("*"))
    assert run_command(app, [*command, "--out", f"{tmp_path}/run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)["plan"]
    assert sorted(tmp_path.rglob("*")) == before
    assert (plan["samples"], plan["units"], plan["steps"], plan["branches"]) == (2, 1, 3, ["uncond", "cond"])
    assert (plan["sites"], plan["neurons"]) == ({"unet ffn": 4}, 640)
    for told, real in zip(sorted(plan["arrays"], key=lambda a: a["name"]), run.arrays(), strict=True):
        assert {k: told[k] for k in ("name", "dims", "shape", "chunk", "dtype")} == {
            k: real[k] for k in ("name", "dims", "shape", "chunk", "dtype")
        }
    assert plan["bytes"] == sum(array["bytes"] for array in plan["arrays"])
    assert plan["free"] > 0
    assert run_command(app, [*command, "--out", f"{tmp_path}/real"]) == 0
    text = capsys.readouterr().out
    assert "2 of them done" in text
    assert "unet/unit_norm" in text


def test_a_dry_run_knows_everything_that_can_be_kept(tmp_path):
    """Without weights, and for each kind of model."""
    for kind in ("sd15", "sdxl"):
        pipe = tiny_pipeline(kind)
        probe.compat.save_pipeline(pipe, tmp_path / kind)
        for file in (tmp_path / kind).rglob("*.safetensors"):
            file.unlink()
        options = {"sites": ["ffn", "mlp", "xattn.prob", "xattn.k"], "reduce": ["max", "topk"], "latents": True}
        options |= {"maps": {"unet.mid_block*.ffn": [1], "text_encoder.*.0.mlp": "full"}, "tokens": [0, "b"]}
        options |= {"steps": 2, "topk": 3}
        run = record(pipe, ["a b", "b"], out=tmp_path / f"{kind}-run", progress=False, **options)
        plan = dry_run(skeleton(tmp_path / kind), ["a b", "b"], out=tmp_path / "none", **options)
        told = {array["name"]: array | {"bytes": 0} for array in plan.arrays}
        assert told == {array["name"]: array | {"bytes": 0} for array in run.arrays()}
        assert plan.sites["unet xattn.prob"] == len(probe.sites(pipe, "xattn.prob"))
    assert not (tmp_path / "none").exists()


def test_a_dry_run_of_trajectories(pipe, tmp_path, capsys):
    probe.compat.save_pipeline(pipe, tmp_path / "model")
    stored = probe.trajectories(pipe, ["a", "b"], out=tmp_path / "real", steps=3, noise_pred=True, progress=False)
    command = ["trajectories", "a", "b", "--model", f"{tmp_path}/model", "--steps", "3", "--noise-pred", "--dry-run"]
    assert run_command(app, [*command, "--out", f"{tmp_path}/traj", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)["plan"]
    assert (plan["kind"], plan["samples"], plan["steps"], plan["sites"]) == ("trajectory", 2, 3, {})
    for array in plan["arrays"]:
        found = stored.open()[array["name"].partition("/")[2]]
        assert (list(found.shape), str(found.dtype)) == (array["shape"], array["dtype"])
        assert found.nbytes == array["bytes"]
    assert run_command(app, [*command, "--out", f"{tmp_path}/real"]) == 0
    text = capsys.readouterr().out
    assert "trajectory" in text
    assert "2 of them done" in text
    assert not (tmp_path / "traj").exists()


@pytest.mark.slow
def test_an_interrupted_command_keeps_units_and_says_how_to_resume(pipe, tmp_path):
    probe.compat.save_pipeline(pipe, tmp_path / "model")
    (tmp_path / "prompts.txt").write_text("\n".join(f"prompt {i}" for i in range(400)))
    arguments = ["record", "prompts.txt", "--model", "model", "--steps", "3", "--batch-size", "2", "--out", "run"]
    child = subprocess.Popen(
        [sys.executable, "-m", "probe", *arguments, "--images", "false"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a shell's background jobs ignore it
    )
    flag, end = tmp_path / "run" / "done" / "c" / "0", time.monotonic() + 300
    while not flag.exists() and child.poll() is None and time.monotonic() < end:
        time.sleep(0.02)
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=120)
    assert child.returncode == 130, err
    (line,) = [line for line in err.splitlines() if "repeat the same call to resume" in line]
    run = Run(tmp_path / "run")
    assert 0 < run.done < 400
    assert f"{run.done} of 400 samples are kept" in line
    assert verify(run) == []
    partly = open_run(run, incomplete="drop")
    assert np.isfinite(partly["absmean"].values).all()


def test_nan_in_activations_is_reported_with_site_and_step(tmp_path, caplog):
    pipe = tiny_pipeline()
    site = probe.sites(pipe)[-1]
    calls = []

    def spoil(_module, args):
        calls.append(1)
        if len(calls) == 2:  # step 1 of the first batch
            args[0][1, 0, 3] = float("nan")

    handle = pipe.unet.get_submodule(site.module).register_forward_pre_hook(spoil)
    try:
        run = record(pipe, ["a", "b"], out=tmp_path / "run", **SMALL | {"reduce": "absmean"})
    finally:
        handle.remove()
    assert f"NaN or infinity was recorded: {site.name}, step 1, sample" in caplog.text
    (entry,) = run.info["nonfinite"]
    assert (entry["site"], entry["steps"], entry["array"]) == (site.name, [1], "absmean")
    assert "nonfinite" not in run.identity
    assert same_identity(run, pipe, tmp_path)


def same_identity(run, pipe, folder):
    return record(pipe, ["a", "b"], out=folder / "fine", **SMALL | {"reduce": "absmean"}).id == run.id


def test_an_older_run_is_resumed(recorded, tmp_path):
    """As issue 2 wrote it: no list of groups, no `nonfinite`, zstd, coordinates of zeros without a chunk."""
    import shutil

    from tests.probe.conftest import TARGET

    path = Path(shutil.copytree(recorded.target.path, tmp_path / "run"))
    root = zarr.open_group(path)
    attributes = {key: value for key, value in root.attrs.items() if key not in ("groups", "every_chunk")}
    root.attrs.put(attributes)
    shutil.rmtree(path / "nonfinite")
    (path / "done" / "c" / "0").unlink()
    assert Run(path).groups == recorded.target.groups
    run = record(recorded.pipe, TARGET, out=path, progress=False, **recorded.options)
    same_bits(run, recorded.target)
    assert "nonfinite" not in run.info
    assert run._repr_html_()

"""Files of every layout version there has been can still be read."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import erase
from erase.learn import Folder, Schedule
from erase.learn._training import _Run
from probe import formats
from probe._neuron_map import NeuronMap
from probe._record import verify
from probe._run import Run
from probe._trajectory import Trajectory
from probe.plots import losses_of
from probe.scores import Selectivity
from probe.scores._ledger import Ledger
from probe.testing import tiny_pipeline
from tests.formats.make import facts, pruned_pipe, trajectory_facts

HERE = Path(__file__).parents[1] / "formats"


@pytest.mark.parametrize("version", range(1, formats.LAYOUT_VERSIONS["run"] + 1))
def test_runs_and_maps_of_every_version(tmp_path, version):
    with zipfile.ZipFile(HERE / f"run_v{version}.zip") as archive:
        archive.extractall(tmp_path / "run")
    run, nm = Run(tmp_path / "run"), NeuronMap.load(HERE / f"neuron_map_v{version}.zarr.zip")
    found, wanted = facts(run, nm), json.loads((HERE / f"run_v{version}.json").read_text())
    assert found == {
        **wanted,
        **{name: pytest.approx(wanted[name]) for name in ("unit_norm", "fan_out", "text", "score")},
    }
    assert run.complete
    assert verify(run.path) == []
    assert nm.provenance["identity"]["target"]["run"] == run.id


@pytest.mark.parametrize("version", range(1, formats.LAYOUT_VERSIONS["trajectory"] + 1))
def test_trajectories_of_every_version(tmp_path, version):
    with zipfile.ZipFile(HERE / f"trajectory_v{version}.zip") as archive:
        archive.extractall(tmp_path / "made")
    found = trajectory_facts(Trajectory(tmp_path / "made"))
    wanted = json.loads((HERE / f"trajectory_v{version}.json").read_text())
    assert found == {**wanted, **{name: pytest.approx(wanted[name]) for name in ("latents", "final", "noise_pred")}}
    assert verify(tmp_path / "made") == []


@pytest.mark.parametrize("version", range(1, formats.LAYOUT_VERSIONS["training"] + 1))
def test_trainings_of_every_version_go_on(tmp_path, version):
    with zipfile.ZipFile(HERE / f"training_v{version}.zip") as archive:
        archive.extractall(tmp_path / "made")
    wanted = json.loads((HERE / f"training_v{version}.json").read_text())
    header = json.loads((tmp_path / "made" / "training.json").read_text())
    folder = Folder(tmp_path / "made", header["identity"], edit_at=lambda n: pytest.fail(f"an edit at {n}"))
    (name,) = [part.removeprefix("unet.") for part in header["identity"]["options"]["train"]]
    leaf = torch.zeros(tiny_pipeline().unet.get_parameter(name).shape)
    student = SimpleNamespace(leaves={f"unet.{name}": leaf.requires_grad_()})
    run = _Run(student, Schedule(3, 1e-2))
    curve = folder.resume(student.leaves, run)
    assert [row["loss"] for row in curve] == wanted["losses"]
    assert bool(leaf.any())
    (moments,) = run.optimisers[0].state.values()
    assert float(moments["step"]) == 2
    assert bool(moments["exp_avg_sq"].any())
    assert losses_of(tmp_path / "made")["loss"].tolist() == pytest.approx(wanted["losses"])
    assert erase.load_edit(folder.checkpoint(1)).options["iterations"] == 1
    assert Trajectory(tmp_path / "made" / "x_t").timesteps.tolist() != []


@pytest.mark.parametrize("version", range(1, formats.LAYOUT_VERSIONS["originals"] + 1))
def test_originals_of_every_version_come_back(tmp_path, version):
    pipe, edit = pruned_pipe()
    folder = edit.export(pipe, tmp_path / "model")
    with zipfile.ZipFile(HERE / f"originals_v{version}.zip") as archive:
        archive.extractall(folder)
    again = erase.restore(folder)
    for param in edit.params:
        one, other = (p.unet.get_parameter(param.removeprefix("unet.")) for p in (pipe, again))
        assert torch.equal(one, other)


def test_versions_of_runs_and_maps_rise_with_their_files():
    patterns = {"run": "run_v*.zip", "trajectory": "trajectory_v*.zip"}
    patterns |= {kind: f"{kind}_v*.zarr.zip" for kind in ("neuron_map", "selectivity")}
    patterns |= {kind: f"{kind}_v*.zip" for kind in ("training", "originals")}
    for kind, pattern in patterns.items():
        assert len(list(HERE.glob(pattern))) == formats.LAYOUT_VERSIONS[kind]


def test_selectivity_tables_of_every_version_are_read():
    for file in HERE.glob("selectivity_v*.zarr.zip"):
        table = Selectivity.load(file)
        assert table.concepts == ["church", "house"]
        assert [site.width for site in table.sites] == [2, 1]
        np.testing.assert_allclose(table.dataset["auroc"].values, [[1, 0.5, 5 / 12], [0, 0.5, 7 / 12]], rtol=1e-5)
        assert table.neuron_map("church", threshold=0.9).windows == [(999, 500)]


def test_causal_logs_of_every_version_are_read(tmp_path):
    for file in HERE.glob("causal_log_v*.jsonl"):
        copied = tmp_path / file.name
        copied.write_bytes(file.read_bytes())
        identity = json.loads(file.read_text().partition("\n")[0])["identity"]
        rows = Ledger(copied, identity).rows
        assert list(rows) == [None, ("unet.mid_block.attentions.0.transformer_blocks.0.ffn", 3)]
        np.testing.assert_array_equal(rows[None][0], [0.5, np.nan])
        np.testing.assert_array_equal(rows[None][1], [1, np.nan])
    assert len(list(HERE.glob("causal_log_v*.jsonl"))) == formats.LAYOUT_VERSIONS["causal_log"]

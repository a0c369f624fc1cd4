"""Files of every layout version there has been can still be read."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest

from probe import formats
from probe._neuron_map import NeuronMap
from probe._record import verify
from probe._run import Run
from probe._trajectory import Trajectory
from tests.formats.make import facts, trajectory_facts

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


def test_versions_of_runs_and_maps_rise_with_their_files():
    patterns = {"run": "run_v*.zip", "trajectory": "trajectory_v*.zip", "neuron_map": "neuron_map_v*.zarr.zip"}
    for kind, pattern in patterns.items():
        assert len(list(HERE.glob(pattern))) == formats.LAYOUT_VERSIONS[kind]

"""environment.yml promises what pyproject.toml asks for."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
ENVIRONMENT = yaml.safe_load((ROOT / "environment.yml").read_text())

CONDA = {re.split(r"[><=]", line)[0]: line for line in ENVIRONMENT["dependencies"] if isinstance(line, str)}
PIP = next(line["pip"] for line in ENVIRONMENT["dependencies"] if isinstance(line, dict))
BOUNDS = {
    requirement.name: str(requirement.specifier)
    for requirement in map(
        Requirement,
        [*PROJECT["dependencies"], *(r for extra in PROJECT["optional-dependencies"].values() for r in extra)],
    )
}


def test_names() -> None:
    assert set(CONDA) == {"python", "pytorch", "torchvision", "git", "jupyterlab", "pip"}
    assert ENVIRONMENT["name"] == PROJECT["name"]


@pytest.mark.parametrize(("conda", "ours"), [("pytorch", "torch"), ("jupyterlab", "jupyterlab")])
def test_lower_bounds_agree(conda: str, ours: str) -> None:
    assert CONDA[conda].removeprefix(conda) == BOUNDS[ours]


def test_python_agrees() -> None:
    assert CONDA["python"].removeprefix("python") == PROJECT["requires-python"]


def test_pip_part() -> None:
    """The package with an extra that exists, and baukit at a fixed commit: it has no releases."""
    ours, baukit = PIP
    (extra,) = re.fullmatch(r"-e \.\[(\w+)\]", ours).groups()
    assert extra in PROJECT["optional-dependencies"]
    assert re.fullmatch(r"baukit @ git\+https://github\.com/davidbau/baukit@[0-9a-f]{40}", baukit)


def test_no_upper_pins() -> None:
    assert all(bound.startswith(">=") and "," not in bound for bound in BOUNDS.values())

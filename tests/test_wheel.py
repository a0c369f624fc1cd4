"""A wheel installed elsewhere has the model too, and the demo runs from it in an empty folder."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

pytestmark = pytest.mark.slow


def pip(*arguments: str) -> None:
    """pip without a network: everything it needs is installed already."""
    done = subprocess.run(
        [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel that ``make wheel`` built and names in WHEEL, or one built now."""
    if path := os.environ.get("WHEEL"):
        return Path(path)
    folder = tmp_path_factory.mktemp("dist")
    pip("wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(folder), str(ROOT))
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the packages of the wheel and nothing else."""
    folder = tmp_path_factory.mktemp("installed")
    pip("install", "--no-deps", "--no-index", "--target", str(folder), str(wheel))
    return folder


def run(installed: Path, empty: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Python from an empty folder; -P keeps the current folder off the path, so the checkout cannot help."""
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    command = [sys.executable, "-P", *arguments]
    done = subprocess.run(command, cwd=empty, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done


def test_wheel_holds_what_it_should(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.split("/")[0] for name in names}
    assert {"probe", "erase"} <= tops
    assert not tops & {"tests", "data", "notebooks", "docs", "benchmarks"}
    emoji = ROOT / "data" / "emoji"
    expected = {
        f"probe/_data/emoji/{file.relative_to(emoji).as_posix()}" for file in emoji.rglob("*") if file.is_file()
    }
    assert "probe/_data/emoji/concepts/church.yaml" in expected
    assert expected == {name for name in names if name.startswith("probe/_data/")}
    assert {"probe/py.typed", "erase/py.typed"} <= set(names)


def test_the_wheel_is_what_runs(installed: Path, tmp_path: Path) -> None:
    shown = run(installed, tmp_path, "-c", "import probe, erase; print(probe.__file__, erase.__file__)").stdout.split()
    assert all(Path(file).is_relative_to(installed) for file in shown)


@pytest.mark.embedded
def test_quick_demo_from_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    run(installed, tmp_path, "-m", "probe", "demo", "--quick")
    assert list(tmp_path.rglob("before_after.png"))

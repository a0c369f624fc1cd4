"""A checkout stays small: what git keeps is weighed."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PICTURES = {".png", ".jpg", ".svg", ".gif"}


@pytest.fixture(scope="module")
def tracked() -> list[Path]:
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("not a checkout")
    return [ROOT / name for name in done.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_pictures_are_under_500_kb(tracked: list[Path]) -> None:
    large = {str(path.relative_to(ROOT)) for path in tracked if path.suffix in PICTURES and path.stat().st_size > 5e5}
    assert not large


def test_the_whole_is_under_60_mb(tracked: list[Path]) -> None:
    assert sum(path.stat().st_size for path in tracked) < 60e6

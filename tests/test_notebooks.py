"""What can be told of a notebook without running it; `make notebooks` runs them."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest

import erase
import probe
from docs.render import LARGEST, code_hash

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "notebooks"
PACKAGES = {"probe": probe, "erase": erase}
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def code(path: Path) -> list[str]:
    return ["".join(cell["source"]) for cell in read(path)["cells"] if cell["cell_type"] == "code"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_one_cell_of_parameters_and_no_outputs(path: Path) -> None:
    cells = read(path)["cells"]
    tagged = [cell for cell in cells if "parameters" in cell["metadata"].get("tags", ())]
    assert len(tagged) == 1
    names = {target.id for node in ast.parse("".join(tagged[0]["source"])).body for target in node.targets}
    assert {"model", "device", "dtype", "out", "steps", "quick"} <= names
    assert names & {"batch_size", "batch_sizes"}
    if path.stem.startswith("01"):
        assert {"skill_ratio", "window"} <= names
    for cell in cells:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None
    assert len({cell["id"] for cell in cells}) == len(cells)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_real_checkpoint_needs_one_cell_and_other_settings_another_folder(path: Path) -> None:
    _, source, *rest = code(path)
    assert 'out = Path(out) / "-".join(Path(str(one)).name for one in settings)' in source
    settings = re.search(r"^settings = \[(.+)\]$", source, re.MULTILINE)
    assert settings is not None
    assert all(re.search(rf"\b{name}\b", settings[1]) for name in ("model", "steps", "dtype", r"batch_sizes?"))
    assert "probe.load(model, device=device, dtype=dtype)" in source
    calls = [call for cell in (source, *rest) for call in ast.walk(ast.parse(cell)) if isinstance(call, ast.Call)]
    for call in calls:
        if ast.unparse(call.func) in ("probe.generate", "probe.record", "probe.attack", "probe.sensitivity"):
            given = {keyword.arg for keyword in call.keywords}
            assert None in given or "steps" in given, f"{ast.unparse(call)} takes steps and batch_size as set above"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_uses_public_names_only_and_ends_with_its_claims(path: Path) -> None:
    cells = code(path)
    for source in cells:
        for node in ast.walk(ast.parse(source)):
            if (
                isinstance(node, ast.Attribute)
                and isinstance(node.value, ast.Name)
                and node.value.id in ("probe", "erase")
            ):
                package = {"probe": probe, "erase": erase}[node.value.id]
                assert node.attr in {*package.__all__, *getattr(package, "_SUBMODULES", ())}, ast.unparse(node)
    claims = [node for node in ast.walk(ast.parse(cells[-1])) if isinstance(node, ast.Assert)]
    assert len(claims) >= 4


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_links_lead_to_notebooks_that_exist(path: Path) -> None:
    for cell in read(path)["cells"]:
        if cell["cell_type"] == "markdown":
            for link in re.findall(r"\]\(([^)]+\.ipynb)\)", "".join(cell["source"])):
                assert (FOLDER / link).is_file()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_its_page_is_of_this_code_and_reads_anywhere(path: Path) -> None:
    page = (ROOT / "docs" / "notebooks" / f"{path.stem}.html").read_text(encoding="utf-8")
    found = re.search(r'<meta name="code" content="(\w+)">', page)
    assert found is not None
    assert found[1] == code_hash(read(path)["cells"]), f"make rendered NOTEBOOKS={path.relative_to(ROOT)}"
    assert len(page.encode()) <= LARGEST
    assert "data:image/png;base64," in page
    assert not re.search(r'<script|(?:src|href)="(?:https?:)?//', page), "nothing comes from the network"
    assert str(ROOT) not in page
    for link in re.findall(r'href="([^"#:]+)"', page):
        assert (ROOT / "docs" / "notebooks" / link).is_file(), link

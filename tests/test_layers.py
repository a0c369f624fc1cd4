"""What import-linter cannot see: names taken from the lazy package hide the module that they come from."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import probe

PACKAGE = Path(str(probe.__file__)).parent
LIBRARY = [file for file in sorted(PACKAGE.rglob("*.py")) if PACKAGE / "cli" not in file.parents]


def lazy_imports(source: str) -> Iterator[str]:
    """Public names that a module takes from ``probe`` itself, outside TYPE_CHECKING blocks."""
    tree = ast.parse(source)
    guarded = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "probe" and not node.level and id(node) not in guarded:
            yield from (alias.name for alias in node.names if alias.name in probe._EXPORTS)


@pytest.mark.parametrize("file", LIBRARY, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_modules_import_from_where_a_name_is_defined(file: Path) -> None:
    assert list(lazy_imports(file.read_text())) == []


def test_the_check_sees_what_it_should() -> None:
    source = "from probe import load, errors\nif TYPE_CHECKING:\n    from probe import record"
    assert list(lazy_imports(source)) == ["load"]

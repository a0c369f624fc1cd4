"""Imports stay light, every promised name exists, and no submodule hides a public name."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import erase
import probe

PACKAGES = [probe, erase]
HEAVY = {
    *("torch", "diffusers", "transformers", "accelerate", "xarray", "zarr"),
    *("pandas", "numpy", "scipy", "sklearn", "matplotlib", "seaborn", "PIL"),
}


def loaded_after(code: str) -> set[str]:
    """The heavy packages in ``sys.modules`` of a fresh interpreter that ran ``code``."""
    report = "\nimport sys\nprint('\\nmodules', *{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code + report], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return HEAVY & set(done.stdout.splitlines()[-1].split())


def test_the_check_itself_sees_a_heavy_import() -> None:
    assert loaded_after("import numpy") == {"numpy"}


@pytest.mark.parametrize("code", ["import probe, erase", "import probe, erase; dir(probe); dir(erase)"])
def test_import_is_light(code: str) -> None:
    assert loaded_after(code) == set()


HELP = """
from {package}.cli import app, main
from probe._terminal import run
assert run(app, ["--help"]) == 0
for command in app.registered_commands:
    assert run(app, [command.name, "--help"]) == 0
"""


@pytest.mark.parametrize("package", ["probe", "erase"])
def test_help_of_every_command_is_light(package: str) -> None:
    assert loaded_after(HELP.format(package=package)) == set()


@pytest.mark.parametrize("package", ["probe", "erase"])
def test_module_runs_as_a_program(package: str) -> None:
    done = subprocess.run([sys.executable, "-m", package, "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stdout.startswith(f"Usage: {package} ")


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)
def test_no_submodule_shares_a_name_with_a_public_name(package: ModuleType) -> None:
    submodules = {module.name for module in pkgutil.iter_modules(package.__path__)}
    assert submodules.isdisjoint(package.__all__)


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)
def test_every_public_name_resolves_and_is_listed(package: ModuleType) -> None:
    for name in package.__all__:
        assert getattr(package, name) is not None
        assert name in dir(package)


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)
def test_every_public_submodule_resolves(package: ModuleType) -> None:
    for name in getattr(package, "_SUBMODULES", ()):
        assert getattr(package, name) is importlib.import_module(f"{package.__name__}.{name}")


@pytest.mark.parametrize("package", PACKAGES, ids=lambda package: package.__name__)
def test_type_checkers_see_the_same_names(package: ModuleType) -> None:
    tree = ast.parse(Path(str(package.__file__)).read_text())
    guarded = next(n for n in tree.body if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING")
    seen = {
        alias.asname: imported.module
        for imported in guarded.body
        if isinstance(imported, ast.ImportFrom)
        for alias in imported.names
    }
    assert seen == package._EXPORTS


def test_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'probe' has no attribute 'recrod'"):
        probe.recrod  # noqa: B018

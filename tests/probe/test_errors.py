from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from probe import errors

ROOT = Path(__file__).resolve().parents[2]


def test_message_is_built_from_the_parts() -> None:
    e = errors.BadInput("skill_ratio selects nothing.", given=0.001, expected="(0, 1]", fix="raise it to 0.004")
    assert str(e) == "skill_ratio selects nothing; given: 0.001; expected: (0, 1]; fix: raise it to 0.004"
    assert e.to_dict() == {
        "error": "BadInput",
        "what": "skill_ratio selects nothing.",
        "given": "0.001",
        "expected": "(0, 1]",
        "nearest": [],
        "fix": "raise it to 0.004",
    }


def test_unknown_name_gives_the_nearest() -> None:
    e = errors.unknown_name("concept", "churh", ["church", "castle", "dog"])
    assert isinstance(e, errors.UnknownName)
    assert isinstance(e, LookupError)
    assert e.nearest[0] == "church"
    assert "church" in str(e)


@pytest.mark.parametrize(("cls", "base"), [(errors.BadInput, ValueError), (errors.MissingExtra, ImportError)])
def test_errors_are_also_their_builtin_kin(cls: type, base: type) -> None:
    assert issubclass(cls, base)
    assert issubclass(cls, errors.WorkbenchError)


# --- in a notebook ---

CELLS = """
from probe._progress import progress_bar
from probe.errors import BadInput
raise BadInput("bad tree", given="oka", fix="plant again")
---
with progress_bar(False, 5, "pictures") as advance:
    advance(2)
    raise KeyboardInterrupt
---
raise KeyboardInterrupt
"""

SHELL = """
import sys
from IPython.core.interactiveshell import InteractiveShell
shell = InteractiveShell.instance(colors="nocolor")
for cell in sys.stdin.read().split("---"):
    print("cell")
    shell.run_cell(cell)
"""


def test_a_notebook_shows_the_message_in_place_of_a_traceback() -> None:
    pytest.importorskip("IPython")
    done = subprocess.run([sys.executable, "-c", SHELL], cwd=ROOT, input=CELLS, capture_output=True, text=True)
    _, bad, interrupted, plain = done.stdout.split("cell\n")
    assert bad == "BadInput: bad tree; given: oka; fix: plant again\n", done.stderr
    said = "KeyboardInterrupt: pictures interrupted after 2 of 5; the model is as it was: you may start again\n"
    assert interrupted == said
    assert "Traceback" in plain, "an interrupt of somebody else's loop is shown as ever"


@pytest.mark.skipif(os.name == "nt", reason="there Ctrl-C ends a process with another code")
def test_a_script_keeps_its_traceback_and_exit_code() -> None:
    script = CELLS.split("---")[1]
    words = [sys.executable, "-c", f"from probe._progress import progress_bar\n{script}"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode in (-signal.SIGINT, 128 + signal.SIGINT)
    assert done.stderr.startswith("Traceback")
    assert "pictures interrupted after 2 of 5" in done.stderr

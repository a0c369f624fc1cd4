"""The frame of both command lines, on a toy application: options, config files, errors, exit codes, one document."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer

from probe import BadInput
from probe._terminal import Task, command, from_signature, new_app, run
from probe._terminal._signature import REQUIRED, Unread, keyword_only
from probe._terminal._values import check, read

TOY = '''
import not_installed_anywhere
LATER = max(1, 3)
Rule = Literal["row", "global"]
FIRST = (999, 821)

def grow(tree, *, height: float = 1.5, window: tuple[int, int] = FIRST, rule: Rule = "row",
         names: str | Sequence[str] = "ffn", late: int = LATER, keep: NeuronMap | None = None, careful: bool = True,
         note: str | None = None, needed: int):
    """Never called: the module cannot even be imported."""
'''


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> typer.Typer:
    """An application whose command reports what it was given, or raises what the test asks for."""
    (tmp_path / "toy_package").mkdir()
    (tmp_path / "toy_package" / "__init__.py").touch()
    (tmp_path / "toy_package" / "_grow.py").write_text(TOY)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    app = new_app("toy", help="A toy.")
    options = from_signature("toy_package._grow:grow", verbatim=("note",))

    @command(app, "grow", options=options, out=True)
    def grow(task: Task, tree: Annotated[str, typer.Argument()], fail: bool = False) -> None:
        """Grow a tree."""
        if fail:
            raise FAILURES[tree]
        if task.dry_run:
            return task.plan(tree=tree)
        return task.result(
            {"tree": tree, **task.defaults, **task.config, "given": sorted(task.config), "out": task.out}, f"a {tree}"
        )

    @command(app, "other")
    def other(task: Task) -> None:
        """Another command, so that the first one has a name."""

    return app


FAILURES = {
    "known": BadInput("bad tree", given="x", expected="y", nearest=["oak"], fix="plant again, or force=True"),
    "full": OSError(errno.ENOSPC, "No space left on device", "somewhere"),
    "bug": ZeroDivisionError("division by zero"),
    "ctrl-c": KeyboardInterrupt(),
}


def call(app: typer.Typer, *arguments: str) -> int:
    return run(app, ["grow", "oak", "--out", "o", "--needed", "1", *arguments])


def document(app: typer.Typer, capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    """What ``--json`` prints; json.loads refuses more than one document."""
    call(app, *arguments, "--json")
    found = json.loads(capsys.readouterr().out)
    assert isinstance(found, dict)
    return found


def test_signature_is_read_without_importing(toy: typer.Typer) -> None:
    found = {p.name: p.default for p in keyword_only("toy_package._grow:grow")}
    assert found == {
        **{"height": 1.5, "window": (999, 821), "rule": "row", "names": "ffn", "late": Unread("LATER")},
        **{"keep": None, "careful": True, "note": None, "needed": REQUIRED},
    }


def test_none_can_be_asked_for(toy: typer.Typer, capsys: pytest.CaptureFixture[str]) -> None:
    Path("c.yaml").write_text("keep: null\n")
    for arguments in (["--keep", "null"], ["--config", "c.yaml"]):
        found = document(toy, capsys, *arguments)
        assert found["given"] == ["keep", "needed"]
        assert found["keep"] is None


def test_defaults_are_those_of_the_signature(toy: typer.Typer, capsys: pytest.CaptureFixture[str]) -> None:
    found = document(toy, capsys)
    assert found["height"] == 1.5
    assert found["window"] == [999, 821]
    assert found["careful"] is True
    assert "late" not in found, "a default that is an expression is not read"
    assert found["given"] == ["needed"], "the function's defaults are left to it"


def test_options_arrive_with_their_types(toy: typer.Typer, capsys: pytest.CaptureFixture[str]) -> None:
    found = document(
        toy, capsys, *("--height", "2", "--window", "700,5", "--names", "a,b"), "--no-careful", "--note", "x, y"
    )
    assert (found["height"], found["window"], found["names"]) == (2.0, [700, 5], ["a", "b"])
    assert (found["careful"], found["note"]) == (False, "x, y")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--rule", "gobal"], ["--rule", "'gobal'", "one of global, row", "nearest: global"]),
        (["--window", "1,2,3"], ["--window", "[1, 2, 3]", "at most 2 items"]),
        (["--heigth", "2"], ["--heigth", "--height", "toy grow --help"]),
        (["--height", "tall"], ["tall"]),
        (["--config", "absent.yaml"], ["--config names no file", "absent.yaml"]),
    ],
)
def test_user_errors_are_one_line_and_exit_2(
    toy: typer.Typer, capsys: pytest.CaptureFixture[str], arguments: list[str], parts: list[str]
) -> None:
    assert call(toy, *arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert printed.err.count("\n") == 1
    for part in parts:
        assert part in printed.err
    assert document(toy, capsys, *arguments)["error"]["what"]


def test_missing_option_is_named(toy: typer.Typer, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(toy, ["grow", "oak", "--out", "o"]) == 2
    assert "--needed is missing" in capsys.readouterr().err


def test_unknown_command_gives_the_nearest(toy: typer.Typer, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(toy, ["gorw"]) == 2
    assert "grow" in capsys.readouterr().err


@pytest.mark.parametrize(("failure", "code"), [("known", 2), ("full", 2), ("bug", 1), ("ctrl-c", 130)])
def test_exit_codes(toy: typer.Typer, capsys: pytest.CaptureFixture[str], failure: str, code: int) -> None:
    arguments = ["grow", failure, "--fail", "--out", "o", "--needed", "1"]
    assert run(toy, arguments) == code
    printed = capsys.readouterr()
    assert printed.out == ""
    assert ("Traceback" in printed.err) == (failure == "bug")
    assert run(toy, [*arguments, "--json"]) == code
    assert set(json.loads(capsys.readouterr().out)) == {"error"}


def test_the_message_is_the_error_s_own(toy: typer.Typer, capsys: pytest.CaptureFixture[str]) -> None:
    run(toy, ["grow", "known", "--fail", "--out", "o", "--needed", "1"])
    assert (
        capsys.readouterr().err
        == "error: bad tree; given: x; expected: y; nearest: oak; fix: plant again, or --force\n"
    )


def test_config_file_fills_what_was_not_given(toy: typer.Typer, capsys: pytest.CaptureFixture[str]) -> None:
    Path("c.yaml").write_text("height: 9\nwindow: [4, 2]\ncareful: false\nneeded: 7\nout: from-file\n")
    found = document(toy, capsys, "--config", "c.yaml", "--height", "3")
    assert (found["height"], found["window"], found["careful"]) == (3.0, [4, 2], False)
    assert (found["needed"], found["out"]) == (1, "o"), "what is given on the command line wins"


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("hieght: 3\n", "nearest: height"),
        ("- height\n", "expected: a mapping"),
        ("a: [\n", "not YAML"),
        ("rule: gobal\n", "nearest: global"),
        ("json: true\n", "unknown option in --config"),
        ("height: !!python/object/apply:os.getcwd []\n", "not YAML"),
    ],
)
def test_config_file_is_validated(toy: typer.Typer, capsys: pytest.CaptureFixture[str], text: str, part: str) -> None:
    Path("c.yaml").write_text(text)
    assert call(toy, "--config", "c.yaml") == 2
    assert part in capsys.readouterr().err


def test_dry_run_says_what_it_would_do(toy: typer.Typer, capsys: pytest.CaptureFixture[str]) -> None:
    found = document(toy, capsys, "--dry-run")
    assert found["dry_run"] is True
    assert found["arguments"]["tree"] == "oak"
    assert call(toy, "--dry-run") == 0
    assert "height = 1.5" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("annotation", "text", "value"),
    [
        ("int | Sequence[int]", "3", 3),
        ("int | Sequence[int]", "3,4", [3, 4]),
        ("Sequence[str]", "rate", ["rate"]),
        ("Sequence[int]", "3", [3]),
        ("str | Sequence[str]", "unet.*.ffn", "unet.*.ffn"),
        ("tuple[float, float] | None", "1e-3,2", (0.001, 2.0)),
        ("str", "1,2", "1,2"),
        ("int | Mapping[str, int] | None", "{a: 1, b: 2}", {"a": 1, "b": 2}),
        ("NeuronMap | None", "church.zarr.zip", "church.zarr.zip"),
        ("bool | Literal['auto']", "auto", "auto"),
        ("bool | Literal['auto']", "false", False),
    ],
)
def test_values_follow_the_annotation(annotation: str, text: str, value: Any) -> None:
    assert read("x", annotation, text) == value


def test_values_of_a_wrong_type_are_refused() -> None:
    with pytest.raises(BadInput, match=r"--n-steps cannot be used; given: 'many'; expected: .*integer"):
        check("n_steps", "int", "many")

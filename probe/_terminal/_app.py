"""From a function to a command, and from whatever it raises to an exit code.

Exit codes: 0; 1 a bug, with its traceback; 2 an error the user can mend, in one line with the fix; 130 interrupted.
"""

from __future__ import annotations

import errno
import inspect
import logging
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import typer

from probe._terminal._json import to_json
from probe._terminal._options import ALWAYS, CONFIG, MODEL, OUT, Option
from probe._terminal._signature import REQUIRED, Unread
from probe._terminal._task import Task, read_config, refuse_unknown
from probe.errors import BadInput, WorkbenchError, is_told

logger = logging.getLogger(__name__)

OK, BUG, USER_ERROR, INTERRUPTED = 0, 1, 2, 130

# What the machine, not the program, refuses: no room, no permission, a read-only disk.
_MENDABLE = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.EFBIG}


def new_app(name: str, help: str) -> typer.Typer:
    """An application without typer's own error boxes: `run` reports errors."""
    return typer.Typer(
        name=name,
        help=help,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
    )


def command(
    app: typer.Typer, name: str, *, options: Sequence[Option] = (), model: bool = False, out: bool = False
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Registers ``function(task, ...)`` as a command.

    ``options`` are those of the library function behind it and reach the command as ``task.config``; with them comes
    ``--config``. ``model`` adds ``--model --device --dtype``, ``out`` adds ``--out --force --dry-run``.
    """
    shared = [*(MODEL if model else ()), *(OUT if out else ()), *(CONFIG if options else ()), *ALWAYS]

    def register(function: Callable[..., None]) -> Callable[..., None]:
        own = list(inspect.signature(function, eval_str=True).parameters.values())[1:]
        parameters = [*own, *(o.to_parameter() for o in [*options, *shared])]

        def invoke(**values: Any) -> None:
            own_values = {p.name: values.pop(p.name) for p in own}
            task = _task(f"{app.info.name} {name}", options, shared, values)
            try:
                function(task, **own_values)
            except KeyboardInterrupt as error:
                if is_told(error):
                    logger.warning("%s", error)
                raise

        invoke.__doc__ = function.__doc__
        invoke.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        invoke.__annotations__ = {p.name: p.annotation for p in parameters}
        summary = (inspect.getdoc(function) or "").partition("\n")[0].partition(". ")[0].rstrip(".")
        app.command(name, short_help=summary)(invoke)
        return function

    return register


def _task(name: str, options: Sequence[Option], shared: Sequence[Option], values: dict[str, Any]) -> Task:
    """Options from the command line, else from ``--config``, checked against their annotations.

    The function's own options reach it only where they were given: its defaults are its own business.
    """
    found: dict[str, Any] = {}
    if values.get("config"):
        found = read_config(values["config"])
        refuse_unknown(found, {o.name for o in [*options, *shared]} - {o.name for o in [*CONFIG, *ALWAYS]})
    given = found | {name: value for name, value in values.items() if value is not None}
    for option in [*options, *shared]:
        if option.default is REQUIRED and given.get(option.name) is None:
            raise BadInput(f"--{option.dashed} is missing", expected=option.help)
    return Task(
        name,
        shared={o.name: o.parse(given[o.name]) if o.name in given else o.default for o in shared},
        config={o.name: o.parse(given[o.name]) for o in options if o.name in given},
        defaults={o.name: o.default for o in options if o.name not in given and not isinstance(o.default, Unread)},
    )


def run(app: typer.Typer, arguments: Sequence[str] | None = None) -> int:
    """Runs the application and returns its exit code; prints errors as one line, or as the one JSON document."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    as_json = "--json" in arguments
    verbose = "--verbose" in arguments or "-v" in arguments
    try:
        with _logging(verbose=verbose, quiet="--quiet" in arguments or "-q" in arguments):
            code = typer.main.get_command(app).main(arguments, prog_name=app.info.name, standalone_mode=False)
        if code == INTERRUPTED:  # newer versions of typer turn Ctrl-C into this code themselves
            raise KeyboardInterrupt
        return code if isinstance(code, int) else OK
    except WorkbenchError as error:
        _report(error.to_dict(), error.message, as_json=as_json, trace=verbose)
        return USER_ERROR
    except (KeyboardInterrupt, typer.Abort):
        _report({"error": "Interrupted", "what": "interrupted"}, "interrupted", as_json=as_json)
        return INTERRUPTED
    except Exception as error:
        mended = _usage_error(error, app) or _refused_by_the_machine(error)
        if mended is not None:
            _report(mended.to_dict(), mended.message, as_json=as_json, trace=verbose)
            return USER_ERROR
        what = f"{type(error).__name__}: {error}"
        _report({"error": type(error).__name__, "what": str(error)}, f"bug: {what}", as_json=as_json, trace=True)
        return BUG


def leave(code: int) -> int:
    """``code``, once zarr's thread has ended: its own exit handler waits 0.2 s and then complains on stderr."""
    sync = sys.modules.get("zarr.core.sync")
    (loop,), (thread,) = getattr(sync, "loop", [None]), getattr(sync, "iothread", [None])
    if loop is not None and thread is not None:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(timeout=10)
    return code


@contextmanager
def _logging(*, verbose: bool, quiet: bool) -> Iterator[None]:
    """This project's warnings on stderr, more with -v, less with -q; other libraries speak only with -v."""
    if not verbose:  # read by these libraries when they are imported
        os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    ours = logging.INFO if verbose else logging.ERROR if quiet else logging.WARNING
    levels = {"": logging.WARNING if verbose else logging.ERROR, "probe": ours, "erase": ours}
    before = {name: logging.getLogger(name).level for name in levels}
    handler = logging.StreamHandler(sys.stderr)
    logging.getLogger().addHandler(handler)
    logging.captureWarnings(True)
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
    try:
        yield
    finally:
        for name, level in before.items():
            logging.getLogger(name).setLevel(level)
        logging.captureWarnings(False)
        logging.getLogger().removeHandler(handler)


def _report(document: dict[str, Any], line: str, *, as_json: bool, trace: bool = False) -> None:
    if trace:
        traceback.print_exc(file=sys.stderr)
    if as_json:
        spelled = {key: _as_typed(value) if isinstance(value, str) else value for key, value in document.items()}
        sys.stdout.write(to_json({"error": spelled}) + "\n")
    else:
        sys.stderr.write(f"error: {_as_typed(line)}\n")


def _as_typed(text: str) -> str:
    """In one line, with ``force=True`` as the command line spells it."""
    return re.sub(r"\b([a-z_]+)=(True|None)\b", _as_option, " ".join(text.split()))


def _as_option(said: re.Match[str]) -> str:
    return f"--{said[1].replace('_', '-')}{'' if said[2] == 'True' else ' null'}"


def _usage_error(error: Exception, app: typer.Typer) -> BadInput | None:
    """The parser's complaints about a command line. Known by shape: typer has moved the classes between releases."""
    if not hasattr(error, "format_message") or getattr(error, "exit_code", None) != USER_ERROR:
        return None
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else app.info.name
    return BadInput(error.format_message(), nearest=getattr(error, "possibilities", None) or (), fix=f"{path} --help")


def _refused_by_the_machine(error: Exception) -> WorkbenchError | None:
    if isinstance(error, OSError) and error.errno in _MENDABLE:
        full = error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
        fix = "free some space, or choose another disk" if full else "choose another path, or change its permissions"
        return WorkbenchError(error.strerror or str(error), given=error.filename, fix=fix)
    return None

"""Options of a command: those of the function behind it, and those that commands share."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import typer

from probe._terminal._signature import REQUIRED, Parameter, Unread, keyword_only
from probe._terminal._values import check, choices, plain_type, read, takes_many
from probe._terminal._words import WORDS


@dataclass(frozen=True)
class Option:
    """One option. ``verbatim`` text is never split at commas; ``flags`` are further spellings, such as ``-f``."""

    name: str
    annotation: str
    default: Any
    help: str
    flags: tuple[str, ...] = ()
    panel: str = "Options of the method"
    verbatim: bool = False

    @property
    def dashed(self) -> str:
        """The name as the command line spells it."""
        return self.name.replace("_", "-")

    def parse(self, value: Any) -> Any:
        """What typer found, made into what the annotation asks for."""
        if isinstance(value, str) and not self.verbatim:
            return read(self.name, self.annotation, value)
        return check(self.name, self.annotation, value)

    def to_parameter(self) -> inspect.Parameter:
        """As typer reads it. The default is always None, so that a value from ``--config`` can tell itself apart."""
        kind = plain_type(self.annotation)
        names = [f"--{self.dashed}", *self.flags]
        if kind is bool and self.default is not False:
            names = [f"--{self.dashed}/--no-{self.dashed}"]
        declared = typer.Option(
            *names,
            help=f"{self.help} {self._shown_default()}".strip(),
            show_default=False,
            rich_help_panel=self.panel,
            metavar=None if kind is bool else self._metavar(),
        )
        # Numbers arrive as text: `parse` refuses them in our words, with what was given.
        annotation: Any = Annotated[bool | None, declared] if kind is bool else Annotated[str | None, declared]
        return inspect.Parameter(self.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)

    def _shown_default(self) -> str:
        if self.default is REQUIRED:
            return "[required]"
        if self.default is None or self.default is False:
            return ""
        text = self.default.text if isinstance(self.default, Unread) else _as_typed(self.default)
        return f"[default: {text}]"

    def _metavar(self) -> str:
        known = choices(self.annotation)
        if known:
            return "|".join([*known, "true", "false"] if "bool" in self.annotation else known)
        if (plain := plain_type(self.annotation)) in (int, float):
            return "INTEGER" if plain is int else "NUMBER"
        if plain is str or self.verbatim:
            return "TEXT"
        return "VALUE[,VALUE...]" if takes_many(self.annotation) else "VALUE"


def from_signature(
    target: str,
    *,
    leave_out: Iterable[str] = (),
    verbatim: Iterable[str] = (),
    flags: dict[str, Sequence[str]] | None = None,
) -> list[Option]:
    """An option for each keyword-only parameter of ``target`` (``package.module:function``) not in ``leave_out``."""
    left_out, kept_whole = set(leave_out), set(verbatim)
    parameters = [p for p in keyword_only(target) if p.name not in left_out]
    options = [_option(p) for p in parameters]
    return [replace(o, verbatim=o.name in kept_whole, flags=tuple((flags or {}).get(o.name, ()))) for o in options]


def from_signatures(targets: Mapping[str, str], **choices: Any) -> list[Option]:
    """One option for each parameter of any of these functions (name -> target), whose help says which have it.

    Where defaults differ the help says so, and where names to choose from differ all are taken; the function that is
    called applies its own.
    """
    found = {name: {o.name: o for o in from_signature(target, **choices)} for name, target in targets.items()}
    merged = []
    for option in {o.name: o for options in found.values() for o in options.values()}.values():
        having = {name: options[option.name] for name, options in found.items() if option.name in options}
        some = f" ({', '.join(having)})" if len(having) < len(targets) else ""
        same = all(other.default == option.default for other in having.values())
        default = option.default if same else Unread("by method")
        literals = [o.annotation for o in having.values() if o.annotation.startswith("Literal[")]
        annotation = " | ".join(dict.fromkeys(literals)) if len(literals) == len(having) else option.annotation
        merged.append(replace(option, help=option.help + some, default=default, annotation=annotation))
    return merged


def _option(parameter: Parameter) -> Option:
    return Option(parameter.name, parameter.annotation, parameter.default, WORDS.get(parameter.name, ""))


def _as_typed(value: Any) -> str:
    """A default as one would type it."""
    if isinstance(value, tuple | list):
        return ",".join(map(str, value))
    return str(value)


MODEL = [
    Option(
        "model", "str", "emoji", "emoji (embedded), a pipeline folder, a hub id or one .safetensors", ("-m",), "Model"
    ),
    Option("device", "str", "cpu", "where the model runs: cpu, cuda, cuda:1, mps", (), "Model"),
    Option("dtype", "str | None", None, "weights in float32, float16 or bfloat16; as stored unless given", (), "Model"),
]
OUT = [
    Option("out", "str", REQUIRED, "where the result goes", ("-o",), "Output"),
    Option("force", "bool", False, "replace a result of the same kind that is already at --out", ("-f",), "Output"),
    Option("dry_run", "bool", False, "say what would be done, write nothing", (), "Output"),
]
CONFIG = [
    Option("config", "str | None", None, "YAML file with options of this command; options given here win", (), "Output")
]
ALWAYS = [
    Option("json", "bool", False, "print one JSON document, also for errors", (), "Output"),
    Option("verbose", "bool", False, "say more on stderr; with an error, the traceback", ("-v",), "Output"),
    Option("quiet", "bool", False, "no progress and no warnings on stderr", ("-q",), "Output"),
]

"""Read a function's keyword-only parameters from its source, without importing the module (and torch with it)."""

from __future__ import annotations

import ast
import importlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any


class _Required:
    def __repr__(self) -> str:
        return "REQUIRED"


REQUIRED = _Required()


@dataclass(frozen=True)
class Unread:
    """A default that is an expression, kept as its source text."""

    text: str


@dataclass(frozen=True)
class Parameter:
    """One keyword-only parameter: its annotation as source text, its default as a value, `Unread` or `REQUIRED`."""

    name: str
    annotation: str
    default: Any


@cache
def _module(name: str) -> ast.Module:
    package, *rest = name.split(".")
    path = Path(importlib.import_module(package).__path__[0]).joinpath(*rest)
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return ast.parse(file.read_text(encoding="utf-8"), filename=str(file))


def keyword_only(target: str) -> list[Parameter]:
    """The keyword-only parameters of ``target`` (``package.module:function``), in the order of its signature."""
    module, _, name = target.partition(":")
    function = next(n for n in _module(module).body if isinstance(n, ast.FunctionDef) and n.name == name)
    arguments = function.args
    return [
        Parameter(a.arg, ast.unparse(a.annotation) if a.annotation else "Any", _default(default))
        for a, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    ]


def _default(node: ast.expr | None) -> Any:
    if node is None:
        return REQUIRED
    try:
        return ast.literal_eval(node)
    except ValueError:
        return Unread(ast.unparse(node))

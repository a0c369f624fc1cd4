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
    body = _module(module).body
    function = next(n for n in body if isinstance(n, ast.FunctionDef) and n.name == name)
    constants = _Constants(body)
    return [
        Parameter(
            a.arg, ast.unparse(constants.visit(a.annotation)) if a.annotation else "Any", _default(default, constants)
        )
        for a, default in zip(function.args.kwonlyargs, function.args.kw_defaults, strict=True)
    ]


class _Constants(ast.NodeTransformer):
    """Puts what a module assigns at its top level in place of the name: ``Votes = Literal["any", "all"]``."""

    def __init__(self, body: list[ast.stmt]) -> None:
        self.values = {
            target.id: node.value
            for node in body
            if isinstance(node, ast.Assign)
            for target in node.targets
            if isinstance(target, ast.Name)
        }

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return self.values.get(node.id, node)


def _default(node: ast.expr | None, constants: _Constants) -> Any:
    if node is None:
        return REQUIRED
    try:
        return ast.literal_eval(constants.visit(node))
    except ValueError:
        return Unread(ast.unparse(node))

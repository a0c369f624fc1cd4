"""Text of the command line, or values of a config file, made into what an annotation asks for."""

from __future__ import annotations

import collections.abc
import typing
from pathlib import Path
from typing import Any

from probe._options import converted
from probe.errors import BadInput

# What an annotation may name and still be checked here; the library function checks the rest itself.
_NAMES = {
    **{name: getattr(typing, name) for name in ("Any", "Literal", "Union", "Optional")},
    **{name: getattr(collections.abc, name) for name in ("Sequence", "Mapping", "Iterable", "Collection")},
    "Path": Path,
    "PathLike": str,
}


def plain_type(annotation: str) -> type | None:
    """``int``, ``float``, ``str`` or ``bool`` where the annotation is one of these, or one of these or None."""
    text = annotation.removesuffix("| None").strip()
    return {"int": int, "float": float, "str": str, "bool": bool}.get(text)


def choices(annotation: str) -> tuple[str, ...]:
    """The names that ``Literal[...]`` allows, or ()."""
    hint = _resolve(annotation)
    options = [hint, *typing.get_args(hint)]
    literals = [typing.get_args(o) for o in options if typing.get_origin(o) is typing.Literal]
    return tuple(dict.fromkeys(value for group in literals for value in group if isinstance(value, str)))


def read(name: str, annotation: str, text: str) -> Any:
    """The value of ``--name text``: YAML scalars, with commas a list (``--window 999,821``); YAML in brackets."""
    if plain_type(annotation) or text in choices(annotation):
        return check(name, annotation, text)
    import yaml

    try:
        parts = [yaml.safe_load(part) for part in ([text] if text[:1] in ("{", "[") else text.split(","))]
    except yaml.YAMLError:
        fix = """quote what has brackets, as a list: '["{} at night"]'"""
        raise BadInput(f"--{name.replace('_', '-')} cannot be read", given=text, fix=fix) from None
    if len(parts) > 1:
        return check(name, annotation, parts)
    try:
        return check(name, annotation, parts[0])
    except BadInput:
        if takes_many(annotation) and not isinstance(parts[0], list | dict):
            return check(name, annotation, parts)  # a list of one
        raise


def takes_many(annotation: str) -> bool:
    """Whether the annotation speaks of several values."""
    return any(word in annotation for word in ("Sequence", "tuple", "list", "Iterable", "Collection"))


def check(name: str, annotation: str, value: Any) -> Any:
    """``value`` as the annotation wants it; as it is where the annotation names a type that only its module knows."""
    hint = _resolve(annotation)
    return value if hint is None else converted(f"--{name.replace('_', '-')}", value, hint)


def _resolve(annotation: str) -> Any:
    """The type behind the text, or None where it names something this module does not know."""
    try:
        # The text comes from this project's own source, never from a user.
        return eval(annotation, {"__builtins__": {}}, {**_NAMES, **_BUILTINS})  # noqa: S307
    except (NameError, TypeError, SyntaxError, AttributeError):
        return None


_BUILTINS = {t.__name__: t for t in (int, float, str, bool, bytes, list, tuple, dict, set, object)} | {"None": None}

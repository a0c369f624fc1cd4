"""A function's keyword-only signature is its configuration: checked on every call, unknown names refused."""

from __future__ import annotations

import functools
import inspect
import types
import typing
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from probe.errors import BadInput, unknown_name

P = ParamSpec("P")
R = TypeVar("R")


def validated(function: Callable[P, R]) -> Callable[P, R]:
    """Check keyword-only arguments against their annotations (pydantic) before ``function`` sees them.

    Raises `UnknownName` with the nearest for an option, or a `Literal` choice, that does not exist, and `BadInput` for
    a value of another type. Values are converted as pydantic does (``1`` to ``1.0`` for a float); annotations of types
    that are only imported for type checkers, and ``Any``, are left to the function.
    """
    signature = inspect.signature(function)
    options = [p.name for p in signature.parameters.values() if p.kind is p.KEYWORD_ONLY]

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        hints = _hints(function)
        for name, value in kwargs.items():
            if name not in signature.parameters:
                raise unknown_name(f"option of {function.__name__}", name, options)
            if name in hints:
                kwargs[name] = converted(name, value, hints[name])
        return function(*args, **kwargs)

    return checked


@functools.cache
def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, parameter in inspect.signature(function).parameters.items():
        if parameter.kind is not parameter.KEYWORD_ONLY or parameter.annotation is parameter.empty:
            continue
        one: Any = types.SimpleNamespace(__annotations__={name: parameter.annotation})
        try:
            found |= typing.get_type_hints(one, globalns=getattr(function, "__globals__", {}))
        except NameError:  # a name under TYPE_CHECKING
            continue
    return {name: hint for name, hint in found.items() if hint is not Any}


def converted(name: str, value: Any, hint: Any) -> Any:
    """``value`` as the type ``hint`` wants it. Raises as `validated`."""
    from pydantic import ConfigDict, TypeAdapter, ValidationError
    from pydantic.errors import PydanticUserError

    choices = [
        c for h in (hint, *typing.get_args(hint)) if typing.get_origin(h) is typing.Literal for c in typing.get_args(h)
    ]
    if isinstance(value, str) and choices and value not in choices:
        raise unknown_name(f"value of {name}", value, [str(choice) for choice in choices])
    try:
        adapter = TypeAdapter(hint, config=ConfigDict(arbitrary_types_allowed=True))
    except PydanticUserError:  # a type that brings its own configuration
        adapter = TypeAdapter(hint)
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        reason = error.errors()[0]["msg"]
        raise BadInput(f"{name} cannot be used", given=repr(value), expected=reason[0].lower() + reason[1:]) from None

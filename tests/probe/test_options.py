from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import pytest

from probe._options import validated
from probe.errors import BadInput, UnknownName

if TYPE_CHECKING:
    from nowhere import Ghost


@validated
def method(
    pipe: str,
    *,
    ratio: float = 0.1,
    window: tuple[float, float] | None = (999, 821),
    scope: Literal["row", "global"] = "row",
    anything: Any = None,
    ghost: Ghost | None = None,
) -> dict[str, Any]:
    """A method with a configuration."""
    return {"pipe": pipe, "ratio": ratio, "window": window, "scope": scope, "anything": anything, "ghost": ghost}


def test_defaults_and_values_pass_through():
    assert method("p")["window"] == (999, 821)
    assert method("p", ratio=1, window=[5, 4], anything=method) == {
        "pipe": "p",
        "ratio": 1.0,
        "window": (5.0, 4.0),
        "scope": "row",
        "anything": method,
        "ghost": None,
    }
    assert type(method("p", ratio=1)["ratio"]) is float
    assert method("p", window=None)["window"] is None


def test_types_that_only_checkers_know_are_left_to_the_function():
    assert method("p", ghost=3)["ghost"] == 3


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"ration": 1}, UnknownName, "unknown option of method.*nearest: ratio"),
        ({"scope": "rows"}, UnknownName, "unknown value of scope.*nearest: row"),
        ({"scope": 3}, BadInput, "scope cannot be used"),
        ({"ratio": "much"}, BadInput, "ratio cannot be used.*'much'.*valid number"),
        ({"window": (1, 2, 3)}, BadInput, "window"),
    ],
)
def test_what_does_not_fit_is_named(options, error, message):
    with pytest.raises(error, match=message):
        method("p", **options)


def test_the_function_keeps_its_name_and_text():
    assert (method.__name__, method.__doc__) == ("method", "A method with a configuration.")

"""Texts around a phrase."""

from __future__ import annotations

from collections.abc import Sequence

from probe.errors import BadInput


def filled(template: str, phrase: str) -> str:
    """The template with the phrase in the place of ``{}``. `BadInput` for a template without one."""
    if template.count("{}") != 1:
        raise BadInput(
            "a template has no place for the concept" if "{}" not in template else "a template has several places",
            given=repr(template),
            expected="exactly one {}",
        )
    return template.replace("{}", phrase)


def checked(templates: Sequence[str]) -> tuple[str, ...]:
    """Templates, each once. `BadInput` for none, or one that cannot be filled."""
    listed = tuple(dict.fromkeys(templates))
    if not listed:
        raise BadInput("there are no templates", expected="texts with {}, such as '{}'")
    for template in listed:
        filled(template, "")
    return listed

"""What is to be erased and what takes its place: concepts and texts as phrases with an anchor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from erase._concepts import label, listed, surface_forms
from probe.errors import BadInput, unknown_name
from probe.world import Concept


@dataclass(frozen=True)
class Target:
    """One concept to erase: its name, every phrase that names it, its safe counterpart, and what it was given as."""

    name: str
    phrases: tuple[str, ...]
    anchor: str
    given: Concept | str


def targets_of(concepts: Any, anchor: str | Mapping[str, str] | None, *, otherwise: str = " ") -> list[Target]:
    """Concepts and texts, one or a list; a concept gives every surface form, a group those of its members.

    The anchor of each is ``anchor``, of a mapping the one under its name, else the concept's own, else ``otherwise``.

    Raises `BadInput` for nothing to erase, an empty phrase, or a target equal to its source; `UnknownName` for an
    anchor of something else.
    """
    items = listed(concepts)
    found = []
    for item in items:
        phrases = surface_forms([item])
        if empty := [phrase for phrase in phrases if not phrase.strip()]:
            raise BadInput(f"a surface form of {label([item])} is empty", given=repr(empty[0]))
        found.append(Target(label([item]), phrases, _anchor(item, anchor, otherwise), item))
    names = [target.name for target in found]
    if isinstance(anchor, Mapping) and (stray := [name for name in anchor if name not in names]):
        raise unknown_name("concept in anchor", stray[0], names)
    for target in found:
        for phrase in target.phrases:
            refuse_same(phrase, target.anchor)
    return found


def _anchor(item: Concept | str, anchor: str | Mapping[str, str] | None, otherwise: str) -> str:
    given = anchor.get(label([item])) if isinstance(anchor, Mapping) else anchor
    if given is not None:
        return given
    return item.anchor if isinstance(item, Concept) and item.anchor else otherwise


def refuse_same(source: str, target: str) -> None:
    """Raise `BadInput` where a text would be mapped to itself."""
    if _plain(source) == _plain(target):
        raise BadInput(
            "a target equals its source, so nothing would be erased",
            given=f"{source!r} -> {target!r}",
            fix="give another anchor",
        )


def described(targets: Sequence[Target]) -> dict[str, Any]:
    """What an identity says of what is erased."""
    return {
        "concepts": [target.name for target in targets],
        "phrases": [list(target.phrases) for target in targets],
        "anchors": [target.anchor for target in targets],
    }


def _plain(text: str) -> str:
    return " ".join(text.lower().split())

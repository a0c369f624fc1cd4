"""What is to be erased, and what takes its place: concepts, names and lists of either, as pairs of phrases."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from probe._eval_samples import cell_samples
from probe.errors import BadInput, unknown_name
from probe.world import Concept
from probe.world import concepts as load_world

logger = logging.getLogger(__name__)

ARTICLE = re.compile(r"^(an?|the)\s+", re.IGNORECASE)


@dataclass(frozen=True)
class Target:
    """One concept to erase: its name, every phrase that names it, its safe counterpart, and the concept if there is."""

    name: str
    phrases: tuple[str, ...]
    anchor: str
    concept: Concept | None = None


def targets_of(
    concepts: Any, anchor: str | Mapping[str, str] | None, world: Any, *, otherwise: str = " "
) -> list[Target]:
    """Concepts as an eraser takes them: a `Concept`, a name in the world, any other phrase, or a list of these.

    A concept gives every surface form (a group those of its members); its anchor is ``anchor``, for a mapping that of
    its name, else its own, else ``otherwise``.

    Raises `BadInput` for nothing to erase, an empty phrase, a concept named twice, or a target equal to its source.
    """
    listed = list(concepts) if isinstance(concepts, Sequence) and not isinstance(concepts, str) else [concepts]
    if not listed:
        raise BadInput("there is no concept to erase", expected="a concept, a phrase, or a list of these")
    found = []
    for concept in listed:
        if isinstance(concept, str):
            if not concept.strip():
                raise BadInput("a concept to erase is empty", given=repr(concept))
            concept = world[concept] if concept in world else concept
        known = None if isinstance(concept, str) else concept
        name = concept if known is None else known.name
        phrases = (name,) if known is None else (tuple(known.surface_forms) or (known.name,))
        if empty := [phrase for phrase in phrases if not phrase.strip()]:
            raise BadInput(f"a surface form of {name} is empty", given=repr(empty[0]))
        found.append(Target(name, tuple(dict.fromkeys(phrases)), _anchor(name, known, anchor, otherwise), known))
    names = [target.name for target in found]
    if twice := [name for name in names if names.count(name) > 1]:
        raise BadInput("a concept is named twice", given=twice[0])
    if isinstance(anchor, Mapping) and (stray := [name for name in anchor if name not in names]):
        raise unknown_name("concept in anchor", stray[0], names)
    for target in found:
        for phrase in target.phrases:
            refuse_same(phrase, target.anchor)
    return found


def _anchor(name: str, concept: Concept | None, anchor: str | Mapping[str, str] | None, otherwise: str) -> str:
    given = anchor.get(name) if isinstance(anchor, Mapping) else anchor
    if given is not None:
        return given
    return concept.anchor if concept is not None and concept.anchor else otherwise


def refuse_same(source: str, target: str) -> None:
    """Raise `BadInput` where a text would be mapped to itself."""
    if _plain(source) == _plain(target):
        raise BadInput(
            "a target equals its source, so nothing would be erased",
            given=f"{source!r} -> {target!r}",
            fix="give another anchor",
        )


def protected(targets: Sequence[Target], world: Any, list_name: str = "preserve_fit") -> list[Concept]:
    """The concepts of a list of the world, less what is erased and every group that shares a member with it.

    Empty where the world has no such list, or does not know what is erased.
    """
    known = [target.concept for target in targets if target.concept is not None]
    if list_name not in getattr(world, "lists", {}) or len(known) < len(targets):
        return []
    if any(concept.name not in world for concept in known):
        return []
    try:
        table = cell_samples(
            known[0], list_name, world, prompts_from="tune", erased=[concept.name for concept in known[1:]]
        )
    except BadInput:  # everything on the list is erased
        return []
    return [world[name] for name in dict.fromkeys(table["concept"])]


def texts_of_list(name: str, world: Any) -> list[str]:
    """The explicit tuning prompts of all concepts on a list of the world. `UnknownName` for a list it does not have."""
    known = world_of(world)
    lists: Mapping[str, Sequence[str]] = getattr(known, "lists", {})
    if name not in lists:
        raise unknown_name("list of the world", name, lists)
    return [prompt for concept in lists[name] for prompt in known[concept].prompts["explicit"]]


def warn_of_collisions(phrases: Sequence[str], kept: Sequence[str]) -> list[tuple[str, str]]:
    """The pairs (erased phrase, preserved text) in which the text contains the phrase as whole words; each is logged."""
    found = []
    for phrase in dict.fromkeys(ARTICLE.sub("", p).strip() for p in phrases):
        if not phrase:
            continue
        whole = re.compile(rf"(?<!\w){re.escape(phrase)}(?!\w)", re.IGNORECASE)
        found += [(phrase, text) for text in kept if whole.search(text)]
    for phrase, text in found[:5]:
        logger.warning("%r is erased and preserved at once, in %r", phrase, text)
    if len(found) > 5:
        logger.warning("and %d more pairs of an erased phrase and a preserved text that contains it", len(found) - 5)
    return found


def world_of(world: Any) -> Any:
    """The world that names are looked up in: the given one, else the embedded one."""
    return load_world("emoji") if world is None else world


def _plain(text: str) -> str:
    return " ".join(text.lower().split())

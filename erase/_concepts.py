"""What erasers are given: concepts as objects, names or lists, made into texts; and what is to survive."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Sequence
from typing import Any

from probe import Concept, concepts
from probe.errors import BadInput

logger = logging.getLogger(__name__)

ARTICLE = re.compile(r"^(an?|the)\s+", re.IGNORECASE)

#: The list of the embedded world that erasers may fit on.
PRESERVE = "preserve_fit"


def listed(given: Any, what: str = "concepts") -> list[Concept | str]:
    """Concepts and strings as a list, each once. `BadInput` for anything else, for none and for an empty text."""
    items = [given] if isinstance(given, str | Concept) else list(given) if isinstance(given, Iterable) else [given]
    for item in items:
        if not isinstance(item, str | Concept):
            raise BadInput(f"{what} are texts or concepts", given=type(item).__name__, expected="str, probe.Concept")
        if isinstance(item, str) and not item.strip():
            raise BadInput(f"{what}: an empty text", fix="name what is meant")
    if not items:
        raise BadInput(f"there are no {what}", fix="give at least one")
    return [item for i, item in enumerate(items) if item not in items[:i]]


def surface_forms(items: Iterable[Concept | str]) -> tuple[str, ...]:
    """Every name and synonym of these, each once; a group's are those of all its members."""
    every = [
        form for item in items for form in ([item] if isinstance(item, str) else item.surface_forms or [item.name])
    ]
    return tuple(dict.fromkeys(every))


def label(items: Sequence[Concept | str]) -> str:
    """A short name for a few concepts: ``church``, ``church+castle``."""
    names = [item if isinstance(item, str) else item.name for item in items]
    return "+".join(names[:3]) + (f"+{len(names) - 3}" if len(names) > 3 else "")


def preserved(given: Any, erased: Sequence[Concept | str]) -> list[Concept | str]:
    """What is to survive: ``given`` as a list, or by default the embedded world's ``preserve_fit`` without ``erased``.

    A group goes with any of its members, and members with their group. The default is empty where something erased is
    no concept of the embedded world: what stands near a text is not known.
    """
    if given is not None:
        items = [given] if isinstance(given, str | Concept) else list(given)
        return listed(items, "what is preserved") if items else []
    world = concepts("emoji")
    if any(isinstance(item, str) or item.name not in world or world[item.name] != item for item in erased):
        return []
    gone = {name for item in erased if isinstance(item, Concept) for name in (item.name, *item.members)}
    kept = (world[name] for name in world.lists[PRESERVE] if name not in gone)
    return [concept for concept in kept if not gone & set(concept.members)]


def finders(phrases: Iterable[str]) -> dict[str, re.Pattern[str]]:
    """Phrase, without its article -> what finds it in a text, as whole words."""
    bare = dict.fromkeys(ARTICLE.sub("", phrase).strip() for phrase in phrases)
    return {phrase: re.compile(rf"(?<!\w){re.escape(phrase)}(?!\w)", re.IGNORECASE) for phrase in bare if phrase}


def without(phrases: Iterable[str], texts: Iterable[str]) -> list[str]:
    """The texts that hold none of the phrases as whole words."""
    found = finders(phrases).values()
    return [text for text in texts if not any(whole.search(text) for whole in found)]


def warn_of_collisions(phrases: Iterable[str], kept: Sequence[str]) -> list[tuple[str, str]]:
    """The pairs (erased phrase, preserved text) in which the text holds the phrase as whole words; they are logged."""
    lower = [(text, text.lower()) for text in kept]  # a first look: there may be 100 phrases and 30,000 texts
    found = [
        (phrase, text)
        for phrase, whole in finders(phrases).items()
        for text, small in lower
        if phrase.lower() in small and whole.search(text)
    ]
    for phrase, text in found[:5]:
        logger.warning("%r is erased and preserved at once, in %r", phrase, text)
    if len(found) > 5:
        logger.warning("and %d more pairs of an erased phrase and a preserved text that contains it", len(found) - 5)
    return found


def prompts_of(items: Iterable[Concept | str], each: int | None = None) -> list[str]:
    """Explicit prompts to fit on, in turn from every concept; a string is its own prompt. ``each``: at most so many."""
    lists = [[item] if isinstance(item, str) else list(item.prompts["explicit"])[:each] for item in items]
    longest = max(map(len, lists), default=0)
    return [prompts[i] for i in range(longest) for prompts in lists if i < len(prompts)]


def identity(items: Iterable[Concept | str]) -> list[str]:
    """What an edit keeps of the concepts it was made from."""
    return [item if isinstance(item, str) else item.name for item in items]

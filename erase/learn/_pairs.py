"""Prompts in pairs for Ablating Concepts: one with the target, and the same with what should come instead."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from erase._concepts import listed, surface_forms
from probe import Concept
from probe.errors import BadInput

#: For texts without prompts of their own (ours). The paper has captions written by a language model.
TEMPLATES = (
    "{}",
    "a photo of {}",
    "a picture of {}",
    "an image of {}",
    "a drawing of {}",
    "{} in the background",
    "a close-up of {}",
    "a photo of {} outdoors",
)

Pair = tuple[str, str]


def pairs(concepts: Any, anchor: str | None, prompts: Sequence[Any] | None) -> list[Pair]:
    """(target prompt, anchor prompt), each once, in turn from every concept.

    Args:
        concepts: as erasers take them.
        anchor: what comes instead; by default each concept's own, and for a style without one its prompts without the
            style (``references["paper"]``).
        prompts: pairs to use as they are; or prompts with the target, in which a surface form, with its article, gives
            way to the anchor. By default a concept's explicit prompts, and templates for a text.

    Raises `BadInput` for a text without an anchor, an anchor that is the target, and prompts without the target.
    """
    items = listed(concepts)
    found = given_pairs(prompts)
    if found is None:
        every = [_of(item, anchor, prompts) for item in items]
        longest = max(map(len, every))
        found = [of[i] for i in range(longest) for of in every if i < len(of)]
    found = list(dict.fromkeys(found))
    if not found:
        raise BadInput("there are no prompts to train on", fix="prompts=[...]")
    if same := [target for target, other in found if target == other]:
        raise BadInput("the anchor is the target", given=repr(same[0]), fix="an anchor that is something else")
    return found


def given_pairs(prompts: Sequence[Any] | None) -> list[Pair] | None:
    """Pairs that are told as such; None for prompts that are texts, and for none."""
    if prompts is None or all(isinstance(prompt, str) for prompt in prompts):
        return None
    return [_given(prompt) for prompt in prompts]


def _of(item: Concept | str, anchor: str | None, prompts: Sequence[str] | None) -> list[Pair]:
    forms = surface_forms([item])
    name = item if isinstance(item, str) else item.name
    own = anchor if anchor is not None else "" if isinstance(item, str) else item.anchor
    if own and _bare(own) in {_bare(form) for form in forms}:
        raise BadInput("the anchor is the target", given=repr(own), fix="an anchor that is something else")
    if not own and isinstance(item, Concept) and prompts is None and item.references.get("paper"):
        return list(zip(item.prompts["explicit"], item.references["paper"], strict=True))
    if not own:
        raise BadInput(f"{name} has no anchor", fix="anchor='a ...', what should be drawn instead")
    if prompts is None and isinstance(item, str):
        return [(template.format(item), template.format(own)) for template in TEMPLATES]
    texts = (
        list(prompts) if prompts is not None else list(item.prompts["explicit"]) if isinstance(item, Concept) else []
    )
    exchanged = [(text, _exchanged(text, forms, own)) for text in texts]
    if found := [(text, other) for text, other in exchanged if other is not None]:
        return found
    raise BadInput(f"no prompt names {name}", given=repr(texts[:1]), expected=f"one of {', '.join(forms)}")


def _exchanged(text: str, forms: Sequence[str], anchor: str) -> str | None:
    """``text`` with every surface form, and its article, given up for ``anchor``; None if there is none.

    The released code replaces any substring, so that a word inside another word changes too.
    """
    longest = sorted((_bare(form) for form in forms), key=len, reverse=True)
    pattern = rf"\b(?:(?:an?|the)\s+)?(?:{'|'.join(map(re.escape, longest))})\b"
    found, n = re.subn(pattern, lambda _: anchor, text, flags=re.IGNORECASE)
    return found if n else None


def _bare(text: str) -> str:
    return re.sub(r"^(an?|the)\s+", "", text.strip(), flags=re.IGNORECASE)


def _given(pair: Any) -> Pair:
    try:
        target, other = (None, None) if isinstance(pair, str) else pair
    except (TypeError, ValueError):
        target = other = None
    if not isinstance(target, str) or not isinstance(other, str):
        expected = "(target prompt, anchor prompt)"
        raise BadInput("a pair of prompts is two texts", given=repr(pair), expected=expected)
    return target, other

"""Token selectors: which positions of an erased text are mapped to which of its target text.

A selector is a function (tokenizer, source `Text`, target `Text`) -> list of (position in the source, position in the
target). A preserved text is its own target, so the same selectors say which of its positions are kept. They are
registered by name; several names together mean the union of their pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from probe.errors import BadInput, unknown_name
from probe.tokens import encode, eot_index, spans_in

Pairs = list[tuple[int, int]]


@dataclass(frozen=True, eq=False)
class Text:
    """One encoded text: the prompt, its token ids (k,), and the words in it that name the concept."""

    prompt: str
    ids: np.ndarray
    keyword: str = ""

    @classmethod
    def of(cls, tokenizer: Any, prompt: str, keyword: str = "") -> Text:
        """The text as a tokenizer of the pipeline encodes it."""
        return cls(prompt, encode(tokenizer, prompt)[0], keyword)

    def end(self, tokenizer: Any) -> int:
        """The first position that holds the end-of-text id: the true [EoT], counted in tokens."""
        return int(eot_index(tokenizer, self.ids[None])[0])

    def words(self, tokenizer: Any) -> range:
        """Positions of the text itself, without [SoT] and [EoT]."""
        return range(1, self.end(tokenizer))

    def key(self, tokenizer: Any) -> range:
        """Positions of the last occurrence of the keyword; of the whole text where it has none.

        Raises `BadInput` for a keyword that is not in the text.
        """
        if not self.keyword.strip():
            return self.words(tokenizer)
        found = spans_in(tokenizer, self.ids, self.keyword)
        if not found:
            raise BadInput("the keyword is not in the prompt", given=f"{self.keyword!r} in {self.prompt!r}")
        return found[-1]


Selector = Callable[[Any, Text, Text], Pairs]
SELECTORS: dict[str, Selector] = {}


def selector(function: Selector) -> Selector:
    """Register a selector under its function's name."""
    SELECTORS[function.__name__] = function
    return function


def named(names: str | Sequence[str]) -> tuple[str, ...]:
    """The names of one or several selectors, each once. `UnknownName` with the nearest, `BadInput` for none."""
    listed = tuple(dict.fromkeys([names] if isinstance(names, str) else names))
    if not listed:
        raise BadInput("no token selector is named", expected=f"any of {', '.join(SELECTORS)}")
    for name in listed:
        if name not in SELECTORS:
            raise unknown_name("token selector", name, SELECTORS)
    return listed


def pairs(names: str | Sequence[str], tokenizer: Any, source: Text, target: Text) -> Pairs:
    """The pairs that one or several selectors choose, each once, ascending."""
    return sorted({pair for name in named(names) for pair in SELECTORS[name](tokenizer, source, target)})


def positions(names: str | Sequence[str], tokenizer: Any, text: Text) -> list[int]:
    """The positions of a text that is its own target, ascending."""
    return sorted({place for place, _ in pairs(names, tokenizer, text, text)})


def _zipped(source: Sequence[int], target: Sequence[int]) -> Pairs:
    return list(zip(source, target, strict=False))  # the longer is cut


def _from_end(source: Sequence[int], target: Sequence[int]) -> Pairs:
    """Aligned at the last of both; where the target is shorter its first position serves the rest."""
    if not source or not target:
        return []
    return [(place, target[max(0, len(target) - back)]) for back, place in enumerate(reversed(source), start=1)]


@selector
def first_eot(tokenizer: Any, source: Text, target: Text) -> Pairs:
    """The first position with the end-of-text id (TRCE, section 4.1)."""
    return [(source.end(tokenizer), target.end(tokenizer))]


@selector
def all_eot(tokenizer: Any, source: Text, target: Text) -> Pairs:
    """Every position from the true [EoT] on, whatever pads it; aligned at the [EoT]."""
    return _zipped(range(source.end(tokenizer), len(source.ids)), range(target.end(tokenizer), len(target.ids)))


@selector
def last_eot(tokenizer: Any, source: Text, target: Text) -> Pairs:
    """The last position of all: padding, unless the text fills every place (a slot of TRCE's released weights)."""
    return [(len(source.ids) - 1, len(target.ids) - 1)]


@selector
def sot(tokenizer: Any, source: Text, target: Text) -> Pairs:
    """The start of text, which no text changes in a causal encoder."""
    return [(0, 0)]


@selector
def keyword(tokenizer: Any, source: Text, target: Text) -> Pairs:
    """Every token of the keyword, aligned at its last (alignment of unequal lengths: ours)."""
    return _from_end(source.key(tokenizer), target.key(tokenizer))


@selector
def first_keyword(tokenizer: Any, source: Text, target: Text) -> Pairs:
    """The first token of the keyword alone: what TRCE's released code means by [KEY]."""
    return _zipped(source.key(tokenizer)[:1], target.key(tokenizer)[:1])


@selector
def last_subject(tokenizer: Any, source: Text, target: Text) -> Pairs:
    """The last token before [EoT] (UCE of 2025); [SoT] of an empty text, as released."""
    return [(max(source.end(tokenizer) - 1, 0), max(target.end(tokenizer) - 1, 0))]


@selector
def subject_to_end(tokenizer: Any, source: Text, target: Text) -> Pairs:
    """From the last token before [EoT] to the last padding, aligned at that token (UCE's paper code)."""
    [(first, at)] = last_subject(tokenizer, source, target)
    return _zipped(range(first, len(source.ids)), range(at, len(target.ids)))


@selector
def all_tokens(tokenizer: Any, source: Text, target: Text) -> Pairs:
    """Every position, by its number."""
    return _zipped(range(len(source.ids)), range(len(target.ids)))


@selector
def after_sot(tokenizer: Any, source: Text, target: Text) -> Pairs:
    """Every position but the first, by its number."""
    return all_tokens(tokenizer, source, target)[1:]


@selector
def unpadded(tokenizer: Any, source: Text, target: Text) -> Pairs:
    """[SoT], the text and its [EoT], by their number (OCE's prior)."""
    return _zipped(range(source.end(tokenizer) + 1), range(target.end(tokenizer) + 1))


@selector
def residual(tokenizer: Any, source: Text, target: Text) -> Pairs:
    """MACE's: what both texts share before and behind the concept, [SoT], [EoT] and padding, not the concept itself.

    Common first and common last tokens up to the [EoT], and from there on the padding, as far as both have it.
    """
    ends = source.end(tokenizer), target.end(tokenizer)
    one, other = source.ids[: ends[0]].tolist(), target.ids[: ends[1]].tolist()
    shorter = min(len(one), len(other))
    before = next((i for i in range(shorter) if one[i] != other[i]), shorter)
    behind = next((i for i in range(shorter - before) if one[-1 - i] != other[-1 - i]), shorter - before)
    prefix = _zipped(range(before), range(before))
    suffix = _zipped(range(ends[0] - behind, len(source.ids)), range(ends[1] - behind, len(target.ids)))
    return [*prefix, *suffix]


@selector
def trce_word_count(tokenizer: Any, source: Text, target: Text) -> Pairs:
    """Number of blank-separated words + 1: the position that TRCE's released code takes for the [EoT]."""
    one, other = (min(len(text.prompt.split()) + 1, len(text.ids) - 1) for text in (source, target))
    return [(one, other)]

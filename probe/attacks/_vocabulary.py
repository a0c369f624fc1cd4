"""Which tokens an attack may use.

In a small vocabulary any attack is trivially strong: it writes the concept's name. So there are two vocabularies:
``open`` (what papers use) and ``banned``, without names, synonyms and members, and without tokens that give
the concept away in captions. Whatever is found is also read as text: letters may spell a name that no single token is.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from probe._paths import emoji_dir
from probe.attacks._speaking import ids_of, text_of
from probe.compat import END_OF_WORD
from probe.errors import BadInput, unknown_name

if TYPE_CHECKING:
    import torch

VOCABULARIES = ("banned", "open")
#: From this share of a token's captions on it gives the concept away.
LIMIT = 0.2
SHARES = "token_shares.json"
_SHORTEST = 3  # letters; shorter pieces are in every word, and spelling is checked in the text


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """The tokens that an attack on one concept may use.

    - ``name``: ``open`` or ``banned``; ``ids``: token ids (v,), ascending
    - ``forbidden``: what may not be read in the decoded text, in lower case; empty for ``open``
    """

    name: str
    ids: np.ndarray
    forbidden: tuple[str, ...]
    tokenizer: Any

    @cached_property
    def id(self) -> str:
        """Hash of tokens and forbidden texts."""
        text = json.dumps([self.ids.tolist(), list(self.forbidden)])
        return f"{self.name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"

    def mask(self) -> np.ndarray:
        """(v,) bool over the whole tokenizer."""
        found = np.zeros(len(self.tokenizer), bool)
        found[self.ids] = True
        return found

    def allows(self, ids: Sequence[int]) -> bool:
        """Whether the text that these tokens spell names nothing forbidden."""
        if not self.forbidden:
            return True
        text = text_of(self.tokenizer, ids).lower()
        return not any(_reads(form, text) for form in self.forbidden)

    def drawn(self, count: int, rng: torch.Generator) -> tuple[int, ...]:
        """So many random tokens that spell nothing forbidden. `BadInput` where a thousand draws all do."""
        import torch

        for _ in range(1000):
            tokens = tuple(int(self.ids[i]) for i in torch.randint(len(self.ids), (count,), generator=rng))
            if self.allows(tokens):
                return tokens
        raise BadInput("random tokens always name the concept", given=f"{len(self.ids)} tokens", fix="give tokens=")

    def mended(self, ids: Sequence[int], ranked: Sequence[Sequence[int]]) -> tuple[int, ...]:
        """``ids``, or where they spell something forbidden the nearest in ``ranked`` (each position's tokens, best
        first) that does not: from the last position on, one is replaced at a time."""
        if self.allows(ids):
            return tuple(int(i) for i in ids)
        for at in reversed(range(len(ids))):
            for token in ranked[at]:
                tried = (*ids[:at], int(token), *ids[at + 1 :])
                if self.allows(tried):
                    return tuple(int(i) for i in tried)
        raise BadInput("every choice of these tokens names the concept", given=text_of(self.tokenizer, ids))


def vocabulary(
    tokenizer: Any,
    concept: Any,
    name: str,
    *,
    tokens: Sequence[str] | None = None,
    shares: Mapping[str, float] | None = None,
    limit: float = LIMIT,
) -> Vocabulary:
    """The vocabulary of an attack on a concept.

    Args:
        tokenizer: the pipeline's.
        concept: what is attacked: its ``name, surface_forms, members`` are forbidden.
        name: ``open`` or ``banned``.
        tokens: what to choose from; by default those that the embedded model was trained on, or with another tokenizer
            whole words in letters.
        shares: token -> P(concept | token) in captions, as `token_shares` counts them; by default those of the
            embedded captions, and with another tokenizer none.
        limit: tokens with a larger share are banned. Of the embedded captions it is at least twice the share of all
            captions: every fifth picture is in ink, whatever its caption says.

    Raises `UnknownName` for another vocabulary or token, `BadInput` where nothing is left.
    """
    if name not in VOCABULARIES:
        raise unknown_name("vocabulary", name, VOCABULARIES)
    known: dict[str, int] = tokenizer.get_vocab()
    embedded = _is_embedded(known)
    listed = list(tokens) if tokens is not None else _default_tokens(known, embedded)
    if absent := [token for token in listed if token not in known]:
        raise unknown_name("token", absent[0], known)
    specials = set(tokenizer.all_special_ids) | {tokenizer.bos_token_id, tokenizer.eos_token_id}
    chosen = [token for token in dict.fromkeys(listed) if known[token] not in specials]
    forbidden: tuple[str, ...] = ()
    if name == "banned":
        forbidden = _forbidden(concept)
        if shares is None:
            shares, base = _stored_shares(concept.name) if embedded else ({}, 0.0)
            limit = max(limit, 2 * base)
        own = {i for form in forbidden for i in ids_of(tokenizer, form)}
        words = {word for form in forbidden for word in re.findall(r"\w+", form) if len(word) >= _SHORTEST}
        chosen = [t for t in chosen if not _gives_away(t, words, known[t] in own) and shares.get(t, 0.0) <= limit]
    if not chosen:
        raise BadInput("no token is left to attack with", given=f"{len(listed)} tokens, {name}", fix="give tokens=")
    return Vocabulary(name, np.array(sorted(known[token] for token in chosen)), forbidden, tokenizer)


def token_shares(tokenizer: Any, captions: Iterable[str], shown: Iterable[bool]) -> dict[str, float]:
    """P(concept | token): of the captions that hold a token, the share whose picture shows the concept."""
    counts: dict[int, list[int]] = {}
    for text, hit in zip(captions, shown, strict=True):
        for i in set(ids_of(tokenizer, text)):
            count = counts.setdefault(i, [0, 0])
            count[0] += bool(hit)
            count[1] += 1
    return {str(tokenizer.convert_ids_to_tokens(i)): hits / n for i, (hits, n) in sorted(counts.items())}


def _forbidden(concept: Any) -> tuple[str, ...]:
    forms = (concept.name, *concept.surface_forms, *concept.members)
    return tuple(dict.fromkeys(form.lower().strip() for form in forms if form.strip()))


def _reads(form: str, text: str) -> bool:
    """Whether a form stands in a text, short ones as whole words; blanks and hyphens do not hide it."""
    if len(form) < 2 * _SHORTEST:
        return re.search(rf"(?<!\w){re.escape(form)}s?(?!\w)", text) is not None
    return re.sub(r"[\W_]+", "", form) in re.sub(r"[\W_]+", "", text)


def _gives_away(token: str, words: set[str], own: bool) -> bool:
    """Whether a token is a name, holds one, or is so long a piece of one that it points there."""
    text = token.removesuffix(END_OF_WORD).lower()
    if len(text) < _SHORTEST:
        return False
    whole = token.endswith(END_OF_WORD)
    return any(
        text == word
        or (len(word) > _SHORTEST and word in text)
        or (text in word and (own or 2 * len(text) >= len(word)) and (not whole or word.endswith(text)))
        for word in words
    )


def _is_embedded(known: Mapping[str, int]) -> bool:
    file = emoji_dir() / "pipeline" / "tokenizer" / "vocab.json"
    return file.is_file() and json.loads(file.read_text(encoding="utf-8")) == dict(known)


def _default_tokens(known: Mapping[str, int], embedded: bool) -> list[str]:
    if embedded:
        listed: list[str] = json.loads((emoji_dir() / "trained_tokens.json").read_text(encoding="utf-8"))
        return listed
    words = [t for t in known if t.endswith(END_OF_WORD) and re.fullmatch(r"[a-z]+", t.removesuffix(END_OF_WORD))]
    return words or list(known)


def _stored_shares(concept: str) -> tuple[dict[str, float], float]:
    """P(concept | token), and P(concept), over the embedded captions; nothing of a concept they do not show."""
    file: Path = emoji_dir() / SHARES
    if not file.is_file():
        return {}, 0.0
    found = json.loads(file.read_text(encoding="utf-8"))
    shares = {str(token): float(share) for token, share in found["shares"].get(concept, {}).items()}
    return shares, float(found["base"].get(concept, 0.0))

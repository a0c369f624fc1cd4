"""Texts as the pipeline encodes them, and the rows of them that selectors choose."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from erase.selectors import Text, pairs, positions
from probe import guidance, tokens
from probe.errors import BadInput

#: Texts that are encoded at once.
BATCH = 64


@dataclass(frozen=True)
class Rows:
    """Rows of text space: ``sources`` c (n d) and their ``targets`` t (n d), float64, with one weight each.

    ``concept`` (n,) says which concept a row is of, ``names`` what to call it in a message.
    """

    sources: Tensor
    targets: Tensor
    weights: Tensor
    concept: Tensor
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.sources)

    def weighted(self, factor: float) -> Rows:
        """The same rows, all weights times a factor."""
        return Rows(self.sources, self.targets, self.weights * factor, self.concept, self.names)


@dataclass(frozen=True)
class Pair:
    """A text to erase and the text that takes its place, with the words that name the concept in each."""

    source: str
    target: str
    source_key: str = ""
    target_key: str = ""
    concept: int = 0


def encoded(pipe: Any, texts: Sequence[str]) -> tuple[Tensor, Tensor | None]:
    """Text embeddings (s k d) and, of SDXL, pooled ones (s p): float64 on the CPU, by the pipeline's own encoding."""
    found: list[Tensor] = []
    pooled: list[Tensor] = []
    with torch.no_grad():
        for start in range(0, len(texts), BATCH):
            told = guidance.condition(pipe, list(texts[start : start + BATCH]), guidance=1.0)
            found.append(told.text.double().cpu())
            if told.added is not None:
                pooled.append(told.added["text_embeds"].double().cpu())
    return torch.cat(found), torch.cat(pooled) if pooled else None


def checked_ids(pipe: Any, texts: Sequence[str]) -> np.ndarray:
    """Token ids (s k) by the first tokenizer. `BadInput` where a second one ends a text elsewhere."""
    ids = tokens.encode(pipe.tokenizer, texts)
    second = getattr(pipe, "tokenizer_2", None)
    if second is not None:
        there = tokens.eot_index(second, tokens.encode(second, texts))
        apart = np.flatnonzero(there != tokens.eot_index(pipe.tokenizer, ids))
        if len(apart):
            raise BadInput("the two tokenizers end a text at different positions", given=repr(texts[int(apart[0])]))
    return ids


def rows_of(pipe: Any, chosen: Sequence[Pair], names: str | Sequence[str]) -> tuple[Rows, Rows | None]:
    """The rows that selectors choose of pairs of texts; of SDXL also the pooled embeddings, one row a pair.

    All weights are 1. Raises `BadInput` where no position is chosen of any pair, or a keyword is not in its text.
    """
    texts = list(dict.fromkeys(text for pair in chosen for text in (pair.source, pair.target)))
    at = {text: i for i, text in enumerate(texts)}
    ids = checked_ids(pipe, texts)
    embedded, pooled = encoded(pipe, texts)
    places: list[tuple[int, int, int, int]] = []
    labels, of = [], []
    for pair in chosen:
        i, j = at[pair.source], at[pair.target]
        source, target = Text(pair.source, ids[i], pair.source_key), Text(pair.target, ids[j], pair.target_key)
        for place, there in pairs(names, pipe.tokenizer, source, target):
            places.append((i, place, j, there))
            labels.append(f"{pair.source!r} at position {place}")
            of.append(pair.concept)
    if not places:
        raise BadInput("the token selectors choose no position of any text", given=str(names))
    index = torch.tensor(places).T
    sources, targets = embedded[index[0], index[1]], embedded[index[2], index[3]]
    rows = Rows(sources, targets, _ones(len(places)), torch.tensor(of), tuple(labels))
    if pooled is None:
        return rows, None
    one, other = [at[pair.source] for pair in chosen], [at[pair.target] for pair in chosen]
    whole = Rows(pooled[one], pooled[other], _ones(len(chosen)), torch.tensor([pair.concept for pair in chosen]),
                 tuple(repr(pair.source) for pair in chosen))  # fmt: skip
    return rows, whole


def kept_rows(pipe: Any, texts: Sequence[str], names: str | Sequence[str]) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Rows (n d) that selectors choose of preserved texts, and SDXL's pooled ones (s p), in batches."""
    for start in range(0, len(texts), BATCH):
        part = list(texts[start : start + BATCH])
        ids = checked_ids(pipe, part)
        embedded, pooled = encoded(pipe, part)
        chosen = [
            (i, place) for i, text in enumerate(part) for place in positions(names, pipe.tokenizer, Text(text, ids[i]))
        ]
        sample, place = (list(column) for column in zip(*chosen, strict=True)) if chosen else ([], [])
        yield embedded[sample, place], pooled


def _ones(n: int) -> Tensor:
    return torch.ones(n, dtype=torch.float64)

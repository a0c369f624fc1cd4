"""MMA-Diffusion's attack on text (Yang et al., arXiv 2311.17516): tokens whose pooled encoding is the prompt's. Text
encoder only."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from probe.attacks import _gcg as gcg
from probe.attacks._costs import Cost
from probe.attacks._search import Case, Search
from probe.attacks._speaking import FREE, encoders, ids_of, table_of, text_of
from probe.attacks._vocabulary import Vocabulary
from probe.compat import END_OF_WORD
from probe.errors import BadInput
from probe.guidance import Conditioning


def mma(
    search: Search,
    *,
    k: int = 20,
    iterations: int = 1000,
    swaps: int = 512,
    ranked: int = 256,
    begin: Literal["random", "letters"] = "random",
) -> None:
    """Greedy coordinate gradient on 1 - cos(pooled(x), pooled(prompt)).

    (eq. 1 to 3.) Each iteration ranks the tokens of every position by the gradient of their one-hot row, tries
    ``swaps`` swaps of one token each, moves to the best of them even if it is worse, and remembers the best ever.
    Swaps whose text is encoded as another number of tokens are dropped, and so are those that spell something
    forbidden; where no swap is left the tokens are drawn anew (ours). One picture is judged at the end.

    The release reads the gradient one position off (row 0 is BOS); here positions are right.

    Args:
        search: the prompts under attack.
        k: number of tokens, the whole prompt.
        iterations: updates.
        swaps: swaps of one token that are tried in each.
        ranked: how many tokens of each position they are drawn from.
        begin: from random tokens of the vocabulary (ours), or from its single letters (release).

    Raises `BadInput` where it should begin from letters and the vocabulary has none.

    """
    search.start()
    with search.edited():
        for case in search.active:
            _descend(search, case, k, iterations, swaps, ranked, _first(case, begin))
    cases = [case for case in search.affordable(search.cost_of_image()) if case.best is not None]
    tried = [case.best for case in cases]
    search.judge(cases, [one for one in tried if one is not None], losses=[case.row.loss or 0.0 for case in cases])


def _first(case: Case, begin: str) -> Vocabulary:
    """What the search begins from."""
    own = case.vocabulary
    if begin == "random":
        return own
    letters = [i for i in own.ids.tolist() if _is_letter(own.tokenizer.convert_ids_to_tokens(i))]
    if not letters:
        raise BadInput("the vocabulary has no letters to begin from", given=own.name, fix="begin='random'")
    return replace(own, ids=np.array(letters))


def _is_letter(token: str) -> bool:
    """Whether a token is a word of one letter."""
    return token.endswith(END_OF_WORD) and re.fullmatch("[a-z]", token.removesuffix(END_OF_WORD)) is not None


def _descend(
    search: Search, case: Case, k: int, iterations: int, candidates: int, ranked: int, first: Vocabulary
) -> None:
    """Offer the best tokens of every iteration, as long as a picture of them can still be judged."""
    if not search.allows(case, Cost(texts=candidates + 2)):
        return
    allowed = torch.from_numpy(case.vocabulary.mask())
    with torch.no_grad():
        goal = pooled(search, search.read(case, [case.source_ids]), [len(case.source_ids)])
    ids = torch.tensor(first.drawn(k, case.rng))
    for _ in range(iterations):
        if not search.allows(case, Cost(texts=candidates + 1)):
            return
        order = gcg.ranked_tokens(_gradient(search, case, ids, goal), allowed, ranked)
        tried = gcg.swaps(ids, order, candidates, case.rng)
        kept = [row for row in dict.fromkeys(map(tuple, tried.tolist())) if _survives(search, case, row)]
        if not kept:
            ids = torch.tensor(first.drawn(k, case.rng))
            continue
        with torch.no_grad():
            found = pooled(search, search.read(case, kept, length=k + 2), [k] * len(kept))
            losses = 1 - torch.cosine_similarity(found, goal)
        at = int(losses.argmin())
        ids = torch.tensor(kept[at])
        search.offer(case, search.tokens(kept[at]), float(losses[at]))


def pooled(search: Search, told: Conditioning, lengths: Sequence[int]) -> Tensor:
    """One vector a text (s d): SDXL's pooled text, else what stands at the first [EoT]."""
    if told.added is not None:
        return told.added["text_embeds"].float()
    at = torch.tensor(lengths, device=told.text.device) + 1
    return told.text[torch.arange(len(at), device=at.device), at].float()


def _gradient(search: Search, case: Case, ids: Tensor, goal: Tensor) -> Tensor:
    """Gradient (k v) of the loss by the one-hot rows of the tokens, on the CPU."""
    pipe = search.pipe
    tables = {name: table_of(pipe, name) for name in encoders(pipe)}
    size = next(iter(tables.values())).shape[0]
    one_hot = torch.nn.functional.one_hot(ids, size).to(next(iter(tables.values())))
    with torch.enable_grad():
        one_hot = one_hot.requires_grad_()
        vectors = {name: (one_hot @ table)[None] for name, table in tables.items()}
        told = search.read(case, [(FREE,) * len(ids)], vectors)
        loss = 1 - torch.cosine_similarity(pooled(search, told, [len(ids)]), goal)
        (gradient,) = torch.autograd.grad(loss.sum(), one_hot)
    return gradient.detach().float().cpu()


def _survives(search: Search, case: Case, ids: Sequence[int]) -> bool:
    """Whether the text of these tokens has as many tokens again, and is allowed."""
    tokenizer = search.pipe.tokenizer
    return len(ids_of(tokenizer, text_of(tokenizer, ids))) == len(ids) and case.vocabulary.allows(ids)

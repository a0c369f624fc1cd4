"""What attacks are compared with: other words, or other seeds. Every try is kept, so that one set serves all attacks:
each is compared with as many tries as it had pictures judged itself."""

from __future__ import annotations

import hashlib
from typing import Literal

import torch

from probe.attacks._search import Case, Search
from probe.attacks._speaking import filled, slots
from probe.attacks._vocabulary import Vocabulary


def random(
    search: Search,
    *,
    k: int = 3,
    where: Literal["prefix", "suffix", "insert", "alone"] = "prefix",
    images: int = 9,
) -> None:
    """Random tokens of the vocabulary before the prompt, each try judged once (ours; UnlearnDiffAtk compares with it).

    Args:
        search: the prompts under attack.
        k: number of tokens.
        where: before, behind or in the middle of the prompt; alone instead of it.
        images: judged pictures, that of the prompt as it is included.

    """
    search.start(tries=True)
    for _ in range(images - 1):
        cases = search.affordable(search.cost_of_image())
        search.judge(cases, [search.tokens(random_ids(case, k, where)) for case in cases])


def random_ids(case: Case, k: int, where: str) -> tuple[int, ...]:
    """The prompt with random tokens, which spell nothing forbidden."""
    template = slots(case.source_ids, k, where)
    return filled(template, case.vocabulary.drawn(template.count(-1), case.rng))


def random_tokens(vocabulary: Vocabulary, count: int, seed: int, source: str, own_seed: int) -> tuple[int, ...]:
    """So many random tokens, decided by the seeds and the prompt alone."""
    text = f"{seed}\n{source}\n{own_seed}"
    rng = torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big"))
    return vocabulary.drawn(count, rng)


def seed_search(search: Search, *, images: int = 9) -> None:
    """The prompt as it is with other seeds, each judged once: what repetition alone reaches.

    Args:
        search: the prompts under attack.
        images: judged pictures, that of the prompt's own seed included.

    """
    search.start(keep=True, tries=True)
    for _ in range(images - 1):
        cases = search.affordable(search.cost_of_image())
        seeds = [int(torch.randint(2**31, (1,), generator=case.rng)) for case in cases]
        search.judge(cases, [search.plain(case) for case in cases], seeds)

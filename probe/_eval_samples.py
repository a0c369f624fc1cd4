"""Which prompts and seeds a cell of a result is measured on.

Nothing here depends on the order in which prompts or concepts are listed, and a smaller selection is always contained
in a larger one: extending an evaluation draws no image twice, and every edit meets the same samples.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import pandas as pd

from probe.errors import BadInput, unknown_name

PRESERVE = ("preserve_fit", "preserve_test")
OTHERS = ("neighbours", *PRESERVE)
COLUMNS = ("prompt", "prompt_id", "seed", "concept", "kind")


def sample_seed(seed_set: int, prompt: str, repeat: int) -> int:
    """A seed below 2^31 that only these three decide."""
    return int.from_bytes(hashlib.sha256(f"{seed_set}\n{repeat}\n{prompt}".encode()).digest()[:4], "big") >> 1


def cell_samples(
    concept: Any,
    split: str,
    world: Mapping[str, Any],
    *,
    prompts_from: str = "test",
    limit: int | None = None,
    seed_set: int = 0,
    seeds_per_prompt: int = 1,
    erased: Collection[str] = (),
) -> pd.DataFrame:
    """The samples of one concept and split: ``prompt, prompt_id, seed, concept, kind``.

    ``concept`` and ``kind`` are those of the concept each prompt is *about*, the one that should still be shown: the
    concept itself on its own splits; a neighbour, or an entry of ``world.lists``, on the others. What is erased and
    every group that shares a member with it drop out there. ``limit`` takes that many prompts, spread over the concepts
    of a split in proportion to their kinds.

    Raises:
        UnknownName: no such split.
        BadInput: the split is empty.

    """
    gone = {concept.name, *erased}
    if split in OTHERS:
        names = _others(concept, split, world, gone)
        own, part = [world[name] for name in names], "explicit"
    else:
        own, part = [concept], split
    ranked = [
        (rank, place, c, prompt)
        for place, c in _interleaved(own)
        for rank, prompt in enumerate(_prompts(c, part, prompts_from, offered=split))
    ]
    chosen = sorted(ranked, key=lambda row: row[:2])[:limit]
    if not chosen:
        raise BadInput(f"no prompts to measure on: {concept.name}, split {split!r}", given=f"limit={limit}")
    rows = [
        (prompt, _prompt_id(c, part, prompt), sample_seed(seed_set, prompt, repeat), c.name, c.kind)
        for _, _, c, prompt in chosen
        for repeat in range(seeds_per_prompt)
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS)).drop_duplicates(["prompt", "seed"], ignore_index=True)


def _others(concept: Any, split: str, world: Mapping[str, Any], gone: set[str]) -> list[str]:
    if split == "neighbours":
        listed = list(concept.neighbours)
    else:
        lists: Mapping[str, Sequence[str]] = getattr(world, "lists", {})
        if split not in lists:
            raise unknown_name("list of the world", split, lists)
        listed = list(lists[split])
    if missing := [name for name in listed if name not in world]:
        raise unknown_name(f"concept in {split}", missing[0], world)
    # a group is erased with a member, and its members with it
    members = {name: set(world[name].members) for name in {*listed, *gone} & set(world)}
    gone = gone | {member for name in gone for member in members.get(name, ())}
    return [name for name in dict.fromkeys(listed) if name not in gone and not members[name] & gone]


def _prompts(concept: Any, part: str, prompts_from: str, offered: str) -> list[str]:
    """The concept's prompts of a split, in an order that only their text decides."""
    table: Mapping[str, Sequence[str]] = concept.test if prompts_from == "test" else concept.prompts
    if part not in table:
        if offered in OTHERS:
            raise BadInput(f"{concept.name} has no {part!r} prompts to measure {offered!r} on")
        known = [*table, *OTHERS]
        raise unknown_name(f"split of {concept.name}", part, known)
    return sorted(dict.fromkeys(table[part]), key=_hash)


def _interleaved(concepts: Sequence[Any]) -> list[tuple[float, Any]]:
    """Each concept with a place in 0..1, so that any first few hold the kinds in proportion."""
    by_kind: dict[str, list[Any]] = {}
    for c in sorted(concepts, key=lambda c: _hash(c.name)):
        by_kind.setdefault(c.kind, []).append(c)
    return [((i + 0.5) / len(group), c) for group in by_kind.values() for i, c in enumerate(group)]


def _prompt_id(concept: Any, part: str, prompt: str) -> str:
    return f"{concept.name}/{part}/{_hash(prompt)[:8]}"


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()

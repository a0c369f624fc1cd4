"""Ring-A-Bell (Tsai et al., arXiv 2310.10012): words whose encoding is the prompt's plus the concept. Text encoder
only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from probe.attacks import _genetic as genetic
from probe.attacks._costs import Cost
from probe.attacks._search import Case, Search
from probe.attacks._speaking import ids_of
from probe.errors import BadInput


def ring_a_bell(
    search: Search,
    *,
    k: int = 16,
    shift: float = 3.0,
    population: int = 200,
    generations: int = 3000,
    crossover: float = 0.5,
    mutation: float = 0.25,
    pairs: Sequence[tuple[str, str]] | None = None,
    positions: Literal["all", "text"] = "all",
) -> None:
    """A genetic search for k tokens whose encoding is nearest to that of the prompt moved along the concept.

        c = mean_i [ f(with_i) - f(without_i) ],   min over x of || f(x) - (f(prompt) + eta c) ||^2

    (eq. 2 and 3), f the encoder's output that the UNet reads, over all positions. Each generation keeps half,
    adds children of one-point crossover and changes single tokens; the best ever is kept apart (in the release it can
    be destroyed). One picture is judged at the end.

    Args:
        search: the prompts under attack.
        k: number of tokens, the whole prompt.
        shift: eta, how far along the concept (paper: 3 for nudity, 5 to 5.5 for violence).
        population, generations: of the search.
        crossover, mutation: probabilities of a member.
        pairs: texts with and without the concept; by default the concept's ``explicit`` prompts with their
            ``neighbour`` references (or the ``paper`` ones, or the prompts with the anchor in place of the name).
        positions: all, as published; or (ours, cheaper) only as far as the k tokens and their [EoT] reach.

    """
    search.start()
    with search.edited(), torch.no_grad():
        for case in search.active:
            known = list(pairs) if pairs is not None else concept_pairs(case.concept)
            if not search.allows(case, Cost(texts=1 + 2 * len(known) + population)):
                continue
            reach = (k + 2) if positions == "text" else None
            target = _target(search, case, shift, known)[:reach]
            _evolve(search, case, target, k, population, generations, crossover, mutation, reach)
    cases = [case for case in search.affordable(search.cost_of_image()) if case.best is not None]
    tried = [case.best for case in cases]
    search.judge(cases, [one for one in tried if one is not None], losses=[case.row.loss or 0.0 for case in cases])


def _evolve(
    search: Search,
    case: Case,
    target: Tensor,
    k: int,
    population: int,
    generations: int,
    crossover: float,
    mutation: float,
    reach: int | None,
) -> None:
    """Offer the best of every generation that spells nothing forbidden, as long as its picture can be judged."""
    allowed = torch.from_numpy(case.vocabulary.ids)
    members = torch.tensor([case.vocabulary.drawn(k, case.rng) for _ in range(population)])
    seen: dict[tuple[int, ...], float] = {}
    losses = _losses(search, case, members, target, reach, seen)
    _offer(search, case, members, losses)
    for _ in range(generations - 1):
        parents, _ = genetic.survivors(members, losses, population // 2)
        children = torch.cat([parents, genetic.crossed(parents, crossover, case.rng)])
        members = genetic.mutated(children, mutation, allowed, case.rng)
        if not search.allows(case, Cost(texts=len(members))):
            return
        losses = _losses(search, case, members, target, reach, seen)
        _offer(search, case, members, losses)


def _offer(search: Search, case: Case, members: Tensor, losses: Tensor) -> None:
    """Offer the member of the lowest loss that spells nothing forbidden; nothing where all do."""
    for i in losses.argsort(stable=True).tolist():
        if case.vocabulary.allows(members[i].tolist()):
            search.offer(case, search.tokens(members[i].tolist()), float(losses[i]))
            return


def _losses(
    search: Search, case: Case, members: Tensor, target: Tensor, reach: int | None, seen: dict[tuple[int, ...], float]
) -> Tensor:
    """Squared distances (p,) to the target, (k d). What was ``seen`` before is not encoded again."""
    rows = [tuple(row) for row in members.tolist()]
    if fresh := [row for row in dict.fromkeys(rows) if row not in seen]:
        text = search.read(case, fresh, length=reach).text.float()
        seen.update(zip(fresh, (text - target).square().sum((1, 2)).tolist(), strict=True))
    return torch.tensor([seen[row] for row in rows])


def _target(search: Search, case: Case, shift: float, pairs: Sequence[tuple[str, str]]) -> Tensor:
    """f(prompt) + eta c, (k d)."""
    tokenizer = search.pipe.tokenizer
    texts = [ids_of(tokenizer, text) for pair in pairs for text in pair]
    encoded = search.read(case, [case.source_ids, *texts]).text.float()
    direction = (encoded[1::2] - encoded[2::2]).mean(0)
    found: Tensor = encoded[0] + shift * direction
    return found


def concept_pairs(concept: object) -> list[tuple[str, str]]:
    """Texts with the concept, and the same without, from what a concept brings. `BadInput` where it brings none."""
    prompts = dict(getattr(concept, "prompts", {})).get("explicit", ())
    references = dict(getattr(concept, "references", {}))
    for form in ("neighbour", "paper"):
        if len(references.get(form, ())) == len(prompts) > 0:
            return list(zip(prompts, references[form], strict=True))
    anchor, names = getattr(concept, "anchor", ""), getattr(concept, "surface_forms", ())
    swapped = [(p, p.replace(name, anchor)) for p in prompts for name in names[:1] if anchor and name in p]
    if not swapped:
        raise BadInput(
            "there are no pairs of texts with and without the concept",
            given=getattr(concept, "name", repr(concept)),
            fix="pairs=[('a church', 'a house'), ...], or references in the concept",
        )
    return swapped

"""Operators of a genetic search over token sequences. Pure functions; randomness comes from a generator.

Shapes: p member of the population, k token.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

Population = Int[Tensor, "p k"]


def survivors(
    population: Population, losses: Float[Tensor, " p"], keep: int
) -> tuple[Int[Tensor, "few k"], Float[Tensor, " few"]]:
    """The ``keep`` members of the lowest losses, best first."""
    order = losses.argsort(stable=True)[:keep]
    return population[order], losses[order]


def crossed(population: Population, rate: float, generator: torch.Generator) -> Int[Tensor, "children k"]:
    """Children: with probability ``rate`` each member and a random other give two, cut at one point and exchanged."""
    n, k = population.shape
    if k < 2:
        return population[:0]
    chosen = torch.rand(n, generator=generator) < rate
    others = population[torch.randint(n, (n,), generator=generator)]
    cuts = torch.randint(1, k, (n, 1), generator=generator)
    before = torch.arange(k) < cuts
    pair = torch.stack([torch.where(before, population, others), torch.where(before, others, population)], dim=1)
    return pair[chosen].flatten(0, 1)


def mutated(population: Population, rate: float, allowed: Int[Tensor, " v"], generator: torch.Generator) -> Population:
    """A copy in which with probability ``rate`` a member has one random position changed to an allowed token.

    A copy: in the release survivors and parents share memory, and the best one can be destroyed.
    """
    found = population.clone()
    n, k = found.shape
    rows = torch.nonzero(torch.rand(n, generator=generator) < rate)[:, 0]
    at = torch.randint(k, (n,), generator=generator)[rows]
    found[rows, at] = allowed[torch.randint(len(allowed), (n,), generator=generator)[rows]]
    return found

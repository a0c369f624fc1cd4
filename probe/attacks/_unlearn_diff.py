"""UnlearnDiffAtk (Zhang et al., arXiv 2310.11868): the erased model denoises a picture of the concept best under the
prompt that brings the concept back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from probe import guidance
from probe.attacks import _simplex as simplex
from probe.attacks._costs import Cost
from probe.attacks._drawing import latents_of
from probe.attacks._search import Case, Search
from probe.attacks._speaking import encoders, filled, slots, table_of
from probe.scores._objectives import differentiating


def unlearn_diff(
    search: Search,
    *,
    k: int = 3,
    where: Literal["prefix", "suffix", "insert"] = "prefix",
    rounds: int = 50,
    iterations: int = 40,
    lr: float = 0.01,
    weight_decay: float = 0.1,
    begin: Literal["uniform", "random"] = "uniform",
) -> None:
    """k token distributions minimise the erased model's denoising loss on the original's picture of the prompt.

        min over P in simplex^k of E_{t, eps} || eps - eps_edited(x_t, t, c(P, prompt)) ||^2,  x_t of the target x_0

    (eq. 6 and 7). A step draws one-hot rows from P, passes the gradient straight through, clipped to [-1, 1], takes an
    Adam step and projects every row onto the simplex. Timesteps ascend; after each the most likely tokens are judged
    in a picture, and the search ends at the first that shows the concept.

    The release bisects for the projection, which is exact here; and it draws the target with another sampler and fewer
    steps than it evaluates with, here both are the same.

    Args:
        search: the prompts under attack.
        k: number of tokens (paper: 3 for objects and styles, 5 for harm).
        where: before, behind, or in the middle of the prompt.
        rounds: timesteps, evenly spread and ascending; a picture is judged after each.
        iterations: Adam steps at each timestep.
        lr, weight_decay: of Adam; the decay is added to the gradient (L2), as in the release.
        begin: rows start uniform, or at random points of the simplex.

    """
    search.start()
    _Attack(search, k, where, begin, lr, weight_decay).run(rounds, iterations)


class _Attack:
    """Distributions of all prompts in one tensor, (s f v)."""

    def __init__(self, search: Search, k: int, where: str, begin: str, lr: float, weight_decay: float) -> None:
        self.search, self.lr, self.weight_decay = search, lr, weight_decay
        self.cases = search.active
        if not self.cases:
            return
        pipe, self.k = search.pipe, k
        self.device = pipe.unet.device
        self.templates = [slots(case.source_ids, k, where) for case in self.cases]
        masks = np.stack([case.vocabulary.mask() for case in self.cases])
        self.allowed = torch.from_numpy(masks).to(self.device)[:, None].expand(-1, k, -1)
        start = torch.ones(self.allowed.shape)
        if begin == "random":
            start = torch.stack([torch.rand(start.shape[1:], generator=case.rng) for case in self.cases])
        start = start.to(self.device) * self.allowed
        self.p = start / start.sum(-1, keepdim=True)
        self.moments = torch.zeros((2, *self.p.shape), device=self.device)
        self.updates = torch.zeros(len(self.cases), dtype=torch.long, device=self.device)
        self.x_0 = latents_of(pipe, search.targets(self.cases))

    def run(self, rounds: int, iterations: int) -> None:
        if not self.cases:
            return
        total = len(self.search.pipe.scheduler.alphas_cumprod)
        for t in ((np.arange(rounds) + 0.5) * total / rounds).astype(int):
            one = Cost(forwards=1, backwards=1, texts=1) * iterations
            rows = self._rows(self.search.affordable(one + self.search.cost_of_image()))
            if not rows:
                return
            losses = self._descend(rows, int(t), iterations)
            tried = [self.search.tokens(self.best_tokens(r)) for r in rows]
            self.search.judge([self.cases[r] for r in rows], tried, losses=losses)

    def best_tokens(self, row: int) -> tuple[int, ...]:
        """The prompt with each row's most likely token; the next best where they spell something forbidden."""
        ranked = self.p[row].argsort(dim=-1, descending=True, stable=True).tolist()
        ranked = [[i for i in position if self.allowed[row, 0, i]] for position in ranked]
        tokens = self.cases[row].vocabulary.mended(tuple(position[0] for position in ranked), ranked)
        return filled(self.templates[row], tokens)

    def _rows(self, cases: Sequence[Case]) -> list[int]:
        return [self.cases.index(case) for case in cases]

    def _descend(self, rows: list[int], t: int, iterations: int) -> list[float]:
        """Adam steps at one timestep; the mean loss of each row."""
        pipe, cases = self.search.pipe, [self.cases[r] for r in rows]
        alpha_bar, at = guidance.alpha_bar(pipe, t), torch.tensor(rows, device=self.device)
        total = np.zeros(len(rows))
        with self.search.edited(), differentiating(pipe):
            for _ in range(iterations):
                noise = torch.stack([torch.randn(self.x_0.shape[1:], generator=case.rng) for case in cases])
                noise = noise.to(self.x_0)
                gradient, loss = self._gradient(rows, guidance.noised(self.x_0[at], noise, alpha_bar), noise, t)
                self._step(at, gradient)
                total += loss.double().cpu().numpy()
        return [float(x) / iterations for x in total]

    def _gradient(self, rows: list[int], x_t: Tensor, noise: Tensor, t: int) -> tuple[Tensor, Tensor]:
        """Gradient (s f v) of the loss by each row's distributions, and the losses (s)."""
        pipe, cases = self.search.pipe, [self.cases[r] for r in rows]
        p = self.p[rows].requires_grad_()
        ids = torch.stack([simplex.sampled(self.p[r], case.rng) for r, case in zip(rows, cases, strict=True)])
        one_hot = simplex.straight_through(p.flatten(0, 1), ids.flatten().to(self.device)).unflatten(0, p.shape[:2])
        vectors = {name: one_hot.to(table) @ table for name in encoders(pipe) if (table := table_of(pipe, name)).ndim}
        told = self.search.told(cases, [self.templates[r] for r in rows], vectors)
        predicted = self.search.noise(cases, x_t, t, told)
        losses = (predicted.float() - noise.float()).square().mean((1, 2, 3))
        (gradient,) = torch.autograd.grad(losses.sum(), p)
        self.search.went_back(cases)
        return gradient, losses.detach()

    def _step(self, at: Tensor, gradient: Tensor) -> None:
        """Adam on chosen rows, each with its own count of updates, then the projection."""
        self.updates[at] += 1
        p = self.p[at]
        gradient = gradient + self.weight_decay * p
        first = 0.9 * self.moments[0, at] + 0.1 * gradient
        second = 0.999 * self.moments[1, at] + 0.001 * gradient.square()
        self.moments[0, at], self.moments[1, at] = first, second
        n = self.updates[at][:, None, None]
        p = p - self.lr * (first / (1 - 0.9**n)) / ((second / (1 - 0.999**n)).sqrt() + 1e-8)
        flat, allowed = p.flatten(0, 1), self.allowed[at].flatten(0, 1)
        self.p[at] = simplex.project(flat, allowed).unflatten(0, p.shape[:2])

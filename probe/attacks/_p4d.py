"""Prompting4Debugging (Chin et al., arXiv 2309.06135): the prompt under which the edited model predicts the noise
that the original predicts under the concept's."""

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


def p4d(
    search: Search,
    *,
    form: Literal["n", "k"] = "n",
    k: int = 16,
    iterations: int = 3000,
    every: int = 50,
    lr: float = 0.1,
    weight_decay: float = 0.1,
    inputs: Literal["target", "noise"] = "target",
) -> None:
    """Continuous embeddings, projected to their nearest tokens in every forward, match the original's prediction.

        min over p of E_{t, x_t} || eps_edited(x_t, t, c(NN(p))) - eps_original(x_t, t, c(prompt)) ||^2

    (eq. 3 and 4). NN takes the token of the largest cosine; the gradient by the projected embedding moves the
    continuous one (PEZ). Every ``every`` iterations the tokens are judged in a picture.

    Where the release departs: it gives the VAE its target in [0, 1] instead of [-1, 1], pads with id 0 while it
    searches, and keeps the tokens whose pictures are nearest to the target's in CLIP; here the judge's log-odds decide.

    Args:
        search: the prompts under attack.
        form: ``n`` (P4D-N): ``k`` free tokens are the whole prompt; ``k`` (P4D-K): the prompt keeps its words, with
            one free token before every third.
        k: free tokens of P4D-N.
        iterations: updates of AdamW.
        every: iterations between judged pictures.
        lr, weight_decay: of AdamW.
        inputs: noised target picture of the original, as published; or pure noise at every t.

    """
    search.start()
    cases = search.active
    # one batch needs one number of free tokens; under K that depends on the prompt's length
    templates = {id(case): slots(case.source_ids, k, "alone" if form == "n" else "every3") for case in cases}
    for count in sorted({template.count(-1) for template in templates.values()}):
        part = [case for case in cases if templates[id(case)].count(-1) == count]
        _Attack(search, part, [templates[id(case)] for case in part], lr, weight_decay, inputs).run(iterations, every)


class _Attack:
    """Embeddings of one batch of prompts: encoder -> (s f d)."""

    def __init__(
        self,
        search: Search,
        cases: Sequence[Case],
        templates: Sequence[tuple[int, ...]],
        lr: float,
        weight_decay: float,
        inputs: str,
    ) -> None:
        self.search, self.cases, self.templates = search, list(cases), list(templates)
        pipe = search.pipe
        self.tables = {name: table_of(pipe, name).float() for name in encoders(pipe)}
        masks = torch.from_numpy(np.stack([case.vocabulary.mask() for case in cases]))
        self.allowed = masks.to(pipe.unet.device)[:, None].expand(-1, templates[0].count(-1), -1)
        first = torch.stack([self._random(case) for case in cases]).to(pipe.unet.device)
        # one token has an embedding in each encoder's table; they move together, side by side
        self.joined = torch.cat(list(self.tables.values()), dim=1)
        self.e = self.joined[first].clone().requires_grad_()
        self.optimiser = torch.optim.AdamW([self.e], lr=lr, weight_decay=weight_decay)
        self.x_0 = latents_of(pipe, search.targets(cases)) if inputs == "target" else None
        self.shape = (pipe.unet.config.in_channels, *(side // pipe.vae_scale_factor for side in search.drawing.size))

    def run(self, iterations: int, every: int) -> None:
        pipe, rng, done = self.search.pipe, self.search.shared_rng(), 0
        while done < iterations:
            count = min(every, iterations - done)
            block = Cost(forwards=2, backwards=1, texts=1) * count + Cost(texts=1)
            active = [case for case in self.cases if not case.done]
            cases = self.search.affordable(block + self.search.cost_of_image(), active)
            rows = [self.cases.index(case) for case in cases]
            if not rows:
                return
            times = torch.randint(len(pipe.scheduler.alphas_cumprod), (count,), generator=rng).tolist()
            self._block(rows, times)
            done += count
            tried = [self.search.tokens(self._tokens(row)) for row in rows]
            self.search.judge(cases, tried, losses=[self.losses[row] for row in rows])

    def _block(self, rows: list[int], times: list[int]) -> None:
        """Updates of some prompts at these timesteps. The original's predictions come first: an edit is in force or
        not for a whole block."""
        pipe, cases = self.search.pipe, [self.cases[row] for row in rows]
        inputs, goals = [], []
        with self.search.original(), differentiating(pipe), torch.no_grad():
            told = self.search.told(cases, [case.source_ids for case in cases])
            for t in times:
                noise = torch.stack([torch.randn(self.shape, generator=case.rng) for case in cases])
                noise = noise.to(pipe.unet.device, pipe.unet.dtype)
                x = noise if self.x_0 is None else guidance.noised(self.x_0[rows], noise, guidance.alpha_bar(pipe, t))
                inputs.append(x)
                goals.append(self.search.noise(cases, x, t, told))
        self.losses = dict.fromkeys(rows, 0.0)
        with self.search.edited(), differentiating(pipe):
            for t, x, goal in zip(times, inputs, goals, strict=True):
                losses = self._update(rows, cases, t, x, goal)
                for row, loss in zip(rows, losses.tolist(), strict=True):
                    self.losses[row] += loss / len(times)

    def _update(self, rows: list[int], cases: Sequence[Case], t: int, x: Tensor, goal: Tensor) -> Tensor:
        ids = self._nearest(rows)
        projected = {name: table[ids].requires_grad_() for name, table in self.tables.items()}
        told = self.search.told(cases, [self.templates[row] for row in rows], projected)
        losses = (self.search.noise(cases, x, t, told).float() - goal.float()).square().mean((1, 2, 3))
        gradients = torch.autograd.grad(losses.sum(), list(projected.values()))
        self.search.went_back(cases)
        self.e.grad = torch.zeros_like(self.e)
        self.e.grad[rows] = torch.cat(gradients, dim=-1)
        kept = self.e.detach().clone()
        self.optimiser.step()
        with torch.no_grad():  # decay and momentum must not move prompts whose search is over
            others = [row for row in range(len(self.cases)) if row not in rows]
            self.e[others] = kept[others]
        return losses.detach()

    def _nearest(self, rows: list[int]) -> Tensor:
        """Token ids (s f) that the embeddings stand for."""
        flat, allowed = self.e.detach()[rows].flatten(0, 1), self.allowed[rows].flatten(0, 1)
        return simplex.nearest_tokens(flat, self.joined, allowed).unflatten(0, (len(rows), -1))

    def _tokens(self, row: int) -> tuple[int, ...]:
        normal = torch.nn.functional.normalize
        cosine = normal(self.e.detach()[row], dim=-1) @ normal(self.joined, dim=-1).T
        ranked = cosine.argsort(dim=-1, descending=True, stable=True).tolist()
        ranked = [[i for i in position if self.allowed[row, 0, i]] for position in ranked]
        tokens = self.cases[row].vocabulary.mended(tuple(position[0] for position in ranked), ranked)
        return filled(self.templates[row], tokens)

    def _random(self, case: Case) -> Tensor:
        return torch.tensor(case.vocabulary.drawn(self.templates[self.cases.index(case)].count(-1), case.rng))

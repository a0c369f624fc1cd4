"""TINA (text-free inversion attack): a picture of the concept, run back to its noise by the edited model, without
words."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from probe import guidance
from probe.attacks._costs import Cost
from probe.attacks._drawing import Carried, ddim_step, grid, latents_of
from probe.attacks._search import Case, Search
from probe.scores._objectives import differentiating


def tina(
    search: Search,
    *,
    iterations: int = 25,
    lr: float = 1e-3,
    refine: Literal["adamw", "fixed_point"] = "adamw",
) -> None:
    """Invert the original's picture through the edited model's DDIM under the null text, then draw it again.

    If x_{t'} is the latent before a step and x_t the one behind it, x_t = DDIM(x_{t'}, eps(x_{t'}, t')), which cannot
    be solved for x_{t'} at once. The usual guess takes eps at x_t; it is then refined, ``iterations`` times a step, so
    that the step back meets x_t. Without text an edit of words changes nothing: what is drawn again was avoided, not
    removed. The picture is drawn by DDIM with as many steps as all others, unguided. One picture is judged.

    Args:
        search: the prompts under attack.
        iterations: refinements of every step.
        lr: of AdamW.
        refine: ``adamw`` descends on || DDIM(x_{t'}) - x_t ||^2 (published); ``fixed_point`` (ours, no gradients)
            puts eps at the current guess into the equation again.

    """
    search.start()
    gradients = refine == "adamw"
    each = Cost(forwards=1 + iterations, backwards=iterations if gradients else 0) * search.drawing.steps
    picture = search.cost_of_image()
    cases = search.affordable(replace(picture, images=0) + each + Cost(texts=1) + picture)
    if not cases:
        return
    x_0 = latents_of(search.pipe, search.targets(cases))
    with search.edited(), differentiating(search.pipe):
        x_T, losses = _inverted(search, cases, x_0, iterations, lr, gradients)
    carried = [
        Carried("latents", case.row.source, tensors={"x_T": own.float().cpu()})
        for case, own in zip(cases, x_T, strict=True)
    ]
    search.judge(cases, carried, losses=losses)


def _inverted(
    search: Search, cases: Sequence[Case], x_0: Tensor, iterations: int, lr: float, gradients: bool
) -> tuple[Tensor, list[float]]:
    """x_T, and the mean squared residual of each prompt's last step."""
    pipe = search.pipe
    with torch.no_grad():
        told = search.told(cases, [()] * len(cases))
    x, residual = x_0.detach(), torch.zeros(len(cases))
    times = [0, *grid(pipe, search.drawing.steps)]
    for behind, t in itertools.pairwise(times):
        now, then = guidance.alpha_bar(pipe, t), guidance.alpha_bar(pipe, behind)
        with torch.no_grad():
            noise = search.noise(cases, x, t, told)
            guess = ddim_step(x, noise, then, now)
        if gradients:
            guess, residual = _descended(search, cases, guess, x, t, now, then, told, iterations, lr)
        else:
            for _ in range(iterations):
                with torch.no_grad():
                    noise = search.noise(cases, guess, t, told)
                    residual = (ddim_step(guess, noise, now, then) - x).square().mean((1, 2, 3))
                    guess = ddim_step(x, noise, then, now)
        x = guess
    return x, [float(r) for r in residual]


def _descended(
    search: Search,
    cases: Sequence[Case],
    guess: Tensor,
    x: Tensor,
    t: int,
    now: float,
    then: float,
    told: guidance.Conditioning,
    iterations: int,
    lr: float,
) -> tuple[Tensor, Tensor]:
    guess = guess.detach().requires_grad_()
    optimiser = torch.optim.AdamW([guess], lr=lr)
    residual = torch.zeros(len(cases))
    for _ in range(iterations):
        noise = search.noise(cases, guess, t, told)
        residuals = (ddim_step(guess, noise, now, then) - x).square().mean((1, 2, 3))
        (guess.grad,) = torch.autograd.grad(residuals.sum(), guess)
        search.went_back(cases)
        optimiser.step()
        residual = residuals.detach()
    return guess.detach(), residual

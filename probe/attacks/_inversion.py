"""Concept inversion (Pham et al., arXiv 2308.01508): a new word, learned on pictures of what was erased."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import torch

from probe import guidance
from probe._generate import generate
from probe._samples import samples
from probe.attacks._costs import Cost
from probe.attacks._drawing import Carried, latents_of
from probe.attacks._search import Case, Search
from probe.attacks._speaking import FREE, Spoken, Vectors, encoders, ids_of, table_of, told
from probe.scores._objectives import differentiating

#: Captions of the learned word; {} is it (ours: the paper's are textual inversion's).
TEMPLATES = ("{}", "a drawing of {}", "a picture of {}", "this shows {}", "a simple image of {}")


def inversion(
    search: Search,
    *,
    iterations: int = 5000,
    batch: int = 16,
    lr: float = 5e-3,
    examples: int = 25,
    templates: Sequence[str] = TEMPLATES,
) -> None:
    """Textual inversion on the edited model: one embedding, learned on the original's pictures of the concept.

        min over v of E_{x_0, t, eps} || eps - eps_edited(x_t, t, c(template, v)) ||^2

    (eq. 5.) One word is learned for each concept; then every prompt is drawn with it in place of the concept's name, or
    as "a picture of v" where the prompt does not name it, and judged once. The release multiplies its rate by the size
    of the batch (``scale_lr``) to 0.08; AdamW has weight decay 0.01 as there.

    Args:
        search: the prompts under attack.
        iterations: updates.
        batch: pictures in each.
        lr: of AdamW.
        examples: pictures of the concept, drawn by the original from the concept's own prompts.
        templates: captions, with {} for the word.

    """
    search.start()
    for name in dict.fromkeys(case.row.concept for case in search.active):
        cases = [case for case in search.active if case.row.concept == name]
        learning = _Learning(Shared(search, cases), examples, lr, templates)
        try:
            learning.run(iterations, batch)
        finally:  # the word is kept where the search is interrupted, or no picture of it may be judged
            for case in cases if learning.updates else []:
                search.offer(case, learning.carried(case))
        cases = search.affordable(search.cost_of_image(), [case for case in cases if case.best is not None])
        search.judge(cases, [learning.carried(case) for case in cases])


class _Learning:
    """One word for the prompts of a concept: encoder -> (1 d)."""

    def __init__(self, share: Shared, examples: int, lr: float, templates: Sequence[str]) -> None:
        self.share, self.pipe, self.examples, self.updates = share, share.search.pipe, examples, 0
        self.captions = [_template(self.pipe, text) for text in templates]
        first = ids_of(self.pipe.tokenizer, share.cases[0].concept.anchor or "something")[-1]
        self.word = {name: table_of(self.pipe, name)[[first]].float().requires_grad_() for name in encoders(self.pipe)}
        self.optimiser = torch.optim.AdamW(self.word.values(), lr=lr, weight_decay=1e-2)

    def run(self, iterations: int, batch: int) -> None:
        """Updates, as long as the prompts may spend their shares of them."""
        share, rng = self.share, self.share.search.shared_rng()
        each = Cost(forwards=batch, backwards=batch, texts=batch)
        if not share.allows(share.cost_of_drawing(self.examples) + each):
            return
        x_0 = latents_of(self.pipe, share.drawn(examples_of(share.cases[0], self.examples)))
        with share.search.edited(), differentiating(self.pipe):
            for _ in range(iterations):
                if not share.allows(each):
                    return
                rows = torch.randint(len(x_0), (batch,), generator=rng)
                chosen = torch.randint(len(self.captions), (batch,), generator=rng).tolist()
                vectors = {name: v.expand(batch, 1, -1) for name, v in self.word.items()}
                told = share.told([self.captions[i] for i in chosen], vectors)
                loss = share.denoising_loss(x_0[rows], told, rng)
                gradients = torch.autograd.grad(loss, list(self.word.values()))
                share.went_back(batch)
                for v, gradient in zip(self.word.values(), gradients, strict=True):
                    v.grad = gradient
                self.optimiser.step()
                self.updates += 1

    def carried(self, case: Case) -> Carried:
        """A prompt with the word as it is now."""
        vectors = {name: v.detach().clone() for name, v in self.word.items()}
        return Carried("embedding", spoken=Spoken(_spoken(self.pipe, case), vectors))


class Shared:
    """Work for several prompts at once, its cost spread evenly over them (rounded up)."""

    def __init__(self, search: Search, cases: Sequence[Case]) -> None:
        self.search, self.cases = search, list(cases)
        self.spent = Cost()

    def allows(self, more: Cost) -> bool:
        """Whether every prompt that is still searched for may spend its share of ``more``; see `Search.allows`."""
        active, part = [case for case in self.cases if not case.done], self._part(more)
        return bool(active) and all(self.search.allows(case, part) for case in active)

    def cost_of_drawing(self, count: int) -> Cost:
        """What so many pictures cost that no judge sees."""
        return replace(self.search.cost_of_image() * count, images=0)

    def drawn(self, table: pd.DataFrame) -> np.ndarray:
        """Pictures of a table of samples by the model without the edit, uint8 (s y x rgb)."""
        drawing = self.search.drawing
        height, width = drawing.size
        images = generate(
            self.search.pipe,
            table,
            steps=drawing.steps,
            guidance=drawing.guidance,
            batch_size=drawing.batch_size,
            height=height,
            width=width,
            progress=False,
        )
        self._spend(self.cost_of_drawing(len(table)))
        return images

    def told(self, spoken: Sequence[Sequence[int]], vectors: Vectors | None = None) -> guidance.Conditioning:
        """See `Search.told`."""
        self._spend(Cost(texts=len(spoken)))
        return told(self.search.pipe, spoken, vectors, size=self.search.drawing.size)

    def denoising_loss(
        self, x_0: torch.Tensor, conditioning: guidance.Conditioning, rng: torch.Generator
    ) -> torch.Tensor:
        """Mean of || eps - eps_edited(x_t, t, c) ||^2; every sample of x_0 (s c y x) has a t and an eps of its own."""
        pipe = self.search.pipe
        t = torch.randint(len(pipe.scheduler.alphas_cumprod), (len(x_0),), generator=rng)
        noise = torch.randn(x_0.shape, generator=rng).to(x_0)
        alpha_bar = pipe.scheduler.alphas_cumprod[t].to(x_0.device, torch.float32).reshape(-1, 1, 1, 1)
        self._spend(Cost(forwards=len(x_0)))
        predicted = guidance.predicted_noise(pipe, guidance.noised(x_0, noise, alpha_bar), t, conditioning)
        return (predicted - noise.float()).square().mean()

    def went_back(self, count: int) -> None:
        """See `Search.went_back`."""
        self._spend(Cost(backwards=count))

    def _spend(self, cost: Cost) -> None:
        part = self._part(cost)
        self.spent += cost
        self.search._spend(self.cases, part)

    def _part(self, more: Cost) -> Cost:
        """What each prompt pays of ``more``, after its share of all that was spent."""
        counts = zip(self.spent.counts(), more.counts(), strict=True)
        n = len(self.cases)
        return Cost(*(-(-(spent + added) // n) - -(-spent // n) for spent, added in counts))


def examples_of(case: Case, count: int) -> pd.DataFrame:
    """Samples that show a concept: its own prompts to fit on, where it has them."""
    prompts = list(dict(case.concept.prompts).get("explicit", ())) or [case.row.source]
    return samples([prompts[i % len(prompts)] for i in range(count)], seeds=list(range(count)))


def _template(pipe: Any, text: str) -> tuple[int, ...]:
    before, _, after = text.partition("{}")
    return (*ids_of(pipe.tokenizer, before), FREE, *ids_of(pipe.tokenizer, after))


def _spoken(pipe: Any, case: Case) -> tuple[int, ...]:
    """The prompt's tokens with the word in place of the concept's name, the longest of its surface forms."""
    forms = sorted({case.concept.name, *case.concept.surface_forms}, key=len, reverse=True)
    ids = case.source_ids
    for form in forms:
        name = ids_of(pipe.tokenizer, form)
        for at in range(len(ids) - len(name) + 1):
            if name and ids[at : at + len(name)] == name:
                return (*ids[:at], FREE, *ids[at + len(name) :])
    return _template(pipe, "a picture of {}")

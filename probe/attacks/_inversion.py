"""Concept inversion (Pham et al., arXiv 2308.01508): a new word, learned on pictures of what was erased."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from probe import guidance
from probe._samples import samples
from probe.attacks._costs import Cost
from probe.attacks._drawing import Carried, latents_of
from probe.attacks._search import Case, Search
from probe.attacks._speaking import FREE, Spoken, encoders, ids_of, table_of
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
        each = Cost(forwards=batch, backwards=batch, texts=batch)
        if not (cases := search.affordable(each, cases)):
            continue
        vectors = _learned(search, cases, iterations, batch, lr, examples, templates)
        carried = [Carried("embedding", spoken=Spoken(_spoken(search.pipe, case), vectors)) for case in cases]
        cases_now = search.affordable(search.cost_of_image(), cases)
        search.judge(cases_now, [carried[cases.index(case)] for case in cases_now])


def _learned(
    search: Search, cases: Sequence[Case], iterations: int, batch: int, lr: float, count: int, templates: Sequence[str]
) -> dict[str, torch.Tensor]:
    """Encoder -> (1 d): the word. Work for one word is shared by its prompts."""
    pipe, rng = search.pipe, search.shared_rng()
    x_0 = _pictures(search, cases[0], count)
    tables = {name: table_of(pipe, name).float() for name in encoders(pipe)}
    first = ids_of(pipe.tokenizer, cases[0].concept.anchor or "something")[-1]
    word = {name: table[[first]].clone().requires_grad_() for name, table in tables.items()}
    captions = [_template(pipe, text) for text in templates]
    optimiser = torch.optim.AdamW(word.values(), lr=lr, weight_decay=1e-2)
    share = Shared(search, cases)
    with search.edited(), differentiating(pipe):
        for _ in range(iterations):
            if not share.affordable(Cost(forwards=batch, backwards=batch, texts=batch)):
                break
            rows = torch.randint(len(x_0), (batch,), generator=rng)
            t = int(torch.randint(len(pipe.scheduler.alphas_cumprod), (), generator=rng))
            noise = torch.randn((batch, *x_0.shape[1:]), generator=rng).to(x_0)
            chosen = [captions[i] for i in torch.randint(len(captions), (batch,), generator=rng).tolist()]
            vectors = {name: v.expand(batch, 1, -1) for name, v in word.items()}
            told = share.told(chosen, vectors)
            predicted = share.noise(guidance.noised(x_0[rows], noise, guidance.alpha_bar(pipe, t)), t, told)
            loss = (predicted.float() - noise.float()).square().mean()
            gradients = torch.autograd.grad(loss, list(word.values()))
            share.went_back(batch)
            for v, gradient in zip(word.values(), gradients, strict=True):
                v.grad = gradient
            optimiser.step()
    return {name: v.detach() for name, v in word.items()}


class Shared:
    """Work for several prompts at once, its cost spread evenly over them (rounded up)."""

    def __init__(self, search: Search, cases: Sequence[Case]) -> None:
        self.search, self.cases = search, list(cases)
        self.spent = Cost()

    def affordable(self, more: Cost) -> bool:
        """Whether the prompts may still spend their shares of ``more``."""
        return bool(self.search.affordable(self._share(more), self.cases))

    def told(self, spoken: Sequence[Sequence[int]], vectors: Any = None) -> guidance.Conditioning:
        """See `Search.told`."""
        from probe.attacks._speaking import told

        self._spend(Cost(texts=len(spoken)))
        return told(self.search.pipe, spoken, vectors, size=self.search.drawing.size)

    def noise(self, x: torch.Tensor, t: int, told: guidance.Conditioning) -> torch.Tensor:
        """See `Search.noise`."""
        from probe.attacks._drawing import noise_at

        self._spend(Cost(forwards=len(x)))
        return noise_at(self.search.pipe, x, t, told)

    def went_back(self, count: int) -> None:
        """See `Search.went_back`."""
        self._spend(Cost(backwards=count))

    def _spend(self, cost: Cost) -> None:
        before = self._share(self.spent)
        self.spent += cost
        after = self._share(self.spent)
        self.search._spend(self.cases, Cost(*(b - a for a, b in zip(before.counts(), after.counts(), strict=True))))

    def _share(self, cost: Cost) -> Cost:
        return Cost(*(-(-count // max(len(self.cases), 1)) for count in cost.counts()))


def _pictures(search: Search, case: Case, count: int) -> torch.Tensor:
    """x_0 of the concept by the original, from prompts to fit on where the concept has them."""
    prompts = list(dict(case.concept.prompts).get("explicit", ())) or [case.row.source]
    table = samples([prompts[i % len(prompts)] for i in range(count)], seeds=list(range(count)))
    return latents_of(search.pipe, search.drawn_by_original(table, case))


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

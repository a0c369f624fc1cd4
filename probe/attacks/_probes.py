"""The cheapest tests of "removed, or only avoided": a started picture, and a little fine-tuning."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from probe.attacks._costs import Cost
from probe.attacks._drawing import Carried, latents_of, moved_weights
from probe.attacks._inversion import Shared, examples_of
from probe.attacks._search import Case, Search
from probe.attacks._speaking import ids_of
from probe.errors import BadInput
from probe.scores._objectives import differentiating


def completion(search: Search, *, starts: Sequence[float] = (0.2, 0.4, 0.6), each: int = 1) -> None:
    """The original draws the first share of the steps, the edited model the others, under the same prompt.

    As the diffusion-completion probe of Lu et al. (When Are Concepts Erased, 2025). A model from which the concept
    is gone cannot finish it; one that only avoids its beginning can. Starts are tried in order.

    Args:
        search: the prompts under attack.
        starts: shares of the steps that the original draws, each between 0 and 1.
        each: pictures at every start, from further seeds.

    """
    if bad := [start for start in starts if not 0 < start < 1]:
        raise BadInput("a start is a share of the steps", given=bad[0], expected="between 0 and 1")
    search.start()
    for start in starts:
        for i in range(each):
            cases = search.affordable(search.cost_of_image())
            seeds = [case.row.seed if i == 0 else _seed(case) for case in cases]
            search.judge(cases, [Carried("start", case.row.source, None, start) for case in cases], seeds)


def relearn(
    search: Search,
    *,
    stops: Sequence[int] = (20, 50, 100),
    examples: int = 8,
    lr: float = 1e-4,
    layers: str = "attn2",
) -> None:
    """Fine-tune the edited UNet on a few pictures of the concept, and see how soon it draws it again.

    The usual denoising loss on the original's pictures of the concept's prompts, all of them in every update; the
    prompts under attack are judged after each number of iterations. What is kept is the difference of weights, on
    top of the edit. No prompt of the attack is trained on.

    Args:
        search: the prompts under attack.
        stops: updates after which prompts are judged, ascending.
        examples: pictures that are trained on.
        lr: of AdamW.
        layers: parameters whose name holds this are trained.

    """
    if sorted(set(stops)) != list(stops) or not stops or stops[0] < 1:
        raise BadInput("stops ascend, from at least 1 update", given=list(stops))
    search.start()
    for name in dict.fromkeys(case.row.concept for case in search.active):
        _Relearning(search, [c for c in search.active if c.row.concept == name], examples, lr, layers).run(stops)


class _Relearning:
    """Training on one concept. Weights are moved inside blocks only."""

    def __init__(self, search: Search, cases: Sequence[Case], examples: int, lr: float, layers: str) -> None:
        self.search, self.cases, self.share = search, list(cases), Shared(search, cases)
        pipe, table = search.pipe, examples_of(cases[0], examples)
        self.spoken = [ids_of(pipe.tokenizer, text) for text in table["prompt"]]
        self.x_0 = latents_of(pipe, self.share.drawn(table))
        shapes = {name: p.shape for name, p in pipe.unet.named_parameters() if layers in name}
        if not shapes:
            raise BadInput("no parameter of the UNet is called so", given=layers, fix="layers='attn2'")
        self.delta: dict[str, Tensor] = {name: torch.zeros(shape) for name, shape in shapes.items()}
        self.moments: dict[str, tuple[Tensor, Tensor]] = {}
        self.lr, self.done = lr, 0

    def run(self, stops: Sequence[int]) -> None:
        rng = self.search.shared_rng()
        for stop in stops:
            more = Cost(forwards=len(self.x_0), backwards=len(self.x_0)) * (stop - self.done)
            if not self.share.allows(more):
                return
            self._train(stop - self.done, rng)
            self.done = stop
            cases = self.search.affordable(self.search.cost_of_image(), [c for c in self.cases if not c.done])
            if not cases:
                return
            tensors = {name: value.clone() for name, value in self.delta.items()}
            self.search.judge(cases, [Carried("weights", c.row.source, tensors=tensors) for c in cases])

    def _train(self, count: int, rng: torch.Generator) -> None:
        """Updates of the difference, by AdamW on what the moved weights say."""
        pipe = self.search.pipe
        chosen = {name: p for name, p in pipe.unet.named_parameters() if name in self.delta}
        with self.search.edited():
            before = {name: p.detach().float().clone() for name, p in chosen.items()}
            with moved_weights(pipe, self.delta), differentiating(pipe):
                self._update(chosen, count, rng)
                for name, parameter in chosen.items():
                    self.delta[name] = (parameter.detach().float() - before[name]).cpu()

    def _update(self, chosen: dict[str, torch.nn.Parameter], count: int, rng: torch.Generator) -> None:
        with torch.no_grad():
            told = self.share.told(self.spoken)
        for parameter in chosen.values():
            parameter.requires_grad_(True)
        optimiser = torch.optim.AdamW(chosen.values(), lr=self.lr, weight_decay=0.0)
        for name, parameter in chosen.items():
            if name in self.moments:
                first, second = self.moments[name]
                step = torch.tensor(float(self.done))
                optimiser.state[parameter] = {"step": step, "exp_avg": first, "exp_avg_sq": second}
        try:
            for _ in range(count):
                loss = self.share.denoising_loss(self.x_0, told, rng)
                optimiser.zero_grad()
                loss.backward()
                self.share.went_back(len(self.x_0))
                optimiser.step()
        finally:
            for parameter in chosen.values():
                parameter.requires_grad_(False)
                parameter.grad = None
        for name, parameter in chosen.items():
            state = optimiser.state[parameter]
            self.moments[name] = state["exp_avg"], state["exp_avg_sq"]


def _seed(case: Case) -> int:
    return int(torch.randint(2**31, (1,), generator=case.rng))

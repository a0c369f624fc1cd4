"""What an attack works with: the prompts under attack, the model in both states, a judge, and a count of everything."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from probe import guidance
from probe.attacks._costs import Cost, Limits
from probe.attacks._drawing import Carried, Drawing, draw, in_force, noise_at
from probe.attacks._found import Found, Try
from probe.attacks._speaking import Spoken, Vectors, check_room, ids_of, text_of, told
from probe.attacks._vocabulary import Vocabulary
from probe.scores._judge import judged


@dataclass(eq=False)
class Case:
    """One prompt under attack, and the best that was found so far."""

    row: Found
    concept: Any
    labels: tuple[str, ...]
    vocabulary: Vocabulary
    source_ids: tuple[int, ...]
    rng: torch.Generator
    cost: Cost = field(default_factory=Cost)
    seeds: list[int] = field(default_factory=list)
    tries: list[Try] = field(default_factory=list)
    best: Carried | None = None
    done: bool = False


class Search:
    """The state of one attack on prompts that are searched for together.

    Methods of attack read `active`, draw with `judge`, predict with `noise`, and offer what they find; nothing else
    counts costs or keeps results.
    """

    def __init__(
        self,
        pipe: Any,
        edit: Any,
        cases: Sequence[Case],
        judge: Any,
        drawing: Drawing,
        limits: Limits,
        keep: Callable[[Found, Mapping[str, Tensor]], object],
        advance: Callable[[int], object],
        seed: int,
    ) -> None:
        self.pipe, self.edit, self.cases, self.drawing = pipe, edit, list(cases), drawing
        self._judge, self._limits, self._keep, self._advance = judge, limits, keep, advance
        self.seed, self._keep_tries = seed, False

    # --- the prompts ---

    @property
    def active(self) -> list[Case]:
        """The prompts that are still searched for."""
        return [case for case in self.cases if not case.done]

    def affordable(self, more: Cost, cases: Sequence[Case] | None = None) -> list[Case]:
        """Those of the active prompts that may still spend ``more``; the search of the others ends."""
        for case in self.active if cases is None else cases:
            if not self._limits.allow(case.cost, more):
                self.finish(case)
        return [case for case in (self.active if cases is None else cases) if not case.done]

    def allows(self, case: Case, more: Cost) -> bool:
        """Whether a prompt may spend ``more`` and have a picture judged afterwards; unlike `affordable` this ends no
        search, so that what was found until then is kept and judged."""
        return self._limits.allow(case.cost + self.cost_of_image(), more)

    def finish(self, case: Case) -> None:
        """The search for this prompt is over."""
        if not case.done:
            case.done = True
            self._write(case, finished=True)
            self._advance(1)

    def close(self, *, finished: bool) -> None:
        """Keep what was found for every prompt that is still active."""
        for case in self.active:
            if finished:
                self.finish(case)
            else:
                self._write(case, finished=False)

    def shared_rng(self) -> torch.Generator:
        """Random numbers that are the same for every prompt and every batch of them."""
        return torch.Generator().manual_seed(self.seed)

    # --- the model ---

    def original(self) -> AbstractContextManager[Any]:
        """The model without the edit, for a with-block."""
        return in_force(self.pipe, None)

    def edited(self) -> AbstractContextManager[Any]:
        """The model under attack, for a with-block."""
        return in_force(self.pipe, self.edit)

    def told(
        self, cases: Sequence[Case], spoken: Sequence[Sequence[int]], vectors: Vectors | None = None
    ) -> guidance.Conditioning:
        """The conditioning of one prompt a case, given as token ids and embeddings; counted as read texts."""
        self._spend(cases, Cost(texts=1))
        return told(self.pipe, spoken, vectors, size=self.drawing.size)

    def read(
        self,
        case: Case,
        spoken: Sequence[Sequence[int]],
        vectors: Vectors | None = None,
        length: int | None = None,
    ) -> guidance.Conditioning:
        """Many texts for one case, whole or their first ``length`` positions."""
        self._spend([case], Cost(texts=len(spoken)))
        return told(self.pipe, spoken, vectors, size=self.drawing.size, length=length)

    def noise(
        self, cases: Sequence[Case], x: Tensor, timestep: int, conditioning: guidance.Conditioning, each: int = 1
    ) -> Tensor:
        """The predicted noise (s c y x); ``each`` samples a case."""
        self._spend(cases, Cost(forwards=each))
        return noise_at(self.pipe, x, timestep, conditioning)

    def went_back(self, cases: Sequence[Case], each: int = 1) -> None:
        """Count a backward pass through the UNet."""
        self._spend(cases, Cost(backwards=each))

    def targets(self, cases: Sequence[Case]) -> np.ndarray:
        """Pictures of the prompts by the model without the edit, uint8 (s y x rgb). Their cost counts, no judge sees
        them."""
        images = self._draw(cases, [self.plain(case) for case in cases], [case.row.seed for case in cases], None)
        self._spend(cases, replace(self.cost_of_image(), images=0))
        return images

    # --- what is found ---

    def plain(self, case: Case) -> Carried:
        """The prompt without an attack."""
        return Carried("tokens", spoken=Spoken(case.source_ids))

    def tokens(self, ids: Sequence[int]) -> Carried:
        """An attack that is nothing but token ids."""
        check_room(self.pipe, len(ids), "an attacked prompt")
        return Carried("tokens", spoken=Spoken(tuple(int(i) for i in ids)))

    def cost_of_image(self) -> Cost:
        """What one judged picture costs."""
        branches = 2 if self.drawing.guidance > 1 and self.pipe.unet.config.time_cond_proj_dim is None else 1
        return Cost(forwards=self.drawing.steps * branches, texts=branches, images=1)

    def start(self, *, keep: bool = False, tries: bool = False) -> None:
        """Judge the prompts as they are. What an edited model shows already needs no attack, and its search ends.

        The model as it is mostly shows them: there the search goes on, and finds what may serve against edits. ``keep``
        takes the prompt itself for what was found, wherever it is shown; with ``tries`` rows have every judged picture.
        """
        self._keep_tries = tries
        cases = self.affordable(self.cost_of_image())
        if not cases:
            return
        plain, seeds = [self.plain(case) for case in cases], [case.row.seed for case in cases]
        odds, shown = self._verdicts(cases, self._draw(cases, plain, seeds, self.edit))
        self._spend(cases, self.cost_of_image())
        for i, case in enumerate(cases):
            self._remember(case, plain[i], case.row.seed, shown[i], odds[i])
            case.row = replace(case.row, before=shown[i])
            ends = bool(shown[i]) and (keep or self.edit is not None)
            if keep or ends:
                self._consider(case, plain[i], case.row.seed, shown[i], odds[i], None)
            if ends:
                self.finish(case)

    def judge(
        self,
        cases: Sequence[Case],
        carried: Sequence[Carried],
        seeds: Sequence[int] | None = None,
        *,
        losses: Sequence[float] | None = None,
        stop_early: bool = True,
    ) -> list[bool | None]:
        """Draw one attacked prompt for each case, have it judged, and keep it where it is the best.

        Returns the verdicts, None where the judge failed. With ``stop_early`` a case that is shown is finished. The
        edit must not be in force.
        """
        if not cases:
            return []
        seeds = [case.row.seed for case in cases] if seeds is None else list(seeds)
        images = self._draw(cases, carried, seeds, self.edit)
        odds, verdicts = self._verdicts(cases, images)
        self._spend(cases, self.cost_of_image())
        for i, case in enumerate(cases):
            self._remember(case, carried[i], int(seeds[i]), verdicts[i], odds[i])
            self._consider(
                case, carried[i], int(seeds[i]), verdicts[i], odds[i], None if losses is None else float(losses[i])
            )
            if verdicts[i] and stop_early:
                self.finish(case)
        return verdicts

    def _verdicts(self, cases: Sequence[Case], images: np.ndarray) -> tuple[list[float | None], list[bool | None]]:
        """Log-odds and verdict on each picture's own concept, None where the judge failed."""
        odds, hits = np.full((2, len(cases)), np.nan)
        for labels in dict.fromkeys(case.labels for case in cases):
            at = [i for i, case in enumerate(cases) if case.labels == labels]
            odds[at], hits[at] = judged(self._judge, images[at], labels)
        return [None if math.isnan(x) else float(x) for x in odds], [None if math.isnan(x) else bool(x) for x in hits]

    def offer(self, case: Case, carried: Carried, loss: float | None = None) -> None:
        """Keep an attack that no judge has seen, where its loss is the lowest so far: it survives an interruption."""
        self._consider(case, carried, case.row.seed, None, None, loss)

    def _remember(self, case: Case, carried: Carried, seed: int, hit: bool | None, score: float | None) -> None:
        case.seeds.append(seed)
        if self._keep_tries and carried.spoken is not None:
            ids = carried.spoken.ids
            case.tries.append(Try(ids, text_of(self.pipe.tokenizer, ids), seed, hit, score))

    def _consider(
        self, case: Case, carried: Carried, seed: int, hit: bool | None, score: float | None, loss: float | None
    ) -> None:
        spoken = carried.spoken
        ids = () if spoken is None else spoken.ids
        text = text_of(self.pipe.tokenizer, ids) if spoken is not None else carried.prompt
        row = replace(
            case.row,
            carrier=carried.carrier,
            token_ids=ids,
            prompt=text,
            at=carried.at,
            found_seed=seed,
            success=hit,
            score=score,
            loss=loss if loss is None or math.isfinite(loss) else None,
        )
        if case.best is None or _rank(row) > _rank(case.row):
            case.row, case.best = row, carried

    def _draw(self, cases: Sequence[Case], carried: Sequence[Carried], seeds: Sequence[int], edit: Any) -> np.ndarray:
        return draw(self.pipe, edit, carried, seeds, [case.row.guidance for case in cases], self.drawing)

    def _spend(self, cases: Sequence[Case], cost: Cost) -> None:
        for case in cases:
            case.cost += cost

    def _write(self, case: Case, *, finished: bool) -> None:
        best = case.best or self.plain(case)
        tensors = dict(best.tensors)
        if best.spoken is not None:
            tensors |= dict(best.spoken.vectors)
        row = replace(
            case.row,
            cost=case.cost.to_json(),
            seeds=tuple(case.seeds),
            tries=tuple(case.tries),
            finished=finished,
        )
        if case.best is None:  # the search ended before anything was found
            row = replace(row, token_ids=case.source_ids, prompt=row.source, found_seed=row.seed, success=row.before)
        self._keep(row, tensors)


def _rank(row: Found) -> tuple[bool, float, float]:
    """How good it is: shown, then the judge's log-odds, then the attack's own loss."""
    score = -math.inf if row.score is None else row.score
    return bool(row.success), score, -math.inf if row.loss is None else -row.loss


def case_rng(seed: int, row: Found) -> torch.Generator:
    """Random numbers of one prompt, whatever else is attacked beside it."""
    text = f"{seed}\n{row.concept}\n{row.source}\n{row.seed}"
    return torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big"))


def source_ids(pipe: Any, prompt: str) -> tuple[int, ...]:
    """The token ids of a prompt that is to be attacked; `BadInput` where the encoder would cut it."""
    ids = ids_of(pipe.tokenizer, prompt)
    check_room(pipe, len(ids), f"the prompt {prompt!r}")
    return ids

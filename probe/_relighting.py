"""What a sensitivity records: the attacked prompts in every condition, at two kinds of x_t, on two models."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from probe import _axis
from probe._neuron_map import NeuronMap
from probe._record import record
from probe._recorded import Recorded, recorded
from probe._sites import Site
from probe._trajectories import trajectories
from probe.attacks import AttackSet, Carried
from probe.attacks._baselines import random_tokens
from probe.attacks._replay import carried_of
from probe.attacks._speaking import Spoken, standing_in
from probe.attacks._vocabulary import Vocabulary, vocabulary
from probe.errors import BadInput
from probe.protocols import EditLike
from probe.scores import _reactivation as maths

logger = logging.getLogger(__name__)

XT = ("shared", "own")
REDUCER = "absmean"


@dataclass(frozen=True, eq=False)
class Condition:
    """Prompts of one kind: a table of samples, what stands in for their placeholders, and on which model."""

    name: str
    table: pd.DataFrame
    spoken: Mapping[str, Spoken]
    edited: bool


@dataclass(frozen=True, eq=False)
class Study:
    """One edit under one attack set: which prompts are recorded on which model, and which neurons are the concept's."""

    pipe: Any
    edit: EditLike
    attacks: AttackSet
    sites: list[Site]
    steps: int
    guidance: float
    batch_size: int

    # --- what is recorded ---

    def conditions(self, non_concept: Sequence[str] | None, concept: Any, seed: int) -> list[Condition]:
        """All conditions on the attacked prompts, row by row; those without rows are left out."""
        rows = list(self.attacks)
        good, bad = ([row for row in rows if row.success is value] for value in (True, False))
        if not good:
            logger.warning("no attack of %r succeeded: the ratio of the concept's neurons is NaN", self.attacks)
        prefix = [self._random(row, seed) for row in rows]
        plain = self._table(rows, [row.source for row in rows])
        found = [
            Condition("original", plain, {}, False),
            Condition("plain", plain, {}, True),
            self._condition("adversarial", good, [carried_of(self.pipe, row, {}) for row in good]),
            self._condition("random_prefix", rows, prefix),
            self._condition("failed", bad, [carried_of(self.pipe, row, {}) for row in bad]),
        ]
        others = list(non_concept) if non_concept is not None else _references(concept)
        if others:
            listed = [others[i % len(others)] for i in range(len(rows))]
            found.append(Condition("non_concept", self._table(rows, listed), {}, True))
        return [condition for condition in found if len(condition.table)]

    def _condition(self, name: str, rows: Sequence[Any], carried: Sequence[Carried]) -> Condition:
        spoken = {one.key: one.spoken for one in carried if one.spoken is not None}
        return Condition(name, self._table(rows, [one.key for one in carried]), spoken, True)

    def _table(self, rows: Sequence[Any], prompts: Sequence[str]) -> pd.DataFrame:
        """One sample a row; ``pair`` and ``prompt_id`` are its place among the attacked prompts."""
        place = {row.key: i for i, row in enumerate(self.attacks)}
        at = [place[row.key] for row in rows]
        seeds = [row.found_seed for row in rows]
        return pd.DataFrame({"prompt": list(prompts), "prompt_id": at, "seed": seeds, "pair": at})

    def _random(self, row: Any, seed: int) -> Carried:
        """The prompt with as many random tokens as the attack put in front of it, or as many random tokens alone."""
        source = carried_of(self.pipe, row, {}, source=True).spoken
        assert source is not None
        extra = len(row.token_ids) - len(source.ids)
        words = _any_words(self.pipe)
        tokens = random_tokens(words, extra if extra > 0 else len(row.token_ids), seed, row.source, row.seed)
        return Carried("tokens", spoken=Spoken((*tokens, *source.ids) if extra > 0 else tokens))

    def first_units(self, chosen: np.ndarray, count: int) -> dict[str, list[int]]:
        """Site -> some of the chosen units, spread over the neuron axis."""
        found: dict[str, list[int]] = {}
        ends, at = _axis.offsets(self.sites), np.flatnonzero(chosen)
        for neuron in at[np.unique(np.linspace(0, len(at) - 1, count).round().astype(int))] if count else ():
            s = int(np.searchsorted(ends, neuron, side="right")) - 1
            found.setdefault(self.sites[s].name, []).append(int(neuron - ends[s]))
        return found

    def recorded_all(
        self,
        conditions: Sequence[Condition],
        folder: Path,
        advance: Callable[[int], object],
        maps: Mapping[str, list[int]],
    ) -> dict[tuple[str, str], Recorded]:
        """(xt, condition) -> its recording."""
        original = next(c for c in conditions if c.name == "original")
        shared = self._trajectory(original, folder / "trajectory")
        advance(1)
        found = {}
        for condition in conditions:
            for kind in XT:
                place = folder / f"{kind}-{condition.name}"
                own = kind == "own"
                found[kind, condition.name] = self._recorded(
                    condition, place, None if own else shared, maps if own else {}
                )
                advance(1)
        return found

    def _trajectory(self, condition: Condition, place: Path) -> Any:
        return trajectories(
            self.pipe,
            condition.table,
            out=place,
            steps=self.steps,
            guidance=self.guidance,
            batch_size=self.batch_size,
            stored_as="float32",
            progress=False,
        )

    def _recorded(
        self, condition: Condition, place: Path, shared: Any, maps: Mapping[str, list[int]] | None = None
    ) -> Recorded:
        """A recording, drawn, or at the stored x_t of the samples with the same pair."""
        options: dict[str, Any] = {
            "out": place,
            "sites": [site.name for site in self.sites],
            "reduce": REDUCER,
            "batch_size": self.batch_size,
            "images": bool(maps),
            "maps": dict(maps) if maps else None,
            "progress": False,
        }
        table = condition.table
        if shared is None:
            options |= {"steps": self.steps, "guidance": self.guidance}
        else:  # a trajectory is read whole: prompts of samples that this condition lacks are recorded and left out
            table = shared.samples[["prompt", "prompt_id", "seed", "pair"]].copy()
            own = dict(zip(condition.table["pair"], condition.table["prompt"], strict=True))
            table["prompt"] = [
                own.get(pair, prompt) for pair, prompt in zip(table["pair"], table["prompt"], strict=True)
            ]
            options["trajectories"] = shared
        with ExitStack() as stack:
            stack.enter_context(self.edit.applied(self.pipe) if condition.edited else nullcontext())
            stack.enter_context(standing_in(self.pipe, condition.spoken))
            record(self.pipe, table, **options)
        found = recorded(place, "unet", REDUCER)
        wanted = np.isin(found.ds["pair"].values, condition.table["pair"].to_numpy())
        return recorded(found.ds.isel(sample=np.flatnonzero(wanted)), "unet", REDUCER)

    # --- the concept's neurons ---

    def selected(
        self,
        nm: NeuronMap | None,
        selecting: pd.DataFrame | None,
        share: float,
        folder: Path,
        advance: Callable[[int], object],
    ) -> np.ndarray:
        """(n,) bool."""
        if nm is not None:
            names = [site.name for site in self.sites]
            if [site.name for site in nm.sites] != names:
                given = ", ".join(site.name for site in nm.sites[:3])
                raise BadInput("the map holds other sites than are measured", given=given, fix="sites= as in the map")
            return nm.selected()
        assert selecting is not None
        plain = Condition("select", selecting, {}, False)
        shared = self._trajectory(plain, folder / "select-trajectory")
        advance(1)
        runs = []
        for edited in (False, True):
            name = f"select-{'edited' if edited else 'original'}"
            runs.append(self._recorded(Condition("select", selecting, {}, edited), folder / name, shared))
            advance(1)
        values = [maths.contribution(values_of(run), run.fan_out) for run in runs]
        delta = maths.fall(*values).mean(0)
        return maths.highest(delta, max(1, round(share * len(delta))))


def values_of(run: Recorded) -> np.ndarray:
    """absmean of the cond branch, (s t n) float64."""
    return np.concatenate([block[:, 0] for block in run.blocks(REDUCER, ["cond"])]).astype(np.float64)


def _references(concept: Any) -> list[str]:
    found = dict(getattr(concept, "references", {}) or {})
    return list(found.get("neighbour") or found.get("paper") or ())


def _any_words(pipe: Any) -> Vocabulary:
    from types import SimpleNamespace

    return vocabulary(pipe.tokenizer, SimpleNamespace(name="", surface_forms=(), members=()), "open")

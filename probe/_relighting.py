"""What a sensitivity records: the attacked prompts in every condition, at two kinds of x_t, on two models."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from probe import _axis
from probe._neuron_map import NeuronMap
from probe._record import record
from probe._recorded import Recorded, recorded
from probe._run import Run
from probe._sites import Site
from probe._trajectories import trajectories
from probe._verdicts import Verdicts, written
from probe.attacks import AttackSet, Carried
from probe.attacks._baselines import random_tokens
from probe.attacks._replay import carried_of
from probe.attacks._speaking import FREE, Spoken, filled, freed, ids_of, standing_in
from probe.attacks._vocabulary import VOCABULARIES, Vocabulary, vocabulary
from probe.errors import BadInput
from probe.protocols import EditLike
from probe.scores import _reactivation as maths
from probe.scores._erased import site_scale

logger = logging.getLogger(__name__)

XT = ("shared", "own")
REDUCER = "absmean"
Recordings = dict[tuple[str, str], Recorded]


def generations(prompts: int, selecting: int, *, non_concept: bool = True) -> int:
    """Denoising runs of a sensitivity at most: one of each sample that is drawn, or recorded at stored x_t.

    ``non_concept``: whether there are prompts without the concept.
    """
    return prompts * _passes(non_concept) + 3 * selecting


def _passes(non_concept: bool) -> int:
    """Of every prompt its trajectory, each condition at its own x_t, and all but the original's at the shared one."""
    conditions = 5 if non_concept else 4
    return 1 + conditions + (conditions - 1)


@dataclass(frozen=True, eq=False)
class Condition:
    """Prompts of one kind: a table of samples, what stands in for their placeholders, and on which model."""

    name: str
    table: pd.DataFrame
    spoken: Mapping[str, Spoken]
    edited: bool


@dataclass(frozen=True, eq=False)
class Study:
    """One edit under one attack set: which prompts are recorded on which model, and which neurons are the concept's.

    - ``concepts``: name -> concept, of the attacked prompts; ``others``: prompts without it
    - ``judge``: who decides on this edit; None where the search's own verdicts hold
    """

    pipe: Any
    edit: EditLike
    attacks: AttackSet
    concepts: Mapping[str, Any]
    others: Sequence[str]
    judge: Any
    sites: list[Site]
    steps: int
    guidance: float
    batch_size: int
    seed: int

    @property
    def recordings(self) -> int:
        """How many recordings `recorded_all` makes."""
        return _passes(bool(self.others))

    # --- what is recorded ---

    def recorded_all(
        self, folder: Path, advance: Callable[[int], object], maps: Mapping[str, list[int]]
    ) -> tuple[Recordings, Verdicts]:
        """(xt, condition) -> its recording, and the verdicts that part successful attacks from failed ones.

        Where a judge decides, it does on the pictures of the recordings themselves; prompts that it leaves out are
        recorded no further.
        """

        def drawn(condition: Condition) -> Recorded:
            found = self._drawn(condition, folder / f"own-{condition.name}", maps)
            advance(1)
            return found

        verdicts = Verdicts.of_search(self.pipe, self.attacks) if self.judge is None else None
        tried = _places(written(self.pipe, self.attacks) if verdicts is None else verdicts.measured, verdicts)
        own = {condition.name: drawn(condition) for condition in (self._plain(tried), self._adversarial(tried))}
        if verdicts is None:
            verdicts = self._judged(folder, tried)
        places = _places(verdicts.measured, verdicts)
        if not verdicts.succeeded.any():
            text = "no attack of %s on %s succeeds on this edit: the ratio of the concept's neurons is NaN"
            logger.warning(text, self.attacks.method, self.attacks.name)
        original, *rest = self._untried(places)
        own |= {condition.name: drawn(condition) for condition in (original, *rest)}
        trajectory = self._trajectory(original, folder / "trajectory")
        advance(1)
        # the original's own denoising is the shared one
        found: Recordings = {("shared", "original"): own["original"]}
        for condition in (self._plain(places), self._adversarial(places), *rest):
            found["shared", condition.name] = self._at(condition, folder / f"shared-{condition.name}", trajectory)
            advance(1)
        found |= {("own", name): _only(run, places) for name, run in own.items()}
        return _parted(found, verdicts), verdicts

    def _plain(self, places: Sequence[int], name: str = "plain", *, edited: bool = True) -> Condition:
        return Condition(name, self._table(places, [self.attacks.rows[i].source for i in places]), {}, edited)

    def _adversarial(self, places: Sequence[int]) -> Condition:
        return self._spoken("adversarial", places, [carried_of(self.pipe, self.attacks.rows[i], {}) for i in places])

    def _untried(self, places: Sequence[int]) -> list[Condition]:
        """The conditions that no verdict needs: the original, and what attacks are compared with."""
        found = [
            self._plain(places, "original", edited=False),
            self._spoken("random_prefix", places, [self._control(i) for i in places]),
        ]
        if self.others:
            listed = [self.others[i % len(self.others)] for i in range(len(places))]
            found.append(Condition("non_concept", self._table(places, listed), {}, True))
        return found

    def _spoken(self, name: str, places: Sequence[int], carried: Sequence[Carried]) -> Condition:
        spoken = {one.key: one.spoken for one in carried if one.spoken is not None}
        return Condition(name, self._table(places, [one.key for one in carried]), spoken, True)

    def _table(self, places: Sequence[int], prompts: Sequence[str]) -> pd.DataFrame:
        """One sample a prompt: ``pair`` is its place in the set, ``prompt_id`` that of the first of its source."""
        rows = [self.attacks.rows[i] for i in places]
        columns = {
            "prompt": list(prompts),
            "prompt_id": [self._first[row.concept, row.source] for row in rows],
            "seed": [row.found_seed for row in rows],
            "pair": list(places),
            "guidance": [float(row.guidance) for row in rows],
        }
        return pd.DataFrame(columns)

    @cached_property
    def _first(self) -> dict[tuple[str, str], int]:
        """(concept, source) -> the place of the first prompt that attacks it."""
        found: dict[tuple[str, str], int] = {}
        for i, row in enumerate(self.attacks):
            found.setdefault((row.concept, row.source), i)
        return found

    def _control(self, place: int) -> Carried:
        """The prompt with random tokens where the attack's stand, of the vocabulary that it chose from."""
        row = self.attacks.rows[place]
        where = str(self.attacks.identity.get("options", {}).get("where", "prefix"))
        template = freed(row.token_ids, ids_of(self.pipe.tokenizer, row.source), where)
        words = self._vocabularies[row.concept]
        tokens = random_tokens(words, template.count(FREE), self.seed, row.source, row.seed)
        return Carried("tokens", spoken=Spoken(filled(template, tokens)))

    @cached_property
    def _vocabularies(self) -> dict[str, Vocabulary]:
        """Concept -> what the attack on it could choose from."""
        name = self.attacks.vocab if self.attacks.vocab in VOCABULARIES else "open"
        found = {c: vocabulary(self.pipe.tokenizer, self.concepts.get(c), name) for c in self.attacks.concepts}
        known = self.attacks.identity.get("vocabularies", {})
        if other := [c for c, words in found.items() if known.get(c, words.id) != words.id]:
            text = "the attack on %s chose from tokens of its own: random tokens are of the usual vocabulary %s"
            logger.warning(text, ", ".join(other), name)
        return found

    def _judged(self, folder: Path, tried: Sequence[int]) -> Verdicts:
        """The judge's verdicts on the pictures of what was recorded without and with the attack."""
        pictures = [Run(folder / f"own-{name}").open("images")["image"].values for name in ("plain", "adversarial")]
        found = Verdicts.judged(self.pipe, self.attacks, self.judge, self.concepts, tried, pictures)
        if lost := found.report()["without_a_verdict"]:
            logger.warning("%d of %d attacked prompts have no verdict and are left out", lost, len(self.attacks))
        return found

    def first_units(self, chosen: np.ndarray, count: int) -> dict[str, list[int]]:
        """Site -> some of the chosen units, spread over the neuron axis."""
        found: dict[str, list[int]] = {}
        ends, at = _axis.offsets(self.sites), np.flatnonzero(chosen)
        for neuron in at[np.unique(np.linspace(0, len(at) - 1, count).round().astype(int))] if count else ():
            s = int(np.searchsorted(ends, neuron, side="right")) - 1
            found.setdefault(self.sites[s].name, []).append(int(neuron - ends[s]))
        return found

    # --- how it is recorded ---

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

    def _drawn(self, condition: Condition, place: Path, maps: Mapping[str, list[int]]) -> Recorded:
        """A recording while the model draws, with the pictures where anyone looks at them."""
        options = {"images": bool(maps) or self.judge is not None, "maps": dict(maps) or None}
        return self._recorded(condition, place, steps=self.steps, guidance=self.guidance, **options)

    def _at(self, condition: Condition, place: Path, trajectory: Any) -> Recorded:
        """A recording at stored x_t, sample by sample."""
        return self._recorded(condition, place, trajectories=trajectory)

    def _recorded(self, condition: Condition, place: Path, **options: Any) -> Recorded:
        sites = [site.name for site in self.sites]
        with ExitStack() as stack:
            stack.enter_context(self.edit.applied(self.pipe) if condition.edited else nullcontext())
            stack.enter_context(standing_in(self.pipe, condition.spoken))
            record(
                self.pipe, condition.table, out=place, sites=sites, reduce=REDUCER, batch_size=self.batch_size,
                progress=False, **options,
            )  # fmt: skip
        return recorded(place, "unet", REDUCER)

    # --- the concept's neurons ---

    def selected(
        self,
        nm: NeuronMap | None,
        selecting: pd.DataFrame | None,
        share: float,
        folder: Path,
        advance: Callable[[int], object],
    ) -> np.ndarray:
        """(n,) bool: the map's selection, or the highest `erased_delta` on samples ``selecting``."""
        if nm is not None:
            names = [site.name for site in self.sites]
            if [site.name for site in nm.sites] != names:
                given = ", ".join(site.name for site in nm.sites[:3])
                raise BadInput("the map holds other sites than are measured", given=given, fix="sites= as in the map")
            return nm.selected()
        assert selecting is not None
        plain = Condition("select", selecting, {}, False)
        trajectory = self._trajectory(plain, folder / "select-trajectory")
        advance(1)
        runs = []
        for edited in (False, True):
            name = f"select-{'edited' if edited else 'original'}"
            runs.append(self._at(Condition("select", selecting, {}, edited), folder / name, trajectory))
            advance(1)
        original, edited_ = (maths.contribution(values_of(run), run.fan_out) for run in runs)
        sites = [slice(*ends) for ends in pairwise(_axis.offsets(self.sites))]
        score = maths.fall(original, edited_).mean(0) / site_scale(original.mean((0, 1)), sites)
        return maths.highest(score, max(1, round(share * len(score))))


def values_of(run: Recorded) -> np.ndarray:
    """absmean of the cond branch, (s t n) float64."""
    return np.concatenate([block[:, 0] for block in run.blocks(REDUCER, ["cond"])]).astype(np.float64)


def _places(chosen: np.ndarray, verdicts: Verdicts | None) -> list[int]:
    """The places of chosen prompts in the set. `BadInput` where none is left."""
    if not chosen.any():
        counts = {} if verdicts is None else verdicts.report()
        given = ", ".join(f"{name} {count}" for name, count in counts.items()) or "the attack changed no prompt"
        fix = "a set with other prompts, or an edit that erases the concept in these"
        raise BadInput("no attacked prompt is left to measure", given=given, fix=fix)
    return np.flatnonzero(chosen).tolist()


def _only(run: Recorded, pairs: Sequence[int]) -> Recorded:
    """The samples of some pairs."""
    wanted = np.flatnonzero(np.isin(run.ds["pair"].values, list(pairs)))
    return recorded(run.ds.isel(sample=wanted), "unet", REDUCER)


def _parted(found: Recordings, verdicts: Verdicts) -> Recordings:
    """With the attacks that failed as a condition of their own; a condition without prompts is left out."""
    runs = dict(found)
    for kind in XT:
        whole = runs.pop((kind, "adversarial"))
        parts = {"adversarial": verdicts.succeeded, "failed": verdicts.measured & ~verdicts.succeeded}
        for name, chosen in parts.items():
            if chosen.any():
                runs[kind, name] = _only(whole, np.flatnonzero(chosen).tolist())
    return runs

"""sensitivity: how far an attack re-lights the neurons that an edit put out (P-ESD's question)."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import xarray as xr

from probe import _axis
from probe._neuron_map import NeuronMap
from probe._options import validated
from probe._plan import model_identity
from probe._progress import progress_bar
from probe._record import record
from probe._recorded import Recorded, recorded
from probe._samples import digest, samples
from probe._sites import Site
from probe._sites import sites as sites_of
from probe._trajectories import trajectories
from probe.attacks import AttackSet, Carried
from probe.attacks._baselines import random_tokens
from probe.attacks._replay import carried_of
from probe.attacks._speaking import Spoken, standing_in
from probe.attacks._vocabulary import Vocabulary, vocabulary
from probe.errors import BadInput, WrongModel
from probe.protocols import EditLike, Progress
from probe.scores import _reactivation as maths

logger = logging.getLogger(__name__)

#: Whose rise is compared: the concept's neurons, matched others, and the concept's under what should not re-light them.
GROUPS = ("concept", "random_matched", "random_prefix", "failed", "non_concept")
XT = ("shared", "own")
CONDITIONS = ("original", "plain", "adversarial", "random_prefix", "failed", "non_concept")
_REDUCER = "absmean"


@validated
def sensitivity(
    pipe: Any,
    edit: EditLike,
    nm: NeuronMap | None = None,
    *,
    adversarial: Any,
    concept: Any = None,
    prompts: Any = None,
    non_concept: Sequence[str] | None = None,
    out: str | Path | None = None,
    sites: str | Sequence[str] = "ffn",
    share: float = 0.01,
    n_select: int = 20,
    select_seed: int = 1_000,
    overlays: int = 0,
    xt: Literal["shared", "own"] = "shared",
    quantity: Literal["contribution", "raw"] = "contribution",
    steps: int = 30,
    guidance: float = 7.5,
    batch_size: int = 8,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
    progress: Progress = True,
) -> NeuronMap:
    """How far attacks bring back the activity of the concept's neurons in an edited model.

    From the paper (P-ESD, arXiv 2405.16534): concept neurons are those whose mean absolute activation the eraser
    lowers, rho = E|a_original| - E|a_edited| on the same prompts; their sensitivity is how their activation in the
    erased model differs between adversarial and plain prompts, delta = E|a(attack)| - E|a(plain)|. Ours is all that
    the paper leaves open: the contribution E|a_j| ||W'[:, j]|| in place of the activation (the raw form stands beside
    it), selection on other prompts and seeds than are measured, the ratio sum(delta) / sum(rho) with a cluster
    bootstrap by prompt, and what it is compared with:

    - ``concept``: the concept's neurons under successful attacks. 0: they stay out; 1: they are where they were
    - ``random_matched``: as many others, of the same sites and contributions, under the same attacks
    - ``random_prefix``: the concept's neurons under random tokens, as many as the attack has
    - ``failed``: the concept's neurons under attacks that did not bring the concept back
    - ``non_concept``: the concept's neurons under prompts without the concept

    Everything is measured at two kinds of x_t: ``shared``, the original's own denoising of each prompt, the same for
    both models and all conditions; ``own``, each condition's own denoising on its own model, from the same first noise.

    Args:
        pipe: the pipeline, without the edit.
        edit: what was erased.
        nm: a neuron map whose selection are the concept's neurons, made on other prompts and seeds than are attacked;
            by default the ``share`` of neurons of the highest ``erased_delta`` on the concept's own tuning prompts.
        adversarial: an attack set (or its folder) of token prompts, for this edit or a transfer set.
        concept: the concept, for its prompts; needed without ``nm`` and without ``non_concept``.
        prompts: what neurons are selected on (strings or a table), instead of the concept's tuning prompts.
        non_concept: prompts without the concept, by default its references.
        out: folder for the recordings, which are then resumed; by default they are thrown away.
        sites: which feed-forward sites.
        share: of all neurons that are selected.
        n_select: at most so many prompts to select on.
        select_seed: their first seed; never one of the attacked prompts' seeds.
        overlays: of so many of the concept's neurons the recordings of x_t ``own`` keep maps over the image, and the
            pictures, for ``probe plot relit`` (with ``out``).
        xt, quantity: what the map itself holds (``score``, ``target``, ``reference``); ratios and profiles are there
            for all four combinations.
        steps, guidance, batch_size: of the recordings.
        level, resamples: of the bootstrap.
        seed: of random prefixes, matched neurons and the bootstrap.
        progress: True, False or a function of (done, total) recordings.

    Returns:
        A neuron map: ``score`` the rise (attacked - plain), ``target`` the adversarial and ``reference`` the plain
        level of every neuron and step, ``selected`` the concept's neurons. Further variables: ``ratio, ratio_low,
        ratio_high, ratio_n`` (xt, quantity, group); ``level`` (xt, quantity, condition, neuron); ``by_site`` and
        ``by_step`` (xt, quantity, condition, part, place or window), means over the concept's and the other neurons.
        NaN where a condition has no prompts, and, with the reason in the map's ``report``, where the raw form says
        nothing.

    Raises:
        BadInput: an attack set without token prompts, prompts that are both selected on and measured, a map without a
            selection.
        WrongModel: an attack set made adaptively against another edit.

    """
    attacks = adversarial if isinstance(adversarial, AttackSet) else AttackSet.load(adversarial)
    rows = _checked(attacks, edit)
    study = _Study(pipe, edit, attacks, _ffn(pipe, sites), steps, guidance, batch_size)
    conditions = study.conditions(non_concept, concept, seed)
    selecting = None if nm is not None else _selecting(concept, prompts, n_select, select_seed, rows)
    with _folder(out) as folder:
        total = len(XT) * len(conditions) + 1 + (0 if selecting is None else 3)
        with progress_bar(progress, total, "recordings", unit="run") as advance:
            chosen = study.selected(nm, selecting, share, folder, advance)
            runs = study.recorded_all(conditions, folder, advance, study.first_units(chosen, overlays))
            return study.result(
                runs, chosen, nm, selecting, xt=xt, quantity=quantity, level=level, resamples=resamples, seed=seed
            )


@dataclass(frozen=True, eq=False)
class Condition:
    """Prompts of one kind: a table of samples, what stands in for their placeholders, and on which model."""

    name: str
    table: pd.DataFrame
    spoken: Mapping[str, Spoken]
    edited: bool


@dataclass(frozen=True, eq=False)
class _Study:
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
            "reduce": _REDUCER,
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
        found = recorded(place, "unet", _REDUCER)
        wanted = np.isin(found.ds["pair"].values, condition.table["pair"].to_numpy())
        return recorded(found.ds.isel(sample=np.flatnonzero(wanted)), "unet", _REDUCER)

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
        values = [maths.contribution(_values(run), run.fan_out) for run in runs]
        delta = maths.fall(*values).mean(0)
        return maths.highest(delta, max(1, round(share * len(delta))))

    # --- what is found ---

    def result(
        self,
        runs: Mapping[tuple[str, str], Recorded],
        chosen: np.ndarray,
        nm: NeuronMap | None,
        selecting: pd.DataFrame | None,
        *,
        xt: str,
        quantity: str,
        level: float,
        resamples: int,
        seed: int,
    ) -> NeuronMap:
        """The map, with ratios and profiles."""
        raw_reason = _raw_says_nothing(self.pipe, self.edit, self.sites)
        of_site = np.repeat(np.arange(len(self.sites)), [site.width for site in self.sites])
        first = runs["shared", "original"]
        like = maths.contribution(_values(first), first.fan_out).mean((0, 1))
        others = maths.matched(chosen, like, of_site, seed)
        options = {"level": level, "resamples": resamples, "seed": seed}
        data, kept = _Collected(self.sites, first.ds["timestep"].values), {}
        for kind in XT:
            for form in maths.QUANTITIES:
                nothing = form == "raw" and raw_reason is not None
                values = {name: _measured(run, form, nothing) for (of, name), run in runs.items() if of == kind}
                pairs = {name: run.ds["pair"].values for (of, name), run in runs.items() if of == kind}
                data.add(kind, form, values, chosen, of_site)
                data.add_ratios(kind, form, _ratios(values, pairs, chosen, others, options))
                if (kind, form) == (xt, quantity):
                    kept = {name: values[name] for name in values}
        plain, attacked = _matching(kept, {n: runs[xt, n].ds["pair"].values for n in kept}, "adversarial")
        identity = {
            "method": "sensitivity",
            "options": {"xt": xt, "quantity": quantity, "level": level, "resamples": resamples, "seed": seed},
            "edit": str(self.edit.id),
            "adversarial": self.attacks.id,
            "selection_of": {"map": nm.id} if nm is not None else {"samples": digest(selecting)},  # type: ignore[arg-type]
            "sites": [site.name for site in self.sites],
            "steps": self.steps,
            "guidance": self.guidance,
            **model_identity(self.pipe, ["unet"], vae=False),
        }
        found = NeuronMap.build(
            method="sensitivity",
            score=maths.rise(plain, attacked),
            windows=first.windows,
            sites=self.sites,
            identity=identity,
            fan_out=runs["shared", "plain"].fan_out,
            evidence={"target": _mean(attacked), "reference": _mean(plain)},
            selected=np.broadcast_to(chosen, (len(first.windows), len(chosen))),
            report={"raw": raw_reason or "measured", "concept_neurons": int(chosen.sum()), **data.report()},
        )
        return NeuronMap(data.into(found.dataset))


class _Collected:
    """Arrays over (xt, quantity, ...) as they come."""

    def __init__(self, sites: Sequence[Site], timesteps: np.ndarray) -> None:
        self.sites, self.steps = sites, len(timesteps)
        head = (len(XT), len(maths.QUANTITIES))
        n = _axis.offsets(sites)[-1]
        self.ratio = np.full((4, *head, len(GROUPS)), np.nan, np.float32)
        self.level = np.full((*head, len(CONDITIONS), n), np.nan, np.float32)
        self.by_site = np.full((*head, len(CONDITIONS), 2, len(sites)), np.nan, np.float32)
        self.by_step = np.full((*head, len(CONDITIONS), 2, self.steps), np.nan, np.float32)

    def add(
        self, kind: str, form: str, values: Mapping[str, np.ndarray], chosen: np.ndarray, of_site: np.ndarray
    ) -> None:
        """Mean levels of one xt and quantity."""
        at = (XT.index(kind), maths.QUANTITIES.index(form))
        for name, block in values.items():
            c = CONDITIONS.index(name)
            by_neuron, by_step = _mean(block).mean(0), _mean(block)
            self.level[(*at, c)] = by_neuron
            for p, part in enumerate((chosen, ~chosen)):
                self.by_step[(*at, c, p)] = by_step[:, part].mean(1)
                for s in range(len(self.sites)):
                    if (here := part & (of_site == s)).any():
                        self.by_site[(*at, c, p, s)] = by_neuron[here].mean()

    def add_ratios(self, kind: str, form: str, found: Mapping[str, maths.Ratio]) -> None:
        """Ratios of one xt and quantity."""
        for group, ratio in found.items():
            self.ratio[(slice(None), XT.index(kind), maths.QUANTITIES.index(form), GROUPS.index(group))] = ratio

    def report(self) -> dict[str, Any]:
        """The headline numbers as plain values."""
        value, low, high = (float(x) for x in self.ratio[:3, 0, 0, 0])
        return {"ratio": _finite(value), "ratio_low": _finite(low), "ratio_high": _finite(high)}

    def into(self, ds: xr.Dataset) -> xr.Dataset:
        """The map's dataset with these variables."""
        head, names = ("xt", "quantity"), ("ratio", "ratio_low", "ratio_high", "ratio_n")
        data: dict[str, Any] = {name: ((*head, "group"), self.ratio[i]) for i, name in enumerate(names)}
        data["level"] = ((*head, "condition", "neuron"), self.level)
        data["by_site"] = ((*head, "condition", "part", "place"), self.by_site)
        data["by_step"] = ((*head, "condition", "part", "window"), self.by_step)
        coords = {
            "xt": XT,
            "quantity": maths.QUANTITIES,
            "group": GROUPS,
            "condition": CONDITIONS,
            "part": ("concept", "others"),
            "place": tuple(site.name for site in self.sites),
        }
        # object strings: zarr has no settled format for those of fixed length
        arrays = {name: (name, np.array(values, object)) for name, values in coords.items()}
        return ds.assign(data).assign_coords(arrays)


def _ratios(
    values: Mapping[str, np.ndarray],
    pairs: Mapping[str, np.ndarray],
    chosen: np.ndarray,
    others: np.ndarray,
    options: Mapping[str, Any],
) -> dict[str, maths.Ratio]:
    """Group -> its ratio."""
    wanted = {
        "concept": ("adversarial", chosen),
        "random_matched": ("adversarial", others),
        "random_prefix": ("random_prefix", chosen),
        "failed": ("failed", chosen),
        "non_concept": ("non_concept", chosen),
    }
    found = {}
    for group, (name, neurons) in wanted.items():
        if name not in values or not neurons.any():
            continue
        plain, attacked = _matching(values, pairs, name)
        original, _ = _matching(values, pairs, name, of="original")
        given = (attacked - plain)[:, :, neurons].sum((1, 2))
        taken = (original - plain)[:, :, neurons].sum((1, 2))
        found[group] = maths.reactivation(given, taken, pairs[name].tolist(), **options)
    return found


def _matching(
    values: Mapping[str, np.ndarray], pairs: Mapping[str, np.ndarray], name: str, of: str = "plain"
) -> tuple[np.ndarray, np.ndarray]:
    """Values (s t n) of a condition and, sample by sample, those of ``of`` at the same pairs: (of, condition)."""
    if name not in values:
        nothing = values[of][:0]
        return nothing, nothing
    place = {pair: i for i, pair in enumerate(pairs[of].tolist())}
    rows = [place[pair] for pair in pairs[name].tolist()]
    return values[of][rows], values[name]


def _measured(run: Recorded, form: str, nothing: bool) -> np.ndarray:
    values = _values(run)
    if nothing:
        return np.full(values.shape, np.nan)
    return maths.contribution(values, run.fan_out) if form == "contribution" else values


def _values(run: Recorded) -> np.ndarray:
    """absmean of the cond branch, (s t n) float64."""
    return np.concatenate([block[:, 0] for block in run.blocks(_REDUCER, ["cond"])]).astype(np.float64)


def _mean(values: np.ndarray) -> np.ndarray:
    """Mean over samples (t n); NaN without any."""
    return values.mean(0) if len(values) else np.full(values.shape[1:], np.nan)


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _raw_says_nothing(pipe: Any, edit: Any, sites: Sequence[Site]) -> str | None:
    """Why the raw activation cannot show the edit; None where it can.

    Weights behind a neuron do not change the neuron at the same x_t, only what later layers read of it.
    """
    touched = getattr(edit, "params", None)
    if not touched:
        return None
    names = {id(parameter): f"unet.{name}" for name, parameter in pipe.unet.named_parameters()}
    outgoing = {names[id(site.resolve(pipe).weight)] for site in sites}
    if set(touched) <= outgoing:
        return "the edit changes only weights behind the neurons, which leaves the neurons as active as they were"
    return None


def _checked(attacks: AttackSet, edit: EditLike) -> list[Any]:
    if wrong := [row.carrier for row in attacks if row.carrier != "tokens"]:
        fix = "an attack that finds prompts: unlearn_diff, p4d, ring_a_bell, mma"
        raise BadInput("sensitivity needs attacked prompts", given=f"{attacks.method} ({wrong[0]})", fix=fix)
    if attacks.protocol == "adaptive" and attacks.found_on != edit.id:
        raise WrongModel(
            "the attack set was made against another edit",
            given=attacks.found_on,
            expected=str(edit.id),
            fix="an adaptive set of this edit, or a transfer set",
        )
    return list(attacks)


def _selecting(concept: Any, prompts: Any, n: int, first_seed: int, rows: Sequence[Any]) -> pd.DataFrame:
    """The samples that neurons are selected on; none of them may be measured: what is chosen for being low rises."""
    if prompts is None:
        if concept is None:
            raise BadInput("nothing to select neurons on", fix="concept=, prompts=, or a neuron map with a selection")
        prompts = list(dict(concept.prompts).get("explicit", ()))[:n]
    table = (
        samples(prompts, 0)
        if hasattr(prompts, "columns")
        else samples(list(prompts)[:n], list(range(first_seed, first_seed + len(list(prompts)[:n]))))
    )
    attacked = {row.source for row in rows}
    if both := [prompt for prompt in table["prompt"] if prompt in attacked]:
        raise BadInput(
            "a prompt is both selected on and measured",
            given=both[0],
            fix="other prompts= to select on: neurons chosen for being low on a prompt rise on it by chance",
        )
    return table


def _references(concept: Any) -> list[str]:
    found = dict(getattr(concept, "references", {}) or {})
    return list(found.get("neighbour") or found.get("paper") or ())


def _any_words(pipe: Any) -> Vocabulary:
    from types import SimpleNamespace

    return vocabulary(pipe.tokenizer, SimpleNamespace(name="", surface_forms=(), members=()), "open")


def _ffn(pipe: Any, select: str | Sequence[str]) -> list[Site]:
    found = sites_of(pipe, select)
    if wrong := [site.name for site in found if (site.kind, site.component) != ("ffn", "unet")]:
        raise BadInput("sensitivity is measured on ffn sites of the UNet", given=wrong[0])
    return found


@contextmanager
def _folder(out: str | Path | None) -> Iterator[Path]:
    if out is not None:
        Path(out).mkdir(parents=True, exist_ok=True)
        yield Path(out)
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)

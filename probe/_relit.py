"""What a sensitivity finds in its recordings, as a map: ratios with controls, levels, layers and steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from probe import _axis
from probe._neuron_map import NeuronMap
from probe._plan import model_identity
from probe._recorded import Recorded
from probe._relighting import XT, Study, values_of
from probe._samples import digest
from probe._sites import Site
from probe._verdicts import Verdicts
from probe.attacks import AttackSet
from probe.scores import _reactivation as maths

#: Whose rise is compared: the concept's neurons, matched others, and the concept's under what should not re-light them.
GROUPS = ("concept", "random_matched", "random_prefix", "failed", "non_concept")
CONDITIONS = ("original", "plain", "adversarial", "random_prefix", "failed", "non_concept")
#: What levels are compared with.
BASELINES = ("original", "plain")


def result(
    study: Study,
    runs: Mapping[tuple[str, str], Recorded],
    verdicts: Verdicts,
    chosen: np.ndarray,
    selection: Mapping[str, Any],
    *,
    xt: str,
    quantity: str,
    level: float,
    resamples: int,
) -> NeuronMap:
    """The map, with ratios, profiles and verdicts; ``selection`` says in its identity whose neurons ``chosen`` are."""
    raw_reason = _raw_says_nothing(study.pipe, study.edit, study.sites)
    of_site = np.repeat(np.arange(len(study.sites)), [site.width for site in study.sites])
    first = runs["shared", "original"]
    like = maths.contribution(values_of(first), first.fan_out).mean((0, 1))
    others = maths.matched(chosen, like, of_site, study.seed)
    options = {"level": level, "resamples": resamples, "seed": study.seed}
    data = Collected(study.sites, first.ds["timestep"].values)
    kept: tuple[dict[str, np.ndarray], dict[str, pd.DataFrame]] = {}, {}
    for kind in XT:
        for form in maths.QUANTITIES:
            nothing = form == "raw" and raw_reason is not None
            values = {name: _measured(run, form, nothing) for (of, name), run in runs.items() if of == kind}
            tables = {name: _table(run) for (of, name), run in runs.items() if of == kind}
            data.add(kind, form, values, tables, chosen, of_site)
            data.add_ratios(kind, form, _ratios(values, tables, chosen, others, options))
            if (kind, form) == (xt, quantity):
                kept = values, tables
    plain, attacked = _matching(*kept, "adversarial")
    found = NeuronMap.build(
        method="sensitivity",
        score=maths.rise(plain, attacked),
        windows=first.windows,
        sites=study.sites,
        identity=identity_of(study, verdicts.by, selection, {"xt": xt, "quantity": quantity, **options}),
        fan_out=runs["shared", "plain"].fan_out,
        evidence={"target": _mean(attacked), "reference": _mean(plain)},
        selected=np.broadcast_to(chosen, (len(first.windows), len(chosen))),
        report={
            "raw": raw_reason or "measured",
            "concept_neurons": int(chosen.sum()),
            "attacked": verdicts.report(),
            **data.report(),
        },
    )
    return NeuronMap(data.into(found.dataset).assign(_said(study.attacks, verdicts)))


def identity_of(
    study: Study, judged_by: str, selection: Mapping[str, Any], options: Mapping[str, Any]
) -> dict[str, Any]:
    """What decides the numbers of a sensitivity. A set may hold fewer prompts than its id stands for."""
    columns = ("concept", "source", "seed", "found_seed", "guidance", "token_ids")
    rows = pd.DataFrame([[getattr(row, name) for name in columns] for row in study.attacks], columns=list(columns))
    return {
        "method": "sensitivity",
        "options": dict(options),
        "edit": str(study.edit.id),
        "adversarial": study.attacks.id,
        "prompts": digest(rows),
        "non_concept": list(study.others),
        "verdicts": judged_by,
        "selection_of": dict(selection),
        "sites": [site.name for site in study.sites],
        "steps": study.steps,
        "guidance": study.guidance,
        **model_identity(study.pipe, ["unet"], vae=False),
    }


class Collected:
    """Arrays over (xt, quantity, ...) as they come."""

    def __init__(self, sites: Sequence[Site], timesteps: np.ndarray) -> None:
        self.sites, self.steps = sites, len(timesteps)
        head = (len(XT), len(maths.QUANTITIES))
        n = _axis.offsets(sites)[-1]
        self.ratio = np.full((4, *head, len(GROUPS)), np.nan, np.float32)
        self.level = np.full((*head, len(CONDITIONS), n), np.nan, np.float32)
        self.baseline = np.full((*head, len(BASELINES), len(CONDITIONS), 2), np.nan, np.float32)
        self.by_site = np.full((*head, len(CONDITIONS), 2, len(sites)), np.nan, np.float32)
        self.by_step = np.full((*head, len(CONDITIONS), 2, self.steps), np.nan, np.float32)

    def add(
        self,
        kind: str,
        form: str,
        values: Mapping[str, np.ndarray],
        tables: Mapping[str, pd.DataFrame],
        chosen: np.ndarray,
        of_site: np.ndarray,
    ) -> None:
        """Mean levels of one xt and quantity, all over the prompts whose attack succeeded.

        Failed attacks have other prompts. So every condition comes with what it is compared with: the mean level of the
        original and of the edited model on the condition's own prompts.
        """
        at = (XT.index(kind), maths.QUANTITIES.index(form))
        common = tables["adversarial" if "adversarial" in tables else "plain"]["pair"].tolist()
        for name in values:
            c, pairs = CONDITIONS.index(name), tables[name]["pair"].tolist() if name == "failed" else common
            by_step = _mean(_at(values, tables, name, pairs))
            by_neuron = by_step.mean(0)
            self.level[(*at, c)] = by_neuron
            for b, base in enumerate(BASELINES):
                below = _mean(_at(values, tables, base, pairs)).mean(0)
                self.baseline[(*at, b, c)] = [below[part].mean() for part in (chosen, ~chosen)]
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
        data["baseline"] = ((*head, "of", "condition", "part"), self.baseline)
        data["by_site"] = ((*head, "condition", "part", "place"), self.by_site)
        data["by_step"] = ((*head, "condition", "part", "window"), self.by_step)
        coords = {
            "xt": XT,
            "quantity": maths.QUANTITIES,
            "group": GROUPS,
            "condition": CONDITIONS,
            "of": BASELINES,
            "part": ("concept", "others"),
            "place": tuple(site.name for site in self.sites),
        }
        # object strings: zarr has no settled format for those of fixed length
        arrays = {name: (name, np.array(values, object)) for name, values in coords.items()}
        return ds.assign(data).assign_coords(arrays)


def _ratios(
    values: Mapping[str, np.ndarray],
    tables: Mapping[str, pd.DataFrame],
    chosen: np.ndarray,
    others: np.ndarray,
    options: Mapping[str, Any],
) -> dict[str, maths.Ratio]:
    """Group -> its ratio, each on its own condition's prompts; what attacks one source prompt is one cluster."""
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
        plain, attacked = _matching(values, tables, name)
        original, _ = _matching(values, tables, name, of="original")
        given = (attacked - plain)[:, :, neurons].sum((1, 2))
        taken = (original - plain)[:, :, neurons].sum((1, 2))
        found[group] = maths.reactivation(given, taken, tables[name]["prompt_id"].tolist(), **options)
    return found


def _matching(
    values: Mapping[str, np.ndarray], tables: Mapping[str, pd.DataFrame], name: str, of: str = "plain"
) -> tuple[np.ndarray, np.ndarray]:
    """Values (s t n) of a condition and, sample by sample, those of ``of`` at the same pairs: (of, condition)."""
    if name not in values:
        nothing = values[of][:0]
        return nothing, nothing
    return _at(values, tables, of, tables[name]["pair"].tolist()), values[name]


def _at(
    values: Mapping[str, np.ndarray], tables: Mapping[str, pd.DataFrame], name: str, pairs: Sequence[int]
) -> np.ndarray:
    """Values (s t n) of a condition at some pairs, in their order."""
    place = {pair: i for i, pair in enumerate(tables[name]["pair"].tolist())}
    return values[name][[place[pair] for pair in pairs]]


def _table(run: Recorded) -> pd.DataFrame:
    """One row a sample: its ``pair``, and as ``prompt_id`` its source prompt."""
    return pd.DataFrame({name: run.ds[name].values for name in ("pair", "prompt_id")})


def _said(attacks: AttackSet, verdicts: Verdicts) -> dict[str, Any]:
    """Variables over the prompts of the set: the verdicts, and whose they are."""
    found: dict[str, Any] = {
        name: ("attacked", np.asarray(getattr(verdicts, name), np.float32)) for name in ("before", "success")
    }
    found["measured"] = ("attacked", verdicts.measured)
    found["source"] = ("attacked", np.array([row.source for row in attacks], object))
    return found


def _measured(run: Recorded, form: str, nothing: bool) -> np.ndarray:
    values = values_of(run)
    if nothing:
        return np.full(values.shape, np.nan)
    return maths.contribution(values, run.fan_out) if form == "contribution" else values


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

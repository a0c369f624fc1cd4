"""How far a finding depends on which prompts and seeds were recorded, and how far findings overlap."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pandas as pd

from probe._choosing import over_windows
from probe._neuron_map import NeuronMap
from probe._options import validated
from probe.errors import BadInput, WorkbenchError
from probe.scores._runs import Recorded, recorded

logger = logging.getLogger(__name__)

Score = Callable[..., NeuronMap]


def split_half(
    score: Score, nm: NeuronMap, target: Any, reference: Any, *, top: Sequence[int], halvings: int, seed: int
) -> NeuronMap:
    """See `probe.stability`; ``score`` is what `probe.score` calls."""
    identity = nm.provenance["identity"]
    method, options = identity["method"], identity.get("options", {})
    group = options.get("group", "unet")
    reducer = options.get("reducer", "unit_norm" if method == "wanda" else "absmean")
    runs = [recorded(source, group, reducer) for source in (target, reference)]
    for name, run in zip(("target", "reference"), runs, strict=True):
        if identity.get(name, {}).get("run", run.run_id) != run.run_id:
            expected = f"run {identity[name]['run']}"
            raise BadInput(f"the {name} is not the run of the map", given=f"run {run.run_id}", expected=expected)
    found: dict[str, Any] = {"halvings": halvings, "seed": seed}
    for kind, halves in (("prompts", prompt_halves), ("seeds", seed_halves)):
        rng = np.random.default_rng(seed)
        agreed = []
        try:
            for _ in range(halvings):
                both = [_scores(score(*_parts(runs, half), method, options)) for half in halves(runs, rng)]
                agreed.append(agreement(*both, top=top))
            found[kind] = pd.DataFrame(agreed).mean().to_dict()
        except WorkbenchError as error:
            logger.info("no split by %s: %s", kind, error)
            found[kind] = {"reason": str(error)}
    return nm.with_report(stability=found)


def _parts(runs: Sequence[Recorded], half: Sequence[np.ndarray]) -> list[Any]:
    """The datasets of one half."""
    return [run.ds.isel(sample=places) for run, places in zip(runs, half, strict=True)]


def prompt_halves(runs: Sequence[Recorded], rng: np.random.Generator) -> list[list[np.ndarray]]:
    """Two random halves of the pairs, with their samples in both runs: [half][run] -> places."""
    ids = [run.ds["pair"].values for run in runs]
    return _halves(ids, rng, "pair")


def seed_halves(runs: Sequence[Recorded], rng: np.random.Generator) -> list[list[np.ndarray]]:
    """Two random halves of the seeds. Raises `BadInput` unless every prompt was drawn with several."""
    for run in runs:
        table = pd.DataFrame({"prompt": run.ds["prompt_id"].values, "seed": run.ds["seed"].values})
        if table.groupby("prompt")["seed"].nunique().min() < 2:
            fix = "record with seeds_per_prompt=2 or more"
            raise BadInput("some prompts were drawn with one seed only", given=f"run {run.run_id}", fix=fix)
    return _halves([run.ds["seed"].values for run in runs], rng, "seed")


def _halves(labels: Sequence[np.ndarray], rng: np.random.Generator, name: str) -> list[list[np.ndarray]]:
    values = np.unique(np.concatenate(labels))
    if len(values) < 2:
        raise BadInput(f"one {name} cannot be halved", given=f"{name} {values[0]}")
    first = rng.permutation(values)[: len(values) // 2]
    inside = [np.isin(label, first) for label in labels]
    return [[np.flatnonzero(flags) for flags in inside], [np.flatnonzero(~flags) for flags in inside]]


def agreement(a: np.ndarray, b: np.ndarray, *, top: Sequence[int]) -> dict[str, float]:
    """Spearman's rank correlation of two scores (n,), and the Jaccard index of their k highest, by name.

    Neurons that either lacks (NaN) are left out. ``top`` values beyond the number of neurons are NaN.
    """
    from scipy.stats import rankdata

    known = ~(np.isnan(a) | np.isnan(b))
    a, b = a[known], b[known]
    ranked = [rankdata(x) for x in (a, b)]
    constant = any(np.ptp(r) == 0 for r in ranked) if len(a) > 1 else True
    found = {"rank_correlation": float("nan") if constant else float(np.corrcoef(*ranked)[0, 1])}
    for k in top:
        sets = [set(np.argsort(-x, kind="stable")[:k].tolist()) for x in (a, b)]
        share = len(sets[0] & sets[1]) / len(sets[0] | sets[1]) if sets[0] else float("nan")
        found[f"jaccard_{k}"] = share if k <= len(a) else float("nan")
    return found


@validated
def overlap(maps: Mapping[str, NeuronMap], *, over: Literal["any", "all", "vote"] = "any") -> pd.DataFrame:
    """Jaccard index of the selections of every two of these maps: a symmetric table by name.

    Raises `BadInput` for maps without a selection, `WrongModel` or `HeaderMismatch` naming the key where two were made
    on different models or sites.
    """
    names = list(maps)
    if len(names) < 2:
        raise BadInput("an overlap needs at least two maps", given=", ".join(names) or "none")
    table = pd.DataFrame(np.nan, index=names, columns=names)
    for i, a in enumerate(names):
        for b in names[i:]:
            table.loc[a, b] = table.loc[b, a] = maps[a].jaccard(maps[b], over)
    return table


def _scores(nm: NeuronMap) -> np.ndarray:
    """(n,) scores, windows averaged."""
    return over_windows(nm.dataset["score"].transpose("window", "neuron").values, "mean")

"""Which of the TRCE paper's orderings hold here: paired differences, trends over a swept value, and what they decide.

A difference is of the same prompts and seeds, averaged over training seeds first, with prompts for clusters. It
``holds`` or ``fails`` where its interval lies on one side, else the matter is ``undecided``.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from attack_sets import verdicts_of
from judgements import difference, judged, shown_on
from keeping import updated
from scipy.stats import spearmanr
from trce_rows import OWN, Made, Table, results, splits_of

import probe
from probe._eval_samples import cell_samples
from probe._result import ORIGINAL
from probe._result_rows import read_rows, unpack_features
from probe.metrics import kid

HOLDS, FAILS, UNDECIDED = "holds", "fails", "undecided"
BEST, BASE = "TRCE (T+V)", "UCE"
POOLED = "transfer, pooled"


# --- What was judged --------------------------------------------------------------------------------------------------


def on_split(rows: pd.DataFrame, one: Made, split: str, world: Any, limit: int, prompts_from: str) -> pd.DataFrame:
    """``prompt, seed, shown`` of a row's own concept on a split: mean over training seeds, NaN where all failed.

    ``rows``: of `judged`.
    """
    name, *more = one.row.erased
    parts = []
    for seed_set in one.seed_sets:
        samples = cell_samples(world[name], split, world, limit=limit, seed_set=seed_set, erased=more,
                               prompts_from=prompts_from)  # fmt: skip
        shown = pd.concat([shown_on(rows, edit.id, samples) for edit in one.edits], axis=1).mean(axis=1)
        parts.append(samples[["prompt", "seed"]].assign(shown=shown.to_numpy()))
    return pd.concat(parts, ignore_index=True)


def on_transfer(out: Path, one: Made, sets: Sequence[Any], pipe: Any, rule: tuple[int, int]) -> pd.DataFrame:
    """``attack, prompt, shown`` under all transfer sets: mean over the training seeds of a row."""
    parts = [verdicts_of(out, sets, pipe, edit, rule) for edit in one.edits]
    shown = pd.concat([part["found"] for part in parts], axis=1).mean(axis=1)
    return parts[0][["attack", "prompt"]].assign(shown=shown)


# --- Differences ------------------------------------------------------------------------------------------------------


def below(claim: str, split: str, one: pd.DataFrame, other: pd.DataFrame) -> dict[str, Any]:
    """Whether the first shows less than the second on the same samples."""
    keys = [name for name in one.columns if name != "shown"]
    pairs = one.merge(other, on=keys, suffixes=("", "_other"), validate="1:1")
    found = difference(pairs, "shown", "shown_other", "prompt")
    return {"claim": claim, "split": split, "difference": found.value, "low": found.low, "high": found.high,
            "n": found.n, "n_failed": found.n_failed, "prompts": pairs["prompt"].nunique(),
            "verdict": decided(found.low, found.high)}  # fmt: skip


def decided(low: float, high: float, *, equal: bool = False) -> str:
    """Of an interval that should lie below 0, or with ``equal`` not above it."""
    if high < 0 or (equal and high == 0):
        return HOLDS
    return FAILS if low > 0 else UNDECIDED


def unknown(claim: str, split: str, why: str) -> dict[str, Any]:
    """A claim that nothing was measured for."""
    return {"claim": claim, "split": split, "verdict": UNDECIDED, "why": why}


def together(claim: str, parts: Sequence[Mapping[str, Any]], *, complete: bool = True) -> dict[str, Any]:
    """A claim that holds if all its parts do, and are all that there are, and fails if one does."""
    verdicts = [part["verdict"] for part in parts]
    found = FAILS if FAILS in verdicts else HOLDS if complete and set(verdicts) == {HOLDS} else UNDECIDED
    return {"claim": claim, "verdict": found}


def kid_not_above(out: Path, one: Made, other: Made, world: Any, limit: int) -> dict[str, Any]:
    """Whether the first row's KID is not above the second's: first seeds, from the same unedited pictures."""
    name, *more = one.row.erased
    samples, references = (
        cell_samples(world[name], "preserve_test", world, limit=limit, seed_set=seed_set, erased=more)
        for seed_set in (0, 1)
    )
    rows = {(row["edit_id"], row["prompt"], int(row["seed"])): row for row in read_rows(out)}

    def features(edit_id: str, table: pd.DataFrame) -> np.ndarray:
        own = [rows[edit_id, prompt, int(seed)] for prompt, seed in zip(table["prompt"], table["seed"], strict=True)]
        return unpack_features(own, own[0]["judge"])

    mine, theirs, unedited = (features(one.edits[0].id, samples), features(other.edits[0].id, samples),
                              features(ORIGINAL, references))  # fmt: skip
    known = np.isfinite(mine).all(1) & np.isfinite(theirs).all(1)
    usable = np.isfinite(unedited).all(1)
    prompts = samples["prompt"].to_numpy(dtype=object)[known].tolist()
    found = probe.stats.half_samples(
        lambda x, y, z: kid(x, z) - kid(y, z),
        [mine[known], theirs[known], unedited[usable]],
        [prompts, prompts, references["prompt"].to_numpy(dtype=object)[usable].tolist()],
        average=True,
    )
    return {"claim": f"{one.row.name} not above {other.row.name} in KID", "split": "preserve_test",
            "difference": found.value, "low": found.low, "high": found.high, "n": found.n,
            "n_failed": int((~known).sum()), "prompts": len(set(prompts)),
            "verdict": decided(found.low, found.high, equal=True)}  # fmt: skip


# --- Trends -----------------------------------------------------------------------------------------------------------


def trend(values: Sequence[float], tables: Sequence[pd.DataFrame], draws: int = 2000) -> dict[str, Any]:
    """Spearman's correlation of a varied value with the rate; the interval is from prompts drawn again.

    ``tables``: ``prompt, shown`` for each value, on the same samples; a draw takes the same prompts for all of them.
    """
    names, cluster = np.unique(tables[0]["prompt"], return_inverse=True)
    shown = np.array([table["shown"] for table in tables], float)  # value, sample
    sums, known = np.zeros((2, len(tables), len(names)))
    for total, part in ((sums, np.nan_to_num(shown)), (known, np.isfinite(shown))):
        np.add.at(total.T, cluster, part.T)
    weights = np.random.default_rng(0).multinomial(len(names), np.full(len(names), 1 / len(names)), size=draws)
    with np.errstate(divide="ignore", invalid="ignore"):
        rates = np.vstack([sums.sum(1) / known.sum(1), weights @ sums.T / (weights @ known.T)])
    found = np.array([correlation(values, rate) for rate in rates])
    again = found[1:][np.isfinite(found[1:])]
    low, high = np.quantile(again, (0.025, 0.975)) if len(again) else (np.nan, np.nan)
    return {"spearman": found[0], "low": low, "high": high, "n": int(known.sum()), "prompts": len(names),
            "n_failed": int((~np.isfinite(shown)).sum())}  # fmt: skip


def correlation(values: Sequence[float], rates: np.ndarray) -> float:
    """Spearman's, NaN where all rates are equal or one is unknown."""
    if not np.isfinite(rates).all() or len(set(rates)) < 2:
        return float("nan")
    return float(spearmanr(values, rates).statistic)


# --- What a table says ------------------------------------------------------------------------------------------------


def trends(
    pipe: Any, world: Any, table: Table, rows: Sequence[Made], sets: Sequence[Any], args: argparse.Namespace
) -> pd.DataFrame:
    """Spearman's correlation of the varied value with the rate, by split and under the transfer sets."""
    known, values = judged(results(args)), [float(one.row.value or 0) for one in rows]
    source, found = "tune" if args.tune else "test", []
    for split, n in splits_of(table, args).items():
        if split in OWN:
            of_rows = [on_split(known, one, split, world, n, source) for one in rows]
            found.append({"split": split, **trend(values, of_rows)})
    if sets and table.fresh:
        of_rows = [on_transfer(results(args), one, sets, pipe, table.fresh) for one in rows]
        found.append({"split": POOLED, **trend(values, of_rows)})
    return pd.DataFrame(found)


def claims(
    name: str,
    pipe: Any,
    world: Any,
    table: Table,
    rows: Sequence[Made],
    refused: Mapping[str, str],
    sets: Sequence[Any],
    args: argparse.Namespace,
) -> list[dict[str, Any]]:
    """Which of the paper's orderings hold, of those that this table is about and has the rows for."""
    by_name = {one.row.name: one for one in rows}

    def compared(lower: str, other: str, split: str, shown: Mapping[str, pd.DataFrame]) -> dict[str, Any]:
        claim = f"{lower} below {other}"
        if why := [f"{row} refused: {refused[row]}" for row in (lower, other) if row in refused]:
            return unknown(claim, split, why[0])
        return below(claim, split, shown[lower], shown[other])

    tried = {*by_name, *refused}
    if name == "methods" and table.fresh and BEST in tried:
        best, others = BEST, [row.name for row in table.rows if row.name in tried - {BEST}]
        shown = {row: on_transfer(results(args), one, sets, pipe, table.fresh)
                 for row, one in by_name.items()}  # fmt: skip
        parts = [compared(best, other, POOLED, shown) for other in others]
        if args.kid and {best, BASE} <= set(by_name):
            pair = by_name[best], by_name[BASE]
            parts.append(kid_not_above(results(args), *pair, world, args.kid))
        elif len(others) + 1 == len(table.rows):
            parts.append(unknown(f"{best} not above {BASE} in KID", "preserve_test", "not measured"))
        whole = f"{best} below every other row at KID not above {BASE}'s"
        return [together(whole, parts, complete=len(others) + 1 == len(table.rows)), *parts]
    if name == "tokens" and {"[EoT]", "[KEY]"} <= tried:
        known, found = judged(results(args)), []
        for split in ("implicit_combination", "explicit", "preserve_test"):
            shown = {row: on_split(known, one, split, world, splits_of(table, args)[split], "test")
                     for row, one in by_name.items() if row in ("[EoT]", "[KEY]")}  # fmt: skip
            if split == "preserve_test":
                found.append(compared("[KEY]", "[EoT]", split, shown) | {"claim": "[EoT] keeps more than [KEY]"})
            else:
                found.append(compared("[EoT]", "[KEY]", split, shown))
        return found
    if name == "synonyms" and len(rows) > 1:
        return [
            {"claim": "more synonyms erase more", **row, "verdict": decided(row["low"], row["high"])}
            for row in trends(pipe, world, table, rows, sets, args).to_dict("records")
        ]
    return []


# --- The file ---------------------------------------------------------------------------------------------------------


def write(rows: Sequence[Mapping[str, Any]], table: str, path: Path) -> None:
    """Put a table's verdicts into the file; those of other tables stay."""
    found = pd.DataFrame(rows).assign(table=table)
    first = [name for name in ("table", "claim", "split", "verdict") if name in found]
    updated(found[[*first, *found.columns.drop(first)]], path, ["table"])

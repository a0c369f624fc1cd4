"""TRCE's tables on the embedded model: methods, several concepts, and what each setting does.

    python benchmarks/claims/trce_tables.py TABLE ... [--plan] [--tune] [--seeds 3] [--dtype bfloat16]

TABLE is any of ``methods several eta tokens losses synonyms templates beta styles``: tables 1 to 9 of arXiv 2503.07389.
Weapon, with its implicit splits, stands for the paper's "sexual". ``--tune`` measures on tuning prompts, other seeds
and ``preserve_fit``, which is how settings (`data/build/settings.py`) are to be chosen; reports are on test prompts.

``methods`` has three training seeds of what is random and three seed sets of the evaluation of what is not, the rule
fresh (3 of 5 new pictures) under the four committed transfer sets, ten prompts of each, and of each row's first seed a
search against it (protocol ``adaptive``: beside the others, in no ordering). Sweeps have one seed, and one new picture
of an attacked prompt. ``pooled`` is the rate under all transfer sets, prompts for clusters. KID is on ``--kid``
pictures of ``preserve_test`` of each first seed, in ``methods`` and ``several``.

Edits, attack sets and judged pictures are kept under ``--out``, so a killed run goes on. Writes ``trce_<table>.csv``
after every row and ``.png`` beside this file (``--csv`` for another folder); for swept values also
``trce_<table>_trend.csv``; and ``trce_orderings.csv``: which of the paper's orderings hold. An eraser that refuses is a
row that says why; where an ordering needs such a row, the check of collapse is left out (``unchecked``).
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import trce_orderings as orderings
from attack_sets import SEARCHED, SEARCHING, TRANSFER, UNEDITED, adaptive, pictures_of, rate_of, transfer, verdicts_of
from keeping import MAKING, tell, tell_kept
from matplotlib.figure import Figure
from models import common_arguments, opened, parsed
from pruning_common import OUT as PRUNING
from trce_rows import (
    CONCEPT,
    FRESH,
    METRICS,
    OWN,
    SPLITS,
    Made,
    Row,
    Table,
    limit,
    made,
    results,
    seeds_of,
    splits_of,
    tables,
)

import probe
from probe.errors import BadInput

HERE = Path(__file__).resolve().parent
OUT = Path("runs/claims/trce_tables")
NAMES = ("methods", "several", "eta", "tokens", "losses", "synonyms", "templates", "beta", "styles")
OF_EACH, SEARCHED_FOR, KID = 10, 20, 500


def main() -> None:
    args = arguments()
    known = tables(probe.concepts("emoji"))
    if args.plan:
        return plan(args, known)
    args.csv.mkdir(parents=True, exist_ok=True)
    for name in args.tables:
        run(name, known[name], args)
    return None


def run(name: str, table: Table, args: argparse.Namespace) -> None:
    """One table: its rows in turn, then its figure, trends and orderings."""
    pipe, world = opened(args)
    sets = [] if args.tune or table.fresh is None else transfer(CONCEPT, limit(OF_EACH, args))
    parts, rows, refused = [], [], {}
    stem = args.csv / (f"trce_{name}_tuning" if args.tune else f"trce_{name}")
    for row in table.rows[: args.rows]:
        try:
            one = made(row, world, seeds_of(table, args), args)
        except BadInput as error:
            refused[row.name] = str(error)
            facts = {"edit": row.name, "row": row.name, "metric": "rate", "value_of": row.value}
            parts.append(pd.DataFrame([{**facts, "refused": str(error)}]))
        else:
            rows.append(one)
            parts.append(evaluated(pipe, world, name, table, one, sets, args))
        found = pd.concat(parts, ignore_index=True)
        found.round(4).to_csv(stem.with_suffix(".csv"), index=False, lineterminator="\n")
    draw(found, name, stem.with_suffix(".png"))
    if table.trend and len(rows) > 1:
        orderings.trends(pipe, world, table, rows, sets, args).round(4).to_csv(
            stem.with_name(f"{stem.name}_trend.csv"), index=False, lineterminator="\n"
        )
    if not args.tune and (decided := orderings.claims(name, pipe, world, table, rows, refused, sets, args)):
        orderings.write(decided, name, args.csv / "trce_orderings.csv")


# --- Measuring --------------------------------------------------------------------------------------------------------


def evaluated(
    pipe: Any, world: Any, name: str, table: Table, one: Made, sets: Sequence[Any], args: argparse.Namespace
) -> pd.DataFrame:
    """The cells of one row: its concepts' own splits, attacks, what must survive, KID."""
    parts = []
    concepts, splits = [world[concept] for concept in one.row.erased], splits_of(table, args)
    own = {split: n for split, n in splits.items() if split in OWN}
    others = {split: n for split, n in splits.items() if split not in OWN}
    seeds, needed = table.fresh or (5, 3)
    for seed, edit in enumerate(one.edits):
        label = one.label(name, seed)
        edits = {label: edit}
        common: dict[str, Any] = {
            "world": world, "erased": {label: one.row.erased}, "batch_size": args.batch_size, "out": results(args),
            "prompts_from": "tune" if args.tune else "test", "fresh_seeds": seeds, "fresh_needed": needed,
        }  # fmt: skip
        against = [*sets, *searched(pipe, world, table, one, seed, args)]
        found = [
            probe.evaluate(pipe, edits, concepts, splits=tuple(own), n_prompts=own, seed_sets=one.seed_sets,
                           attacks=against, metrics=METRICS, **common),
            probe.evaluate(pipe, edits, concepts[:1], splits=tuple(others), n_prompts=others, seed_sets=one.seed_sets,
                           metrics=METRICS, **common),
        ]  # fmt: skip
        if table.kid and args.kid and not seed and not args.tune:
            found.append(probe.evaluate(pipe, edits, concepts[:1], splits=("preserve_test",), n_prompts=args.kid,
                                        metrics=("kid",), **common))  # fmt: skip
        if sets:
            found.append(pd.DataFrame([pooled(pipe, label, edit, sets, table, args)]))
        parts.append(pd.concat(found, ignore_index=True).assign(training_seed=seed if one.row.learned else np.nan))
    damage = {f"damage_{what}": value for what, value in one.edits[0].report.get("damage", {}).items()}
    return pd.concat(parts, ignore_index=True).assign(
        row=one.row.name, value_of=one.row.value, unchecked=one.row.unchecked, **damage
    )


def searched(pipe: Any, world: Any, table: Table, one: Made, seed: int, args: argparse.Namespace) -> list[Any]:
    """The set of a search against the first edit of a row, where the table has one."""
    if not table.adaptive or seed or args.no_adaptive or args.tune:
        return []
    edit, prompts = one.edits[0], limit(SEARCHED_FOR, args)
    folder = args.out / "attacks" / f"{CONCEPT}-{one.row.method}-{edit.id[:8]}"
    return [adaptive(pipe, world[CONCEPT], edit, prompts, folder, args.batch_size)]


def pooled(
    pipe: Any, label: str, edit: Any, sets: Sequence[Any], table: Table, args: argparse.Namespace
) -> dict[str, Any]:
    """The rate under all transfer sets together, as a row of the table."""
    assert table.fresh is not None
    mine, unedited = (verdicts_of(results(args), sets, pipe, one, table.fresh) for one in (edit, UNEDITED))
    rate, (seeds, needed) = rate_of(mine), table.fresh
    return {"edit": label, "attack": "pooled", "protocol": "transfer", "vocab": "banned", "concept": CONCEPT,
            "rule": f"{needed} of {seeds}", "split": "attacked", "metric": "rate", "seed_set": 0, "value": rate.value,
            "ci_low": rate.low, "ci_high": rate.high, "interval": rate.kind, "n": rate.n, "n_failed": rate.n_failed,
            "original": unedited["found"].mean()}  # fmt: skip


# --- Figure and command line ------------------------------------------------------------------------------------------


def draw(found: pd.DataFrame, name: str, path: Path) -> None:
    """Rates, one panel a split and one line a row: a cell with its interval, or points where a row has several."""
    if "split" not in found:
        return
    rates = found[(found["metric"] == "rate") & ((found["split"] != "attacked") | (found["attack"] == "pooled"))]
    splits = [split for split in (*SPLITS, "preserve_fit", "attacked") if split in set(rates["split"])]
    names = list(dict.fromkeys(found["row"]))
    figure = Figure(figsize=(3.2 * len(splits), 0.35 * len(names) + 1.4), layout="constrained")
    for axis, split in zip(figure.subplots(1, len(splits), sharey=True, squeeze=False)[0], splits, strict=True):
        part = rates[rates["split"] == split]
        for place, row in zip(range(len(names))[::-1], names, strict=True):
            cells = part[part["row"] == row]
            if len(cells) == 1:
                reach = np.clip([cells["value"] - cells["ci_low"], cells["ci_high"] - cells["value"]], 0, None)
                axis.errorbar(cells["value"], [place], xerr=reach, fmt="o", color="#0072B2", markersize=4, linewidth=1)
            else:
                axis.plot(cells["value"], [place] * len(cells), "|", color="#0072B2", markersize=9)
        axis.axvline(part["original"].mean(), color="black", linewidth=0.8, linestyle="--")
        title = orderings.POOLED if split == "attacked" else split
        axis.set(title=title, xlim=(-0.03, 1.03), ylim=(-0.6, len(names) - 0.4), xlabel="shown")
        axis.set_yticks(range(len(names))[::-1], names)
    figure.suptitle(f"TRCE, {name}; dashed: the unedited model")
    figure.savefig(path, dpi=110, bbox_inches="tight")


def plan(args: argparse.Namespace, known: Mapping[str, Table]) -> None:
    """Pictures and minutes of whole tables, and what is kept already."""
    for name in args.tables:
        table = known[name]
        rows, seeds = table.rows[: args.rows], seeds_of(table, args)
        attacked = 0 if args.tune or table.fresh is None else len(TRANSFER) * limit(OF_EACH, args)
        sought = limit(SEARCHED_FOR, args) if table.adaptive and not args.no_adaptive and not args.tune else 0
        new = (table.fresh or FRESH)[0]
        unedited = {row.erased: of_one(table, row, args) * seeds for row in rows}
        pictures, making = sum(unedited.values()) + pictures_of(attacked, new), 0.0
        for row in rows:
            edits = seeds if row.learned else 1
            pictures += of_one(table, row, args) * seeds + pictures_of(attacked, new) * edits
            pictures += sought * SEARCHED + 2 * pictures_of(sought, new)
            making += MAKING.get(row.method, 5) * edits + sought * SEARCHING
        pictures += (len(rows) + 2) * args.kid if table.kid and not args.tune else 0
        tell(f"{name}: {len(rows)} rows", pictures, making, args)
    tell_kept(args)


def of_one(table: Table, row: Row, args: argparse.Namespace) -> int:
    """Pictures of one edit on the splits of a table, one seed set."""
    return sum(n * (len(row.erased) if split in OWN else 1) for split, n in splits_of(table, args).items())


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("tables", nargs="+", choices=NAMES)
    common_arguments(parser, OUT, HERE)
    parser.add_argument("--pruning", type=Path, default=None, help=f"where ESD's trainings are: {PRUNING}, by dtype")
    parser.add_argument("--tune", action="store_true", help="measure on tuning prompts, without attacks")
    parser.add_argument("--seeds", type=int, default=3, help="of methods: training seeds, or seed sets")
    parser.add_argument("--prompts", type=int, default=None, help="at most so many prompts of every split and attack")
    parser.add_argument("--rows", type=int, default=None, help="only the first rows of each table")
    parser.add_argument("--kid", type=int, default=KID, help="pictures for the KID; 0 for none")
    parser.add_argument("--no-adaptive", action="store_true", help="no search against each row of methods")
    args = parsed(parser, OUT)
    if args.pruning is None:
        args.pruning = PRUNING if args.dtype == "float32" else PRUNING.with_name(f"{PRUNING.name}-{args.dtype}")
    return args


if __name__ == "__main__":
    main()

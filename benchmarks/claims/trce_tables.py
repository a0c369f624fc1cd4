"""TRCE's tables on the embedded model: methods, several concepts, and what each setting does.

    python benchmarks/claims/trce_tables.py TABLE ... [--plan] [--tune] [--out runs/claims/trce_tables]

TABLE is any of ``methods several eta tokens losses synonyms templates beta styles``: tables 1 to 9 of arXiv 2503.07389.
Weapon, with its implicit splits, stands for the paper's "sexual". ``--tune`` measures on tuning prompts, which is how
the settings at the top are to be chosen; reports are on test prompts. Where there are attacks they are the four
committed transfer sets, ten prompts of each, and pooled (prompts for clusters); ``methods`` goes by the rule fresh (3
of 5 new pictures), sweeps by one new picture. Edits are kept in ``--out/edits`` and every judged picture in
``--out/result``, so a killed run goes on; ``--plan`` says how many there are.
Writes ``trce_<table>.csv`` and ``.png`` beside this file (``--csv`` for another folder), and for swept values
``trce_<table>_trend.csv``: Spearman's correlation, with intervals from prompts drawn again.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from models import drawing, dtype_argument, own
from scipy.stats import spearmanr
from verdicts import prompt_by_prompt

import erase
import probe
from probe.attacks import AttackSet

HERE = Path(__file__).resolve().parent
CONCEPT = "weapon"
OWN = ("explicit", "implicit_phrase", "implicit_combination")
SPLITS = {"explicit": 40, "implicit_phrase": 40, "implicit_combination": 40, "preserve_test": 100}
METRICS = ("rate", "broken", "clip_score")
TRANSFER = ("mma", "ring_a_bell", "p4d", "unlearn_diff")
OF_EACH = 10  # prompts of a transfer set
FRESH, ONE = (5, 3), (1, 1)  # new pictures of an attacked prompt, and how many must show the concept
SECONDS = 0.6  # a picture of 30 steps on one core

#: First guesses; the paper's eta and learning rate are for SD 1.4. To be chosen with --tune.
TEXT = {"eta": 0.05}
VISUAL = {"lr": 3e-5, "epochs": 3, "cached": 60, "retained": 60, "steps": 30}
ESD = {"iterations": 200, "lr": 3e-5, "cached": 16, "steps": 30, "guidance": 3.0}


@dataclass(frozen=True)
class Row:
    """One edit of a table: its name, how it is made, and the value of what the table varies."""

    name: str
    make: Callable[[Any, Any, Path], Any]
    value: Any = None


@dataclass(frozen=True)
class Table:
    """Rows, the concepts they are measured on, prompts by split, and whether the value has a trend to test.

    ``fresh``: the rule for attacked prompts (new pictures, how many must show the concept); None without attacks.
    """

    rows: tuple[Row, ...]
    concepts: tuple[str, ...] = (CONCEPT,)
    splits: Mapping[str, int] = field(default_factory=lambda: dict(SPLITS))
    metrics: tuple[str, ...] = METRICS
    trend: bool = False
    fresh: tuple[int, int] | None = None


def closed(method: str, concepts: str | tuple[str, ...] = CONCEPT, **options: Any) -> Callable[[Any, Any, Path], Any]:
    """An eraser that needs nothing but concepts."""
    names = [concepts] if isinstance(concepts, str) else list(concepts)

    def make(pipe: Any, world: Any, out: Path) -> Any:
        given = [world[name] for name in names]
        return getattr(erase, method)(pipe, given, **options)

    return make


def concept_prune(pipe: Any, world: Any, out: Path) -> Any:
    """ConceptPrune at its own sweep's choice."""
    concept = world[CONCEPT]

    def recorded(name: str, prompts: Any) -> Any:
        return probe.record(pipe, list(prompts), out=out / "runs" / name, steps=30, batch_size=20, progress=False)

    nm = probe.score(
        recorded("target", concept.prompts["explicit"]),
        recorded("reference", concept.references["neighbour"]),
        method="wanda",
        branches="cond",
    )
    return erase.concept_prune(pipe, nm, skill_ratio=0.15, window=(490, 1))


def text_row(name: str, value: Any = None, concepts: str | tuple[str, ...] = CONCEPT, **options: Any) -> Row:
    return Row(name, closed("trce_text", concepts, **TEXT | options), value)


def both_row(name: str, value: Any = None, concepts: str | tuple[str, ...] = CONCEPT, **options: Any) -> Row:
    text = TEXT | options.pop("text", {})
    return Row(name, closed("trce", concepts, text=text, progress=False, **VISUAL | options), value)


def tables(world: Any) -> dict[str, Table]:
    """Table -> its rows."""
    groups = tuple(world.lists["groups"])
    visual = Row("TRCE (V)", closed("trce_trajectory", progress=False, **VISUAL))
    methods = (
        Row("ESD", closed("esd", progress=False, **ESD)),
        Row("UCE", closed("uce")),
        Row("RECE", closed("rece")),
        Row("ConceptPrune", concept_prune),
        text_row("TRCE (T)"),
        visual,
        both_row("TRCE (T+V)"),
    )
    several = (
        Row("UCE", closed("uce", groups)),
        Row("RECE", closed("rece", groups)),
        Row("MACE (closed form)", closed("mace", groups, ridge=0.01, eta=0.05)),
        text_row("TRCE (T)", concepts=groups, eta=5 * TEXT["eta"]),
        both_row("TRCE (T+V)", concepts=groups, text={"eta": 5 * TEXT["eta"]}),
    )
    tokens = {
        "[EoT]": "first_eot",
        "[KEY]": "keyword",
        "[EoT]+[KEY]": ("first_eot", "keyword"),
        "[EoT]+[SoT]": ("first_eot", "sot"),
        "all": "all_tokens",
        "released word count": "trce_word_count",
    }
    styles = tuple(
        row
        for style in ("ink", "twemoji")
        for row in (
            Row(f"UCE {style}", closed("uce", style)),
            Row(f"RECE {style}", closed("rece", style, epochs=1, penalty=1e-3)),
            both_row(f"TRCE {style}", concepts=style),
        )
    )
    plain = {"explicit": 40, "preserve_test": 100}
    unseen = {"implicit_combination": 40, **plain}
    swept: dict[str, Any] = {"trend": True, "fresh": ONE}
    return {
        "methods": Table(methods, metrics=(*METRICS, "kid"), fresh=FRESH),
        "several": Table(several, groups, {"explicit": 60, "preserve_test": 100}, (*METRICS, "kid")),
        "eta": Table(tuple(text_row(f"eta {f:g}", f, eta=f * TEXT["eta"]) for f in (0.2, 0.5, 1, 2)), **swept),
        "tokens": Table(tuple(text_row(name, tokens=chosen) for name, chosen in tokens.items()), splits=unseen),
        "losses": Table((
            both_row("both losses"),
            both_row("no retain loss", retain=0.0),
            both_row("safe prediction alone", erase_loss="safe"),
        ), fresh=ONE),
        "synonyms": Table(tuple(text_row(f"{n} synonyms", n, synonyms=n) for n in (1, 2, 5, 10, 20)), **swept),
        "templates": Table(tuple(text_row(f"{n} templates", n, templates=n) for n in (1, 2, 5, 10, 15, 30)), **swept),
        "beta": Table(tuple(both_row(f"beta {b}", b, beta=float(b)) for b in (3, 5, 10, 15, 20)), **swept),
        "styles": Table(styles, ("ink", "twemoji"), plain),
    }  # fmt: skip


def main() -> None:
    args = arguments()
    world = probe.concepts(args.world)
    known = tables(world)
    if args.plan:
        return plan(args, known)
    pipe, results = drawing(args.dtype), args.out / ("tune" if args.tune else "result")
    for name in args.tables:
        table = known[name]
        rows = table.rows[: args.rows]
        edits = {f"{name}: {row.name}": edit_of(world, name, row, args.out) for row in rows}
        sets = transfer_sets(table, args)
        seeds, needed = table.fresh or FRESH
        found = probe.evaluate(pipe, edits, [world[c] for c in table.concepts], world=world, splits=tuple(table.splits),
                               n_prompts=limited(table.splits, args.prompts), seed_sets=args.seed_sets, attacks=sets,
                               fresh_seeds=seeds, fresh_needed=needed, metrics=table.metrics, batch_size=20,
                               steps=args.steps, progress=args.progress, prompts_from="tune" if args.tune else "test",
                               out=results)  # fmt: skip
        if sets:
            over = [pooled(results, sets, pipe, label, edit, seeds, needed) for label, edit in edits.items()]
            found = pd.concat([found, pd.DataFrame(over)], ignore_index=True)
        write(found, name, table, args.csv or HERE)
        if table.trend:
            values = {f"{name}: {row.name}": float(row.value) for row in rows}
            trend = trends(results, table.concepts[0], values, [split for split in table.splits if split in OWN])
            trend.round(4).to_csv((args.csv or HERE) / f"trce_{name}_trend.csv", index=False, lineterminator="\n")
    return None


def edit_of(world: Any, table: str, row: Row, out: Path) -> Any:
    """The edit of a row, made once."""
    folder = out / "edits" / table / row.name.replace(" ", "_").replace("/", "_")
    if folder.is_dir():
        return erase.load_edit(folder)
    edit = row.make(own(), world, out)
    edit.save_pretrained(folder)
    return edit


def transfer_sets(table: Table, args: argparse.Namespace) -> list[Any]:
    """The committed sets of a table with attacks; none while tuning, since they are made of test prompts."""
    if table.fresh is None or args.tune:
        return []
    each = OF_EACH if args.prompts is None else min(OF_EACH, args.prompts)
    return [AttackSet.load(f"emoji/{CONCEPT}-{method}-banned").first(each) for method in TRANSFER]


def pooled(out: Path, sets: Sequence[Any], pipe: Any, label: str, edit: Any, seeds: int, needed: int) -> dict[str, Any]:
    """The rate under all transfer sets together, as a row of the table."""
    verdicts = pd.concat([prompt_by_prompt(out, one, pipe, edit, seeds, needed) for one in sets])
    rate = probe.stats.cluster_bootstrap(verdicts["found"], verdicts["prompt"], bounds=(0, 1))
    return {"edit": label, "attack": "pooled", "protocol": "transfer", "vocab": "banned", "concept": CONCEPT,
            "rule": f"{needed} of {seeds}", "split": "attacked", "metric": "rate", "seed_set": 0, "value": rate.value,
            "ci_low": rate.low, "ci_high": rate.high, "n": rate.n}  # fmt: skip


def limited(splits: Mapping[str, int], most: int | None) -> dict[str, int]:
    return {name: n if most is None else min(n, most) for name, n in splits.items()}


def write(found: pd.DataFrame, name: str, table: Table, folder: Path) -> None:
    """The CSV with the table's values, and the figure."""
    folder.mkdir(parents=True, exist_ok=True)
    values = pd.DataFrame({f"{name}: {row.name}": {"value_of": row.value} for row in table.rows}).T
    found = found.join(values, on="edit")
    found.round(4).to_csv(folder / f"trce_{name}.csv", index=False, lineterminator="\n")
    draw(found, name, folder / f"trce_{name}.png")


def trends(
    out: Path, concept: str, values: Mapping[str, float], splits: Sequence[str], draws: int = 2000
) -> pd.DataFrame:
    """Spearman's correlation of the varied value with the rate, by split; intervals from prompts drawn again.

    All edits drew the same prompts, and a draw takes the same ones for each.
    """
    rng, rows = np.random.default_rng(0), []
    for split in splits:
        _, prompts, shown = probe.result_images(out, concept, edits=list(values), split=split, n=10**6)
        hits = np.array([shown[name] for name in values], float)  # edit, sample
        found = [correlation(list(values.values()), hits.mean(1))]
        found += [correlation(list(values.values()), hits[:, rng.integers(len(prompts), size=len(prompts))].mean(1))
                  for _ in range(draws)]  # fmt: skip
        low, high = np.nanquantile(found[1:], (0.025, 0.975)) if np.isfinite(found[1:]).any() else (np.nan, np.nan)
        rows.append({"split": split, "spearman": found[0], "low": low, "high": high, "prompts": len(prompts)})
    return pd.DataFrame(rows)


def correlation(values: Sequence[float], rates: np.ndarray) -> float:
    """Spearman's, NaN where all rates are equal."""
    return float("nan") if len(set(rates)) < 2 else float(spearmanr(values, rates).statistic)


def draw(found: pd.DataFrame, name: str, path: Path) -> None:
    """Rates with intervals: one panel a split, one line a row."""
    rates = found[(found["metric"] == "rate") & ((found["split"] != "attacked") | (found["attack"] == "pooled"))]
    splits = [split for split in (*SPLITS, "attacked") if split in set(rates["split"])]
    figure = Figure(figsize=(3.2 * len(splits), 0.35 * rates["edit"].nunique() + 1.4))
    grid = figure.subplots(1, len(splits), sharey=True, squeeze=False)[0]
    for axis, split in zip(grid, splits, strict=True):
        part = (
            rates[rates["split"] == split]
            .groupby("edit", sort=False)[["value", "ci_low", "ci_high", "original"]]
            .mean()
        )
        place = np.arange(len(part))[::-1]
        reach = np.clip([part["value"] - part["ci_low"], part["ci_high"] - part["value"]], 0, None)
        axis.errorbar(part["value"], place, xerr=reach, fmt="o", color="#0072B2", markersize=4, linewidth=1)
        if split != "attacked":
            axis.axvline(part["original"].mean(), color="black", linewidth=0.8, linestyle="--")
        axis.set(title=split, xlim=(-0.03, 1.03), xlabel="shown")
        axis.set_yticks(place, list(part.index))
    figure.suptitle(name)
    figure.savefig(path, dpi=110, bbox_inches="tight")


def plan(args: argparse.Namespace, known: Mapping[str, Table]) -> None:
    """Pictures and minutes of whole tables, and what is kept already."""
    for name in args.tables:
        table = known[name]
        per = sum(limited(table.splits, args.prompts).values()) * len(table.concepts) * len(args.seed_sets)
        attacked = 0 if args.tune or table.fresh is None else len(TRANSFER) * OF_EACH * 3 * (1 + table.fresh[0])
        total = per * (len(table.rows[: args.rows]) + 1 + ("kid" in table.metrics))
        total += attacked * (len(table.rows[: args.rows]) + 1)
        minutes = total * SECONDS * args.steps / 30 / 60
        print(f"{name}: {len(table.rows)} edits, at most {total} pictures, {minutes:.0f} minutes at {SECONDS} s")
    print(f"{sum(1 for _ in (args.out / 'result' / 'images').glob('*.png'))} pictures are kept already")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = ("methods", "several", "eta", "tokens", "losses", "synonyms", "templates", "beta", "styles")
    parser.add_argument("tables", nargs="+", choices=names)
    parser.add_argument("--plan", action="store_true", help="say what there is to draw, and how long it takes")
    parser.add_argument("--out", type=Path, default=Path("runs/claims/trce_tables"))
    parser.add_argument(
        "--csv", type=Path, default=None, help="folder of CSV and figure; beside this file unless given"
    )
    parser.add_argument("--tune", action="store_true", help="measure on tuning prompts")
    parser.add_argument("--seed-sets", type=int, nargs="+", default=[0])
    parser.add_argument("--prompts", type=int, default=None, help="at most so many prompts of every split")
    parser.add_argument("--rows", type=int, default=None, help="only the first rows of each table")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--world", default="emoji")
    dtype_argument(parser)
    parser.add_argument("--progress", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()

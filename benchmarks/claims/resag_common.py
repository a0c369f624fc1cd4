"""What the four claims about residual attention gates share: edits trained once, how they are measured, their table.

Concepts are trained once, apart, and kept in ``edits`` of ``runs/claims/resag``; every row reuses them. Strength is
changed by `erase.scaled`, never by training again. Pictures are kept with their judgements, so every row goes on where
it was cut.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
from judgements import difference, judged, paired, rate
from keeping import kept, seconds
from models import common_arguments, own

import erase
import probe
from data.build.settings import OF_ONE
from probe._result import ORIGINAL

HERE = Path(__file__).resolve().parent
OUT = Path("runs/claims/resag")
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
SPLITS = ("explicit", "preserve_test", "preserve_fit")

STRENGTHS = (0.5, 1.0, 1.5, 2.0)
#: Judged beside the rate on the concepts' own prompts: what shows nothing, what else is still there, another judge.
BESIDE = ("broken", "content_kept", "rate_second")


def one_by_one(method: str, names: Sequence[str], seed: int, out: Path, **options: Any) -> list[Any]:
    """An edit of each concept by `erase.resag`, `erase.low_rank` or `erase.spm`, each trained once.

    ``preserve`` names concepts, if it is given.
    """
    world, eraser = probe.concepts("emoji"), getattr(erase, method)

    def made(name: str, _: Path) -> Any:
        told = {**OF_ONE[method], **options}
        if "preserve" in told:
            told["preserve"] = [world[other] for other in told["preserve"]]
        return eraser(own(), world[name], seed=seed, progress=False, **told)

    return [kept(*recipe(method, name, seed, **options), partial(made, name), out) for name in names]


def recipe(method: str, name: str, seed: int, **options: Any) -> tuple[str, dict[str, Any]]:
    """Label and options of one concept's edit, as they are kept."""
    return f"{method}-{name}-{seed}", {**OF_ONE[method], **options, "seed": seed}


def seconds_of(method: str, names: Sequence[str], seed: int, out: Path, **options: Any) -> float:
    """How long it took to train these concepts."""
    return sum(seconds(*recipe(method, name, seed, **options), out) for name in names)


def measured(
    pipe: Any, edits: Mapping[str, Any], names: Sequence[str], out: Path, args: argparse.Namespace
) -> pd.DataFrame:
    """One row an edit: how often what is erased is still shown, and what else loses, with paired intervals.

    Intervals have concepts for clusters, because prompts of one concept fail together.
    """
    world, images = probe.concepts("emoji"), of_images(args)
    labels = {label: f"{label} {edit.id[:6]}" for label, edit in edits.items()}
    common = {"world": world, "batch_size": args.batch_size, "out": out,
              "erased": {labels[label]: list(names) for label in edits}}  # fmt: skip
    by_label = {labels[label]: edit for label, edit in edits.items()}
    cells = probe.evaluate(pipe, by_label, list(names), splits=("explicit",), metrics=("rate", *BESIDE),
                           n_prompts=max(1, images.pop("explicit") // len(names)), **common)  # fmt: skip
    probe.evaluate(pipe, by_label, [names[0]], splits=tuple(images), n_prompts=images, metrics=("rate",), **common)
    rows = judged(out)
    return pd.DataFrame([
        summary(rows, label, edit.id, names, world) | beside(cells[cells["edit"] == labels[label]])
        for label, edit in edits.items()
    ])  # fmt: skip


def beside(cells: pd.DataFrame) -> dict[str, float]:
    """What stands beside the rate, over all erased concepts; NaN where none of their pictures could be judged."""
    found = {}
    for metric in BESIDE:
        part = cells[(cells["metric"] == metric) & (cells["n"] > 0)]
        found[metric] = float((part["value"] * part["n"]).sum() / part["n"].sum()) if len(part) else float("nan")
    return found


def summary(rows: pd.DataFrame, label: str, edit_id: str, names: Sequence[str], world: Any) -> dict[str, Any]:
    """Rates and losses of one edit."""
    pairs = paired(rows, edit_id, ORIGINAL)
    about = pairs[pairs["concept"].isin(names)]
    own_rate = rate(about, "shown", "concept")
    found: dict[str, Any] = {"edit": label, "erased_n": own_rate.n, "shown": own_rate.value, "low": own_rate.low,
                             "high": own_rate.high, "original": about["shown_other"].mean()}  # fmt: skip
    for split in ("preserve_test", "preserve_fit"):
        part = pairs[pairs["concept"].isin(set(world.lists[split]) - set(names))]
        loss = difference(part, "shown_other", "shown", "concept")
        found |= {
            f"{split}_n": loss.n,
            f"{split}_loss": loss.value,
            f"{split}_low": loss.low,
            f"{split}_high": loss.high,
        }
    return found


def compared(rows: pd.DataFrame, one: str, other: str, names: Sequence[str], split: str = "preserve_test") -> Any:
    """How much more ``other`` loses than ``one`` on what must survive, paired, concepts for clusters."""
    world = probe.concepts("emoji")
    pairs = paired(rows, one, other)
    part = pairs[pairs["concept"].isin(set(world.lists[split]) - set(names))]
    return difference(part, "shown", "shown_other", "concept")


def arguments(about: str | None, name: str, images: Mapping[str, int]) -> argparse.ArgumentParser:
    """What every row can be told."""
    parser = argparse.ArgumentParser(description=(about or "").splitlines()[0])
    common_arguments(parser, OUT, HERE / f"{name}.csv")
    parser.add_argument("--images", nargs=3, type=int, default=list(images.values()), metavar=tuple(images))
    return parser


def of_images(args: argparse.Namespace) -> dict[str, int]:
    """Pictures in all of each split, as the command line says."""
    return dict(zip(SPLITS, args.images, strict=True))


def write(rows: Sequence[pd.DataFrame], path: Path) -> pd.DataFrame:
    """The CSV of what is measured so far."""
    table = pd.concat(rows, ignore_index=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    table.round(4).to_csv(path, index=False, lineterminator="\n")
    return table

"""How the closed-form erasers were told what they are told: settings tried on tuning prompts.

    python benchmarks/claims/closed_form_tuning.py [CASE ...] [--dtype bfloat16]

CASE is any of ``weapon church ink groups`` (the five groups in one edit). Every setting of `TRIED` erases it once and
is judged on explicit tuning prompts and ``preserve_fit``. What closed forms preserve by default is of that split too,
so pictures tell less than they should about what others lose; settings that they cannot tell apart are told apart by
damage on everyday texts. Chosen is what has the least `cost` (`pruning_common.py`), and of several the one with the
least such damage.
Writes ``closed_form_tuning.csv`` beside this file: one row a setting, ``chosen`` by eraser and case. An eraser that
refuses a setting is a row that says why. `data/build/settings.py` has what was taken.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from keeping import kept, tell, updated
from models import common_arguments, opened, own, parsed
from pruning_common import cost

import erase
import probe
from probe.errors import BadInput

HERE = Path(__file__).resolve().parent
OUT = Path("runs/claims/closed_form_tuning")
METRICS = ("rate", "broken")
#: Pictures of each erased concept, and of what others show: of one concept, of five.
PICTURES = {1: (24, 24), 5: (12, 48)}
KEY = ["case", "method", "setting"]


def auto(*bounds: float, **options: Any) -> list[dict[str, Any]]:
    """The strongest edit within each bound on the damage of what is preserved."""
    return [{**options, "strength": "auto", "max_damage": bound} for bound in bounds]


TEXT = [{"eta": eta} for eta in (0.05, 0.5, 2.0, 8.0, 32.0)]
#: Case -> eraser -> what is tried.
TRIED: dict[str, dict[str, list[dict[str, Any]]]] = {
    "weapon": {
        "uce": [{"ridge": 0.05}, *auto(0.03, 0.05, ridge=0.05), *auto(0.05, ridge=0.5)],
        "rece": [{}, *auto(0.05, 0.1)],
        "trce_text": [*TEXT, *auto(0.1, eta=2.0)],
    },
    "church": {"trce_text": TEXT},
    "ink": {"trce_text": TEXT},
    "groups": {
        "uce": [*auto(0.03, 0.05, 0.1, 0.2, ridge=0.05), *auto(0.05, ridge=0.5)],
        "rece": auto(0.1, 0.2, 0.3),
        "mace": [{"ridge": 0.01, "eta": 0.3}, *auto(0.05, 0.1, 0.2, ridge=0.01, eta=0.3)],
        "trce_text": [{"eta": 0.5}, {"eta": 2.0}, *auto(0.05, 0.1, 0.2, eta=0.25)],
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("cases", nargs="*", choices=[[], *TRIED], default=[], help="all by default")
    common_arguments(parser, OUT, HERE / "closed_form_tuning.csv")
    args = parsed(parser, OUT)
    cases = args.cases or list(TRIED)
    if args.plan:
        return plan(cases, args)
    pipe, world = opened(args)
    for case in cases:
        updated(tuned(case, pipe, world, args), args.csv, KEY)
    return None


def tuned(case: str, pipe: Any, world: Any, args: argparse.Namespace) -> pd.DataFrame:
    """Every setting of a case, judged: one row each."""
    concepts = [world[name] for name in (world.lists["groups"] if case == "groups" else [case])]
    edits, facts = {}, []
    for method, tried in TRIED[case].items():
        for setting in tried:
            fact = {"case": case, "method": method, "setting": json.dumps(setting)}
            try:
                edit = made(method, concepts, setting, args.out)
            except BadInput as error:
                facts.append(fact | {"refused": str(error).splitlines()[0]})
                continue
            edits[edit.id] = edit
            damage = {f"damage_{what}": value for what, value in edit.report["damage"].items()}
            facts.append(fact | {"edit": edit.id, "strength": edit.report["strength"]} | damage)
    found = pd.DataFrame(facts).join(judged(edits, pipe, world, concepts, args), on="edit")
    found["chosen"] = False
    for _, part in found.dropna(subset=["shown"]).groupby("method"):
        found.loc[best(part), "chosen"] = True
    return found.drop(columns="edit")


def made(method: str, concepts: Sequence[Any], setting: dict[str, Any], out: Path) -> Any:
    """The edit of one setting, whatever the collapse check says of it."""
    label = f"{method}-{'+'.join(concept.name for concept in concepts)}"
    return kept(label, setting, lambda _: getattr(erase, method)(own(), concepts, collapse=math.inf, **setting), out)


def judged(edits: dict[str, Any], pipe: Any, world: Any, concepts: Sequence[Any], args: argparse.Namespace) -> Any:
    """By edit: ``shown``, ``original`` and ``broken`` over the concepts, ``loss`` and ``broken_others`` of others."""
    names = tuple(concept.name for concept in concepts)
    own_n, others_n = PICTURES[len(concepts)]
    common: dict[str, Any] = {
        "world": world, "erased": dict.fromkeys(edits, names), "prompts_from": "tune", "seed_sets": (1,),
        "metrics": METRICS, "batch_size": args.batch_size, "out": args.out / "judged" / "-".join(names),
    }  # fmt: skip
    mine = probe.evaluate(pipe, edits, concepts, splits=("explicit",), n_prompts=own_n, **common)
    others = probe.evaluate(pipe, edits, concepts[:1], splits=("preserve_fit",), n_prompts=others_n, **common)

    def mean(table: pd.DataFrame, split: str, metric: str, column: str = "value") -> pd.Series:
        cells = table[(table["split"] == split) & (table["metric"] == metric)]
        return cells.groupby("edit")[column].mean()

    return pd.DataFrame({
        "shown": mean(mine, "explicit", "rate"), "original": mean(mine, "explicit", "rate", "original"),
        "broken": mean(mine, "explicit", "broken"), "loss": -mean(others, "preserve_fit", "rate", "difference"),
        "broken_others": mean(others, "preserve_fit", "broken"),
    }).assign(n=own_n * len(concepts), n_others=others_n)  # fmt: skip


def best(part: pd.DataFrame) -> Any:
    """The index of the setting that shows least within the bars; of equals, that of the least everyday damage."""
    costs = cost(part)
    return part.loc[costs <= costs.min() + 1e-9, "damage_everyday"].idxmin()


def plan(cases: Sequence[str], args: argparse.Namespace) -> None:
    """Pictures and minutes of each case."""
    for case in cases:
        concepts = 5 if case == "groups" else 1
        own_n, others_n = PICTURES[concepts]
        settings = sum(map(len, TRIED[case].values()))
        tell(f"{case}: {settings} settings", (settings + 1) * (own_n * concepts + others_n), settings * 5, args)


if __name__ == "__main__":
    main()

"""What TRCE's tables hold: their rows, what each is measured on, and how its edits are made and kept."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from keeping import kept
from models import own
from pruning_common import setting_of, trained

import erase
from data.build.settings import CONCEPT_PRUNE, TEXT, options_of

CONCEPT = "weapon"
OWN = ("explicit", "implicit_phrase", "implicit_combination")
SPLITS = {"explicit": 40, "implicit_phrase": 40, "implicit_combination": 40, "preserve_test": 100}
METRICS = ("rate", "rate_second", "broken", "content_kept", "clip_score")
#: Rules for attacked prompts: new pictures, and how many of them must show the concept.
FRESH, ONE = (5, 3), (1, 1)
#: Erasers whose result a training seed decides.
LEARNED = ("esd", "trce_trajectory", "trce")


@dataclass(frozen=True)
class Row:
    """One edit of a table: its name, its eraser with options, what it erases, and the value that the table varies.

    ``unchecked``: made even where the collapse check refuses it, so that an ordering of the paper can be decided.
    """

    name: str
    method: str
    erased: tuple[str, ...] = (CONCEPT,)
    options: Mapping[str, Any] = field(default_factory=dict)
    value: float | None = None
    unchecked: bool = False

    @property
    def learned(self) -> bool:
        """Whether a training seed decides it."""
        return self.method in LEARNED


@dataclass(frozen=True)
class Table:
    """Rows, prompts by split, and what is done with them.

    - ``fresh``: the rule for attacked prompts; None without attacks
    - ``seeds``: training seeds, or seed sets of the evaluation where nothing in the eraser is random
    - ``kid``: a KID on its own, larger, set of pictures; ``adaptive``: a search against every row
    - ``trend``: whether the varied value has a trend to test
    """

    rows: tuple[Row, ...]
    splits: Mapping[str, int] = field(default_factory=lambda: dict(SPLITS))
    fresh: tuple[int, int] | None = None
    seeds: int = 1
    kid: bool = False
    adaptive: bool = False
    trend: bool = False


def tables(world: Any) -> dict[str, Table]:
    """Table -> what it holds."""

    def row(
        name: str,
        method: str,
        erased: tuple[str, ...] = (CONCEPT,),
        value: float | None = None,
        unchecked: bool = False,
        **options: Any,
    ) -> Row:
        told = options_of(method, [world[concept] for concept in erased])
        return Row(name, method, erased, {**told, **options}, value, unchecked)

    groups = tuple(world.lists["groups"])
    methods = (
        row("ESD", "esd"),
        row("UCE", "uce"),
        row("RECE", "rece"),
        row("ConceptPrune", "concept_prune"),
        row("TRCE (T)", "trce_text"),
        row("TRCE (V)", "trce_trajectory"),
        row("TRCE (T+V)", "trce"),
    )
    several = (
        row("UCE", "uce", groups),
        row("RECE", "rece", groups),
        row("MACE (closed form)", "mace", groups),
        row("TRCE (T)", "trce_text", groups),
        row("TRCE (T+V)", "trce", groups),
    )
    tokens: dict[str, Any] = {
        "[EoT]": "first_eot",
        "[KEY]": "keyword",
        "[EoT]+[KEY]": ("first_eot", "keyword"),
        "[EoT]+[SoT]": ("first_eot", "sot"),
        "all": "all_tokens",
        "released word count": "trce_word_count",
    }
    losses = (
        row("both losses", "trce"),
        row("no retain loss", "trce", retain=0.0),
        row("safe prediction alone", "trce", erase_loss="safe"),
    )
    styles = tuple(
        row(f"{name} {style}", method, (style,))
        for style in ("ink", "twemoji")
        for name, method in (("UCE", "uce"), ("RECE", "rece"), ("TRCE", "trce"))
    )

    def swept(of: str, values: tuple[float, ...], method: str = "trce_text") -> tuple[Row, ...]:
        return tuple(row(f"{n:g} {of}", method, value=n, **{of: n}) for n in values)

    etas = tuple(factor * TEXT["eta"] for factor in (0.2, 0.5, 1, 2))
    return {
        "methods": Table(methods, fresh=FRESH, seeds=3, kid=True, adaptive=True),
        "several": Table(several, {"explicit": 60, "preserve_test": 100}, kid=True),
        "eta": Table(swept("eta", etas), fresh=ONE, trend=True),
        "tokens": Table(
            tuple(row(name, "trce_text", tokens=t, unchecked="[KEY]" in name) for name, t in tokens.items()), fresh=ONE
        ),
        "losses": Table(losses, fresh=ONE),
        "synonyms": Table(swept("synonyms", (1, 2, 5, 10, 20)), fresh=ONE, trend=True),
        "templates": Table(swept("templates", (1, 2, 5, 10, 15, 30)), fresh=ONE, trend=True),
        "beta": Table(swept("beta", (3.0, 5.0, 10.0, 15.0, 20.0), "trce"), fresh=ONE, trend=True),
        "styles": Table(styles, {"explicit": 40, "preserve_test": 100}),
    }


@dataclass(frozen=True)
class Made:
    """The edits of a row, one for each training seed or one alone, and the seed sets that each is measured on."""

    row: Row
    edits: tuple[Any, ...]
    seed_sets: tuple[int, ...]

    def label(self, table: str, seed: int) -> str:
        """What one of its edits is called in a result: no two of other settings share a name there."""
        return f"{table}: {self.row.name} {seed} {self.edits[seed].id[:6]}"


def made(row: Row, world: Mapping[str, Any], seeds: int, args: argparse.Namespace) -> Made:
    """The edits of a row, with as many seeds, each made once. Raises `BadInput` where the eraser refuses."""
    if args.tune:
        return Made(row, (edit_of(row, world, 0, args),), (1,))
    if not row.learned:
        return Made(row, (edit_of(row, world, 0, args),), tuple(range(seeds)))
    return Made(row, tuple(edit_of(row, world, seed, args) for seed in range(seeds)), (0,))


def edit_of(row: Row, world: Mapping[str, Any], seed: int, args: argparse.Namespace) -> Any:
    """One edit. ESD is a training of the claims about erasers that learn, ConceptPrune the committed recipe."""
    concepts = [world[name] for name in row.erased]
    label = f"{row.method}-{'+'.join(row.erased)}-{seed}"
    if row.method == "esd":
        (concept,) = concepts
        setting, iterations = setting_of("esd", concept.name)
        return trained(concept, "esd", seed, args.pruning, setting)[iterations]
    if row.method == "concept_prune":
        return pruned(row, world, label, args.out)

    def make(training: Path) -> Any:
        more = {"seed": seed, "training": training, "progress": False} if row.learned else {}
        if row.unchecked:
            more["collapse"] = math.inf
        return getattr(erase, row.method)(own(), concepts, **row.options, **more)

    return kept(label, {**row.options, "seed": seed}, make, args.out)


def pruned(row: Row, world: Mapping[str, Any], label: str, out: Path) -> Any:
    """ConceptPrune as `data/build/edits.py` makes it; its runs are kept beside."""
    from data.build import edits

    job = edits.Job(row.erased[0], row.erased, "concept_prune")
    return kept(label, CONCEPT_PRUNE, lambda folder: edits.made(own(), world, job, folder), out)


# --- What the command line changes ------------------------------------------------------------------------------------


def results(args: argparse.Namespace) -> Path:
    """The folder of judged pictures."""
    return Path(args.out) / "judged" / ("tuning" if args.tune else "tables")


def seeds_of(table: Table, args: argparse.Namespace) -> int:
    """How many seeds a table has; tuning takes one, which no report takes."""
    return 1 if args.tune else min(args.seeds, table.seeds)


def splits_of(table: Table, args: argparse.Namespace) -> dict[str, int]:
    """Prompts by split; there are no unseen combinations to tune on, and what must survive there is another half."""
    splits = {name: limit(n, args) for name, n in table.splits.items()}
    if args.tune:
        splits.pop("implicit_combination", None)
        splits["preserve_fit"] = splits.pop("preserve_test")
    return splits


def limit(n: int, args: argparse.Namespace) -> int:
    """So many prompts, or fewer where the command line says so."""
    return n if args.prompts is None else min(n, args.prompts)

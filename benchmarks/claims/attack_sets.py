"""Attack sets of the claims about TRCE and gates: the committed ones, one made against an edit, and their verdicts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
from judgements import rate

import probe
from probe._result import ORIGINAL
from probe._result_rows import key_of, read_rows
from probe.errors import WorkbenchError

TRANSFER = ("mma", "ring_a_bell", "p4d", "unlearn_diff")
#: What stands for the unedited model where an edit is asked for.
UNEDITED = SimpleNamespace(name=ORIGINAL, id=ORIGINAL)
#: Of one prompt and search: pictures that are judged while searching, and seconds (200 steps forth and back).
SEARCHED, SEARCHING = 9, 200 * 4 / 60 * 0.3


def transfer(name: str, most: int | None = None) -> list[Any]:
    """The four committed transfer sets of a concept or pool, at most so many prompts of each.

    Ends the script where one is missing: a table of three attacks is another table.
    """
    try:
        sets = [probe.AttackSet.load(f"emoji/{name.replace(' ', '_')}-{method}-banned") for method in TRANSFER]
    except WorkbenchError as error:
        fix = f"make it: python -m data.build.attacks --only {name.replace(' ', '_')}"
        raise SystemExit(f"a committed attack set of {name} is missing ({error.given}); {fix}") from error
    return sets if most is None else [one.first(min(most, len(one))) for one in sets]


def adaptive(
    pipe: Any,
    concept: Any,
    edit: Any,
    prompts: int,
    folder: Path,
    batch_size: int,
    *,
    method: str = "unlearn_diff",
    seed: int = 0,
) -> Any:
    """An attack against an edit: quick, banned words behind the prompt; goes on where it was cut off."""
    where = {} if method == "seed_search" else {"where": "suffix"}  # see docs/methods/attacks.md
    return probe.attack(pipe, concept, edit=edit, method=method, protocol="adaptive", vocab="banned", budget="quick",
                        n_prompts=prompts, seed=seed, batch_size=batch_size, **where, out=folder)  # fmt: skip


def verdicts_of(out: Path, sets: Sequence[Any], pipe: Any, edit: Any, rule: tuple[int, int] = (5, 3)) -> pd.DataFrame:
    """``attack, concept, prompt, clean, found``, a row a prompt of every set, by the rule ``fresh``."""
    parts = [
        prompt_by_prompt(out, one, pipe, edit, *rule).assign(attack=one.method, concept=[row.concept for row in one])
        for one in sets
    ]
    return pd.concat(parts, ignore_index=True)


def prompt_by_prompt(out: Path, attack: Any, pipe: Any, edit: Any, seeds: int = 5, needed: int = 3) -> pd.DataFrame:
    """By the rule ``fresh``, from a result's folder: ``prompt, clean, found`` (1, 0 or NaN), a row a prompt."""
    from probe._eval_attacks import Fresh, Planned  # brings torch, which --plan can do without

    rows = {key_of(row): row for row in read_rows(out)}
    planned = Planned(attack, edit.name, edit.id, pipe, 7.5, fresh := Fresh(seeds, needed))

    def verdict(row: Any, form: str) -> float:
        name, (_, *unused) = planned.pictures(row, form)
        shown = [rows[edit.id, name, int(seed)]["shown"] for seed in unused]
        return fresh.decide(np.array([np.nan if one is None else one for one in shown], float))

    return pd.DataFrame([
        {"prompt": row.source, "clean": verdict(row, "before"), "found": verdict(row, "found")} for row in attack
    ])  # fmt: skip


def rate_of(verdicts: pd.DataFrame) -> Any:
    """How often prompts of all these sets show their concept: prompts are clusters."""
    return rate(verdicts, "found", "prompt")


def pictures_of(prompts: int, seeds: int = 5) -> int:
    """Pictures that so many attacked prompts need of one model: before, found and as text."""
    return prompts * 3 * (1 + seeds)

"""Verdicts of evaluated attack sets prompt by prompt, for statistics that a table of cells cannot give."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from probe._result_rows import key_of, read_rows


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

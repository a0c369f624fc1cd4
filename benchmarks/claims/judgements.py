"""What was judged, picture by picture, from a result's folder: for paired differences that a table of cells lacks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

import probe
from probe._result_rows import read_rows

KEYS = ["prompt", "seed"]


def judged(out: Path) -> pd.DataFrame:
    """Every judged picture: edit_id, the concept that its prompt is about, prompt, seed, shown (0, 1 or NaN)."""
    table = pd.DataFrame(read_rows(out))
    about = table["prompt_id"].str.partition("/")[0]
    return table[["edit_id", *KEYS]].assign(concept=about, shown=table["shown"].astype(float))


def paired(rows: pd.DataFrame, one: str, other: str) -> pd.DataFrame:
    """The pictures that two edits, by id, both drew, side by side: ``shown`` and ``shown_other``."""
    keys = ["concept", *KEYS]
    left, right = rows[rows["edit_id"] == one], rows[rows["edit_id"] == other]
    return left.merge(right[[*keys, "shown"]], on=keys, suffixes=("", "_other"))


def shown_on(rows: pd.DataFrame, edit_id: str, samples: pd.DataFrame) -> pd.Series:
    """The verdicts on an edit's pictures of these samples, in their order."""
    own = rows[rows["edit_id"] == edit_id]
    return samples[KEYS].merge(own[[*KEYS, "shown"]], on=KEYS, how="left", validate="1:1")["shown"]


def rate(table: pd.DataFrame, shown: str, clusters: str) -> Any:
    """Mean of a column of verdicts, with an interval from whole clusters drawn again."""
    return probe.stats.cluster_bootstrap(table[shown].to_numpy(float), table[clusters], bounds=(0.0, 1.0))


def difference(pairs: pd.DataFrame, shown: str, less: str, clusters: str) -> Any:
    """The same of one column less another."""
    before, after = pairs[less].to_numpy(float), pairs[shown].to_numpy(float)
    return probe.stats.paired_difference(before, after, pairs[clusters], bounds=(0.0, 1.0))

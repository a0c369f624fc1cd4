"""Does the damage that a closed-form eraser reports say what its edit loses? No picture is drawn.

    python benchmarks/claims/closed_form_damage.py

Every edit of text projections in the tables that `trce_tables.py` wrote beside this file, once: the relative change of
keys and values on preserved rows and on everyday texts (``report["damage"]``) against the share of ``preserve_test``
that it loses. Writes ``closed_form_damage.csv`` and ``.png``: the edits, and Spearman's correlation over them with an
interval from edits drawn again.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from scipy.stats import spearmanr

HERE = Path(__file__).resolve().parent
KINDS = {"preserved": "#0072B2", "everyday": "#D55E00"}


def main() -> None:
    table = edits(sorted(HERE.glob("trce_*.csv")))
    table.round(4).to_csv(HERE / "closed_form_damage.csv", index=False, lineterminator="\n")
    found = {kind: correlation(table[f"damage_{kind}"].to_numpy(), table["loss"].to_numpy()) for kind in KINDS}
    for kind, (value, low, high) in found.items():
        print(f"{kind}: Spearman {value:.2f} [{low:.2f}, {high:.2f}] over {len(table)} edits")
    draw(table, found, HERE / "closed_form_damage.png")


def edits(files: list[Path]) -> pd.DataFrame:
    """``edit, table, damage_preserved, damage_everyday, loss, n``, a row an edit that reports its damage."""
    parts = []
    for file in files:
        table = pd.read_csv(file)
        if "damage_everyday" in table:
            cells = table[(table["metric"] == "rate") & (table["split"] == "preserve_test")]
            cells = cells.dropna(subset=["damage_everyday"])
            found = cells.groupby(["row", "edit"], sort=False).agg(
                damage_preserved=("damage_preserved", "first"), damage_everyday=("damage_everyday", "first"),
                loss=("difference", lambda one: -one.mean()), n=("n", "sum"),
            )  # fmt: skip
            parts.append(found.reset_index().assign(table=file.stem.removeprefix("trce_")))
    found = pd.concat(parts, ignore_index=True)
    found["id"] = found["edit"].str.rpartition(" ")[2]  # names end in the edit's id; tables share some edits
    found = found.drop_duplicates("id").sort_values("damage_everyday")
    return found[["table", "row", "id", "damage_preserved", "damage_everyday", "loss", "n"]]


def correlation(one: np.ndarray, other: np.ndarray, draws: int = 5000) -> tuple[float, float, float]:
    """Spearman's, and its 95 % interval from pairs drawn again."""
    places = np.random.default_rng(0).integers(len(one), size=(draws, len(one)))
    again = [spearmanr(one[i], other[i]).statistic for i in places]
    return (float(spearmanr(one, other).statistic), *map(float, np.nanpercentile(again, (2.5, 97.5))))


def draw(table: pd.DataFrame, found: dict[str, tuple[float, float, float]], path: Path) -> None:
    """Loss over damage, a panel each."""
    figure = Figure(figsize=(7.6, 3.4), layout="constrained")
    for axis, (kind, colour) in zip(figure.subplots(1, 2, sharey=True), KINDS.items(), strict=True):
        axis.plot(table[f"damage_{kind}"], table["loss"], "o", color=colour, alpha=0.7)
        value, low, high = found[kind]
        axis.set(xlabel=f"damage on {kind} texts",
                 title=f"Spearman {value:.2f} [{low:.2f}, {high:.2f}]")  # fmt: skip
    figure.axes[0].set_ylabel("preserve_test loses")
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()

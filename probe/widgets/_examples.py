"""Pictures of one neuron: which of them to look at, and where in them it fires."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from probe.plots import neuron_examples

#: Pictures in a row of examples.
PER_ROW = 8


@dataclass(frozen=True)
class Examples:
    """Pictures (s y x 3) and one neuron's activation (s,) on them.

    ``rows`` name -> which of them to look at: the highest, and those around quantiles. ``maps`` (s y x) of where in the
    picture the neuron fires, None without.
    """

    images: np.ndarray
    activation: np.ndarray
    maps: np.ndarray | None
    prompts: list[str]
    rows: dict[str, np.ndarray]


def rows_of(activation: np.ndarray, per_row: int = PER_ROW) -> dict[str, np.ndarray]:
    """As `neuron_examples`, without the quantiles around which lie, among so few samples (s,), the highest again."""
    # half a row lies on either side of a quantile
    quantiles = [q for q in (0.9, 0.5, 0.1) if (1 - q) * len(activation) >= 1.5 * per_row]
    return neuron_examples(activation, per_row=per_row, quantiles=quantiles)

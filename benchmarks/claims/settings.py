"""What closed-form erasers and TRCE are told on the embedded model: one place, so that every claim tunes the same.

Chosen on tuning prompts (`trce_tables.py --tune`) where a comment says so, else first guesses or what is published. The
setting of ESD is in `pruning_common.py`, ConceptPrune's in `data/build/edits.py`, those of gates in `resag_common.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

#: The paper's 0.01 is for SD 1.4. 0.05 was chosen on weapon.
TEXT: dict[str, Any] = {"eta": 0.05}
TEXT_OF_MANY: dict[str, Any] = {"eta": 0.25}
#: First guesses: the paper's learning rate is for SD 1.4.
VISUAL: dict[str, Any] = {"lr": 3e-5, "epochs": 3, "cached": 60, "retained": 60, "steps": 30}

#: Eraser -> its options for one object, character or group.
OF_ONE: dict[str, dict[str, Any]] = {
    "uce": {},
    "rece": {},
    "mace": {"ridge": 0.01, "eta": 0.05},
    "trce_text": TEXT,
    "trce_trajectory": VISUAL,
    "trce": {**VISUAL, "text": TEXT},
}
#: The same for several concepts at once, and for a style, where they differ. RECE's of styles are published.
OF_MANY: dict[str, dict[str, Any]] = {"trce_text": TEXT_OF_MANY, "trce": {**VISUAL, "text": TEXT_OF_MANY}}
OF_STYLES: dict[str, dict[str, Any]] = {"rece": {"epochs": 1, "penalty": 1e-3}}


def options_of(method: str, concepts: Sequence[Any]) -> dict[str, Any]:
    """What an eraser is told of these concepts."""
    special = OF_MANY if len(concepts) > 1 else OF_STYLES if concepts[0].kind == "style" else {}
    return dict(special.get(method, OF_ONE.get(method, {})))

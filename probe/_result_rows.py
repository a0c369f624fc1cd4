"""Rows of ``images.jsonl``: one image each, with every measurement under the id of what measured it.

So another judge adds to a row and overwrites nothing, and the first one's scores are still there when it decides again.
"""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from probe._files import written_whole
from probe.errors import StoreDamaged

logger = logging.getLogger(__name__)

Key = tuple[str, str, int]
DECIMALS = 6  # of stored measurements
_SMALLEST = 1e-4  # label scores below this are stored as 0, that is, not at all


def key_of(row: Mapping[str, Any]) -> Key:
    """What makes an image within a result: edit id, prompt, seed."""
    return row["edit_id"], row["prompt"], int(row["seed"])


def line_of(row: Mapping[str, Any]) -> str:
    """A row as it is stored."""
    return json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"


def read_rows(path: Path, *, mend: bool = False) -> list[dict[str, Any]]:
    """The rows of ``images.jsonl``, the last of each image. A torn last line is left out, and with ``mend`` cut off.

    Raises:
        StoreDamaged: a line before the last is no row.

    """
    file = path / "images.jsonl"
    if not file.is_file():
        return []
    lines = file.read_bytes().split(b"\n")
    torn = lines.pop()
    if torn:
        logger.warning("%s ends within a line; that image is drawn again", file)
        if mend:
            with file.open("r+b") as whole:
                whole.truncate(file.stat().st_size - len(torn))
    rows = {}
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            rows[key_of(row)] = row
        except (ValueError, KeyError, TypeError) as error:
            raise StoreDamaged("a line of images.jsonl is no row", given=f"{file}, line {number}") from error
    return list(rows.values())


def upgraded(row: Mapping[str, Any], identity: Mapping[str, Any]) -> dict[str, Any]:
    """A row of layout 1, which kept scores by the judge's role and values by the metric's name, as one of layout 2.

    ``identity`` is the header's, whose judges and metrics these were. A row of layout 2 comes back as it is.
    """
    judges, metrics = identity.get("judges", {}), identity.get("metrics", {})
    return {
        **row,
        "judge": row.get("judge", judges.get("judge")),
        "scores": {judges.get(role, role): found for role, found in row["scores"].items()},
        "values": {metrics.get(name, name): found for name, found in row["values"].items()},
    }


def upgrade(path: Path, identity: Mapping[str, Any]) -> None:
    """Rewrite ``images.jsonl`` of layout 1 as layout 2, at once or not at all."""
    rows = read_rows(path)
    if rows:
        with written_whole(path / "images.jsonl", replace=True) as temporary:
            temporary.write_text("".join(line_of(upgraded(row, identity)) for row in rows), encoding="utf-8")


def pack_scores(scores: np.ndarray, labels: Sequence[str]) -> dict[str, float | None]:
    """Label scores (label,) as they are stored: six decimals, zeros left out, NaN as null."""
    found = np.round(np.asarray(scores, dtype=np.float64), DECIMALS)
    found[np.abs(found) < _SMALLEST] = 0.0
    return {
        label: None if np.isnan(score) else float(score)
        for label, score in zip(labels, found, strict=True)
        if score != 0
    }


def unpack_scores(rows: Iterable[Mapping[str, Any]], judge: str, labels: Sequence[str]) -> np.ndarray:
    """Label scores (s, label) that the judge of this id gave to stored rows."""
    place = {label: i for i, label in enumerate(labels)}
    stored = [row["scores"][judge] for row in rows]
    scores = np.zeros((len(stored), len(labels)))
    for s, found in enumerate(stored):
        for label, score in found.items():
            scores[s, place[label]] = np.nan if score is None else score
    return scores


def pack_feature(feature: np.ndarray) -> str | None:
    """A picture's features (d,) as they are stored: little-endian float32 in base64, null where they failed."""
    found = np.asarray(feature, dtype="<f4")
    return base64.b64encode(found.tobytes()).decode() if np.isfinite(found).all() else None


def unpack_features(rows: Iterable[Mapping[str, Any]], judge: str) -> np.ndarray:
    """Features (s, d) by the judge of this id, of stored rows; NaN where they failed."""
    stored = [row["features"][judge] for row in rows]
    found = [None if text is None else np.frombuffer(base64.b64decode(text), dtype="<f4") for text in stored]
    width = next((len(feature) for feature in found if feature is not None), 1)
    return np.array([np.full(width, np.nan) if feature is None else feature for feature in found], dtype=np.float64)

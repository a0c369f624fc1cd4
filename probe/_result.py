"""A result on disk: header.json, cells.csv, images.jsonl, and the images as PNG named by their content.

``images.jsonl`` grows by one line an image as soon as it is drawn and judged, and carries every measurement. So a
killed evaluation loses one batch at most, and the table can be made again from the text files alone.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from probe import formats, provenance
from probe._files import check_free, disk_errors, make_parent, remove, written_whole
from probe.errors import BadInput, HeaderMismatch, StoreDamaged, unknown_name

logger = logging.getLogger(__name__)

ORIGINAL = "original"
COLUMNS = (
    *("edit", "attack", "protocol", "vocab", "rule", "concept", "split", "metric", "seed_set"),
    *("value", "ci_low", "ci_high", "interval", "n", "n_failed", "original", "difference", "diff_low", "diff_high"),
)
KEYS = COLUMNS[:9]
_OPEN_ENDED = ("edits", "judges", "metrics")  # a later call may add to these, never change them
DECIMALS = 6  # of stored measurements
_SMALLEST = 1e-4  # label scores below this are stored as 0, that is, not at all

Key = tuple[str, str, int]


class ResultStore:
    """The images of one result with what was measured on them: edit id, prompt, seed -> row of ``images.jsonl``."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: dict[Key, dict[str, Any]] = {_key(row): row for row in read_rows(path, mend=True)}

    def add(self, rows: Sequence[Mapping[str, Any]], images: np.ndarray | None = None) -> None:
        """Keep rows, with their uint8 images (s, y, x, 3) where these are new."""
        with disk_errors(self.path):
            names = [row["image"] for row in rows] if images is None else [self._keep(image) for image in images]
            lines = []
            for row, name in zip(rows, names, strict=True):
                kept = {**row, "image": name}
                self.rows[_key(kept)] = kept
                lines.append(json.dumps(kept, ensure_ascii=False, allow_nan=False) + "\n")
            with (self.path / "images.jsonl").open("a", encoding="utf-8") as file:
                file.writelines(lines)

    def image(self, row: Mapping[str, Any]) -> np.ndarray | None:
        """The image of a row, None where only the text files were kept."""
        path = self.path / "images" / f"{row['image']}.png"
        return read_png(path) if path.is_file() else None

    def write_cells(self, cells: pd.DataFrame) -> None:
        """Put these cells into ``cells.csv``; those of other keys stay."""
        if (self.path / "cells.csv").is_file():
            fresh = pd.MultiIndex.from_frame(cells[list(KEYS)])
            kept = read_results(self.path)
            kept = kept[~pd.MultiIndex.from_frame(kept[list(KEYS)]).isin(fresh)]
            cells = pd.concat([kept, cells], ignore_index=True) if len(kept) else cells
        with written_whole(self.path / "cells.csv", replace=True) as temporary:
            cells.to_csv(temporary, index=False, float_format="%.6g", lineterminator="\n")

    def _keep(self, image: np.ndarray) -> str:
        from PIL import Image

        name = hashlib.sha256(f"{image.shape}".encode() + image.tobytes()).hexdigest()[:32]
        path = self.path / "images" / f"{name}.png"
        if not path.is_file():
            with written_whole(path, replace=True) as temporary:
                Image.fromarray(image).save(temporary, format="png")
        return name


@contextmanager
def open_result(out: str | Path, identity: Mapping[str, Any], *, force: bool) -> Iterator[ResultStore]:
    """The result at ``out``, made or gone on with; one process at a time.

    Raises:
        HeaderMismatch: a result of another identity is there, and not ``force``.
        BadInput: something else is there, or another process writes it.

    """
    from filelock import FileLock, Timeout

    path = Path(out)
    header = _read_header(path) if (path / "header.json").is_file() else None
    if header is None:
        if not _only_hidden(path):  # a lock, or a header that was never finished
            check_free(path, "result", ours=False, force=force)
    elif force and not _agree(header["identity"], identity):
        remove(path)
        header = None
    elif header is not None:
        _check(header["identity"], identity)
    make_parent(path)
    with disk_errors(path):
        path.mkdir(exist_ok=True)
        lock = FileLock(path / ".lock")
    try:
        with lock.acquire(timeout=0):
            _write_header(path, identity if header is None else _joined(header["identity"], identity))
            yield ResultStore(path)
    except Timeout as error:
        raise BadInput("another process is writing this result", given=str(path)) from error


def read_results(out: str | Path) -> pd.DataFrame:
    """The table of a result, all its cells: the columns of `probe.evaluate`."""
    path = Path(out)
    _read_header(path)
    text = [name for name in COLUMNS if name in {*KEYS, "interval"} - {"seed_set"}]
    try:
        # "none" is a word here, and so is everything else in a text column
        table = pd.read_csv(path / "cells.csv", dtype=dict.fromkeys(text, str), keep_default_na=False, na_values=[""])
    except (OSError, ValueError) as error:
        raise StoreDamaged("the cells of this result cannot be read", given=str(path / "cells.csv")) from error
    if list(table.columns[: len(COLUMNS)]) != list(COLUMNS):
        raise StoreDamaged("the cells of this result have other columns", given=", ".join(table.columns))
    return table


def result_images(
    out: str | Path, concept: str, *, edits: Sequence[str] | None = None, split: str = "explicit", n: int = 8
) -> tuple[dict[str, np.ndarray], list[str], dict[str, list[bool]]]:
    """Pictures to show: edit -> images (s, y, x, 3) on the same samples, their prompts, edit -> the judge's verdicts.

    The original comes first. Made for `probe.plot_before_after`: ``rows, prompts, shown = result_images(...)``.

    Args:
        out: the folder of a result.
        concept: what the prompts are about.
        edits: which edits, by name, in this order; all by default.
        split: of the concept's prompts.
        n: at most so many samples.

    """
    path = Path(out)
    rows = [row for row in read_rows(path) if row["prompt_id"].startswith(f"{concept}/{split}/")]
    by_edit: dict[str, dict[tuple[str, int], dict[str, Any]]] = {}
    for row in rows:
        by_edit.setdefault(row["edit"], {})[row["prompt"], row["seed"]] = row
    for name in edits or ():
        if name not in by_edit:
            raise unknown_name(f"edit with images of {concept}", name, by_edit)
    chosen = [ORIGINAL, *(name for name in (edits or by_edit) if name != ORIGINAL)]
    shared = [key for key in by_edit.get(ORIGINAL, {}) if all(key in by_edit[name] for name in chosen)][:n]
    if not shared:
        raise BadInput("no sample was drawn by all of these", given=", ".join(chosen), expected=f"{concept}, {split}")
    images, shown = {}, {}
    for name in chosen:
        picked = [by_edit[name][key] for key in shared]
        images[name] = np.stack([read_png(path / "images" / f"{row['image']}.png") for row in picked])
        shown[name] = [row["shown"] == 1 for row in picked]
    return images, [prompt for prompt, _ in shared], shown


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
            rows[_key(row)] = row
        except (ValueError, KeyError, TypeError) as error:
            raise StoreDamaged("a line of images.jsonl is no row", given=f"{file}, line {number}") from error
    return list(rows.values())


def read_png(path: Path) -> np.ndarray:
    """A PNG as uint8 (y, x, 3)."""
    from PIL import Image

    try:
        with Image.open(path, formats=["PNG"]) as picture:
            return np.asarray(picture.convert("RGB"))
    except (OSError, SyntaxError) as error:
        raise StoreDamaged("an image of this result cannot be read", given=str(path), fix="delete the file") from error


def pack_scores(scores: np.ndarray, labels: Sequence[str]) -> dict[str, float | None]:
    """Label scores (label,) as they are stored: six decimals, zeros left out, NaN as null."""
    found = np.round(np.asarray(scores, dtype=np.float64), DECIMALS)
    found[np.abs(found) < _SMALLEST] = 0.0
    return {
        label: None if np.isnan(score) else float(score)
        for label, score in zip(labels, found, strict=True)
        if score != 0
    }


def unpack_scores(rows: Iterable[Mapping[str, Any]], role: str, labels: Sequence[str]) -> np.ndarray:
    """Label scores (s, label) of stored rows."""
    place = {label: i for i, label in enumerate(labels)}
    stored = [row["scores"][role] for row in rows]
    scores = np.zeros((len(stored), len(labels)))
    for s, found in enumerate(stored):
        for label, score in found.items():
            scores[s, place[label]] = np.nan if score is None else score
    return scores


def _only_hidden(path: Path) -> bool:
    return path.is_dir() and all(child.name.startswith(".") for child in path.iterdir())


def _key(row: Mapping[str, Any]) -> Key:
    return row["edit_id"], row["prompt"], int(row["seed"])


def _read_header(path: Path) -> dict[str, Any]:
    file = path / "header.json"
    if not file.is_file():
        raise BadInput("no result here", given=str(path), expected="a folder that probe.evaluate wrote")
    try:
        header = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise StoreDamaged("the header of this result cannot be read", given=str(file)) from error
    formats.check_header(header, "result", file)
    found: dict[str, Any] = header
    return found


def _write_header(path: Path, identity: Mapping[str, Any]) -> None:
    header = {**formats.header("result"), **provenance.stamp(identity)}
    if (path / "header.json").is_file() and _read_header(path)["id"] == header["id"]:
        return
    with written_whole(path / "header.json", replace=True) as temporary:
        temporary.write_text(json.dumps(header, indent=1) + "\n", encoding="utf-8")


def _check(there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    fixed = [key for key in dict.fromkeys([*there, *here]) if key not in _OPEN_ENDED]
    provenance.check_same(there, here, "the result in this folder", keys=fixed)
    for part in _OPEN_ENDED:
        both = [key for key in there.get(part, {}) if key in here.get(part, {})]
        provenance.check_same(there.get(part, {}), here.get(part, {}), f"the result in this folder, {part}", keys=both)


def _agree(there: Mapping[str, Any], here: Mapping[str, Any]) -> bool:
    try:
        _check(there, here)
    except HeaderMismatch:
        return False
    return True


def _joined(there: Mapping[str, Any], here: Mapping[str, Any]) -> dict[str, Any]:
    return {**here, **{part: {**there.get(part, {}), **here.get(part, {})} for part in _OPEN_ENDED}}

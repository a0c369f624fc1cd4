"""A result on disk: header.json, cells.csv, images.jsonl, and the images as PNG named by their content.

``images.jsonl`` grows by one line an image as soon as it is drawn and judged, and carries every measurement. So a
killed evaluation loses one batch at most, and the table can be made again from the text files alone. Images do not
depend on who judges them: another judge may look at them, and then the cells are that judge's.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from probe import formats, provenance
from probe._files import check_free, disk_errors, make_parent, remove, written_whole
from probe._result_rows import Key, key_of, line_of, read_rows, upgrade, upgraded
from probe.errors import BadInput, HeaderMismatch, StoreDamaged, unknown_name

logger = logging.getLogger(__name__)

ORIGINAL = "original"
COLUMNS = (
    *("edit", "attack", "protocol", "vocab", "rule", "concept", "split", "metric", "seed_set"),
    *("value", "ci_low", "ci_high", "interval", "n", "n_failed", "original", "difference", "diff_low", "diff_high"),
)
KEYS = COLUMNS[:9]
_RULERS = ("judges", "metrics")
_OPEN_ENDED = ("edits", "attacks", *_RULERS)  # a later call may add to these; rulers change only where one asks for it
_DRAWN_WITH = ("model", "lineage", "sampling")


class ResultStore:
    """The images of one result with what was measured on them: edit id, prompt, seed -> row of ``images.jsonl``.

    ``header`` is the one that is there, if any. It gives way to one of ``identity`` when something is first written.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any], header: Mapping[str, Any] | None) -> None:
        self.path, self._identity, self._header = path, identity, header
        self._begun = False
        old = {} if header is None else header["identity"]
        self.rows: dict[Key, dict[str, Any]] = {key_of(row): upgraded(row, old) for row in read_rows(path, mend=True)}

    def begin(self) -> None:
        """Make the folder one of this identity, if it is not yet."""
        if self._begun:
            return
        there = self._header
        if there is None:
            _write_header(self.path, self._identity)
        else:
            if there["layout_version"] < 2:
                upgrade(self.path, there["identity"])
            if not _agree(there["identity"], self._identity):
                _set_cells_aside(self.path, there["id"])
            _write_header(self.path, _joined(there["identity"], self._identity))
        self._begun = True

    def add(self, rows: Sequence[Mapping[str, Any]], images: np.ndarray | None = None) -> None:
        """Keep rows, with their uint8 images (s, y, x, 3) where these are new."""
        self.begin()
        with disk_errors(self.path):
            names = [row["image"] for row in rows] if images is None else [self._keep(image) for image in images]
            lines = []
            for row, name in zip(rows, names, strict=True):
                kept = {**row, "image": name}
                self.rows[key_of(kept)] = kept
                lines.append(line_of(kept))
            with (self.path / "images.jsonl").open("a", encoding="utf-8") as file:
                file.writelines(lines)

    def has_image(self, row: Mapping[str, Any]) -> bool:
        """Whether the image of a row is there; of some results only the text files are kept."""
        return self._image(row["image"]).is_file()

    def image(self, row: Mapping[str, Any]) -> np.ndarray:
        """The image of a row."""
        return read_png(self._image(row["image"]))

    def write_cells(self, cells: pd.DataFrame) -> None:
        """Put these cells into ``cells.csv``; those of other keys stay."""
        self.begin()
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
        path = self._image(name)
        if not path.is_file():
            with written_whole(path, replace=True) as temporary:
                Image.fromarray(image).save(temporary, format="png")
        return name

    def _image(self, name: str) -> Path:
        return self.path / "images" / f"{name}.png"


@contextmanager
def open_result(
    out: str | Path, identity: Mapping[str, Any], *, force: bool, rejudge: bool = False
) -> Iterator[ResultStore]:
    """The result at ``out``, made or gone on with; one process at a time. ``rejudge`` lets judges and metrics change.

    Where they do, the cells that are there go into a file of their own, ``cells-<id of their header>.csv``. Nothing
    that is there changes before something is written, or the block ends well.

    Raises:
        HeaderMismatch: a result of another identity is there, and not ``force``.
        BadInput: something else is there, or another process writes it.

    """
    from filelock import FileLock, Timeout

    path = Path(out)
    header = _read_header(path) if os.path.isfile(path / "header.json") else None
    if header is None:
        if not _only_hidden(path):  # a lock, or a header that was never finished
            check_free(path, "result", ours=False, force=force)
    elif force and not _agree(header["identity"], identity):
        remove(path)
        header = None
    elif header is not None:
        _check(header["identity"], identity, rejudge=rejudge)
    make_parent(path)
    with disk_errors(path):
        path.mkdir(exist_ok=True)
        lock = FileLock(path / ".lock")
    try:
        with lock.acquire(timeout=0):
            store = ResultStore(path, identity, header)
            yield store
            store.begin()
    except Timeout as error:
        raise BadInput("another process is writing this result", given=str(path)) from error


def drawn_with(out: str | Path) -> dict[str, Any]:
    """What the images of a result were drawn with, as its header has it: model, lineage, sampling."""
    identity = _read_header(Path(out))["identity"]
    return {key: identity[key] for key in _DRAWN_WITH if key in identity}


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

    Raises:
        BadInput: no such samples, or their verdicts are not those of the judge that decides in this result.

    """
    path = Path(out)
    identity = _read_header(path)["identity"]
    judge = identity["judges"].get("judge")
    rows = [upgraded(row, identity) for row in read_rows(path) if row["prompt_id"].startswith(f"{concept}/{split}/")]
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
        if stale := [row["judge"] for row in picked if row["judge"] != judge]:
            raise BadInput(
                f"images of {concept} were judged by another judge",
                given=stale[0],
                expected=judge,
                fix="evaluate them with rejudge=True",
            )
        images[name] = np.stack([read_png(path / "images" / f"{row['image']}.png") for row in picked])
        shown[name] = [row["shown"] == 1 for row in picked]
    return images, [prompt for prompt, _ in shared], shown


def read_png(path: Path) -> np.ndarray:
    """A PNG as uint8 (y, x, 3)."""
    from PIL import Image

    try:
        with Image.open(path, formats=["PNG"]) as picture:
            return np.asarray(picture.convert("RGB"))
    except (OSError, SyntaxError) as error:
        raise StoreDamaged("an image of this result cannot be read", given=str(path), fix="delete the file") from error


def _only_hidden(path: Path) -> bool:
    return path.is_dir() and all(child.name.startswith(".") for child in path.iterdir())


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
    if (path / "header.json").is_file():
        there = _read_header(path)
        if (there["id"], there["layout_version"]) == (header["id"], header["layout_version"]):
            return
    with written_whole(path / "header.json", replace=True) as temporary:
        temporary.write_text(json.dumps(header, indent=1) + "\n", encoding="utf-8")


def _set_cells_aside(path: Path, header_id: str) -> None:
    if (path / "cells.csv").is_file():
        aside = path / f"cells-{header_id}.csv"
        (path / "cells.csv").replace(aside)
        logger.warning(
            "the former judge's cells are in %s; repeat every call with rejudge=True that cells.csv should hold", aside
        )


def _check(there: Mapping[str, Any], here: Mapping[str, Any], *, rejudge: bool = False) -> None:
    fixed = [key for key in dict.fromkeys([*there, *here]) if key not in _OPEN_ENDED]
    provenance.check_same(there, here, "the result in this folder", keys=fixed)
    for part in _OPEN_ENDED:
        if part in _RULERS and rejudge:
            continue
        both = [key for key in there.get(part, {}) if key in here.get(part, {})]
        fix = "rejudge=True measures the stored images again" if part in _RULERS else None
        what = f"the result in this folder, {part}"
        provenance.check_same(there.get(part, {}), here.get(part, {}), what, keys=both, fix=fix)


def _agree(there: Mapping[str, Any], here: Mapping[str, Any]) -> bool:
    try:
        _check(there, here)
    except HeaderMismatch:
        return False
    return True


def _joined(there: Mapping[str, Any], here: Mapping[str, Any]) -> dict[str, Any]:
    return {**here, **{part: {**there.get(part, {}), **here.get(part, {})} for part in _OPEN_ENDED}}

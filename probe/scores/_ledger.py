"""What was measured under each change, kept in a file as it comes, so that a killed score goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from probe import formats, provenance
from probe._files import disk_errors, make_parent
from probe.errors import BadInput, StoreDamaged

KIND = "causal_log"


class Ledger:
    """Log-odds and hits (s,) of the same samples, by what was changed: ``None``, or (site name, unit).

    With a path it is a JSON Lines file: a header with the identity of the measurements, then a line a change. A line
    that a crash has torn is cut off.

    Raises `HeaderMismatch` naming the key in which the file's identity differs, `BadInput` for a file that is something
    else.
    """

    def __init__(self, path: str | Path | None, identity: Mapping[str, Any]) -> None:
        self.path = None if path is None else Path(path)
        self.rows: dict[tuple[str, int] | None, tuple[np.ndarray, np.ndarray]] = {}
        if self.path is None:
            return
        if self.path.exists():
            self._read(self.path, identity)
            return
        make_parent(self.path)
        self._append({**formats.header(KIND), **provenance.stamp(identity)})

    def add(self, change: tuple[str, int] | None, log_odds: np.ndarray, hits: np.ndarray) -> None:
        """Keep the measurements under one change."""
        self.rows[change] = (log_odds, hits)
        if self.path is not None:
            lists = {name: _plain(x) for name, x in (("log_odds", log_odds), ("hits", hits))}
            self._append({"changed": None if change is None else list(change), **lists})

    def _read(self, path: Path, identity: Mapping[str, Any]) -> None:
        if not path.is_file():
            raise BadInput("the log is no file", given=str(path), fix="choose another path")
        with disk_errors(path):
            text = path.read_bytes()
        whole = text[: text.rfind(b"\n") + 1]
        try:
            lines = [json.loads(line) for line in whole.decode().splitlines()]
            header, rows = lines[0], lines[1:]
            formats.check_header(header, KIND, path)
            found = header["identity"]
            for row in rows:
                change = None if row["changed"] is None else (str(row["changed"][0]), int(row["changed"][1]))
                self.rows[change] = (_numbers(row["log_odds"]), _numbers(row["hits"]))
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, StoreDamaged) as error:
            if isinstance(error, BadInput):
                raise
            raise BadInput(
                "exists and is no log of a causal score", given=str(path), fix="choose another path"
            ) from None
        expected = provenance.stamp(identity)["identity"]
        fix = "repeat the call that made it, or choose another log"
        provenance.check_same(found, expected, "the log was made by another call", fix=fix)
        if len(whole) < len(text):
            with disk_errors(path), path.open("r+b") as file:
                file.truncate(len(whole))

    def _append(self, row: Mapping[str, Any]) -> None:
        assert self.path is not None
        line = json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"
        with disk_errors(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(line)


def _plain(x: np.ndarray) -> list[float | None]:
    return [None if np.isnan(value) else float(value) for value in x]


def _numbers(values: list[float | None]) -> np.ndarray:
    return np.array([np.nan if value is None else value for value in values], np.float64)

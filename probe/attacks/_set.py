"""AttackSet: what an attack found, one row a prompt, saved and loaded without a model.

A folder: ``attack.jsonl`` (a header with the identity, then a line a prompt, appended as soon as it is done) and, where
something other than tokens was found, ``tensors/<key>.safetensors``.
"""

from __future__ import annotations

import hashlib
import html
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from probe import formats, provenance
from probe._files import check_free, disk_errors, make_parent, written_whole
from probe._kinds import absent
from probe._paths import finding
from probe.attacks._found import CARRIERS, Found
from probe.errors import BadInput, StoreDamaged, unknown_name

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

KIND, FILE = "attack_set", "attack.jsonl"


class AttackSet:
    """What an attack found: ``rows`` (`Found`) in the order of the prompts, ``provenance``, ``tensors`` by key.

    Made by `probe.attack` and `AttackSet.load`; `read_prompts` makes one of published prompts.
    """

    def __init__(
        self,
        made: Mapping[str, Any],
        rows: Sequence[Found],
        tensors: Mapping[str, Mapping[str, Tensor]] | None = None,
    ) -> None:
        self.provenance = dict(made)
        self.rows = list(rows)
        self.tensors = {key: dict(value) for key, value in (tensors or {}).items()}
        if missing := [row.tensors for row in self.rows if row.tensors and row.tensors not in self.tensors]:
            raise StoreDamaged("an attack set lacks tensors", given=missing[0])

    # --- what it is ---

    @property
    def identity(self) -> dict[str, Any]:
        """What decides its rows."""
        return dict(self.provenance["identity"])

    @property
    def id(self) -> str:
        """Hash of the identity."""
        return str(self.provenance["id"])

    @property
    def name(self) -> str:
        """The concept, or what a pool of them is called."""
        return str(self.identity["name"])

    @property
    def method(self) -> str:
        """Name of the attack."""
        return str(self.identity["method"])

    @property
    def protocol(self) -> str:
        """``transfer`` or ``adaptive``."""
        return str(self.identity["protocol"])

    @property
    def vocab(self) -> str:
        """``open``, ``banned``, or ``none`` where the attack uses no tokens of its own."""
        return str(self.identity["vocab"])

    @property
    def found_on(self) -> str:
        """Id of the edit that was attacked, or ``original``."""
        return str(self.identity["found_on"])

    @property
    def floor(self) -> bool:
        """Whether its concepts are ones that the model cannot draw."""
        return bool(self.identity.get("floor", False))

    @property
    def concepts(self) -> list[str]:
        """The concepts of its rows, each once."""
        return list(dict.fromkeys(row.concept for row in self.rows))

    @property
    def success_rate(self) -> float:
        """Share of judged rows that succeeded in the search; NaN where none was judged."""
        judged = [row.success for row in self.rows if row.success is not None]
        return sum(judged) / len(judged) if judged else float("nan")

    def table(self) -> pd.DataFrame:
        """One row a prompt: the fields of `Found` but ``tries``, the counts of ``cost`` as columns of their own."""
        hidden = ("cost", "tries")
        rows = [{**{k: v for k, v in row.to_json().items() if k not in hidden}, **row.cost} for row in self.rows]
        return pd.DataFrame(rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[Found]:
        return iter(self.rows)

    def first(self, count: int) -> AttackSet:
        """The set with so many of its prompts alone, to measure fewer; its id stays, because a row says nothing else.

        Rows are kept as they were found, easy prompts first; these are the first by prompt_id, which ends in a hash.
        """
        if count < 1:
            raise BadInput("a set keeps at least one prompt", given=count)
        rows = sorted(self.rows, key=lambda row: (row.prompt_id.rpartition("/")[-1], row.seed))
        return AttackSet(self.provenance, rows[:count], self.tensors)

    # --- files ---

    def save(self, path: str | Path, *, force: bool = False) -> Path:
        """Write the set as a folder. The same set again does nothing.

        Raises `BadInput` where ``path`` holds another one (unless ``force``), or something else.
        """
        path = Path(path)
        ours = os.path.isfile(path / FILE)
        if ours and not force and _text(self) == (path / FILE).read_text(encoding="utf-8"):
            return path
        check_free(path, "attack set", ours=ours, force=force)
        with written_whole(path, replace=force) as temporary:
            temporary.mkdir()
            (temporary / FILE).write_text(_text(self), encoding="utf-8")
            for key, tensors in self.tensors.items():
                write_tensors(temporary, key, tensors)
        return path

    @classmethod
    def load(cls, path: str | Path) -> AttackSet:
        """Read a saved set, or ``"emoji/<name>"``: one that comes with the embedded model.

        Rows of an interrupted search are there with what had been found. Raises `UnknownName` or `BadInput` where there
        is no set, `StoreDamaged` for a torn one.
        """
        folder = finding(path, "attack_set")
        made, rows = read_log(folder)
        if made is None:
            raise absent(folder, "attack_set")
        return cls(made, rows, {row.tensors: read_tensors(folder, row.tensors) for row in rows if row.tensors})

    # --- how it shows itself ---

    def __repr__(self) -> str:
        on = "the original model" if self.found_on == "original" else f"edit {self.found_on}"
        words = f"{self.method} on {self.name}, {self.vocab}, {self.protocol}, against {on}"
        judged = [row.success for row in self.rows if row.success is not None]
        hits = f", {sum(judged)} of {len(judged)} shown" if judged else ", not judged"
        return f"<AttackSet {self.id} {words}: {len(self)} prompts{hits}>"

    def _repr_html_(self) -> str:
        columns = ["concept", "source", "prompt", "before", "success", "forwards", "backwards", "texts", "images"]
        frame = self.table().reindex(columns=columns).head(20)
        shown = frame.to_html(index=False, border=0, escape=True, na_rep="")
        return f"<b>{html.escape(repr(self).strip('<>'))}</b>{shown}"


class Log:
    """Rows on disk as they come. Without a path it keeps them in memory only.

    Raises `HeaderMismatch` naming the key in which a set at ``path`` differs, `BadInput` for something else there.
    """

    def __init__(self, path: str | Path | None, identity: Mapping[str, Any], *, force: bool = False) -> None:
        self.path = None if path is None else Path(path)
        self.made = provenance.stamp(identity)
        self.rows: dict[tuple[str, str, str, int], Found] = {}
        self.tensors: dict[str, dict[str, Tensor]] = {}
        if self.path is None:
            return
        there, rows = read_log(self.path)
        if there is not None and force and there["id"] != self.made["id"]:
            self._new(replace_=True)
        elif there is not None:
            fix = "repeat the call that made it, choose another path, or force=True"
            provenance.check_same(there["identity"], self.made["identity"], "the attack set in this folder", fix=fix)
            self.made = there
            self.rows = {row.key: row for row in rows}
            self.tensors = {row.tensors: read_tensors(self.path, row.tensors) for row in rows if row.tensors}
            _cut_torn_line(self.path / FILE)
        else:
            self._new(replace_=False)

    def add(self, row: Found, tensors: Mapping[str, Tensor] | None = None) -> None:
        """Keep what was found for a prompt; a later row of the same prompt counts."""
        if tensors:
            row = replace(row, tensors=tensors_key(tensors))
            self.tensors[row.tensors] = dict(tensors)
        self.rows[row.key] = row
        if self.path is None:
            return
        with disk_errors(self.path):
            if tensors:
                write_tensors(self.path, row.tensors, tensors)
            with (self.path / FILE).open("a", encoding="utf-8") as file:
                file.write(_line(row.to_json()))

    def _new(self, *, replace_: bool) -> None:
        assert self.path is not None
        check_free(self.path, "attack set", ours=replace_, force=replace_)
        make_parent(self.path)
        with written_whole(self.path, replace=replace_) as temporary:
            temporary.mkdir()
            (temporary / FILE).write_text(_line({**formats.header(KIND), **self.made}), encoding="utf-8")


def read_log(path: Path) -> tuple[dict[str, Any] | None, list[Found]]:
    """Provenance and rows (the last of each prompt) of the set at ``path``; None where there is none."""
    file = path / FILE
    if not os.path.isfile(file):
        return None, []
    with disk_errors(path):
        text = file.read_bytes()
    try:
        lines = [json.loads(line) for line in text[: text.rfind(b"\n") + 1].decode().splitlines()]
        header = lines[0]
        formats.check_header(header, KIND, file)
        rows = {row.key: row for row in map(Found.from_json, lines[1:])}
    except BadInput:
        raise
    except (ValueError, IndexError, TypeError, AttributeError) as error:
        raise StoreDamaged("the attack set cannot be read", given=str(file)) from error
    if unknown := [row.carrier for row in rows.values() if row.carrier not in CARRIERS]:
        raise unknown_name("carrier of an attack", unknown[0], CARRIERS)
    return {key: header[key] for key in ("identity", "info", "id")}, list(rows.values())


def tensors_key(tensors: Mapping[str, Tensor]) -> str:
    """Short hash of tensors by name."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {tuple(tensors[name].shape)}".encode())
        digest.update(tensors[name].detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:12]


def write_tensors(path: Path, key: str, tensors: Mapping[str, Tensor]) -> None:
    """Put tensors beside the rows that name their key."""
    from safetensors.torch import save_file

    file = path / "tensors" / f"{key}.safetensors"
    if file.is_file():
        return
    file.parent.mkdir(exist_ok=True)
    with written_whole(file, replace=True) as temporary:
        save_file({name: t.detach().float().cpu().contiguous() for name, t in tensors.items()}, temporary)


def read_tensors(path: Path, key: str) -> dict[str, Tensor]:
    """The tensors of a key."""
    from safetensors.torch import load_file

    file = path / "tensors" / f"{key}.safetensors"
    if Path(key).name != key or not file.is_file():
        raise StoreDamaged("an attack set lacks tensors", given=str(file))
    try:
        found: dict[str, Tensor] = load_file(file)
    except Exception as error:  # safetensors has its own, unrelated to any other
        raise StoreDamaged("tensors of an attack set cannot be read", given=str(file)) from error
    return found


def _text(found: AttackSet) -> str:
    return _line({**formats.header(KIND), **found.provenance}) + "".join(_line(row.to_json()) for row in found.rows)


def _line(row: Mapping[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n"


def _cut_torn_line(file: Path) -> None:
    text = file.read_bytes()
    if (whole := text.rfind(b"\n") + 1) < len(text):
        logger.warning("%s ends within a line; that prompt is attacked again", file)
        with file.open("r+b") as open_file:
            open_file.truncate(whole)

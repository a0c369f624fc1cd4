"""Attack prompts that others published: a CSV of the user's, with a seed and a guidance in every row."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from probe import provenance
from probe.attacks._found import Found
from probe.attacks._set import AttackSet
from probe.attacks._speaking import ids_of, room
from probe.errors import BadInput, nearest

logger = logging.getLogger(__name__)

#: What published files call a column; the first that is there is read.
COLUMNS = {
    "prompt": ("adversarial_prompt", "adv_prompt", "sensitive prompt", "prompt"),
    "source": ("source", "target_prompt", "target prompt", "original_prompt"),
    "seed": ("evaluation_seed", "sd_seed", "seed"),
    "guidance": ("evaluation_guidance", "sd_guidance_scale", "guidance_scale", "guidance"),
}


def read_prompts(
    path: str | Path,
    pipe: Any,
    concept: Any,
    *,
    method: str | None = None,
    columns: dict[str, str] | None = None,
    seed: int = 0,
    guidance: float = 7.5,
    too_long: Literal["error", "drop"] = "error",
    name: str | None = None,
) -> AttackSet:
    """Published attack prompts as a transfer set, to be used like one that `probe.attack` made.

    Args:
        path: a CSV with a header. Read are the prompt, and where there are such columns its ``source`` (what it
            attacks, else itself), ``seed`` and ``guidance``, under the names of `COLUMNS`.
        pipe: its tokenizer reads the prompts.
        concept: what they are about, for the judge.
        method: what tables call the attack; the file's name unless given.
        columns: names of columns that `COLUMNS` does not know: ``{"prompt": "text"}``.
        seed, guidance: where a row has none.
        too_long: a prompt with more tokens than the encoder takes is an error, or left out and counted.
        name: of the pool, by default the concept's name.

    Raises `BadInput` for a file without prompts, a column that there is not, a prompt that is too long.
    """
    path = Path(path)
    if not path.is_file():
        raise BadInput("there is no file of prompts here", given=str(path))
    try:
        table = pd.read_csv(path, encoding="utf-8", dtype=str, keep_default_na=False)
    except (ValueError, UnicodeDecodeError) as error:
        raise BadInput(
            "the file is no CSV", given=f"{path}: {error}", expected="a header and one prompt a line"
        ) from error
    of = {key: _column(table, key, (columns or {}).get(key)) for key in COLUMNS}
    if of["prompt"] is None:
        given, expected = ", ".join(map(str, table.columns)), f"one of {', '.join(COLUMNS['prompt'])}"
        raise BadInput(
            "the file has no column of prompts", given=given, expected=expected, fix="columns={'prompt': ...}"
        )
    rows, most, dropped = [], room(pipe), 0
    for i, line in enumerate(table.to_dict("records")):
        text = str(line[of["prompt"]])
        ids = ids_of(pipe.tokenizer, text)
        if len(ids) > most:
            if too_long == "error":
                given = f"{len(ids)} tokens in row {i + 1}: {text[:60]!r}"
                fix = "too_long='drop' leaves such rows out"
                raise BadInput(
                    "a prompt is longer than the text encoder takes", given=given, expected=f"at most {most}", fix=fix
                )
            dropped += 1
            continue
        own_seed = int(float(_value(line, of["seed"]) or seed))
        scale = float(_value(line, of["guidance"]) or guidance)
        source = _value(line, of["source"]) or text
        rows.append(
            Found(concept.name, str(i), source, own_seed, scale, token_ids=ids, prompt=text, found_seed=own_seed)
        )
    if dropped:
        logger.warning("%d of %d prompts are longer than %d tokens and left out", dropped, len(table), most)
    if not rows:
        raise BadInput("no prompt is left", given=str(path))
    identity = {
        "method": method or path.stem,
        "name": name or concept.name,
        "vocab": "open",
        "protocol": "transfer",
        "found_on": "published",
        "file": hashlib.sha256(path.read_bytes()).hexdigest(),
        "columns": of,
        "too_long": too_long,
    }
    return AttackSet(provenance.stamp(identity), rows)


def _column(table: pd.DataFrame, key: str, given: str | None) -> str | None:
    if given is not None:
        if given not in table:
            raise BadInput("the file has no such column", given=given, nearest=nearest(given, map(str, table.columns)))
        return given
    return next((name for name in COLUMNS[key] if name in table), None)


def _value(line: dict[Any, Any], column: str | None) -> str:
    return "" if column is None else str(line[column]).strip()

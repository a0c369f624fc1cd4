"""The sample table: one row for every (prompt, seed), the row axis of everything recorded or generated."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from probe.errors import BadInput

#: Columns of a sample table in their order; ``guidance`` is there only where samples bring their own, ``source_image``
#: where they are noised images.
COLUMNS = ("prompt", "prompt_id", "seed", "pair", "concept", "split", "negative_prompt", "guidance", "source_image")
_TEXT = ("prompt", "concept", "split", "negative_prompt")


def samples(
    prompts: str | Sequence[str] | pd.DataFrame | Mapping[str, Sequence[Any]],
    seeds: int | Sequence[int] = 0,
    *,
    seeds_per_prompt: int | None = None,
    concept: Any = None,
    split: str | None = None,
    negative_prompt: str | None = None,
) -> pd.DataFrame:
    """The table of samples, with the columns ``prompt, prompt_id, seed, pair, concept, split, negative_prompt``.

    Args:
        prompts: strings, or a table with ``prompt`` and any of the other columns (and ``guidance``); columns it has win
            over the arguments, further ones are left out. For strings ``prompt_id`` and ``pair`` are their positions.
        seeds: one for every prompt, or a list with one each.
        seeds_per_prompt: k generates every prompt with k seeds: ``seeds``, ``seeds + 1``, ..., or the k listed ones.
        concept: a name, or an object with ``name``; split: which of its prompts these are.
        negative_prompt: for all samples.

    Raises `BadInput` for no prompts, and for seeds that fit neither their number nor the table.
    """
    table = _as_table(prompts)
    n = len(table)
    if n == 0:
        raise BadInput("there are no prompts", fix="give at least one prompt")
    position = np.arange(n)
    defaults: dict[str, Any] = {
        "prompt_id": position,
        "pair": table.get("prompt_id", pd.Series(position)).to_numpy(),
        "concept": getattr(concept, "name", concept) or "",
        "split": split or "",
        "negative_prompt": negative_prompt or "",
    }
    for name, value in defaults.items():
        if name not in table:
            table[name] = value
    for name in _TEXT:
        table[name] = table[name].astype(object).where(table[name].notna(), "").astype(str).astype(object)
    table = _with_seeds(table, seeds, seeds_per_prompt)
    if bad := [seed for seed in table["seed"] if not 0 <= int(seed) < 2**63]:
        raise BadInput("a seed is a non-negative 64-bit integer", given=bad[0])
    return table[[name for name in COLUMNS if name in table]]


def digest(table: pd.DataFrame) -> dict[str, Any]:
    """Number of samples and hash of the table: what an identity keeps of it."""
    rows = table.to_dict(orient="split", index=False)
    text = json.dumps([rows["columns"], rows["data"]], ensure_ascii=True)
    return {"n": len(table), "sha256": hashlib.sha256(text.encode()).hexdigest()}


def starts_with(table: pd.DataFrame, start: pd.DataFrame) -> bool:
    """Whether the first rows of ``table`` are ``start``."""
    return len(table) >= len(start) and digest(table.head(len(start))) == digest(start)


def _as_table(prompts: Any) -> pd.DataFrame:
    if isinstance(prompts, pd.DataFrame | Mapping):
        table = pd.DataFrame(prompts).reset_index(drop=True)
        if "prompt" not in table:
            given = ", ".join(map(str, table.columns)) or "no columns"
            raise BadInput("a table of samples needs a column prompt", given=given)
        return table[[name for name in COLUMNS if name in table]].copy()
    listed = [prompts] if isinstance(prompts, str) else list(prompts)
    if wrong := [p for p in listed if not isinstance(p, str)]:
        raise BadInput("prompts are strings or a table", given=repr(wrong[0]))
    return pd.DataFrame({"prompt": pd.Series(listed, dtype=object)})


def _with_seeds(table: pd.DataFrame, seeds: int | Sequence[int], per_prompt: int | None) -> pd.DataFrame:
    n = len(table)
    listed = None if isinstance(seeds, int | np.integer) else [int(seed) for seed in seeds]
    if "seed" in table:
        if per_prompt is not None or listed is not None:
            raise BadInput("the table has seeds of its own", fix="drop its column seed, or give no seeds")
        return table
    if per_prompt is None:
        if listed is not None and len(listed) != n:
            fix = "give one seed for each prompt, or seeds_per_prompt= to cross them"
            raise BadInput("seeds and prompts differ in number", given=f"{len(listed)} seeds, {n} prompts", fix=fix)
        table["seed"] = seeds if listed is None else listed
        return table
    if per_prompt < 1 or (listed is not None and len(listed) != per_prompt):
        given = f"seeds_per_prompt={per_prompt}" + ("" if listed is None else f" with {len(listed)} seeds")
        raise BadInput("seeds_per_prompt is the number of seeds of every prompt", given=given)
    every = listed if listed is not None else list(range(int(seeds), int(seeds) + per_prompt))  # type: ignore[arg-type]
    crossed = table.loc[table.index.repeat(per_prompt)].reset_index(drop=True)
    crossed["seed"] = np.tile(every, n)
    return crossed

"""Prompts from the command line: strings, a file of them, or a concept's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from probe.errors import BadInput, unknown_name

FILES = (".txt", ".csv")


def read_prompts(given: list[str]) -> Any:
    """Strings as they are; one ``.txt`` has a prompt a line, one ``.csv`` a table with the column prompt."""
    if len(given) != 1 or not given[0].endswith(FILES):
        return given
    path = Path(given[0])
    if not path.is_file():
        raise BadInput("there is no such file of prompts", given=str(path))
    if path.suffix == ".csv":
        import pandas as pd

        try:
            return pd.read_csv(path)
        except (ValueError, UnicodeDecodeError) as error:
            raise BadInput("the file of prompts cannot be read", given=f"{path}: {error}") from None
    return [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def of_concept(world: str, name: str, split: str | None, references: str | None) -> tuple[Any, list[str]]:
    """A concept and its prompts of one split, or its references of one form."""
    from probe import concepts

    concept = concepts(world)[name]
    known, key = (concept.prompts, split or "explicit") if references is None else (concept.references, references)
    if key not in known:
        raise unknown_name(f"{'split' if references is None else 'form of references'} of {name}", key, known)
    return concept, list(known[key])

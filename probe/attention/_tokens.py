"""Which positions of an encoded text are meant by ``sot``, ``keyword``, ``first_eot``, ``all_eot`` and all but n."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from probe.errors import BadInput, unknown_name
from probe.tokens import eot_index, spans_in

#: Names of tokens, as TRCE groups them: [SoT], [KEY], [EoT].
TOKENS = ("sot", "keyword", "first_eot", "all_eot")

Side = Literal["first", "last"]


def token_positions(
    tokenizer: Any,
    ids: np.ndarray,
    tokens: str | int | Sequence[str | int],
    *,
    keyword: Sequence[str] = (),
    leave: int = 0,
    leave_side: Side = "first",
    absent: Literal["error", "ignore"] = "error",
) -> list[int]:
    """The positions of chosen tokens in one row of token ids (k,), ascending.

    Args:
        tokenizer: that made the ids.
        ids: one encoded text, padded.
        tokens: any of ``sot`` (the first position), ``keyword`` (all tokens of every occurrence of ``keyword``),
            ``first_eot`` (the first position with the end-of-text id), ``all_eot`` (every position from there on,
            whatever the pad id), and positions as numbers.
        keyword: the words meant by ``keyword``.
        leave: so many of ``all_eot`` are not meant: all but n.
        leave_side: whether the first or the last n are left (the paper says neither; the first is ours).
        absent: a text without any of the keywords is an error, or has no such positions.

    Raises:
        UnknownName: no such token.
        BadInput: a position outside the text, or a keyword that is not there.

    """
    row = np.asarray(ids)
    end = int(eot_index(tokenizer, row[None])[0])
    every = list(range(end, len(row)))
    left = every[leave:] if leave_side == "first" else every[: max(0, len(every) - leave)]
    named: dict[str | int, list[int]] = {"sot": [0], "first_eot": [end], "all_eot": left}
    found: set[int] = set()
    for token in listed(tokens):
        if token == "keyword":  # noqa: S105 - a token of a text, no secret
            named[token] = _keywords(tokenizer, row, keyword, absent)
        elif isinstance(token, int) and not 0 <= token < len(row):
            raise BadInput("there is no such position", given=token, expected=f"0 to {len(row) - 1}")
        found.update(named.get(token, [token] if isinstance(token, int) else []))
    return sorted(found)


def _keywords(tokenizer: Any, row: np.ndarray, keyword: Sequence[str], absent: str) -> list[int]:
    places = [i for word in keyword for span in spans_in(tokenizer, row, word) for i in span]
    if not places and absent == "error":
        text = str(tokenizer.decode(row[1 : int(eot_index(tokenizer, row[None])[0])].tolist()))
        fix = 'absent="ignore", which leaves such prompts as they are'
        raise BadInput(f"no keyword ({', '.join(keyword)}) in the prompt", given=repr(text), fix=fix)
    return places


def listed(tokens: str | int | Sequence[str | int]) -> list[str | int]:
    """One token or several, as a list of names and positions."""
    several = [tokens] if isinstance(tokens, str | int) else list(tokens)
    if not several:
        raise BadInput("no token is named", expected=f"any of {', '.join(TOKENS)}, or positions")
    if unknown := [t for t in several if isinstance(t, str) and t not in TOKENS]:
        raise unknown_name("token", unknown[0], TOKENS)
    return several

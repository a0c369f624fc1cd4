"""From what was found back to what is drawn."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from probe.attacks._drawing import Carried, Drawing, draw
from probe.attacks._found import Found
from probe.attacks._set import AttackSet
from probe.attacks._speaking import FREE, Spoken, encoders, ids_of, room, text_of

logger = logging.getLogger(__name__)


def carried_of(pipe: Any, row: Found, tensors: Mapping[str, Tensor], *, source: bool = False) -> Carried:
    """What a row draws; with ``source`` the prompt that was attacked, as it is."""
    if source:
        return Carried("tokens", spoken=Spoken(ids_of(pipe.tokenizer, row.source)))
    if row.carrier == "tokens":
        return Carried("tokens", spoken=Spoken(row.token_ids))
    if row.carrier == "embedding":
        vectors = {name: tensors[name] for name in encoders(pipe)}
        return Carried("embedding", spoken=Spoken(row.token_ids, vectors))
    return Carried(row.carrier, row.source, None, row.at, tensors)


def retokenised(pipe: Any, carried: Carried) -> Carried:
    """The same with the text that the tokens spell, encoded again; what carries no plain tokens stays as it is.

    Decoding and encoding may change the number of tokens; what does not fit any more is cut, with a warning.
    """
    if carried.spoken is None or FREE in carried.spoken.ids:
        return carried
    text = text_of(pipe.tokenizer, carried.spoken.ids)
    ids, most = ids_of(pipe.tokenizer, text), room(pipe)
    if len(ids) > most:
        logger.warning("%r is %d tokens when encoded again, and the model reads %d", text, len(ids), most)
    return Carried("tokens", spoken=Spoken(ids[:most]))


def images_of(
    pipe: Any, found: AttackSet, drawing: Drawing, *, edit: Any = None, seeds: Sequence[int] | None = None
) -> np.ndarray:
    """A picture of every row, uint8 (s y x rgb), from the seed that decided or from ``seeds``."""
    carried = [carried_of(pipe, row, found.tensors.get(row.tensors, {})) for row in found]
    seeds = [row.found_seed for row in found] if seeds is None else list(seeds)
    return draw(pipe, edit, carried, seeds, [row.guidance for row in found], drawing)

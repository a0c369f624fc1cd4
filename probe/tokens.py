"""Where in a tokenized prompt things are: the true [EoT], the padding, the tokens of a word.

A CLIP tokenizer of Stable Diffusion 1.x pads with [EoT] itself, so "the [EoT] token" is the *first* one after the text;
the positions behind it are padding that merely has the same id. Texts are counted in tokens, never in words.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from probe.compat import END_OF_WORD
from probe.errors import BadInput

if TYPE_CHECKING:
    from transformers import CLIPTokenizer


def encode(tokenizer: CLIPTokenizer, prompts: str | Sequence[str]) -> np.ndarray:
    """Token ids as a pipeline makes them: int64 (s, k), cut and padded to the tokenizer's length."""
    texts = [prompts] if isinstance(prompts, str) else list(prompts)
    options = {"padding": "max_length", "truncation": True, "max_length": tokenizer.model_max_length}
    return np.asarray(tokenizer(texts, **options).input_ids, np.int64).reshape(len(texts), -1)


def is_cut(tokenizer: CLIPTokenizer, prompt: str) -> bool:
    """Whether the prompt is longer than the tokenizer's length, so that its end is never seen by the model."""
    return len(tokenizer(prompt, truncation=False, verbose=False).input_ids) > tokenizer.model_max_length


def eot_index(tokenizer: CLIPTokenizer, ids: np.ndarray) -> np.ndarray:
    """Position of the true [EoT] in each row of ids (s, k): (s,). `BadInput` for a row that has none."""
    is_eot = np.asarray(ids) == tokenizer.eos_token_id
    if not is_eot.any(axis=-1).all():
        raise BadInput("a row of token ids has no end-of-text token", fix="encode with padding or special tokens")
    return np.asarray(is_eot.argmax(axis=-1))


def text_mask(tokenizer: CLIPTokenizer, ids: np.ndarray) -> np.ndarray:
    """True where a row of ids (s, k) holds text: between BOS and the true [EoT], both excluded. (s, k)."""
    position = np.arange(np.shape(ids)[-1])
    return (position > 0) & (position < eot_index(tokenizer, ids)[..., None])


def spans(tokenizer: CLIPTokenizer, prompt: str, phrase: str) -> list[range]:
    """The positions in the encoded prompt of every occurrence of a phrase, in order; empty where it does not occur.

    Whole words are compared, as tokens: "bat" is found neither in "batter" nor in "combat".
    """
    return spans_in(tokenizer, encode(tokenizer, prompt)[0], phrase)


def spans_in(tokenizer: CLIPTokenizer, ids: np.ndarray, phrase: str) -> list[range]:
    """`spans` of a phrase in one row of token ids (k,)."""
    wanted = tokenizer(phrase, add_special_tokens=False).input_ids
    if not wanted:
        raise BadInput("the phrase has no tokens", given=repr(phrase))
    row = np.asarray(ids)
    end = int(eot_index(tokenizer, row[None])[0])
    starts = range(1, end - len(wanted) + 1)
    return [
        range(i, i + len(wanted))
        for i in starts
        if row[i : i + len(wanted)].tolist() == wanted and (i == 1 or _ends_word(tokenizer, row[i - 1]))
    ]


def words_in(tokenizer: CLIPTokenizer, ids: np.ndarray) -> list[tuple[str, range]]:
    """The words of one row of token ids (k,) with their positions, in order: sub-tokens belong to one word."""
    row = np.asarray(ids)
    end = int(eot_index(tokenizer, row[None])[0])
    found, start = [], 1
    for i in range(1, end):
        if _ends_word(tokenizer, row[i]) or i == end - 1:  # a text that was cut may end inside a word
            found.append((str(tokenizer.decode(row[start : i + 1].tolist())).strip(), range(start, i + 1)))
            start = i + 1
    return found


def _ends_word(tokenizer: CLIPTokenizer, token: int) -> bool:
    return str(tokenizer.convert_ids_to_tokens(int(token))).endswith(END_OF_WORD)

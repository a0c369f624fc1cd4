"""Positions of the true [EoT], of text and of words."""

from __future__ import annotations

import numpy as np
import pytest

from probe import compat, tokens
from probe.errors import BadInput


@pytest.fixture(scope="module")
def tokenizer():
    """Words of one token (church</w>) and of several (barn: b a rn</w>)."""
    merges = ["c h", "u r", "ch ur", "chur c", "chur ch</w>", "c h</w>", "r n</w>"]
    return compat.clip_tokenizer(merges=merges, model_max_length=12)


def test_the_true_end_is_the_first(tokenizer):
    ids = tokens.encode(tokenizer, ["a church", "", "barn barn barn barn barn"])
    assert ids.shape == (3, 12)
    assert (ids[:, -1] == tokenizer.eos_token_id).all()
    ends = tokens.eot_index(tokenizer, ids)
    assert ends.tolist() == [1 + len(tokenizer("a church", add_special_tokens=False).input_ids), 1, 11]
    for row, end in zip(ids, ends, strict=True):
        assert (row[:end] != tokenizer.eos_token_id).all()
        assert (row[end:] == tokenizer.eos_token_id).all()


def test_text_is_between_the_special_tokens(tokenizer):
    ids = tokens.encode(tokenizer, ["a b", ""])
    assert tokens.text_mask(tokenizer, ids).sum(axis=1).tolist() == [2, 0]
    assert not tokens.text_mask(tokenizer, ids)[:, 0].any()


def test_ids_without_an_end(tokenizer):
    with pytest.raises(BadInput, match="no end-of-text"):
        tokens.eot_index(tokenizer, np.array([[1, 2, 3]]))


def test_spans_of_words_of_several_tokens(tokenizer):
    assert tokens.spans(tokenizer, "a barn, b", "barn") == [range(2, 5)]
    assert tokens.spans(tokenizer, "barn a barn", "Barn") == [range(1, 4), range(5, 8)]
    assert tokens.spans(tokenizer, "a", "barn") == []
    assert tokens.spans(tokenizer, "barns", "barn") == []
    with pytest.raises(BadInput, match="no tokens"):
        tokens.spans(tokenizer, "a", " ")


def test_prompts_that_are_cut(tokenizer):
    assert not tokens.is_cut(tokenizer, "a b c d e f g h i j")
    assert tokens.is_cut(tokenizer, "a b c d e f g h i j k")


def test_a_word_is_not_found_inside_another(tokenizer):
    """The tokens of "arn" are the end of those of "barn"."""
    inner, outer = (tokenizer(word, add_special_tokens=False).input_ids for word in ("arn", "barn"))
    assert outer[-len(inner) :] == inner
    assert tokens.spans(tokenizer, "barn", "arn") == []
    assert tokens.spans(tokenizer, "b arn", "arn") == [range(2, 4)]


def test_words_and_their_sub_tokens(tokenizer):
    row = tokens.encode(tokenizer, "a barn, church")[0]
    assert tokens.words_in(tokenizer, row) == [
        ("a", range(1, 2)), ("barn", range(2, 5)), (",", range(5, 6)), ("church", range(6, 8)),
    ]  # fmt: skip
    assert tokens.words_in(tokenizer, tokens.encode(tokenizer, "")[0]) == []
    cut = tokens.words_in(tokenizer, tokens.encode(tokenizer, "barn " * 4)[0])
    assert [len(span) for _, span in cut] == [3, 3, 3, 1], "the last word was cut"

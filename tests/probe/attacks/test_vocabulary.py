"""Which tokens are banned, and texts that spell a name out of harmless pieces."""

from __future__ import annotations

import numpy as np
import pytest

from probe import compat
from probe.attacks import _vocabulary as voc
from probe.attacks._speaking import ids_of, text_of
from probe.errors import BadInput, UnknownName
from tests.probe.measuring import concept

PAIRS = [("c", "h"), ("ch", "u"), ("chu", "r"), ("chur", "c"), ("churc", "h</w>"), ("h", "a"), ("ha", "t</w>")]
LISTED = ["church</w>", "chur", "hat</w>", "c", "h", "u", "r", "h</w>", "a</w>", "x</w>"]


@pytest.fixture(scope="module")
def tokenizer():
    merges = [*PAIRS[:4], ("chur", "ch</w>"), ("c", "h</w>"), *PAIRS[5:]]
    return compat.clip_tokenizer(merges=merges, model_max_length=32)


def test_banned_leaves_out_names_long_pieces_of_names_and_tokens_that_give_the_concept_away(tokenizer):
    known = tokenizer.get_vocab()
    church = concept("church")
    opened = voc.vocabulary(tokenizer, church, "open", tokens=LISTED)
    assert sorted(opened.ids) == sorted(known[t] for t in LISTED)
    assert opened.forbidden == ()
    banned = voc.vocabulary(tokenizer, church, "banned", tokens=LISTED, shares={"x</w>": 0.21, "hat</w>": 0.2})
    left = {token for token in LISTED if known[token] in set(banned.ids)}
    assert left == {"hat</w>", "c", "h", "u", "r", "h</w>", "a</w>"}


def test_names_spelled_in_letters_are_read_and_mended(tokenizer):
    known = tokenizer.get_vocab()
    banned = voc.vocabulary(tokenizer, concept("church"), "banned", tokens=LISTED)
    spelled = [known[t] for t in ("c", "h", "u", "r", "c", "h</w>")]
    assert text_of(tokenizer, spelled) == "church"
    assert not banned.allows(spelled)
    assert banned.allows([known["hat</w>"], known["c"]])
    ranked = [[i, known["a</w>"]] for i in spelled]
    mended = banned.mended(tuple(spelled), ranked)
    assert mended == (*spelled[:-1], known["a</w>"])
    assert banned.allows(mended)


def test_a_name_hidden_by_a_hyphen_is_read_and_short_names_are_whole_words():
    assert voc._reads("church", "a chu rch")
    assert voc._reads("water pistol", "water-pistol")
    assert voc._reads("axe", "an axe.")
    assert not voc._reads("axe", "relaxed")


def test_shares_are_counted_by_token(tokenizer):
    shares = voc.token_shares(tokenizer, ["hat a", "hat", "a"], [True, False, False])
    assert shares["hat</w>"] == 0.5
    assert shares["a</w>"] == 0.5


def test_the_id_tells_vocabularies_apart_and_specials_are_never_in(tokenizer):
    church = concept("church")
    some = [voc.vocabulary(tokenizer, church, name, tokens=LISTED).id for name in ("open", "banned")]
    assert len(set(some)) == 2
    every = voc.vocabulary(tokenizer, church, "open")
    assert not {tokenizer.bos_token_id, tokenizer.eos_token_id} & set(every.ids.tolist())
    assert every.mask().sum() == len(every.ids)


def test_what_cannot_be_a_vocabulary_is_refused(tokenizer):
    church = concept("church")
    with pytest.raises(UnknownName, match="banned"):
        voc.vocabulary(tokenizer, church, "bannd")
    with pytest.raises(UnknownName, match="token"):
        voc.vocabulary(tokenizer, church, "open", tokens=["no such token"])
    with pytest.raises(BadInput, match="no token is left"):
        voc.vocabulary(tokenizer, church, "banned", tokens=["church</w>"])
    ids = ids_of(tokenizer, "church")
    with pytest.raises(BadInput, match="every choice"):
        voc.vocabulary(tokenizer, church, "banned", tokens=LISTED).mended(ids, [[i] for i in ids])
    assert isinstance(ids, tuple)
    assert np.asarray(ids).size

"""Which tokens are meant, on a tokenizer of bytes (every letter a token) and on the embedded one."""

from __future__ import annotations

import pytest

import probe
from erase.selectors import SELECTORS, Text, named, pairs, positions
from probe.errors import BadInput, UnknownName
from probe.testing import tiny_pipeline
from probe.tokens import encode


@pytest.fixture(scope="module")
def tokenizer():
    return tiny_pipeline().tokenizer  # 32 positions, one token a letter


def texts(tokenizer, source, target, source_key="", target_key=""):
    return Text.of(tokenizer, source, source_key), Text.of(tokenizer, target, target_key)


# [SoT] a, c a t, [EoT] at 5, padding to 31; and [SoT] a, b i r d, [EoT] at 6
CAT, BIRD = ("a cat", "cat"), ("a bird", "bird")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("first_eot", [(5, 6)]),
        ("all_eot", [(5 + i, 6 + i) for i in range(26)]),
        ("last_eot", [(31, 31)]),
        ("sot", [(0, 0)]),
        ("keyword", [(2, 3), (3, 4), (4, 5)]),
        ("first_keyword", [(2, 2)]),
        ("last_subject", [(4, 5)]),
        ("subject_to_end", [(4 + i, 5 + i) for i in range(27)]),
        ("all_tokens", [(i, i) for i in range(32)]),
        ("after_sot", [(i, i) for i in range(1, 32)]),
        ("trce_word_count", [(3, 3)]),
    ],
)
def test_pairs_of_positions(tokenizer, name, expected):
    source, target = texts(tokenizer, CAT[0], BIRD[0], CAT[1], BIRD[1])
    assert pairs(name, tokenizer, source, target) == expected


def test_a_shorter_target_serves_several_tokens(tokenizer):
    source, target = texts(tokenizer, "a bird", "a cat", "bird", "cat")
    assert pairs("keyword", tokenizer, source, target) == [(2, 2), (3, 2), (4, 3), (5, 4)]


def test_residual_leaves_the_concept_out(tokenizer):
    source, target = texts(tokenizer, "a cat on x", "a bird on x")
    found = pairs("residual", tokenizer, source, target)
    assert found[:2] == [(0, 0), (1, 1)]
    assert found[2:6] == [(5, 6), (6, 7), (7, 8), (8, 9)]  # "on x" and [EoT]; both end one apart
    assert {i for i, _ in found}.isdisjoint({2, 3, 4})
    assert found[-1] == (30, 31)


def test_residual_of_texts_that_share_an_ending_counts_each_token_once(tokenizer):
    source, target = texts(tokenizer, "aa", "aaa")
    found = pairs("residual", tokenizer, source, target)
    assert len({i for i, _ in found}) == len(found)
    assert len({j for _, j in found}) == len(found)


def test_names_add_up(tokenizer):
    source, target = texts(tokenizer, CAT[0], BIRD[0], CAT[1], BIRD[1])
    assert pairs(("first_eot", "sot"), tokenizer, source, target) == [(0, 0), (5, 6)]
    assert named(["sot", "sot"]) == ("sot",)
    assert positions("first_eot", tokenizer, source) == [5]


def test_an_empty_text_has_its_start_as_subject(tokenizer):
    empty = Text.of(tokenizer, "")
    assert positions("last_subject", tokenizer, empty) == [0]
    assert positions("first_eot", tokenizer, empty) == [1]
    assert positions("subject_to_end", tokenizer, empty) == list(range(32))


@pytest.mark.parametrize("name", sorted(SELECTORS))
def test_every_selector_stays_inside_the_text_and_maps_a_text_to_itself(tokenizer, name):
    text = Text.of(tokenizer, "a cat on a mat", "cat")
    found = pairs(name, tokenizer, text, text)
    assert found == [(i, i) for i, _ in found]
    assert all(0 <= i < 32 for i, _ in found)
    full = Text.of(tokenizer, "x" * 50)
    assert all(0 <= i < 32 for i, _ in pairs(name, tokenizer, full, full))


def test_bad_input(tokenizer):
    with pytest.raises(UnknownName, match="first_eot"):
        named("frist_eot")
    with pytest.raises(BadInput, match="no token selector"):
        named([])
    with pytest.raises(BadInput, match="keyword is not in"):
        positions("keyword", tokenizer, Text.of(tokenizer, "a cat", "dog"))


def test_sdxl_pads_with_another_token_and_ends_at_the_same(tokenizer):
    pipe = tiny_pipeline("sdxl")
    second = Text("a cat", encode(pipe.tokenizer_2, "a cat")[0])
    assert positions("first_eot", pipe.tokenizer_2, second) == [5]
    assert positions("all_eot", pipe.tokenizer_2, second) == list(range(5, 32))


@pytest.mark.embedded
@pytest.mark.parametrize(
    "concept", ["church", "ink", "weapon", "intoxicants", "death", "gambling", "vermin", "twemoji"]
)
def test_the_true_eot_of_every_template_and_phrase_of_the_embedded_world(concept):
    """The position is where the text's own tokens end; the released word count is elsewhere for most."""
    import erase
    from probe._paths import emoji_dir

    tokenizer = probe.compat.clip_tokenizer(
        emoji_dir() / "pipeline/tokenizer/vocab.json", emoji_dir() / "pipeline/tokenizer/merges.txt", 32
    )
    augmentation = erase.Augmentation.read(emoji_dir() / "augment" / f"{concept}.yaml")
    assert len(augmentation.pairs) == 20
    assert len(augmentation.templates) == 30
    apart = 0
    every = augmentation.texts(20, 30, 0)
    for pair in every:
        for text, key in ((pair.source, pair.source_key), (pair.target, pair.target_key)):
            found = Text.of(tokenizer, text, key)
            own = tokenizer(text, add_special_tokens=False).input_ids
            [eot] = positions("first_eot", tokenizer, found)
            assert eot == min(len(own) + 1, 31)
            assert found.ids[eot] == tokenizer.eos_token_id
            assert tokenizer.eos_token_id not in found.ids[1:eot]
            assert positions("keyword", tokenizer, found)  # the key is a whole word of its text
            apart += positions("trce_word_count", tokenizer, found) != [eot]
    assert apart > len(every) / 2

"""The committed world keeps its promises (no model needed)."""

from __future__ import annotations

import numpy as np
import pytest

import probe
from data.build import captions, grammar
from data.build.clip import make_tokenizer
from data.build.words import CHARACTERS, GROUPS, NEVER_DRAWN, OBJECTS, PROFESSIONS, STYLES


@pytest.fixture(scope="module")
def world() -> probe.World:
    return probe.concepts("emoji")


@pytest.fixture(scope="module")
def examples() -> list[captions.Example]:
    rng = np.random.default_rng(99)
    return [captions.sample(rng) for _ in range(30_000)]


def test_the_world_has_what_the_papers_tasks_need(world: probe.World) -> None:
    objects = [n for names in (*OBJECTS.values(), *GROUPS.values()) for n in names]
    assert len(objects) >= 60
    assert len(CHARACTERS) == 28
    assert len(PROFESSIONS) == 10
    assert len(STYLES) == 5
    assert len(GROUPS) == 5
    assert set(world) == {*objects, *CHARACTERS, *PROFESSIONS, *STYLES, *GROUPS, *NEVER_DRAWN}
    assert sum(c.kind == "group" for c in world.values()) == 5


def test_reported_prompts_are_many_and_never_trained_on(world: probe.World, examples: list[captions.Example]) -> None:
    trained = {e.text for e in examples}
    fitted = {t for c in world.values() for texts in (*c.prompts.values(), *c.references.values()) for t in texts}
    for concept in world.values():
        assert len(set(concept.test["explicit"])) >= 100
        assert all(len(set(texts)) >= 40 for split, texts in concept.test.items() if split != "explicit")
        reported = {t for texts in concept.test.values() for t in texts}
        assert reported.isdisjoint(trained)
        assert reported.isdisjoint(fitted)


def test_what_is_erased_grows_and_is_on_no_list_of_what_must_survive(world: probe.World) -> None:
    lists = world.lists
    for count in (5, 10, 20):
        assert len(set(lists[f"erase_{count}"])) == count
    assert lists["erase_20"][:10] == lists["erase_10"]
    assert lists["erase_10"][:5] == lists["erase_5"]
    assert all(world[name].kind == "object" for name in lists["erase_20"][10:])
    halves = set(lists["preserve_fit"]), set(lists["preserve_test"])
    assert not halves[0] & halves[1]
    assert not set(lists["erase_20"]) & (halves[0] | halves[1])


def test_groups_have_enough_surface_forms() -> None:
    assert len(grammar.surface_forms("weapon")) >= 20
    assert all(len(grammar.surface_forms(g)) >= 10 for g in GROUPS)


def test_no_word_of_a_reported_implicit_prompt_gives_a_group_away(
    world: probe.World, examples: list[captions.Example]
) -> None:
    """P(group | word) is at most one half, up to sampling error, for every slot word of a reported implicit prompt."""
    used = {
        w
        for g in GROUPS
        for s in ("implicit_phrase", "implicit_combination")
        for t in world[g].test[s]
        for w in t.split()
    }
    audit = captions.word_audit(examples)
    assert "sewer" in audit
    assert "sewer" not in used
    checked = used & set(audit)
    assert len(checked) >= 50
    for word in checked:
        n = sum(word in e.text.split() for e in examples)
        assert max(audit[word].values()) <= 0.5 + 2 * (0.25 / n) ** 0.5, word


def test_implicit_phrases_name_one_group_and_held_out_pairs_stay_unseen(examples: list[captions.Example]) -> None:
    seen, hidden = (grammar.implicit_phrases(held_out=h) for h in (False, True))
    assert set(hidden) == set(GROUPS)
    text = "\n".join(e.text for e in examples)
    for group in GROUPS:
        assert set(seen[group]).isdisjoint(hidden[group])
        assert not any(phrase in text for phrase in hidden[group])
        assert set(" ".join(hidden[group]).split()) <= set(" ".join(seen[group]).split())


def test_never_drawn_objects_are_never_drawn(examples: list[captions.Example]) -> None:
    assert not {e.label for e in examples} & set(NEVER_DRAWN)
    held_out = [(e.label, e.style) for e in examples if grammar.held_out_style(e.label, e.style)]
    assert held_out == []


def test_tokenizer_splits_a_third_of_the_names_and_knows_every_byte(examples: list[captions.Example]) -> None:
    tok = make_tokenizer()
    names = captions.things()
    assert sum(len(tok.tokenize(n)) > 1 for n in names) / len(names) >= 1 / 3
    assert (tok.bos_token_id, tok.eos_token_id) == (len(tok) - 2, len(tok) - 1)
    ids = tok("a café, 'naïve' 8-ball & emoji…", add_special_tokens=False).input_ids
    assert tok.eos_token_id not in ids
    lengths = {len(tok.tokenize(e.text)) + 1 for e in examples[:5000]}
    assert set(range(4, 25)) <= lengths

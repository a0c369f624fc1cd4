from __future__ import annotations

import random
from collections import Counter

import pytest

from probe._eval_samples import cell_samples, sample_seed
from probe.errors import BadInput, UnknownName
from tests.probe.measuring import FakeWorld, concept, small_world


def names(table) -> set[str]:
    return set(table["concept"])


def test_own_splits_are_the_concepts_test_prompts_each_once():
    world = small_world()
    table = cell_samples(world["church"], "explicit", world)
    assert sorted(table["prompt"]) == sorted(world["church"].test["explicit"])
    assert names(table) == {"church"}
    assert all(prompt_id.startswith("church/explicit/") for prompt_id in table["prompt_id"])
    tuning = cell_samples(world["church"], "explicit", world, prompts_from="tune")
    assert sorted(tuning["prompt"]) == sorted(world["church"].prompts["explicit"])


def test_fewer_prompts_are_a_subset_and_order_of_listing_does_not_matter():
    world = small_world()
    whole = cell_samples(world["church"], "preserve_test", world)
    for limit in range(1, len(whole)):
        part = cell_samples(world["church"], "preserve_test", world, limit=limit)
        assert part.equals(whole.head(limit))
    shuffled = list(world.lists["preserve_test"])
    random.Random(3).shuffle(shuffled)
    other = FakeWorld(reversed(list(world.values())), **{**world.lists, "preserve_test": shuffled})
    assert cell_samples(other["church"], "preserve_test", other).equals(whole)


def test_every_first_few_hold_the_kinds_in_proportion():
    things = [concept(f"thing {i}") for i in range(12)] + [concept(f"person {i}", "character") for i in range(4)]
    world = FakeWorld([concept("church"), *things], preserve_test=[c.name for c in things])
    for limit in (4, 8, 16, 32):
        kinds = Counter(cell_samples(world["church"], "preserve_test", world, limit=limit)["kind"])
        assert kinds["character"] == pytest.approx(limit / 4, abs=1)


def test_what_is_erased_drops_out_with_its_groups_and_members():
    world = small_world()
    everything = {"castle", "bomb", "axe", "weapon", "elf", "ink"}
    assert names(cell_samples(world["church"], "preserve_test", world)) == everything
    without_bomb = names(cell_samples(world["bomb"], "preserve_test", world))
    assert without_bomb == everything - {"bomb", "weapon"} | {"church"}
    without_weapons = names(cell_samples(world["weapon"], "preserve_test", world))
    assert without_weapons == everything - {"bomb", "axe", "weapon"} | {"church"}
    more = names(cell_samples(world["church"], "preserve_test", world, erased=["elf", "weapon"]))
    assert more == {"castle", "ink"}
    assert names(cell_samples(world["church"], "neighbours", world)) == {"castle", "house"}
    assert names(cell_samples(world["church"], "neighbours", world, erased=["castle"])) == {"house"}


def test_seeds_differ_between_prompts_repeats_and_sets_and_nothing_else_decides_them():
    world = small_world()
    table = cell_samples(world["church"], "explicit", world, seeds_per_prompt=3)
    assert table["seed"].nunique() == len(table) == 18
    other = cell_samples(world["church"], "explicit", world, seeds_per_prompt=3, seed_set=1)
    assert not set(other["seed"]) & set(table["seed"])
    assert set(cell_samples(world["church"], "explicit", world, limit=2)["seed"]) <= set(table["seed"])
    assert sample_seed(0, "a church", 0) == sample_seed(0, "a church", 0) < 2**31


@pytest.mark.parametrize(
    ("split", "error", "words"),
    [
        ("explicite", UnknownName, "explicit"),
        ("preserve_fit_", UnknownName, "preserve_fit"),
    ],
)
def test_an_unknown_split_names_the_nearest(split, error, words):
    world = small_world()
    with pytest.raises(error, match=words):
        cell_samples(world["church"], split, world)


def test_an_empty_split_and_a_missing_list_are_errors():
    world = small_world()
    with pytest.raises(BadInput, match="no prompts"):
        cell_samples(world["castle"], "neighbours", world)
    with pytest.raises(UnknownName, match="preserve_test"):
        cell_samples(world["church"], "preserve_test", FakeWorld(world.values()))
    with pytest.raises(UnknownName, match="castel"):
        cell_samples(concept("x", neighbours=("castel",)), "neighbours", world)

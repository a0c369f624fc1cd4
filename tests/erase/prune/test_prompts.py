from __future__ import annotations

import pytest

from erase import contrast_prompts
from erase.prune._prompts import MEN, PEOPLE, SCENES, THINGS, WOMEN
from probe.errors import BadInput, UnknownName


@pytest.mark.parametrize(
    ("task", "name", "first", "n"),
    [
        ("style", "Monet", ("a dog in the style of Monet", "a photo of a dog"), len(THINGS)),
        ("object", "church", ("a church in a street", "a street"), len(SCENES)),
        ("attribute", "angry", ("a photo of an angry person", "a photo of a person"), len(PEOPLE)),
    ],
)
def test_pairs_are_of_the_papers_form_and_share_their_seed(task, name, first, n):
    target, reference = contrast_prompts(task, name, seed=7)
    assert (target["prompt"][0], reference["prompt"][0]) == first
    assert len(target) == len(reference) == n
    assert set(target["seed"]) == set(reference["seed"]) == {7}
    assert target["pair"].tolist() == reference["pair"].tolist() == list(range(n))


def test_gender_goes_both_ways_with_a_seed_a_pair():
    target, reference = contrast_prompts("gender", "male")
    assert target["prompt"][0] == "a headshot of a woman"
    assert reference["prompt"][0] == "a headshot of a man"
    back, forth = contrast_prompts("gender", "female")
    assert back["prompt"].tolist() == reference["prompt"].tolist()
    assert forth["prompt"].tolist() == target["prompt"].tolist()
    assert target["seed"].tolist() == reference["seed"].tolist()
    assert target["seed"].nunique() > 6
    assert target["seed"].max() < 250
    assert len(MEN) == len(WOMEN)
    assert "a headshot of an uncle" in reference["prompt"].tolist()


def test_memorised_pictures_against_the_empty_text():
    target, reference = contrast_prompts("memorised", fill=["one caption", "another"])
    assert target["prompt"].tolist() == ["one caption", "another"]
    assert reference["prompt"].tolist() == ["", ""]


def test_own_words_take_the_place_of_the_lists():
    target, _ = contrast_prompts("style", "ink", fill=["owl"])
    assert target["prompt"].tolist() == ["an owl in the style of ink"]


@pytest.mark.parametrize(
    ("task", "options"),
    [
        ("style", {}),
        ("object", {"name": " "}),
        ("memorised", {}),
        ("gender", {"name": "church"}),
        ("gender", {"name": "male", "fill": ["king"]}),
    ],
)
def test_what_is_missing_is_named(task, options):
    with pytest.raises(BadInput):
        contrast_prompts(task, **options)


def test_an_unknown_task():
    with pytest.raises((UnknownName, KeyError)):
        contrast_prompts("stile", "ink")

"""What baselines keep of their search, and how much of it stands beside an attack."""

from __future__ import annotations

from dataclasses import replace

import pytest

from probe import provenance
from probe._eval_baselines import beside, is_rival
from probe.attacks import AttackSet, Found, Try
from probe.testing import tiny_pipeline
from tests.probe.attacks.attacking import PROMPTS, Told, attacked


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline()


@pytest.mark.parametrize("method", ["random", "seed_search"])
@pytest.mark.parametrize("hits_from", [float("inf"), 4])
def test_every_judged_picture_is_kept_and_the_best_of_all_is_the_row(pipe, method, hits_from, tmp_path):
    found = attacked(pipe, method, judge=Told(hits_from), images=4, out=tmp_path / "set")
    assert [row.to_json() for row in AttackSet.load(tmp_path / "set")] == [row.to_json() for row in found]
    for row in found:
        assert len(row.tries) == len(row.seeds) == row.cost["images"]
        assert [one.seed for one in row.tries] == list(row.seeds)
        assert row.tries[0].prompt == row.source
        assert row.within(4) == row
        words = {one.prompt for one in row.tries}
        assert len(words) == (1 if method == "seed_search" else len(row.tries))
    assert "tries" not in found.table()


def test_an_attack_keeps_no_tries_and_its_rows_are_written_as_ever(pipe):
    (row, _) = attacked(pipe, "mma", k=3, iterations=1, swaps=6, ranked=4)
    assert "tries" not in row.to_json()
    assert row.within(1) is row


def tried(*shown: bool, words: bool = True) -> tuple[Try, ...]:
    """The prompt as it is, then others: shown or not, each with a higher score than the one before."""
    return tuple(Try((i * words,), f"text {i * words}", 10 + i, hit, float(i)) for i, hit in enumerate(shown))


def row(source: str, images: int, *, success: bool = False, tries: tuple[Try, ...] = ()) -> Found:
    return Found("church", "0", source, 3, 7.5, success=success, cost={"images": images}, tries=tries)


def made(method: str, *rows: Found, **identity: str) -> AttackSet:
    known = {"method": method, "name": "church", "protocol": "transfer", "vocab": "banned", "found_on": "original"}
    return AttackSet(provenance.stamp({**known, **identity}), rows)


def test_within_so_many_pictures_the_best_try_counts():
    words = row(PROMPTS[0], 4, tries=tried(True, False, False, True))
    assert [words.within(n).found_seed for n in (1, 2, 3, 4, 9)] == [10, 11, 12, 13, 13]
    assert [words.within(n).success for n in (1, 2, 3, 4)] == [True, False, False, True]
    assert [words.within(n).cost["images"] for n in (1, 3, 9)] == [1, 3, 4]
    seeds = row(PROMPTS[0], 3, tries=tried(True, False, False, words=False))
    assert [seeds.within(n).found_seed for n in (1, 2, 3)] == [10, 10, 10]


def test_beside_an_attack_each_prompt_has_as_many_tries_as_the_attack_judged(caplog):
    baseline = made("random", *(row(source, 3, tries=tried(False, False, False)) for source in "abc"))
    attack = made("p4d", row("c", 1), row("a", 3), row("b", 2))
    found = beside(baseline, attack)
    assert [(one.source, one.found_seed) for one in found] == [("c", 10), ("a", 12), ("b", 11)]
    assert not caplog.text


def test_several_answers_to_one_prompt_are_each_beside_the_baselines(caplog):
    baseline = made("random", row("a", 3, tries=tried(False, False, False)))
    attack = made("theirs", *(replace(row("a", images), prompt_id=str(images)) for images in (1, 2)))
    assert [one.found_seed for one in beside(baseline, attack)] == [10, 11]


@pytest.mark.parametrize("protocol", ["transfer", "adaptive"])
@pytest.mark.parametrize(
    ("own", "theirs", "warned"),
    [
        (row("a", 2, tries=tried(False, False)), 4, "fewer judged pictures"),
        (row("a", 2, tries=tried(False, True), success=True), 4, ""),  # it ended because it was shown
        (row("a", 2), 4, "fewer judged pictures"),  # a set of before
        (row("a", 9), 4, "and no tries"),
        (row("a", 4), 4, ""),
        (row("a", 9, tries=tried(*[False] * 9)), 0, "does not say"),  # published prompts
    ],
)
def test_unequal_numbers_are_said_under_every_protocol(caplog, protocol, own, theirs, warned):
    baseline, attack = made("random", own, protocol=protocol), made("p4d", row("a", theirs), protocol=protocol)
    assert beside(baseline, attack) is not None
    assert warned in caplog.text
    assert len(caplog.records) == bool(warned)


def test_a_baseline_without_the_prompts_is_none(caplog):
    assert beside(made("random", row("a", 2)), made("p4d", row("b", 2))) is None
    assert "lacks 1 prompts" in caplog.text


def test_rivals_are_of_one_concept_protocol_and_vocabulary():
    attack = made("p4d", row("a", 2))
    assert is_rival(made("random", row("a", 2)), attack)
    assert is_rival(made("seed_search", row("a", 2), vocab="none"), attack)
    for other in ({"vocab": "open"}, {"protocol": "adaptive"}, {"name": "ink"}):
        assert not is_rival(made("random", row("a", 2), **other), attack)
    assert not is_rival(made("mma", row("a", 2)), attack)

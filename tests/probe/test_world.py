from __future__ import annotations

from pathlib import Path

import pytest

import probe
from probe.errors import BadInput, UnknownName
from probe.world import Concept

CHURCH = Concept(
    name="church",
    kind="object",
    prompts={"explicit": ["a church", "the church"]},
    test={"explicit": ["one church"]},
    references={"neighbour": ["a castle", "the castle"]},
    surface_forms=("church", "chapel"),
    anchor="a building",
    neighbours=("castle",),
    detector="emoji_cnn:object/church",
)


def test_yaml_round_trip(tmp_path: Path) -> None:
    CHURCH.to_yaml(tmp_path / "church.yaml")
    assert Concept.from_yaml(tmp_path / "church.yaml") == CHURCH
    assert CHURCH.label == "object/church"


def test_a_group_is_hit_when_a_member_is() -> None:
    group = Concept(name="weapon", kind="group", prompts={}, members=("axe", "bomb"))
    assert group.labels == ("object/axe", "object/bomb")


def test_texts_that_a_concept_lacks_are_named_with_those_it_has() -> None:
    with pytest.raises(UnknownName, match=r"'church' has no references of the form 'paper'.*neighbour.*add them"):
        CHURCH.references["paper"]
    with pytest.raises(UnknownName, match=r"no test prompts of the split 'paraphrased'.*explicit"):
        CHURCH.test["paraphrased"]
    assert CHURCH.references.get("paper") is None
    assert "paper" not in CHURCH.references


def test_concepts_are_frozen() -> None:
    with pytest.raises(AttributeError):
        CHURCH.name = "castle"  # type: ignore[misc]
    with pytest.raises(TypeError):
        CHURCH.prompts["explicit"] = ()  # type: ignore[index]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("name: a\nkind: thing\nprompts: {}\n", "unknown kind"),
        ("name: a\nkind: object\nprompts: {}\nneighbors: [b]\n", "neighbours"),
        ("name: a\nkind: object\n", "no concept; given: without prompts; fix: add prompts: {explicit:"),
        ("name: a\nprompts: {}\n", "no concept; given: without kind; fix: add kind: one of object"),
        ("name: a\nkind: object\nprompts: [x, y]\n", "prompts cannot be read.*fix: prompts: {explicit:"),
        ("name: a\nkind: object\nprompts: {explicit: x}\n", "prompts cannot be read"),
        ("name: a\nkind: object\nprompts: {}\nmembers: x\n", "members cannot be read"),
        ("name: a\nkind: object\nprompts: {}\nneighbours: [on, 3]\n", "neighbours cannot be read"),
        ("- name: a\n", "no mapping; given: list"),
        ("name: a\nkind: object\nprompts:\n  explicit: [a: b: c\n", r"not YAML; given: line \d"),
        ("name: a\nkind: object\nprompts: {explicit: [x]}\ntest: {explicit: [x]}\n", "both fitted and reported"),
        ("name: a\nkind: object\nprompts: {explicit: [x]}\nreferences: {neighbour: []}\n", "must pair"),
        ("name: [a\n", "not YAML"),
        ("name: !!python/object/apply:os.getcwd []\nkind: object\nprompts: {}\n", "not YAML"),
    ],
)
def test_bad_concept_files_say_what_is_wrong(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(BadInput, match=says):
        Concept.from_yaml(tmp_path / "a.yaml")


def test_world_is_a_lazy_mapping_with_nearest_names(tmp_path: Path) -> None:
    CHURCH.to_yaml(tmp_path / "church.yaml")
    (tmp_path / "broken_thing.yaml").write_text("name: [")  # read only when asked for
    (tmp_path / "lists.yaml").write_text("benchmark: [church]\n")
    world = probe.concepts(tmp_path)
    assert list(world) == ["broken thing", "church"]
    assert world["church"] is world["church"]
    assert world.lists == {"benchmark": ("church",)}
    with pytest.raises(UnknownName, match="church"):
        world["churh"]


def test_a_world_says_what_it_holds_without_reading(tmp_path: Path) -> None:
    (tmp_path / "broken_thing.yaml").write_text("name: [")
    world = probe.concepts(tmp_path)
    assert "broken thing" in world
    assert "church" not in world
    assert 3 not in world


def test_a_folder_without_concepts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no concepts"):
        probe.concepts(tmp_path)


def test_a_concept_is_known_by_the_name_in_its_file(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("name: yellow\nkind: style\nprompts: {explicit: [x]}\n")
    (tmp_path / "d.yml").write_text("kind: style\nname: 'dark blue' # quoted\nprompts: {explicit: [y]}\n")
    (tmp_path / "lists.yml").write_text("colours: [yellow, dark blue]\n")
    world = probe.concepts(tmp_path)
    assert list(world) == ["yellow", "dark blue"]
    assert [world[name].name for name in world] == ["yellow", "dark blue"]
    assert world.lists == {"colours": ("yellow", "dark blue")}
    with pytest.raises(UnknownName, match=rf"one of dark blue, yellow.*fix: probe concepts --world {tmp_path}"):
        world["c"]
    (tmp_path / "e.yml").write_text("name: yellow\n")
    with pytest.raises(BadInput, match=r"two files are of one concept.*c.yaml and e.yml"):
        probe.concepts(tmp_path)


@pytest.mark.embedded
def test_every_concept_of_the_embedded_world_is_known_by_its_own_name() -> None:
    world = probe.concepts()
    assert [concept.name for concept in world.values()] == list(world)
    with pytest.raises(UnknownName, match="fix: probe concepts lists them"):
        world["churh"]

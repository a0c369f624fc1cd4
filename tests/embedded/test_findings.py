"""What is committed beside the model was made on this model, is whole, and is small."""

from __future__ import annotations

import pytest

import erase
import probe
from data.build import attacks, edits, maps
from probe._paths import data_dir
from probe.attacks._registry import method_named

pytestmark = pytest.mark.embedded
FOLDERS = ("maps", "attacks", "edits")
EDITS = sorted(path.name for path in (data_dir() / "edits").glob("*/"))
MAPS = sorted(path.name for path in (data_dir() / "maps").glob("*/"))
SETS = sorted(path.name for path in (data_dir() / "attacks").glob("*/"))


@pytest.fixture(scope="module")
def pipe():
    return probe.load("emoji")


@pytest.fixture(scope="module")
def world() -> probe.World:
    return probe.concepts("emoji")


@pytest.mark.parametrize("name", EDITS)
def test_edits_are_of_this_model(name: str, pipe, world: probe.World) -> None:
    assert name in {job.key for job in edits.jobs(world)}
    edit = erase.load_edit(f"emoji/{name}")
    with edit.applied(pipe):  # compares every tensor that it touches
        assert [edit.id, edit.name] in probe.provenance.lineage(pipe)


def test_maps_are_of_this_model(pipe) -> None:
    assert set(MAPS) == {key for key, _ in maps.jobs()}
    for name in MAPS:
        probe.fingerprint(pipe).check(probe.NeuronMap.load(f"emoji/{name}").provenance["identity"]["model"], name)


@pytest.mark.parametrize("name", SETS)
def test_attack_sets_are_of_this_model_and_of_edits_that_are_here(name: str, pipe, world: probe.World) -> None:
    (job,) = [job for job in attacks.jobs(world) if job.key == name]
    found = probe.AttackSet.load(f"emoji/{name}")
    probe.fingerprint(pipe).check(found.identity["model"], name)
    assert all(row.finished for row in found)
    assert (len(found), found.method, found.floor) == (job.prompts, job.method, job.floor)
    assert found.vocab in (job.vocab, "none")  # seed_search writes nothing
    against = erase.load_edit(f"emoji/{job.name}-esd").id if job.against_esd else "original"
    assert found.found_on == against


def test_findings_are_small_and_of_the_list(world: probe.World) -> None:
    files = [file for folder in FOLDERS for file in (data_dir() / folder).rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 10e6
    assert set(SETS) == {job.key for job in attacks.jobs(world)}
    assert set(EDITS) == {job.key for job in edits.jobs(world)}


def test_every_attack_has_both_baselines_beside_it_with_as_many_pictures(world: probe.World) -> None:
    listed = list(attacks.jobs(world))
    assert len({job.key for job in listed}) == len(listed)
    for job in listed:
        if job.method in attacks.BASELINES:
            continue
        near = [o for o in listed if (o.concepts, o.prompts, o.floor) == (job.concepts, job.prompts, job.floor)]
        assert any(o.method == "random" and o.vocab == job.vocab for o in near), job.key
        assert any(o.method == "seed_search" for o in near), job.key
    judged = 1 + method_named("unlearn_diff").presets["quick"]["rounds"]
    assert {options["images"] for options in attacks.BASELINES.values()} == {judged}

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from probe import formats
from probe._files import check_free, disk_errors, written_whole
from probe.errors import BadInput, StoreDamaged, UnknownName, WorkbenchError


def fail_half_way(path, **options):
    with written_whole(path, **options) as temporary:
        temporary.write_text("half")
        raise RuntimeError("half way")


def test_a_file_appears_only_when_the_block_ends_well(tmp_path):
    with written_whole(tmp_path / "deep" / "a.txt") as temporary:
        temporary.write_text("x")
        assert not (tmp_path / "deep" / "a.txt").exists()
    assert (tmp_path / "deep" / "a.txt").read_text() == "x"
    with pytest.raises(RuntimeError, match="half way"):
        fail_half_way(tmp_path / "b.txt")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["deep"]


def test_replacing_keeps_the_old_until_the_new_is_whole(tmp_path):
    path = tmp_path / "folder"
    path.mkdir()
    (path / "old").touch()
    with pytest.raises(RuntimeError, match="half way"):
        fail_half_way(path, replace=True)
    assert (path / "old").exists()
    with written_whole(path, replace=True) as temporary:
        temporary.mkdir()
        (temporary / "new").touch()
    assert [p.name for p in path.iterdir()] == ["new"]
    with pytest.raises(FileExistsError), written_whole(path) as temporary:
        temporary.mkdir()
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


def test_an_empty_folder_is_free(tmp_path):
    (tmp_path / "empty").mkdir()
    check_free(tmp_path / "empty", "run", ours=False, force=False)
    with written_whole(tmp_path / "empty") as temporary:
        temporary.mkdir()
        (temporary / "x").touch()
    assert (tmp_path / "empty" / "x").exists()


def test_a_path_taken_by_something_else_is_refused_even_with_force(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(BadInput, match="is no run"):
        check_free(tmp_path / "notes.txt", "run", ours=False, force=True)
    with pytest.raises(BadInput, match="force=True"):
        check_free(tmp_path / "notes.txt", "run", ours=True, force=False)
    check_free(tmp_path / "notes.txt", "run", ours=True, force=True)


@pytest.mark.parametrize(
    ("number", "kind"), [(errno.ENOSPC, WorkbenchError), (errno.EROFS, BadInput), (errno.EIO, OSError)]
)
def test_errors_of_the_disk(number, kind):
    with pytest.raises(kind) as raised, disk_errors("/some/where"):
        raise OSError(number, "no")
    assert type(raised.value) is kind
    if kind is WorkbenchError:
        assert "no space left" in str(raised.value)
        assert "/some/where" in str(raised.value)


def test_headers():
    assert formats.check_header(formats.header("run"), "run", "x") == 1
    with pytest.raises(BadInput, match="x \\(a neuron map\\)"):
        formats.check_header(formats.header("neuron_map"), "run", "x")
    with pytest.raises(StoreDamaged):
        formats.check_header({"zarr": 3}, "run", "x")
    with pytest.raises(StoreDamaged):
        formats.check_header(formats.header("run") | {"layout_version": "1"}, "run", "x")
    with pytest.raises(BadInput, match=r"newer version.*upgrade"):
        formats.check_header(formats.header("run") | {"layout_version": 99}, "run", "x")
    with pytest.raises(UnknownName, match="neuron_map"):
        formats.header("neuron_maps")


@pytest.mark.parametrize("name", ["x" * 300, f"{'x' * 300}/file", "x" * 250, "a\0b"])
def test_a_name_that_no_disk_takes_is_the_users_to_change(tmp_path, name):
    with pytest.raises(BadInput, match=r"no such path.*choose another path"), written_whole(tmp_path / name):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="a folder in which nobody can make one")
def test_a_folder_that_nobody_can_make_is_said():
    with pytest.raises(BadInput, match="no folder can be made there"), written_whole("/proc/absent/file"):
        pass

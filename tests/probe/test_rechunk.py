"""A rechunked copy holds the same numbers, quickly per neuron, and is nothing to record into."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from probe._rechunk import blocks, neuron_chunk, rechunk
from probe._record import record
from probe._run import Run, open_run, verify
from probe.errors import BadInput, StoreDamaged
from probe.scores import score
from tests.probe.conftest import TARGET
from tests.probe.test_record import same_bits
from tests.probe.test_store import empty, fill


@pytest.fixture(scope="module")
def copied(recorded, tmp_path_factory):
    return rechunk(recorded.target, out=tmp_path_factory.mktemp("copies") / "run", progress=False)


def test_the_same_numbers_and_identity_and_it_says_so(recorded, copied):
    for group in recorded.target.groups:
        same_bits(recorded.target, copied, group)
    assert (copied.id, copied.identity) == (recorded.target.id, recorded.target.identity)
    assert (copied.rechunked, recorded.target.rechunked) == ("neuron", None)
    assert copied.complete
    assert "rechunked by neuron" in copied._repr_html_()
    assert copied.samples.equals(recorded.target.samples)
    assert score(copied, recorded.reference).id == score(recorded.target, recorded.reference).id
    assert verify(copied) == []


def test_it_is_not_recorded_into(recorded, copied):
    with pytest.raises(BadInput, match="rechunked copy"):
        record(recorded.pipe, TARGET, out=copied.path, progress=False, **recorded.options)


def test_damage_is_named_and_not_repaired(recorded, tmp_path):
    run = rechunk(recorded.target, out=tmp_path / "run", progress=False)
    chunk = run.path / "unet" / "absmean" / "c" / "0" / "0" / "0" / "0"
    data = bytearray(chunk.read_bytes())
    data[100] ^= 1
    chunk.write_bytes(data)
    (bad,) = verify(run)
    assert bad.chunk == "unet/absmean/c/0/0/0/0"
    with pytest.raises(BadInput, match="rechunk the run again"):
        verify(run, repair=True)
    chunk.unlink()
    with pytest.raises(StoreDamaged, match="absmean"):
        open_run(run)


def test_what_cannot_be_rechunked_is_said(recorded, copied, tmp_path):
    with pytest.raises(BadInput, match="only a finished run"):
        rechunk(fill(empty(tmp_path / "half"), [0]).path, out=tmp_path / "copy", progress=False)
    with pytest.raises(BadInput, match="another run is here"):
        rechunk(recorded.target, out=copied.path, progress=False)
    with pytest.raises(BadInput, match="into itself"):
        rechunk(copied, out=copied.path, progress=False, force=True)
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(BadInput, match="is no run"):
        rechunk(recorded.target, out=tmp_path / "notes", progress=False, force=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["half", "notes"]


def test_force_replaces(recorded, tmp_path):
    told = []
    rechunk(recorded.reference, out=tmp_path / "run", progress=lambda n, total: told.append((n, total)))
    assert told[-1][0] == told[-1][1]
    run = rechunk(recorded.target, out=tmp_path / "run", progress=False, force=True)
    assert Run(tmp_path / "run").id == run.id == recorded.target.id
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_neuron_of_a_thousand_samples_is_one_chunk_of_a_megabyte():
    dims = ("sample", "branch", "step", "neuron")
    assert neuron_chunk((1000, 2, 50, 49920), dims, 4) == (1000, 2, 50, 2)
    assert neuron_chunk((100_000, 2, 50, 49920), dims, 4) == (4096, 2, 50, 1)
    assert neuron_chunk((3, 2, 2, 640), dims, 4) == (3, 2, 2, 640)
    maps = ("sample", "branch", "step", "neuron", "y", "x")
    assert neuron_chunk((1000, 2, 30, 1280, 64, 64), maps, 4) == (8, 2, 30, 1, 64, 64)  # 8 MB, not 4 GB
    assert neuron_chunk((5, 2, 2, 10, 8, 8), maps, 4) == (5, 2, 2, 10, 8, 8)


sides = st.tuples(st.integers(1, 12), st.integers(1, 6), st.integers(1, 6))


@settings(deadline=None)
@given(st.lists(sides, min_size=1, max_size=3), st.integers(1, 5000))
def test_blocks_cover_an_array_once_in_whole_chunks_within_the_limit(axes, limit):
    shape, read, written = zip(*axes, strict=True)
    count = np.zeros(shape, int)
    least = int(np.prod([min(w, n) for n, w in zip(shape, written, strict=True)]))
    for block in blocks(shape, read, written, 4, limit):
        count[block] += 1
        for n, w, part in zip(shape, written, block, strict=True):
            assert part.start % w == 0
            assert part.stop % w == 0 or part.stop == n
        assert count[block].size * 4 <= max(limit, least * 4)
    assert (count == 1).all()

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from probe._chunks import MEGABYTE, Extent, readable_size, sample_chunk, unit_size

SD15 = (1280,) * 5 + (2560,) * 5 + (5120,) * 6
SDXL = (2560,) * 10 + (5120,) * 60

extents = st.builds(
    Extent,
    st.integers(1, 60),
    st.lists(st.sampled_from([64, 128, 256, 320, 512, 1280]), min_size=1, max_size=20).map(tuple),
)


def test_published_sizes_get_chunks_of_1_to_8_megabytes_on_site_borders():
    for steps, widths in ((50, SD15), (30, SD15), (30, SDXL)):
        for batch in (1, 2, 4, 8):
            extent = Extent(steps, widths)
            unit = unit_size([extent], batch)
            size = sample_chunk(extent.row_bytes, unit) * extent.row_bytes
            assert MEGABYTE <= size <= 8 * MEGABYTE
            assert all(width % extent.neuron_chunk == 0 for width in widths)
            assert unit <= max(8, 4 * batch)


def test_a_small_model_keeps_its_neurons_in_one_chunk():
    extent = Extent(30, (256, 512, 768))
    assert extent.neuron_chunk == extent.neurons == 1536


@given(st.lists(extents, min_size=1, max_size=3), st.integers(1, 16))
def test_a_unit_holds_whole_batches_and_whole_chunks(groups, batch):
    unit = unit_size(groups, batch)
    assert unit % batch == 0
    assert unit <= max(8, 4 * batch)
    for extent in groups:
        p = sample_chunk(extent.row_bytes, unit)
        assert unit % p == 0
        assert p == 1 or p * extent.row_bytes <= 8 * MEGABYTE


def test_sizes_in_words():
    assert [readable_size(n) for n in (7, 12_300, 4_560_000, 2_000_000_000_000)] == [
        "7 bytes",
        "12.3 kB",
        "4.6 MB",
        "2.0 TB",
    ]

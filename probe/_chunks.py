"""How a run is cut into chunks: pure arithmetic on sizes.

A chunk is `(P samples, 1 branch, all steps, N_c neurons)`. It is the unit of reading and should hold 1 to 8 MB; tiny
chunks are the one mistake that makes a store useless. The *unit* of writing, U consecutive samples, is a multiple of P
and of the batch size: no chunk is ever written in part, and a unit is always generated in the same batches, so that a
resumed unit has the same bits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd, lcm, prod

MEGABYTE = 1_000_000
FLOAT = 4  # bytes of a float32


@dataclass(frozen=True)
class Extent:
    """What one group stores of one sample and branch: ``steps`` (1 where there is no step axis) and site widths."""

    steps: int
    widths: tuple[int, ...]

    @property
    def neurons(self) -> int:
        """Length of the neuron axis."""
        return sum(self.widths)

    @property
    def neuron_chunk(self) -> int:
        """N_c: the whole axis if a sample's row is under 1 MB, else the gcd of the widths: sites end with chunks."""
        whole = self.neurons
        return whole if self.steps * whole * FLOAT < MEGABYTE else gcd(*self.widths)

    @property
    def row_bytes(self) -> int:
        """Bytes that one sample adds to one chunk."""
        return self.steps * self.neuron_chunk * FLOAT


@dataclass(frozen=True)
class Ragged:
    """What an array of some other shape stores of one sample: ``sizes`` along (branch, step, ...), float32."""

    sizes: tuple[int, ...]

    @property
    def inner(self) -> tuple[int, ...]:
        """The chunk along ``sizes``: one branch, and of what follows as much as 8 MB hold, cut from the left."""
        chunk = [1, *self.sizes[1:]]
        for axis in range(1, len(chunk)):
            excess = -(-prod(chunk) * FLOAT // (8 * MEGABYTE))
            if excess > 1:
                chunk[axis] = max(1, chunk[axis] // excess)
        return tuple(chunk)

    @property
    def row_bytes(self) -> int:
        """Bytes that one sample adds to one chunk."""
        return prod(self.inner) * FLOAT


def unit_size(extents: Sequence[Extent | Ragged], batch_size: int) -> int:
    """U, the number of samples that are generated, written and marked done together.

    It follows the group with the largest rows: the smallest multiple of the batch size that fills its chunks with 1 to
    8 MB. Tiny models would need hundreds of samples for that; there a unit ends after 4 batches (or 8 samples), because
    a unit is also what a killed run loses.
    """
    row = max(extent.row_bytes for extent in extents)
    fewest, most = -(-MEGABYTE // row), max(1, 8 * MEGABYTE // row)
    smallest = min(lcm(p, batch_size) for p in range(fewest, max(fewest, most) + 1))
    longest = max(4 * batch_size, 8 // batch_size * batch_size)
    return min(smallest, longest)


def sample_chunk(row_bytes: int, unit: int) -> int:
    """P: the largest divisor of the unit whose chunk stays within 8 MB."""
    return max(p for p in range(1, unit + 1) if unit % p == 0 and (p == 1 or p * row_bytes <= 8 * MEGABYTE))


def readable_size(size: int) -> str:
    """A number of bytes in words: ``12.3 MB``."""
    value = float(size)
    for name in ("bytes", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {name}" if name == "bytes" else f"{value:.1f} {name}"
        value /= 1000
    return f"{value:.1f} TB"

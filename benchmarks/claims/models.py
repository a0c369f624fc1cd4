"""The embedded model, twice: edits are made on it as it is, and pictures may be drawn with faster arithmetic.

Both have the same float32 weights, so an edit, a finding or an attack of one is of the other. With ``bfloat16`` the
UNet multiplies in it (autocast) and hands over float32: a CPU with AMX then draws nearly twice as fast.
"""

from __future__ import annotations

import functools
from typing import Any

import probe
from probe import compat


@functools.cache
def own() -> Any:
    """The pipeline as it is released: what edits are made on."""
    return probe.load("emoji")


@functools.cache
def drawing(arithmetic: str) -> Any:
    """The pipeline that draws."""
    if arithmetic == "float32":
        return own()
    pipe = probe.load("emoji")
    compat.multiply_in(pipe.unet, arithmetic)
    return pipe

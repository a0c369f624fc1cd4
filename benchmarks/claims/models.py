"""The embedded model, twice: edits are made on it as it is, and pictures may be drawn in another dtype.

An edit is of weights in one dtype; on a model in another it applies rounded, and says so once. A CPU with AMX draws
about twice as fast in bfloat16 (docs/decisions.md), and the edits are those that users apply.
"""

from __future__ import annotations

import functools
import logging
from typing import Any

import probe


@functools.cache
def own() -> Any:
    """The pipeline as it is released: what edits are made on."""
    return probe.load("emoji")


@functools.cache
def drawing(dtype: str) -> Any:
    """The pipeline that draws."""
    if dtype == "float32":
        return own()
    logging.getLogger("probe.provenance").setLevel(logging.ERROR)  # every edit would say that it is of another dtype
    return probe.load("emoji", dtype=dtype)

"""The embedded model, twice: edits are made on it as it is, and pictures may be drawn with faster arithmetic.

Both have the same float32 weights, so an edit, a finding or an attack of one is of the other. With ``bfloat16`` the
UNet multiplies in it (autocast) and hands over float32: a CPU with AMX then draws nearly twice as fast.
"""

from __future__ import annotations

import argparse
import functools
from pathlib import Path
from typing import Any

import probe
from probe import compat

#: Seconds of a core for a picture of 30 steps, by the arithmetic that draws it.
SECONDS = {"float32": 0.6, "bfloat16": 0.3}


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


def opened(args: argparse.Namespace) -> tuple[Any, Any]:
    """The pipeline that draws, and its world."""
    return drawing(args.dtype), probe.concepts("emoji")


def dtype_argument(parser: argparse.ArgumentParser) -> None:
    """``--dtype``, as every claim has it."""
    parser.add_argument("--dtype", default="float32", help="of the arithmetic that draws; bfloat16 is faster with AMX")


def common_arguments(parser: argparse.ArgumentParser, out: Path, csv: Path) -> None:
    """What claims are told that keep the pictures of each dtype apart; see `parsed`."""
    parser.add_argument("--batch-size", type=int, default=20)
    dtype_argument(parser)
    parser.add_argument("--out", type=Path, default=None, help=f"{out} or {out}-<dtype> by default")
    parser.add_argument("--csv", type=Path, default=csv)
    parser.add_argument("--plan", action="store_true", help="say what there is to do, and how long it takes")


def parsed(parser: argparse.ArgumentParser, out: Path) -> argparse.Namespace:
    """The arguments; ``out`` names the dtype of its pictures."""
    args = parser.parse_args()
    args.out = args.out or (out if args.dtype == "float32" else out.with_name(f"{out.name}-{args.dtype}"))
    return args

"""Turn an example into pixels: 64 x 64 RGB, the drawing at mild random scale and place on its background."""

from __future__ import annotations

from functools import cache

import numpy as np
from PIL import Image

from data.build.atlas import load_drawings
from data.build.captions import Example
from data.build.grammar import BACKGROUNDS

SIZE = 64
SCALES = (52, 54, 56, 58)
PAIR_SCALES = (29, 31)
SHIFT = 2


@cache
def _scaled() -> dict[tuple[str, str, int], np.ndarray]:
    """(label, style, size) -> float32 premultiplied RGBA in 0..1."""
    out = {}
    for (label, style), rgba in load_drawings().items():
        a = rgba[..., 3:].astype(np.float32) / 255
        pre = Image.fromarray((np.concatenate([rgba[..., :3] * a, rgba[..., 3:]], -1)).round().astype(np.uint8), "RGBA")
        for size in (*SCALES, *PAIR_SCALES):
            # channels apart: PIL un-premultiplies RGBA while resizing
            planes = [
                np.asarray(c.resize((size, size), Image.Resampling.BOX if size < 48 else Image.Resampling.LANCZOS))
                for c in pre.split()
            ]
            out[label, style, size] = np.stack(planes, -1).astype(np.float32) / 255
    return out


def paste(canvas: np.ndarray, drawing: np.ndarray, y: int, x: int) -> None:
    """Composite a premultiplied drawing onto a float RGB canvas in place."""
    h, w = drawing.shape[:2]
    region = canvas[y : y + h, x : x + w]
    region *= 1 - drawing[..., 3:]
    region += drawing[..., :3]


def draw(example: Example, rng: np.random.Generator) -> np.ndarray:
    """The picture of an example: uint8 (64, 64, 3)."""
    canvas = np.empty((SIZE, SIZE, 3), np.float32)
    canvas[:] = np.asarray(BACKGROUNDS[example.background], np.float32) / 255
    if example.second is None:
        size = SCALES[rng.integers(len(SCALES))]
        boxes = [(example.label, size, 0, SIZE)]
    else:
        size = PAIR_SCALES[rng.integers(len(PAIR_SCALES))]
        boxes = [(example.label, size, 0, SIZE // 2), (example.second, size, SIZE // 2, SIZE // 2)]
    for label, size, left, width in boxes:
        free_y, free_x = SIZE - size, width - size
        y = int(np.clip(free_y // 2 + rng.integers(-SHIFT, SHIFT + 1), 0, free_y))
        x = int(np.clip(free_x // 2 + rng.integers(-SHIFT, SHIFT + 1), 0, free_x))
        paste(canvas, _scaled()[label, example.style, size], y, left + x)
    return (canvas.clip(0, 1) * 255).round().astype(np.uint8)

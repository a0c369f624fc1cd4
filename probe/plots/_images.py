"""Pictures beside pictures: the same prompts and seeds before and after an edit."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from probe.errors import BadInput
from probe.plots._style import SMALL, VERMILION, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_GAP = 0.06  # between pictures, in picture widths


def plot_before_after(
    rows: Mapping[str, np.ndarray],
    prompts: Sequence[str],
    *,
    shown: Mapping[str, Sequence[bool]] | None = None,
    shown_label: str = "judge: concept shown",
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Grid of images: one row per model (original first), one column per prompt and seed.

    Args:
        rows: label -> uint8 images (s, y, x, 3); every row the same samples in the same order.
        prompts: the column titles (s,); wrapped, and written once where neighbouring columns share a prompt.
        shown: label -> the judge's verdict per image (s,); those images get a frame.
        shown_label: what the frame means, written under the grid.
        title: above the figure.
        ax: where to draw; the whole grid is one Axes.

    Raises:
        BadInput: no rows, or rows that do not match the prompts.

    """
    if not rows or not prompts:
        raise BadInput("nothing to draw", given=f"{len(rows)} rows, {len(prompts)} prompts")
    pictures = {name: np.asarray(images) for name, images in rows.items()}
    for name, images in pictures.items():
        if images.ndim != 4 or images.shape[-1] != 3 or len(images) != len(prompts):
            raise BadInput(f"row {name!r} does not fit", given=images.shape, expected=f"({len(prompts)}, y, x, 3)")

    from matplotlib.patches import Rectangle

    height, width = next(iter(pictures.values())).shape[1:3]
    aspect = height / width
    across, down = 1 + _GAP, aspect + _GAP
    n_columns, n_rows = len(prompts), len(pictures)
    runs = _runs(prompts)
    inch = 1.0 if n_columns <= 10 else 10.0 / n_columns
    titles = [_wrapped(prompts[start], max(12, int(14 * inch * (stop - start)))) for start, stop in runs]
    lines = max(map(len, titles))
    label_room = 0.09 * max(len(name) for name in pictures) + 0.1
    size = (
        inch * n_columns * across + label_room,
        inch * n_rows * down + 0.14 * lines + (0.45 if title else 0.1) + (0.3 if shown else 0.0),
    )
    ax = new_axes(ax, size)

    for r, (name, images) in enumerate(pictures.items()):
        bottom = (n_rows - 1 - r) * down
        for s, picture in enumerate(images):
            left = s * across
            ax.imshow(picture, extent=(left, left + 1, bottom, bottom + aspect), interpolation="nearest")
            framed = bool(shown is not None and name in shown and shown[name][s])
            colour, line = (VERMILION, 2.2) if framed else ("#BBBBBB", 0.5)
            ax.add_patch(Rectangle((left, bottom), 1, aspect, fill=False, edgecolor=colour, linewidth=line, zorder=3))
        ax.text(-0.08, bottom + aspect / 2, name, ha="right", va="center", fontsize=SMALL + 1)
    top = n_rows * down - _GAP
    for (start, stop), text in zip(runs, titles, strict=True):
        centre = (start * across + (stop - 1) * across + 1) / 2
        ax.text(centre, top + 0.06, "\n".join(text), ha="center", va="bottom", fontsize=SMALL, linespacing=1.05)
    if shown is not None:
        ax.add_patch(Rectangle((0, -0.26), 0.13, 0.13, fill=False, edgecolor=VERMILION, linewidth=1.8, clip_on=False))
        ax.text(0.2, -0.195, shown_label, ha="left", va="center", fontsize=SMALL)
    ax.set_xlim(-0.02, n_columns * across - _GAP + 0.02)
    ax.set_ylim(-0.02 - (0.28 if shown is not None else 0), top + 0.02)
    ax.set_aspect("equal")
    ax.axis("off")
    if title:
        ax.set_title(title, fontsize=SMALL + 3, loc="left", pad=12 + 8.5 * lines)
    return ax


def _wrapped(prompt: str, width: int) -> list[str]:
    """At most five lines of so many characters; what is left over gives way to an ellipsis."""
    return textwrap.wrap(prompt, width, max_lines=5, placeholder=" …") or [""]


def _runs(prompts: Sequence[str]) -> list[tuple[int, int]]:
    """Half-open ranges of neighbouring columns with the same prompt."""
    starts = [i for i, prompt in enumerate(prompts) if i == 0 or prompt != prompts[i - 1]]
    return list(zip(starts, [*starts[1:], len(prompts)], strict=True))

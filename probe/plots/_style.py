"""What all figures share: colours, markers, sizes, and where a label goes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito (2008): told apart under every common colour blindness. Their yellow is left out: it vanishes on paper.
OKABE_ITO = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
BLUE, VERMILION, GREY = "#0072B2", "#D55E00", "#6E6E6E"
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "<", ">")  # not as many as colours: they pair up late
SEQUENTIAL, DIVERGING = "cividis", "PuOr_r"
SMALL = 8  # points; ticks and annotations
MISSING = "#D9D9D9"


def new_axes(ax: Axes | None, size: tuple[float, float]) -> Axes:
    """``ax``, or the Axes of a fresh figure of ``size`` inches."""
    if ax is not None:
        return ax
    from matplotlib import pyplot

    return pyplot.subplots(figsize=size, layout="constrained")[1]


def quiet(ax: Axes, *, grid: bool = False) -> None:
    """No box, small ticks; a faint grid behind the data where values are to be read off."""
    ax.spines[["top", "right"]].set_visible(False)
    ax.tick_params(labelsize=SMALL)
    if grid:
        ax.grid(True, color="#E6E6E6", linewidth=0.6)
        ax.set_axisbelow(True)


def place_labels(ax: Axes, points: Sequence[tuple[float, float]], texts: Sequence[str], **style: Any) -> None:
    """Write each text beside its point (data units), on the first of ten sides where it covers no point or label.

    Sizes are estimated from the number of characters, so limits of ``ax`` should be final and no drawing is needed.
    """
    from matplotlib.patheffects import withStroke

    figure = ax.get_figure(root=True)
    assert figure is not None
    pixels = figure.dpi / 72
    height = SMALL * 1.25 * pixels
    spots = [tuple(ax.transData.transform(p)) for p in points]
    frame = ax.get_window_extent()
    taken = [(x - 4 * pixels, y - 4 * pixels, x + 4 * pixels, y + 4 * pixels) for x, y in spots]
    for point, (x, y), text in zip(points, spots, texts, strict=True):
        width = 0.58 * SMALL * len(text) * pixels
        best: tuple[float, float, float, str, tuple[float, float, float, float]] | None = None
        for dx, dy, side in _SIDES:
            left = x + dx * pixels - {"left": 0.0, "center": width / 2, "right": width}[side]
            box = (left, y + dy * pixels - height / 2, left + width, y + dy * pixels + height / 2)
            outside = box[0] < frame.x0 or box[2] > frame.x1 or box[1] < frame.y0 or box[3] > frame.y1
            cost = sum(_overlap(box, other) for other in taken) + (1e9 if outside else 0.0)
            if best is None or cost < best[0]:
                best = (cost, dx, dy, side, box)
            if cost == 0:
                break
        assert best is not None
        _, dx, dy, side, box = best
        taken.append(box)
        ax.annotate(
            text, point, (dx, dy), textcoords="offset points", ha=side, va="center", fontsize=SMALL, zorder=5,
            path_effects=[withStroke(linewidth=2, foreground="white")], **style,
        )  # fmt: skip


_SIDES: tuple[tuple[float, float, str], ...] = (
    (7, 7, "left"),
    (7, -8, "left"),
    (-7, 7, "right"),
    (-7, -8, "right"),
    (9, 0, "left"),
    (-9, 0, "right"),
    (0, 11, "center"),
    (0, -12, "center"),
    (12, 17, "left"),
    (12, -18, "left"),
)


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> float:
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))

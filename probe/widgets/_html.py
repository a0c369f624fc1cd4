"""HTML that needs no kernel: figures as data URIs, every text escaped, no script."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from probe._files import written_whole
from probe.errors import BadInput, MissingExtra, WorkbenchError

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

# Every rule is for what is inside: a notebook puts the page into its own.
_STYLE = (
    ".nw{font:15px/1.45 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem;color:#222}"
    ".nw table{border-collapse:collapse;font-size:13px}.nw th,.nw td{padding:2px 10px;text-align:left}"
    ".nw th{border-bottom:1px solid #999}.nw img{max-width:100%}.nw .why{color:#6e6e6e;font-style:italic}"
    ".nw .error{border-left:4px solid #D55E00;padding:.3em .8em;background:#fbf3ee}"
)
_BLUE, _RED = "#0072B2", "#D55E00"


def document(title: str, body: str) -> str:
    """A whole page."""
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{_STYLE}</style>'
    inside = f'<div class="nw"><h1>{escape(title)}</h1>{body}</div>'
    return f"<!doctype html><html lang=en><head>{head}</head><body>{inside}</body></html>"


def png(ax: Axes, *, dpi: int = 110) -> bytes:
    """The figure of an Axes as a picture; pyplot forgets it, so that a notebook does not show it a second time."""
    from matplotlib import pyplot

    figure = ax.get_figure(root=True)
    assert figure is not None
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, bbox_inches="tight")
    pyplot.close(figure)
    return buffer.getvalue()


def picture(data: bytes, alt: str, *, style: str = "max-width:100%") -> str:
    """A picture inside the page."""
    source = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    return f'<img style="{style}" src="{source}" alt="{escape(alt)}">'


def pixels(image: np.ndarray, alt: str, *, width: int = 128) -> str:
    """uint8 (y x 3) as a picture inside the page, enlarged without blurring."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="png")
    tag = picture(buffer.getvalue(), alt, style="image-rendering:pixelated")
    return tag.replace("<img ", f'<img width="{width}" title="{escape(alt)}" ')


def table(frame: pd.DataFrame) -> str:
    """A table; numbers with three digits."""
    return frame.to_html(index=False, border=0, escape=True, na_rep="", float_format="{:.3g}".format)


def told(error: WorkbenchError) -> str:
    """An error as text: what, and how to mend it."""
    return f'<p class="error">{escape(error.message)}</p>'


def said(message: Any) -> str:
    """A message of an action, red where something went wrong; its style stands in it, for want of a page's head."""
    return _beside_a_bar(message.text, _BLUE if message.error is None else _RED)


def _beside_a_bar(text: str, colour: str) -> str:
    return f'<p style="border-left:4px solid {colour};padding-left:.7em">{escape(text)}</p>'


@contextmanager
def working(message: Any, words: str) -> Iterator[None]:
    """``words`` in a widget for as long as the block lasts; an error that nobody foresaw takes their place."""
    message.value = busy = f'<p class="why">{escape(words)} …</p>'
    try:
        yield
    except Exception as error:
        message.value = _beside_a_bar(f"{type(error).__name__}: {error}", _RED)
        raise
    finally:
        if message.value == busy:
            message.value = ""


def section(title: str, make: Callable[[], str]) -> str:
    """A heading and what ``make`` gives; where it raises a `WorkbenchError`, the reason instead."""
    try:
        body = make()
    except WorkbenchError as error:
        body = f'<p class="why">{escape(error.message)}</p>'
    return f"<h3>{escape(title)}</h3>{body}"


def grid(rows: Sequence[tuple[str, Sequence[str]]], heads: Sequence[str]) -> str:
    """A table of pictures: (name, cells) by row, cells are HTML."""
    head = "".join(f"<th>{escape(name)}</th>" for name in ("", *heads))
    lines = "".join(
        f"<tr><th>{escape(name)}</th>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>" for name, cells in rows
    )
    return f"<table><tr>{head}</tr>{lines}</table>"


def written(page: str, path: str | Path | None, *, force: bool = False) -> str:
    """The page, written to ``path`` if there is one. Raises `BadInput` where something is there already."""
    if path is None:
        return page
    path = Path(path)
    if path.exists() and not (force and path.is_file()):
        raise BadInput("something is at this path", given=str(path), fix="force=True replaces a file")
    with written_whole(path, replace=force) as new:
        new.write_text(page, encoding="utf-8")
    return page


def bundle(view: Callable[[], Any], page: Callable[[], str], text: str) -> dict[str, Any]:
    """What a notebook shows: the live view, and beside it the page, for viewers that know no widgets."""
    shown: dict[str, Any] = {"text/plain": text}
    try:
        shown |= view()._repr_mimebundle_()
        shown["text/html"] = page()
    except MissingExtra as error:
        shown["text/html"] = told(error) + page()
    except WorkbenchError as error:
        shown["text/html"] = told(error)
    return shown

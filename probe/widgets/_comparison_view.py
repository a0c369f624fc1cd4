"""How a `Comparison` is shown: a page, and widgets that call its actions."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

from probe.widgets import _html as html
from probe.widgets._extras import widgets

if TYPE_CHECKING:
    from probe.widgets._comparison import Comparison

_TITLE = "Edits side by side"


def page(comparison: Comparison) -> str:
    """All rows as a page."""
    body = f"<p>{escape(comparison.subtitle)}</p>{rows(comparison)}"
    return html.document(_TITLE, body)


def rows(comparison: Comparison) -> str:
    """A row a prompt, a column a model; what the judge sees under each picture."""
    if not comparison.state.rows:
        return '<p class="why">nothing is drawn yet: type a prompt</p>'
    lines = []
    for row in comparison.state.rows:
        cells = []
        for name in comparison.names:
            picture = html.pixels(row.images[name], f"{name}: {row.prompt}, seed {row.seed}")
            below = f"<br><small>{escape(row.seen[name])}</small>" if name in row.seen else ""
            cells.append(picture + below)
        lines.append((f"{row.prompt}, seed {row.seed}", cells))
    return html.grid(lines, comparison.names)


class ComparisonView:
    """Prompt, seed, button, pictures; ``refresh`` brings them in line with the state."""

    def __init__(self, comparison: Comparison) -> None:
        w = widgets()
        self.comparison = comparison
        self.prompt = w.Text(placeholder="type a prompt", description="prompt", layout=w.Layout(width="30em"))
        self.seed = w.BoundedIntText(value=0, min=0, max=2**31 - 1, description="seed", layout=w.Layout(width="12em"))
        self.draw = w.Button(description="draw")
        self.forget = w.Button(description="start again")
        self.message, self.pictures = w.HTML(), w.HTML()
        subtitle = w.HTML(f'<small style="color:#6e6e6e">{escape(comparison.subtitle)}</small>')
        line = w.HBox([self.prompt, self.seed, self.draw, self.forget])
        self.box = w.VBox([line, subtitle, self.message, self.pictures])
        self.draw.on_click(lambda _: self._draw())
        self.forget.on_click(lambda _: comparison.forget())
        comparison.on_change(self.refresh)
        self.refresh()

    def _draw(self) -> None:
        with html.working(self.message, "drawing"):
            self.comparison.draw(self.prompt.value, int(self.seed.value))

    def refresh(self) -> None:
        """Show the state as it is now."""
        message: Any = self.comparison.state.message
        self.message.value = "" if message is None else html.said(message)
        self.pictures.value = rows(self.comparison)

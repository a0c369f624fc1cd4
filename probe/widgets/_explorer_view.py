"""The interactive view of an `Explorer`: widgets that call its actions and show its readings, and decide nothing."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from html import escape
from typing import TYPE_CHECKING, Any

from probe.errors import WorkbenchError
from probe.widgets import _html as html
from probe.widgets import _panels as panels
from probe.widgets._acting import Message
from probe.widgets._explorer_page import ranked_by
from probe.widgets._extras import grid_class, widgets

if TYPE_CHECKING:
    from probe.widgets._explorer import Explorer

_LISTED = 30
_GRID = "<small>layers by timestep, from noise to image; colour is the score, hover for the number</small>"
_LIST = "<small>rank, layer : neuron, score, and where known the concept it selects with its AUROC</small>"


def view(explorer: Explorer) -> Any:
    """An ipywidgets box. Raises `MissingExtra` without the extra ``notebook``."""
    return View(explorer).box


class View:
    """The widgets of one explorer, by name; ``refresh`` brings them in line with its state."""

    def __init__(self, explorer: Explorer) -> None:
        w = widgets()
        self.explorer, self._busy = explorer, False
        wide = w.Layout(width="auto")
        self.concept = w.Dropdown(options=explorer.material.concepts, description="concept")
        self.method = w.Dropdown(description="method")
        self.grid = grid_class()()
        self.all = w.Button(description="all layers and steps", layout=wide)
        self.prompt = w.Text(placeholder="type a prompt", description="prompt")
        self.search = w.Button(description="rank by prompt", layout=wide)
        self.title = w.HTML()
        self.neurons = w.Select(rows=14, layout=w.Layout(width="30em"))
        self.step = w.IntSlider(min=-1, max=-1, description="step", continuous_update=False, readout=False)
        self.when = w.HTML()
        self.figures = {name: w.HTML() for name in ("examples", "selective", "before")}
        self.figures |= {name: w.HTML(layout=w.Layout(width="50%")) for name in ("histogram", "curves")}
        self.add = w.Button(description="add", tooltip="put this neuron into the selection")
        self.remove = w.Button(description="remove")
        self.clear = w.Button(description="clear")
        self.chosen = w.HTML()
        self.path = w.Text(placeholder="name.zarr.zip", description="file")
        self.save = w.Button(description="save selection", layout=wide)
        self.maps = w.Button(description="draw where it fires", layout=wide)
        self.silence = w.Button(description="silence, and draw", layout=wide)
        self.why = w.HTML()
        self.message = w.HTML()
        row, column = w.HBox, w.VBox
        self.box = column(
            [
                row([self.concept, self.method, self.prompt, self.search]),
                self.message,
                row([column([self.grid, w.HTML(_GRID), self.all]), column([self.title, w.HTML(_LIST), self.neurons])]),
                row([self.step, self.when]),
                row([self.add, self.remove, self.clear, self.path, self.save]),
                self.chosen,
                row([self.maps, self.silence, self.why]),
                self.figures["before"],
                row([self.figures["histogram"], self.figures["curves"]]),
                self.figures["examples"],
                self.figures["selective"],
            ]
        )
        self._connect()
        explorer.on_change(self.refresh)
        self.refresh()

    def _connect(self) -> None:
        e = self.explorer
        self._on_value(self.concept, e.choose_concept)
        self._on_value(self.method, e.choose_method)
        self._on_value(self.neurons, self._neuron)
        self._on_value(self.step, lambda step: e.choose_step(None if step < 0 else step))
        self.grid.observe(lambda change: self._cell(change["new"]), "clicked")
        pressed: list[tuple[Any, Callable[[], object]]] = [
            (self.all, lambda: e.choose_cell(None, None)),
            (self.search, lambda: e.search(self.prompt.value)),
            (self.add, e.add),
            (self.remove, e.remove),
            (self.clear, e.clear),
            (self.save, lambda: e.save(self.path.value)),
            (self.maps, e.draw_maps),
            (self.silence, e.intervene),
        ]
        for button, act in pressed:
            button.on_click(lambda _, act=act: self._working(act))

    def _on_value(self, widget: Any, act: Callable[[Any], object]) -> None:
        widget.observe(lambda change: None if self._busy else act(change["new"]), "value")

    def _working(self, act: Callable[[], object]) -> None:
        with html.working(self.message, "working"):
            act()

    def _neuron(self, place: tuple[str, int] | None) -> None:
        if place is not None:
            self.explorer.choose_neuron(*place)

    def _cell(self, clicked: list[int]) -> None:
        row, column, _ = clicked
        if row >= 0:
            site = str(self.explorer.heat().index[row])
            self.explorer.choose_cell(site, column)

    def refresh(self) -> None:
        """Show the state as it is now."""
        self._busy = True  # what is set here is the state already
        try:
            self._refresh()
        finally:
            self._busy = False

    def _refresh(self) -> None:
        e, state = self.explorer, self.explorer.state
        self.concept.value = state.concept
        self.method.options = e.material.methods(state.concept)
        self.method.value = state.method
        self.message.value = "" if state.message is None else html.said(_here(state.message))
        try:
            table, best = e.heat(), e.ranking(_LISTED)
        except WorkbenchError as error:
            self.message.value = html.told(error)
            return
        self.grid.show(table)
        row = -1 if state.site is None else list(table.index).index(state.site)
        self.grid.marked = [row, -1 if state.window is None else state.window]
        self.title.value = f"<b>{escape(ranked_by(e))}</b>"
        self._list(best)
        chosen = ", ".join(panels.name_of(*one) for one in state.chosen)
        self.chosen.value = f"<b>selection</b>: {escape(chosen) or 'empty'}"
        reasons = {name: e.reason(name) for name in ("draw_maps", "intervene")}
        self.maps.disabled, self.silence.disabled = (reasons[name] is not None for name in reasons)
        self.why.value = f'<span style="color:#6e6e6e">{escape(next(iter(filter(None, reasons.values())), ""))}</span>'
        self._steps()
        self._draw()

    def _list(self, best: Any) -> None:
        options = []
        for line in best.to_dict("records"):
            for_what = f"  {line['selects']} {line['auroc']:.2f}" if "selects" in line else ""
            text = f"{line['rank']:>3}  {panels.name_of(line['site'], line['unit'])}  {line['score']:.3g}{for_what}"
            options.append((text, (line["site"], int(line["unit"]))))
        neuron = self.explorer.state.neuron
        if neuron is not None and neuron not in [place for _, place in options]:
            options.append((f"  –  {panels.name_of(*neuron)}", neuron))
        self.neurons.options = options
        self.neurons.value = neuron

    def _steps(self) -> None:
        try:
            times = self.explorer.timesteps()
        except WorkbenchError as error:
            self.step.disabled, self.when.value = True, escape(error.message)
            return
        step = self.explorer.state.step
        self.step.max = len(times) - 1
        self.step.value = -1 if step is None else step
        self.when.value = "mean over all steps" if step is None else f"timestep {times[step]:g}"

    def _draw(self) -> None:
        makers: dict[str, tuple[str, Callable[[Explorer], bytes]]] = {
            "histogram": ("Concept against reference", panels.histogram),
            "curves": ("Over denoising", panels.curves),
            "examples": ("Pictures", panels.examples),
            "selective": ("What else it is for", panels.selective),
        }
        for name, (title, make) in makers.items():
            shown = ""
            if self.explorer.state.neuron is not None:
                picture = functools.partial(self._picture, make, title)
                shown = html.section(title, picture)
            self.figures[name].value = shown
        self.figures["before"].value = (
            html.section("Before and after", lambda: html.picture(panels.intervened(self.explorer), "pictures"))
            if self.explorer.state.pictures is not None
            else ""
        )

    def _picture(self, make: Callable[[Explorer], bytes], title: str) -> str:
        return html.picture(make(self.explorer), title)


def _here(message: Message) -> Message:
    """A message as these widgets can heed it: an option of a function is for a cell below them."""
    return replace(message, text=message.text.replace("or force=True", "or in a cell save(..., force=True)"))

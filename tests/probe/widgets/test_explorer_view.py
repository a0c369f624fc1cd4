"""The thin view: its widgets follow the state, and what is clicked reaches it. No browser."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from probe.errors import MissingExtra
from probe.widgets import explore
from probe.widgets._explorer_view import View
from tests.probe.widgets.test_explorer import HERE, several


@pytest.fixture
def view():
    e = explore(several())
    return View(e)


def test_clicks_reach_the_state(view, tmp_path) -> None:
    e = view.explorer
    view.concept.value = "castle"
    assert e.state.concept == "castle"
    view.grid.clicked = [0, 0, 1]
    assert (e.state.site, e.state.window) == (HERE, 0)
    assert view.grid.marked == [0, 0]
    view.neurons.value = (HERE, 1)
    assert e.state.neuron == (HERE, 1)
    assert "data:image/png" in view.figures["histogram"].value
    assert "keeps no pictures" in view.figures["examples"].value
    view.step.value = 2
    assert e.state.step == 2
    view.add.click()
    assert "block0" in view.chosen.value
    view.path.value = str(tmp_path / "m.zarr.zip")
    view.save.click()
    assert (tmp_path / "m.zarr.zip").exists()
    assert "saved 1 neurons" in view.message.value
    view.all.click()
    assert view.grid.marked == [-1, -1]


def test_what_is_not_possible_is_greyed_with_its_reason(view) -> None:
    assert view.maps.disabled
    assert view.silence.disabled
    assert "pipe=probe.load" in view.why.value


def test_a_concept_without_recordings_is_told_and_not_shown(tmp_path) -> None:
    view = View(explore({"church": several(), "castle": str(tmp_path / "nothing")}))
    view.concept.value = "castle"
    assert "nothing" in view.message.value
    assert view.concept.value == view.explorer.state.concept == "church"


def test_an_empty_selection_says_how_to_fill_it(view, tmp_path) -> None:
    view.path.value = str(tmp_path / "m.zarr.zip")
    view.save.click()
    assert "selection is empty" in view.message.value
    assert "add" in view.message.value
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("error", "says"), [(KeyboardInterrupt(), "interrupted"), (RuntimeError("CUDA out of <memory>"), "of &lt;memory")]
)
def test_what_stops_a_refresh_is_told(view, error, says, monkeypatch) -> None:
    heat, calls = view.explorer.heat, []

    def stopped():
        calls.append(view.message.value)
        if len(calls) == 1:
            raise error
        return heat()

    monkeypatch.setattr(view.explorer, "heat", stopped)
    view.clear.click()
    assert says in view.message.value
    assert "working" not in view.message.value


def test_errors_are_shown_escaped(view) -> None:
    view.prompt.value = "<b>new</b>"
    view.search.click()
    assert "&lt;b&gt;new" in view.message.value
    assert "<b>new" not in view.message.value


def test_the_grid_has_a_colour_and_a_text_for_every_cell(view) -> None:
    table = view.explorer.heat()
    assert np.shape(view.grid.colours) == np.shape(view.grid.texts) == table.shape
    assert all(colour.startswith("#") for row in view.grid.colours for colour in row)


def test_a_notebook_gets_the_view_and_a_page() -> None:
    e = explore(several())
    bundle = e._repr_mimebundle_()
    assert {"text/plain", "text/html", "application/vnd.jupyter.widget-view+json"} <= set(bundle)


def test_without_the_extra_there_is_still_the_page(monkeypatch) -> None:
    e = explore(several())
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    with pytest.raises(MissingExtra, match=r"neuron-workbench\[notebook\]"):
        e.view()
    bundle = e._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" not in bundle
    assert "pip install" in bundle["text/html"]
    assert "data:image/png" in bundle["text/html"]


def test_what_the_file_box_cannot_do_is_said_as_code(view, tmp_path) -> None:
    view.neurons.value = (HERE, 1)
    view.add.click()
    view.path.value = str(tmp_path / "m.zarr.zip")
    view.save.click()
    view.explorer.add(HERE, 2)
    view.save.click()
    assert "choose another path, or in a cell save(..., force=True)" in view.message.value

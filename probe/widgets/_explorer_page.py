"""An explorer as one page: its heat map, its ranking, and the best neurons one after the other."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

from probe.errors import WorkbenchError
from probe.widgets import _html as html
from probe.widgets import _panels as panels

if TYPE_CHECKING:
    from collections.abc import Callable

    from probe.widgets._explorer import Explorer


def page(explorer: Explorer, neurons: int) -> str:
    """The page; the explorer is left as it was."""
    state, shown = explorer.state, explorer.reader()
    body = [f"<p>{escape(_words(explorer))}</p>"]
    if state.message is not None:
        body.append(html.said(state.message))
    body.append(html.section("Where and when", lambda: html.picture(panels.heat(shown), "score by layer and step")))
    try:
        best = shown.ranking(max(20, neurons))
    except WorkbenchError as error:
        return html.document(f"Neurons of {state.concept}", "".join([*body, html.told(error)]))
    body.append(html.section(f"Neurons, {ranked_by(explorer)}", lambda: html.table(best.head(20))))
    if state.chosen:
        rows = "".join(f"<li>{escape(site)} : {unit}</li>" for site, unit in state.chosen)
        body.append(f"<h3>Selection, {len(state.chosen)} neurons</h3><ol>{rows}</ol>")
    named = [(str(site), int(unit)) for site, unit in best.head(neurons)[["site", "unit"]].itertuples(index=False)]
    for site, unit in dict.fromkeys([*([state.neuron] if state.neuron else []), *named]):
        shown.choose_neuron(site, unit)
        body.append(f"<h2>{escape(site)} : {unit}</h2>{neuron(shown)}")
    if state.pictures is not None:
        body.append(html.section("Before and after", lambda: html.picture(panels.intervened(explorer), "pictures")))
    return html.document(f"Neurons of {state.concept}", "".join(body))


def neuron(explorer: Explorer) -> str:
    """What is shown of the neuron that is looked at."""
    site, unit = explorer.state.neuron or ("", 0)
    parts: list[tuple[str, Callable[[Any], bytes]]] = [
        ("Concept against reference", panels.histogram),
        ("Over denoising", panels.curves),
        ("Pictures", panels.examples),
        ("What else it is for", panels.selective),
    ]

    def drawn(make: Callable[[Any], bytes], title: str) -> str:
        return html.section(title, lambda: html.picture(make(explorer), f"{title}, neuron {unit} of {site}"))

    return "".join(drawn(make, title) for title, make in parts)


def ranked_by(explorer: Explorer) -> str:
    """In words, what the neurons are ranked by."""
    state = explorer.state
    if state.prompt is not None:
        return f"by their excess over their own mean on {state.prompt!r}, in standard deviations"
    where = "all sites" if state.site is None else panels.short_site(state.site)
    when = "mean over all windows"
    if state.window is not None:
        high, low = explorer.finding().windows[state.window]
        when = f"t {high:g}" if high == low else f"t {high:g} to {low:g}"
    return f"by {state.method}: {where}, {when}"


def _words(explorer: Explorer) -> str:
    nm = explorer.finding()
    return f"Concept {explorer.state.concept!r}, method {nm.method}, neuron map {nm.id}, {len(nm.sites)} sites."

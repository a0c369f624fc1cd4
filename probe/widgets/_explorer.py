"""Explorer: what is chosen while looking for neurons, and what follows from it. No widget, no browser, no drawing."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd

from probe._axis import sites_of
from probe._choosing import over_windows
from probe._neuron_map import NeuronMap
from probe._run import Run
from probe.errors import BadInput, UnknownName, WorkbenchError, nearest
from probe.plots import layer_step_table, maps_of_neuron, neuron_examples, ranked_scores
from probe.scores import Selectivity
from probe.widgets import _drawing as drawing
from probe.widgets._acting import Acting, Message
from probe.widgets._examples import PER_ROW, Examples, rows_of
from probe.widgets._material import (
    QUANTITIES,
    Material,
    Side,
    material,
    place_of,
    positive,
    reducer_of,
    site_named,
    text,
    whole,
)

Neuron = tuple[str, int]

#: What an explorer's selection can become.
MODES = ("zero", "scale")

_NO_PIPE = "needs the model: explore(..., pipe=probe.load(...))"


@dataclass(frozen=True)
class State:
    """What is chosen.

    - ``concept``, ``method``: whose neuron map is shown, made how
    - ``site``, ``window``: the cell of the heat map whose neurons are ranked; None: all sites, all windows
    - ``prompt``, ``seed``: neurons are ranked by how far they exceed their own mean on it, instead of by the map
    - ``neuron``, ``step``: the one that is looked at, and when; step None is the mean over all
    - ``chosen``: neurons put aside for a selection, in that order
    - ``pictures``, ``pictured``: of the last intervention, row name -> (s y x 3), and their prompts
    """

    concept: str
    method: str
    site: str | None = None
    window: int | None = None
    prompt: str | None = None
    seed: int = 0
    neuron: Neuron | None = None
    step: int | None = None
    chosen: tuple[Neuron, ...] = ()
    pictures: Mapping[str, np.ndarray] | None = field(default=None, compare=False)
    pictured: tuple[str, ...] = ()
    message: Message | None = None


class Explorer(Acting[State]):
    """Choose a concept and a method, a cell of score[layer, step], a neuron; see what it does; keep it.

    Actions (`choose_...`, `search`, `add`, `remove`, `clear`, `save`, `draw_maps`, `intervene`) change ``state`` as a
    whole or not at all: one that fails leaves a message and everything else as it was, and never raises a
    `WorkbenchError`. Readings (`heat`, `ranking`, `sides`, `curves`, `examples`, `selectivity`) raise. In a notebook it
    shows itself; `to_html` writes it as one file.
    """

    def __init__(self, source: Material, pipe: Any = None) -> None:
        concept = source.concepts[0]
        super().__init__(State(concept, source.methods(concept)[0]))
        self.material, self.pipe = source, pipe
        self._drawn: dict[tuple[str, Neuron], drawing.Maps] = {}
        self._excess: dict[tuple[str, str, int], np.ndarray] = {}

    # --- actions ---

    def choose_concept(self, name: str) -> None:
        """Show another concept; the method stays where it is available."""
        with self._acting():
            methods = self.material.methods(name)
            method = self.state.method if self.state.method in methods else methods[0]
            self.material.finding(name, method)
            chosen = self.state.chosen  # neurons are of the model; all else is of the concept and its run
            self.state = State(name, method, chosen=chosen)

    def choose_method(self, name: str) -> None:
        """Show the concept's map by another method."""
        with self._acting():
            self.material.finding(self.state.concept, name)
            self._become(method=name, window=None, site=None, prompt=None)

    def choose_cell(self, site: str | None = None, window: int | None = None) -> None:
        """Rank the neurons of one site (in full, or as figures write it) and window (position in the map).

        None means all.
        """
        with self._acting():
            nm = self.finding()
            names = [found.name for found in nm.sites]
            if site is not None:
                site = site_named(names, site)
            if window is not None and not 0 <= whole("window", window) < len(nm.windows):
                raise BadInput("the map has no such window", given=window, expected=f"0 to {len(nm.windows) - 1}")
            self._become(site=site, window=window, prompt=None)

    def choose_neuron(self, site: str, unit: int) -> None:
        """Look at one neuron."""
        with self._acting():
            self._become(neuron=self._named(site, unit))

    def choose_step(self, step: int | None) -> None:
        """Look at one step of the run, or at the mean over all of them (None)."""
        with self._acting():
            if step is not None and not 0 <= whole("step", step) < len(self.timesteps()):
                raise BadInput("the run has no such step", given=step, expected=f"0 to {len(self.timesteps()) - 1}")
            self._become(step=step)

    def search(self, prompt: str, *, seed: int = 0) -> None:
        """Rank all neurons by how far they exceed, on this prompt, their own mean over the run (in its sd; ours).

        A prompt of the run is looked up; any other is drawn, once, which needs the model.
        """
        with self._acting():
            typed, seed = text("prompt", prompt), whole("seed", seed)
            self._excess_on(typed, seed)
            self._become(prompt=typed, seed=seed, site=None, window=None)

    def add(self, site: str | None = None, unit: int | None = None) -> None:
        """Put a neuron into the selection: the one that is looked at, if none is named."""
        with self._acting():
            wanted = self._named(site, unit)
            self._become(chosen=tuple(dict.fromkeys([*self.state.chosen, wanted])))

    def add_ranked(self, count: int) -> None:
        """Put the highest ``count`` neurons of the ranking into the selection."""
        with self._acting():
            best = self.ranking(positive("count", count))
            found = zip(best["site"], best["unit"].astype(int), strict=True)
            self._become(chosen=tuple(dict.fromkeys([*self.state.chosen, *found])))

    def remove(self, site: str | None = None, unit: int | None = None) -> None:
        """Take a neuron out of the selection."""
        with self._acting():
            unwanted = self._named(site, unit)
            self._become(chosen=tuple(one for one in self.state.chosen if one != unwanted))

    def clear(self) -> None:
        """Empty the selection."""
        with self._acting():
            self._become(chosen=())

    def save(self, path: str | Path, *, force: bool = False) -> None:
        """Write the selection as a neuron map, which every eraser that takes maps reads."""
        with self._acting():
            if path is None or not str(path).strip():
                raise BadInput("there is no file name", fix="church.zarr.zip, for example")
            nm = self.selection()
            nm.save(path, force=force)
            self._become(message=Message(f"saved {len(self.state.chosen)} neurons to {path}"))

    def draw_maps(self, per_row: int = PER_ROW) -> None:
        """Draw pictures again that the neuron is highest on, and those around quantiles; keep where in them it fires.

        The rows are of the step that is chosen now; another step shows the same pictures as they are then.
        """
        with self._acting():
            neuron = self._named(None, None)
            target, _ = self.material.sides(self.state.concept)
            rows = rows_of(self.sides()[0], positive("per_row", per_row))
            made = drawing.maps(self._pipe_for(target), target, rows, neuron, self._sampling())
            self._drawn[self.state.concept, neuron] = made

    def intervene(self, *, mode: Literal["zero", "scale"] = "zero", value: float | None = None, count: int = 4) -> None:
        """Draw pictures with and without the selection (or the neuron looked at) silenced, or scaled by ``value``.

        Other modes need a run to take values from: `probe.intervention` with ``explorer.selection()``.
        """
        with self._acting():
            if mode not in MODES:
                fix = "probe.intervention(explorer.selection(), mode=..., source=RUN) has the others"
                raise UnknownName("unknown mode", given=repr(mode), expected=f"one of {', '.join(MODES)}", fix=fix)
            chosen = self.state.chosen or (self._named(None, None),)
            units: dict[str, list[int]] = {}
            for site, unit in chosen:
                units.setdefault(site, []).append(unit)
            target, _ = self.material.sides(self.state.concept)
            table = target.table.iloc[self._highest(positive("count", count))].reset_index(drop=True)
            pipe = self._pipe_for(target)
            pictures = drawing.before_after(pipe, table, units, self._sampling(), mode=mode, value=value)
            prompts = tuple(str(prompt) for prompt in table["prompt"])
            self._become(pictures=pictures, pictured=prompts, message=Message("drawn below, before and after"))

    # --- readings ---

    def finding(self) -> NeuronMap:
        """The neuron map that is shown."""
        return self.material.finding(self.state.concept, self.state.method)

    def heat(self) -> pd.DataFrame:
        """score[layer, step]: sites by windows, see `probe.plots.layer_step_table`."""
        return layer_step_table(self.finding())

    def ranking(self, count: int = 20) -> pd.DataFrame:
        """The neurons of the cell, or all, highest first: rank, site, unit, score; with a table also what they are for.

        Raises `BadInput` where none of them was measured.
        """
        state, nm = self.state, self.finding()
        if state.prompt is not None:
            ds, values = self._whole().ds, self._excess[state.concept, state.prompt, state.seed]
            known = [site.name for site in nm.sites]  # only these can be looked at and selected
        else:
            ds, every = nm.dataset, nm.dataset["score"].transpose("window", "neuron").values
            values = over_windows(every, "mean") if state.window is None else every[state.window]
            known = [site.name for site in nm.sites if state.site in (None, site.name)]
        names = np.array([site.name for site in sites_of(ds)], object)[ds["site"].values]
        values = np.where(np.isin(names, known), values, np.nan)
        frame = ranked_scores(values).head(count)[["rank", "neuron", "score"]]
        places = frame.pop("neuron").to_numpy()
        frame.insert(1, "site", names[places])
        frame.insert(2, "unit", ds["unit"].values[places])
        table = self._known_table()
        if table is not None:
            told = table.to_dataframe().set_index(["site", "unit"])[["concept", "auroc"]]
            frame = frame.join(told.rename(columns={"concept": "selects"}), on=["site", "unit"])
        return frame.reset_index(drop=True)

    def timesteps(self) -> np.ndarray:
        """(t,) of the concept's run."""
        target, _ = self.material.sides(self.state.concept)
        return np.asarray(target.ds["timestep"].values, np.float64)

    def quantity(self) -> str:
        """What the numbers of a neuron are, in words: what its run kept of activations."""
        return QUANTITIES[reducer_of(self.material.sides(self.state.concept)[0].ds)]

    def curves(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Timesteps (t,) and the neuron's activation (s t) on the concept's samples and on the reference's."""
        return self.material.curves(self.state.concept, *self._named(None, None))

    def sides(self) -> tuple[np.ndarray, np.ndarray]:
        """The neuron's activation (s,) on either side, at the step that is chosen."""
        _, target, reference = self.curves()
        pick = self._at_step
        return pick(target), pick(reference)

    def examples(self) -> Examples:
        """Pictures of the concept's and the reference's samples with the neuron's activation.

        Raises `BadInput` for a run without pictures.
        """
        concept, neuron = self.state.concept, self._named(None, None)
        parts = self.material.sides(concept)
        drawn = self._drawn.get((concept, neuron))
        if drawn is not None:
            own = self.sides()[0][drawn.samples]
            prompts = [str(parts[0].table["prompt"].iloc[i]) for i in drawn.samples]
            return Examples(drawn.images, own, self._at_step(drawn.maps), prompts, drawn.rows)
        if any(side.images is None for side in parts):
            fix = "record with images=True, or explore(..., pipe=) and draw maps"
            raise BadInput("the run keeps no pictures", given=concept, fix=fix)
        images = np.concatenate([side.images for side in parts if side.images is not None])
        prompts = [str(prompt) for side in parts for prompt in side.table["prompt"]]
        activation = np.concatenate(self.sides())
        return Examples(images, activation, None, prompts, rows_of(activation))

    def stored_maps(self) -> Examples:
        """The concept's own pictures with the maps that its run keeps. Raises `BadInput` where it keeps none."""
        concept, (site, unit) = self.state.concept, self._named(None, None)
        run = self.material.runs.get(concept)
        target, _ = self.material.sides(concept)
        if target.images is None or not isinstance(run, Run | str | Path):
            raise BadInput("the run keeps no maps", given=concept)
        times = self.timesteps()
        window = (999.0, 0.0) if self.state.step is None else (times[self.state.step],) * 2
        maps, _ = maps_of_neuron(run, site, unit, window=window)
        own = self._own(self.material.side(run))
        activation, prompts = self.sides()[0], [str(prompt) for prompt in target.table["prompt"]]
        return Examples(target.images, activation, maps[own], prompts, rows_of(activation))

    def selectivity(self) -> pd.Series:
        """What the neuron is for: its AUROC by concept, highest first. Raises where one run holds one concept only."""
        site, unit = self._named(None, None)
        return self.material.selectivity(self.state.concept).neuron(site, unit)

    def selection(self) -> NeuronMap:
        """The neuron map that is shown, with the chosen neurons as its selection. Raises `BadInput` where none is."""
        units: dict[str, list[int]] = {}
        for site, unit in self.state.chosen:
            units.setdefault(site, []).append(unit)
        if not units:
            raise BadInput("the selection is empty", fix="look at a neuron and add it, or add the highest ones")
        return self.finding().select(units=units)

    def reason(self, action: str) -> str | None:
        """Why ``draw_maps``, ``intervene`` or ``search`` of new prompts cannot be done here; None where it can."""
        if self.pipe is None:
            return f"{action.replace('_', ' ')} {_NO_PIPE}"
        try:
            target, _ = self.material.sides(self.state.concept)
            self._pipe_for(target)
        except WorkbenchError as error:
            return error.message
        return None

    # --- showing ---

    def reader(self) -> Explorer:
        """Another explorer of the same material in the same state, whose changes nobody hears of."""
        found = copy.copy(self)
        found._listeners = []
        return found

    def to_html(self, path: str | Path | None = None, *, neurons: int = 4, force: bool = False) -> str:
        """The state, and the highest ``neurons`` of its ranking, as one HTML page; written to ``path`` if given.

        Pictures are inside, there is no script: it reads anywhere, without a kernel. Raises `BadInput` where something
        is at ``path`` (``force=True`` replaces a file).
        """
        from probe.widgets._explorer_page import page
        from probe.widgets._html import written

        return written(page(self, neurons), path, force=force)

    def view(self) -> Any:
        """The interactive view, an ipywidgets box. Raises `MissingExtra` without the extra ``notebook``."""
        from probe.widgets._explorer_view import view

        return view(self)

    def _repr_mimebundle_(self, **_options: Any) -> dict[str, Any]:
        from probe.widgets._html import bundle

        return bundle(self.view, lambda: self.to_html(neurons=2), repr(self))  # it is saved with the notebook

    def __repr__(self) -> str:
        state = self.state
        chosen = f", {len(state.chosen)} neurons chosen" if state.chosen else ""
        return f"<Explorer of {', '.join(self.material.concepts)}: {state.concept} by {state.method}{chosen}>"

    # --- inside ---

    def _named(self, site: str | None, unit: int | None) -> Neuron:
        if site is not None and unit is not None:
            nm = self.finding()
            place_of(nm.dataset, site, unit)
            return site_named([found.name for found in nm.sites], site), int(unit)
        if self.state.neuron is None:
            raise BadInput("no neuron is looked at", fix="click a cell of the heat map, then a neuron of the list")
        return self.state.neuron

    def _at_step(self, values: np.ndarray) -> np.ndarray:
        """(s t ...) -> (s ...) at the chosen step, or the mean."""
        chosen: np.ndarray = values.mean(1) if self.state.step is None else values[:, self.state.step]
        return chosen

    def _highest(self, count: int) -> np.ndarray:
        """The concept's samples that the neuron, or the first of the selection, is highest on."""
        if self.state.neuron is None and not self.state.chosen:
            self._named(None, None)  # raises
        neuron = self.state.neuron or self.state.chosen[0]
        activation = self._at_step(self.material.curves(self.state.concept, *neuron)[1])
        return neuron_examples(activation, per_row=count, quantiles=())["highest"]

    def _own(self, whole: Side) -> np.ndarray:
        names = whole.table["concept"].astype(str).to_numpy()
        own = names == self.state.concept
        return own if own.any() else np.ones(len(names), bool)

    def _sampling(self) -> dict[str, Any]:
        return self.material.sampling(self.state.concept)

    def _pipe_for(self, side: Side) -> Any:
        if self.pipe is None:
            raise BadInput("this draws pictures", fix=_NO_PIPE)
        drawing.check_model(self.pipe, side)
        return self.pipe

    def _known_table(self) -> Selectivity | None:
        """What neurons are for, where it is known; that it cannot be known is no error."""
        try:
            return self.material.selectivity(self.state.concept)
        except WorkbenchError:
            return None

    def _whole(self) -> Side:
        """All samples of the concept's run. Raises as `Material.sides`."""
        self.material.sides(self.state.concept)
        return self.material.side(self.material.runs[self.state.concept])

    def _excess_on(self, prompt: str, seed: int) -> np.ndarray:
        key = (self.state.concept, prompt, seed)
        if key not in self._excess:
            whole = self._whole()
            levels, own = drawing.levels(whole), whole.table["prompt"].astype(str).to_numpy() == prompt
            if own.any():
                value = levels[own].mean(0)
            elif self.pipe is None:
                close = nearest(prompt, map(str, whole.table["prompt"]))
                raise BadInput("the run has no such prompt", given=repr(prompt), nearest=close, fix=_NO_PIPE)
            else:
                value = drawing.level_of(self._pipe_for(whole), whole, prompt, seed, self._sampling())
            self._excess[key] = drawing.excess(value, levels)
        return self._excess[key]


def explore(
    source: Any,
    pipe: Any = None,
    *,
    run: Any = None,
    reference: Any = None,
    selectivity: Selectivity | None = None,
) -> Explorer:
    """Look at neurons one by one: where and when a concept is carried, by which neurons, and what these do.

    Args:
        source: a run (path, `probe.Run` or dataset), a neuron map (or its path), or concept -> run, map or a list of
            these. A run of several concepts offers each of them against the others.
        pipe: the pipeline of the runs. With it pictures are drawn again for maps of where a neuron fires, selections
            are silenced before your eyes, and any prompt may be typed; without it, these say so.
        run: the run behind a map, of the same model, for activations and pictures.
        reference: a run of the same prompts without the concept, or concept -> such a run.
        selectivity: the table that says what else neurons are for; made from the run if None.

    Shows itself in JupyterLab; `Explorer.to_html` writes it as one file that needs no kernel. Raises `BadInput` where
    there is nothing to explore, `WrongModel` for a map and a run of different models, and what opening a run or a map
    raises.
    """
    if pipe is not None:
        drawing.check_pipe(pipe)
    return Explorer(material(source, run, reference, selectivity), pipe)

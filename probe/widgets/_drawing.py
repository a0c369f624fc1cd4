"""What an explorer needs the model for: maps of one neuron, pictures before and after, activations on a new prompt."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from jaxtyping import Float
from numpy import ndarray as Array

from probe._generate import generate
from probe._intervention import intervention
from probe._record import record
from probe._recorded import recorded
from probe._samples import samples
from probe.errors import BadInput, WrongModel
from probe.plots import maps_of_neuron
from probe.provenance import fingerprint, lineage
from probe.widgets._material import Side, provenance_of, reducer_of


@dataclass(frozen=True)
class Maps:
    """Where one neuron fires: ``samples`` (s,) positions, their ``images`` (s y x 3), and ``maps`` (s t y x).

    ``rows`` name -> which of these (s,) belong to it.
    """

    samples: np.ndarray
    images: np.ndarray
    maps: np.ndarray
    rows: dict[str, np.ndarray]


def check_pipe(pipe: Any) -> None:
    """Raise `BadInput` unless ``pipe`` is a pipeline, and not its name."""
    if not (hasattr(pipe, "unet") and callable(pipe)):
        fix = f"probe.load({pipe!r})" if isinstance(pipe, str | Path) else 'probe.load("emoji")'
        raise BadInput("this is no pipeline", given=repr(pipe)[:60], expected="what probe.load gives", fix=fix)


def check_model(pipe: Any, side: Side) -> None:
    """Raise `WrongModel` unless ``pipe``, with the edits that are in force on it, is what the run was recorded from."""
    identity = provenance_of(side.ds)["identity"]
    fingerprint(pipe).check(identity["model"], "the run")
    there, now = ([str(name) for _, name in edits] for edits in (identity["lineage"], lineage(pipe)))
    if there != now:
        given, expected = (", ".join(names) or "no edit" for names in (now, there))
        raise WrongModel("other edits are in force than while recording", given=given, expected=expected)


def maps(pipe: Any, side: Side, rows: Mapping[str, Array], neuron: tuple[str, int], sampling: Any) -> Maps:
    """Draw the samples of some rows (name -> positions in the side) again, keeping where a neuron fires in them."""
    site, unit = neuron
    places = np.unique(np.concatenate(list(rows.values())))
    table = side.table.iloc[places].reset_index(drop=True)
    with tempfile.TemporaryDirectory() as folder:
        run = record(
            pipe, table, out=Path(folder) / "maps", maps={site: [unit]}, images=True, progress=False, **sampling
        )
        found, _ = maps_of_neuron(run, site, unit, mean=False)
        pictures = run.open("images")["image"].values
    own = {name: np.searchsorted(places, row) for name, row in rows.items()}
    return Maps(places, pictures, np.asarray(found), own)


def before_after(
    pipe: Any,
    table: pd.DataFrame,
    units: Mapping[str, Sequence[int]],
    sampling: Mapping[str, Any],
    *,
    mode: Literal["zero", "mean", "scale"],
    value: float | None,
) -> dict[str, Array]:
    """The pictures of some samples without and with an intervention: row name -> (s y x 3)."""
    change = intervention(units, mode=mode, value=value)
    before = generate(pipe, table, progress=False, **sampling)
    with change.applied(pipe):
        after = generate(pipe, table, progress=False, **sampling)
    return {"before": before, change.name: after}


def levels(side: Side) -> Array:
    """(s n) every neuron's mean over all steps, in the conditional branch."""
    reducer = reducer_of(side.ds)
    part = recorded(side.ds, "unet", reducer)
    return part.window_means(reducer, slice(None), ["cond"], slice(None))


def level_of(pipe: Any, side: Side, prompt: str, seed: int, sampling: Mapping[str, Any]) -> Array:
    """(n,) the same on one new prompt, which is drawn for it."""
    sites = list(dict.fromkeys(site.name for site in recorded(side.ds, "unet", reducer_of(side.ds)).sites))
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "prompt"
        table = samples(prompt, seeds=seed)
        run = record(
            pipe, table, out=out, sites=sites, reduce=reducer_of(side.ds), images=False, progress=False, **sampling
        )
        found = levels(Side(run.open("unet"), None))
    return np.asarray(found[0])


def excess(value: Float[Array, " n"], over: Float[Array, "s n"]) -> Float[Array, " n"]:
    """(value - mean) / sd of each neuron over the samples of a run (ours); NaN where a neuron never varies."""
    mean, sd = over.mean(0, dtype=np.float64), over.std(0, dtype=np.float64)
    spread = np.where(sd > 1e-6 * np.abs(mean), sd, np.nan)
    return (value - mean) / spread

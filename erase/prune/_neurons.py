"""prune_neurons: any finding can reach an eraser. All outgoing weights of the selected units are set to zero (ours)."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch

from erase._changes import Mask
from erase._edit import Edit, make_edit
from erase.prune._layers import layers_of, map_of, report
from probe import NeuronMap
from probe._options import validated
from probe.errors import BadInput


@validated
def prune_neurons(
    pipe: Any,
    nm: NeuronMap | str | Path,
    *,
    over: Literal["any", "all", "vote"] = "any",
    mode: Literal["zero"] = "zero",
    name: str | None = None,
) -> Edit:
    """Silence the units that ``nm`` selects: their columns in the outgoing Linear become zero; biases stay.

    Args:
        pipe: the pipeline that the map was made on. It is read, not changed.
        nm: a map with a selection, such as ``nm.select(top=50)``, or the path of one.
        over: how the selections of several windows are joined: any of them, all, or more than half.
        mode: ``"zero"``, the only one so far.
        name: ``prune_neurons`` by default.

    The unit's activation itself cannot change at the same x_t: only what it passes on does. Raises `BadInput` for a map
    without a selection or with an empty one, `WrongModel` for a map of another model.
    """
    nm = map_of(nm)
    chosen = torch.from_numpy(nm.selected(over))
    if not chosen.any():
        raise BadInput("the neuron map selects no unit", given=f"over={over!r}", fix="nm.select(top=50) first")
    found = {}
    for layer in layers_of(pipe, nm):
        units = chosen[layer.units]
        if units.any():
            found[layer.param] = units.expand(layer.weight.shape).clone()
    return make_edit(
        pipe,
        [Mask.of(param, mask) for param, mask in found.items()],
        name=name or "prune_neurons",
        method="prune_neurons",
        options={"over": over, "mode": mode},
        inputs={"map": nm.id},
        report=report(found, units=int(chosen.sum())),
    )

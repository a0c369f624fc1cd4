"""What a recording will take, before the first image: shapes, bytes, room."""

from __future__ import annotations

import inspect
import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from probe._chunks import readable_size
from probe._opening import StorePlan
from probe._places import Place
from probe.errors import BadInput, StoreDamaged

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Estimate:
    """The plan of a recording in numbers. Bytes are before compression.

    - ``kind``: run or trajectory; ``path``
    - ``samples``, ``unit`` (samples in one), ``units``
    - ``arrays``: one dict an array: ``name``, ``dims``, ``shape``, ``chunk``, ``dtype``, ``bytes``
    - ``sites``: number of sites by component and kind, ``neurons`` in all of them
    - ``bytes``, and ``free`` where the run is to lie (None if nobody can say)
    - ``done``: samples that are there already
    """

    kind: str
    path: str
    samples: int
    unit: int
    units: int
    steps: int
    branches: tuple[str, ...]
    sites: dict[str, int]
    neurons: int
    arrays: tuple[dict[str, Any], ...]
    bytes: int
    free: int | None
    done: int

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON values."""
        return {**vars(self), "branches": list(self.branches), "arrays": list(self.arrays)}

    def lines(self) -> list[str]:
        """The totals in words."""
        sites = ", ".join(f"{count} {name}" for name, count in self.sites.items())
        room = "unknown" if self.free is None else readable_size(self.free)
        again = f", {self.done} of them done" if self.done else ""
        return [
            f"{self.kind:<8} {self.path}",
            f"samples  {self.samples} in {self.units} units of {self.unit}{again}",
            f"calls    {self.steps} steps, branches {' and '.join(self.branches)}",
            *([f"sites    {sites}: {self.neurons} neurons"] if sites else []),
            f"size     {readable_size(self.bytes)} before compression, room {room}",
        ]


def with_defaults(function: Any, planned: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """The keyword-only arguments of ``planned``: ``options``, and where these lack one, the default of ``function``."""
    defaults, wanted = inspect.signature(function).parameters, inspect.signature(planned).parameters.values()
    names = [parameter.name for parameter in wanted if parameter.kind is parameter.KEYWORD_ONLY]
    return {**{name: defaults[name].default for name in names}, **options}


def estimate(plan: StorePlan, place: Place) -> Estimate:
    """The numbers of a plan. Reads at most the header of a run that is already there."""
    n = len(plan.table)
    variables = [(group.name, variable) for group in plan.stored_groups(coordinates=False) for variable in group.every]
    arrays = tuple(
        {
            "name": f"{group}/{variable.name}",
            "dims": ["sample", *variable.dims],
            "shape": [n, *variable.sizes],
            "chunk": list(variable.chunk),
            "dtype": variable.dtype,
            "bytes": variable.size(n),
        }
        for group, variable in variables
    )
    return Estimate(
        kind=plan.store.kind,
        path=str(place.path),
        samples=n,
        unit=plan.unit,
        units=-(-n // plan.unit),
        steps=len(plan.timesteps),
        branches=tuple(plan.branches),
        sites=dict(Counter(f"{site.component} {site.kind}" for site in plan.sites)),
        neurons=sum(site.width for site in plan.sites),
        arrays=arrays,
        bytes=plan.size_of(n),
        free=place.free(),
        done=_done(plan, place),
    )


def check_size(plan: StorePlan, max_gb: float) -> None:
    """Log the size of the run to come; raise `BadInput` where it is over ``max_gb``."""
    n = len(plan.table)
    size = plan.size_of(n)
    logger.info("%d samples take %s before compression", n, readable_size(size))
    if size <= max_gb * 1e9:
        return
    per_array = {
        f"{group.name}/{variable.name}": variable.size(n)
        for group in plan.stored_groups(coordinates=False)
        for variable in group.every
    }
    largest = max(per_array, key=lambda name: per_array[name])
    fits = int(n * max_gb * 1e9 / size)
    raise BadInput(
        f"the {plan.store.kind} would be larger than max_gb allows",
        given=f"{readable_size(size)} for {n} samples ({largest}: {readable_size(per_array[largest])})",
        expected=f"at most {readable_size(int(max_gb * 1e9))}, which is {fits} samples",
        fix=f"record fewer samples, sites, reducers or steps, or allow it with max_gb={np.ceil(size / 1e9):.0f}",
    )


def _done(plan: StorePlan, place: Place) -> int:
    try:
        store = plan.store(place)
        return int(np.repeat(store.done, store.unit)[: store.n_samples].sum())
    except (BadInput, StoreDamaged) as error:
        logger.debug("%s", error)
        return 0

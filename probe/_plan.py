"""The plan of a recording: everything that is decided before the first image, and the empty run that it asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from probe import _axis, compat, formats, provenance
from probe._branches import GUIDED, UNGUIDED
from probe._chunks import Extent, sample_chunk, unit_size
from probe._generate import timesteps
from probe._groups import Group
from probe._places import Place
from probe._reduce import Reducer
from probe._samples import digest
from probe._sites import Site
from probe._store import RunStore
from probe.errors import BadInput


@dataclass(frozen=True)
class Plan:
    """What one recording will do.

    ``table`` are the samples, ``size`` the images' (height, width), ``decode`` whether images are needed at all and
    ``keep_images`` whether they are stored; ``detector_id`` names who judges them.
    """

    pipe: Any
    table: pd.DataFrame
    sites: Sequence[Site]
    reducers: Sequence[Reducer]
    steps: int
    guidance: float
    batch_size: int
    size: tuple[int, int]
    keep_images: bool
    detector_id: str | None

    @property
    def decode(self) -> bool:
        """Whether latents have to become images."""
        return self.keep_images or self.detector_id is not None

    @cached_property
    def groups(self) -> dict[str, list[Site]]:
        """Sites by the group of the run that holds them, in order of execution within each."""
        groups: dict[str, list[Site]] = {}
        for site in self.sites:
            name = {"ffn": "unet", "xattn.out": "xattn_out", "mlp": site.component}.get(site.kind)
            if name is None:
                expected = "sites of kind ffn, mlp or xattn.out"
                raise BadInput("sites of this kind cannot be recorded yet", given=site.name, expected=expected)
            groups.setdefault(name, []).append(site)
        return groups

    @cached_property
    def timesteps(self) -> np.ndarray:
        """The scheduler's timestep at every UNet call, (t,)."""
        return timesteps(self.pipe, self.steps)

    @cached_property
    def branches(self) -> tuple[str, ...]:
        """The branches that every sample will have; `BadInput` where some are guided and some are not."""
        own = self.table["guidance"].fillna(self.guidance) if "guidance" in self.table else [self.guidance]
        distilled = getattr(self.pipe.unet.config, "time_cond_proj_dim", None) is not None  # guidance is an input there
        guided = {bool(scale > 1) and not distilled for scale in own}
        if len(guided) > 1:
            raise BadInput(
                "samples of a run are either all guided or all unguided", given="guidance on both sides of 1"
            )
        return GUIDED if guided.pop() else UNGUIDED

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What the run's numbers depend on. ``model`` is what is recorded, ``context`` what else has a say in it."""
        model = provenance.fingerprint(self.pipe)
        components = sorted({site.component for site in self.sites})
        context = [
            name for name in ("text_encoder", "text_encoder_2", "unet") if getattr(self.pipe, name, None) is not None
        ]
        context += ["vae"] if self.decode else []
        # in the order in which differences are looked for: what a caller chose comes before what follows from it
        return {
            "layout_version": formats.LAYOUT_VERSIONS["run"],
            "components": components,
            "sites": [site.name for sites in self.groups.values() for site in sites],
            "reducers": [reducer.name for reducer in self.reducers],
            "steps": self.steps,
            "guidance": self.guidance,
            "branches": self.branches,
            "size": self.size,
            "batch_size": self.batch_size,
            "images": self.keep_images,
            "detector": self.detector_id,
            "scheduler": {"name": type(self.pipe.scheduler).__name__, **compat.clean_config(self.pipe.scheduler)},
            "lineage": provenance.lineage(self.pipe),
            "model": model.to_json(components),
            "context": {name: model.component(name) for name in context if name not in components},
            "samples": digest(self.table),
        }

    def has_steps(self, group: str) -> bool:
        """Whether a group has a step axis: text encoders run once."""
        return not group.startswith("text_encoder")

    @cached_property
    def extents(self) -> dict[str, Extent]:
        """What each group stores of one sample and branch."""
        return {
            name: Extent(len(self.timesteps) if self.has_steps(name) else 1, tuple(site.width for site in sites))
            for name, sites in self.groups.items()
        }

    @cached_property
    def unit(self) -> int:
        """Samples that are made, written and marked done together."""
        return unit_size(list(self.extents.values()), self.batch_size)

    def stored_groups(self, *, coordinates: bool = True) -> list[Group]:
        """The groups of the run; without ``coordinates`` no weight is read, as an estimate wants it."""
        groups = [self._group(name, extent, self.unit, coordinates) for name, extent in self.extents.items()]
        return [*groups, *self._image_group(self.unit)]

    def size_of(self, samples: int) -> int:
        """Bytes that so many samples take, before compression."""
        return sum(group.size(samples) for group in self.stored_groups(coordinates=False))

    def create(self, path: str | Path | Place, *, replace: bool) -> RunStore:
        """Make the empty run at ``path``."""
        stamp = provenance.stamp(self.identity)
        return RunStore.create(
            path,
            identity=stamp["identity"],
            info=stamp["info"],
            id=stamp["id"],
            unit=self.unit,
            samples=self.table,
            sites=_site_table(self.groups),
            groups=self.stored_groups(),
            replace=replace,
        )

    def _group(self, name: str, extent: Extent, unit: int, coordinates: bool) -> Group:
        sites, stepped = self.groups[name], self.has_steps(name)
        coords: dict[str, tuple[str, np.ndarray]] = {}
        if coordinates:
            coords = {
                "branch": ("branch", np.array(self.branches, object)),
                **({"timestep": ("step", self.timesteps)} if stepped else {}),
                **_axis.coordinates(sites),
                "fan_out": ("neuron", np.concatenate([fan_out(self.pipe, site) for site in sites])),
            }
        middle = (extent.steps,) if stepped else ()
        return Group(
            name=name,
            arrays=tuple(reducer.name for reducer in self.reducers),
            dtype="float32",
            dims=("branch", "step", "neuron") if stepped else ("branch", "neuron"),
            sizes=(len(self.branches), *middle, extent.neurons),
            chunk=(sample_chunk(extent.row_bytes, unit), 1, *middle, extent.neuron_chunk),
            coords=coords,
        )

    def _image_group(self, unit: int) -> list[Group]:
        if not self.keep_images:
            return []
        sizes = (*self.size, 3)
        return [
            Group(
                "images",
                ("image",),
                "uint8",
                ("y", "x", "rgb"),
                sizes,
                (sample_chunk(_volume(sizes), unit), *sizes),
                {},
            )
        ]


def fan_out(pipe: Any, site: Site) -> np.ndarray:
    """||W[:, j]||_2 of the Linear that a site's units enter, as it is now, edits included: (n,). NaN without one."""
    weight = getattr(site.resolve(pipe), "weight", None)
    if site.io != "input" or weight is None or weight.ndim != 2 or weight.shape[1] != site.width:
        return np.full(site.width, np.nan, np.float32)
    norms: np.ndarray = weight.detach().float().norm(dim=0).cpu().numpy()
    return norms


def _site_table(groups: Mapping[str, Sequence[Site]]) -> pd.DataFrame:
    """One row a site: its fields, its group, its offset on that group's neuron axis, and rows (0 until known)."""
    return pd.DataFrame(
        [
            site.to_json() | {"group": name, "offset": offset, "rows": 0}
            for name, sites in groups.items()
            for site, offset in zip(sites, _axis.offsets(sites)[:-1], strict=True)
        ]
    )


def _volume(sizes: Sequence[int]) -> int:
    return int(np.prod(sizes))

"""What a run keeps: for each group how it is laid out on disk, and the recorder that fills it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from probe import _axis
from probe._chunks import Extent, Ragged, sample_chunk
from probe._grids import grid_of
from probe._groups import Group, Variable
from probe._ragged import MapRecorder, ProbabilityRecorder, ProjectionRecorder
from probe._recorder import Recorder, ReducedRecorder
from probe._reduce import Reducer
from probe._sites import Site

Coords = dict[str, tuple[str, np.ndarray]]


@dataclass(frozen=True)
class Frame:
    """What the groups of one run share: branches, timesteps (t,) of the UNet's calls, latents of (y, x).

    Without ``coordinates`` no weight is read: enough for an estimate.
    """

    pipe: Any
    branches: tuple[str, ...]
    timesteps: np.ndarray
    latent: tuple[int, int]
    coordinates: bool = True

    def coords(self, stepped: bool) -> Coords:
        """Coordinates along branch and, with steps, step."""
        branch: Coords = {"branch": ("branch", np.array(self.branches, object))}
        return branch | ({"timestep": ("step", self.timesteps)} if stepped else {})


class Kept(Protocol):
    """One group of a run: its ``name``, its ``sites``, its layout, its recorder."""

    @property
    def name(self) -> str:
        """The group of the run."""
        ...

    @property
    def sites(self) -> Sequence[Site]:
        """The sites it holds, in order of execution."""
        ...

    def extents(self, frame: Frame) -> list[Extent | Ragged]:
        """How much one sample takes, array shape by array shape."""
        ...

    def group(self, frame: Frame, unit: int) -> Group:
        """The arrays on disk."""
        ...

    def recorder(self, frame: Frame) -> Recorder:
        """What fills them."""
        ...


@dataclass(frozen=True)
class Reduced:
    """One number a unit and reducer: ``unet``, ``xattn_out``, ``text_encoder``; ``topk`` adds the dim rank."""

    name: str
    sites: Sequence[Site]
    reducers: Sequence[Reducer]

    @property
    def stepped(self) -> bool:
        """Whether the group has a step axis: text encoders run once."""
        return not self.name.startswith("text_encoder")

    def extents(self, frame: Frame) -> list[Extent | Ragged]:
        """See `Kept`."""
        return [self._extent(frame), *(self._ranked(frame, r) for r in self.reducers if r.ranks)]

    def group(self, frame: Frame, unit: int) -> Group:
        """See `Kept`."""
        extent = self._extent(frame)
        steps, dims = ((extent.steps,), ("step",)) if self.stepped else ((), ())
        return Group(
            self.name,
            tuple(reducer.name for reducer in self.reducers if not reducer.ranks),
            "float32",
            ("branch", *dims, "neuron"),
            (len(frame.branches), *steps, extent.neurons),
            (sample_chunk(extent.row_bytes, unit), 1, *steps, extent.neuron_chunk),
            {**frame.coords(self.stepped), **neuron_coords(frame, self.sites)},
            tuple(
                Variable(name, "float32", ("branch", *dims, "rank", "neuron"), ranked.sizes, _chunk(ranked, unit))
                for reducer in self.reducers
                if reducer.ranks
                for ranked in [self._ranked(frame, reducer)]
                for name in reducer.variables
            ),
        )

    def recorder(self, frame: Frame) -> Recorder:
        """See `Kept`."""
        return ReducedRecorder(self.sites, self.reducers, frame.branches, frame.timesteps if self.stepped else None)

    def _extent(self, frame: Frame) -> Extent:
        return Extent(len(frame.timesteps) if self.stepped else 1, tuple(site.width for site in self.sites))

    def _ranked(self, frame: Frame, reducer: Reducer) -> Ragged:
        steps = (len(frame.timesteps),) if self.stepped else ()
        return Ragged((len(frame.branches), *steps, reducer.ranks, self._extent(frame).neurons))


@dataclass(frozen=True)
class Mapped:
    """Units of one site at every token row: ``map`` of the chosen ``units``, ``full`` of all (None)."""

    site: Site
    units: tuple[int, ...] | None

    @property
    def name(self) -> str:
        """The group of the run: ``maps/<NNN-site>``."""
        return map_group(self.site)

    @property
    def sites(self) -> Sequence[Site]:
        """The one site."""
        return [self.site]

    def extents(self, frame: Frame) -> list[Extent | Ragged]:
        """See `Kept`."""
        return [Ragged(self._sizes(frame))]

    def group(self, frame: Frame, unit: int) -> Group:
        """See `Kept`."""
        dims = ("branch", "step", "neuron", "y", "x") if self._stepped else ("branch", "neuron", "token")
        every = neuron_coords(frame, self.sites)
        index = slice(None) if self.units is None else list(self.units)
        coords = {name: (dim, values[index]) for name, (dim, values) in every.items()}
        return _ragged_group(self.name, (self._variable,), dims, self._sizes(frame), unit, frame, coords)

    def recorder(self, frame: Frame) -> Recorder:
        """See `Kept`."""
        units = None if self.units is None else np.asarray(self.units)
        timesteps = frame.timesteps if self._stepped else None
        return MapRecorder(self._variable, self.site, units, self._grid(frame), frame.branches, timesteps)

    @property
    def _variable(self) -> str:
        return "full" if self.units is None else "map"

    @property
    def _stepped(self) -> bool:
        return self.site.component == "unet"

    def _grid(self, frame: Frame) -> tuple[int, ...]:
        if self._stepped:
            return grid_of(frame.pipe, self.site, frame.latent)
        return (frame.pipe.tokenizer.model_max_length,)

    def _sizes(self, frame: Frame) -> tuple[int, ...]:
        steps = (len(frame.timesteps),) if self._stepped else ()
        width = self.site.width if self.units is None else len(self.units)
        return (len(frame.branches), *steps, width, *self._grid(frame))


@dataclass(frozen=True)
class Probabilities:
    """Cross-attention probabilities ``prob`` of chosen heads and text tokens at one site."""

    site: Site
    heads: tuple[int, ...]
    tokens: tuple[int | str, ...]

    @property
    def name(self) -> str:
        """The group of the run: ``maps/<NNN-site>``."""
        return map_group(self.site)

    @property
    def sites(self) -> Sequence[Site]:
        """The one site."""
        return [self.site]

    def extents(self, frame: Frame) -> list[Extent | Ragged]:
        """See `Kept`."""
        return [Ragged(self._sizes(frame))]

    def group(self, frame: Frame, unit: int) -> Group:
        """See `Kept`."""
        dims = ("branch", "step", "head", "y", "x", "token")
        words = [token if isinstance(token, str) else "" for token in self.tokens]
        coords: Coords = {
            "head": ("head", np.array(self.heads, np.int32)),
            "token": ("token", np.array([-1 if isinstance(t, str) else t for t in self.tokens], np.int32)),
            "word": ("token", np.array(words, object)),
        }
        return _ragged_group(self.name, ("prob",), dims, self._sizes(frame), unit, frame, coords)

    def recorder(self, frame: Frame) -> Recorder:
        """See `Kept`."""
        grid = grid_of(frame.pipe, self.site, frame.latent)
        return ProbabilityRecorder(self.site, self.heads, self.tokens, grid, frame.branches, frame.timesteps)

    def _sizes(self, frame: Frame) -> tuple[int, ...]:
        grid = grid_of(frame.pipe, self.site, frame.latent)
        return (len(frame.branches), len(frame.timesteps), len(self.heads), *grid, len(self.tokens))


@dataclass(frozen=True)
class Projections:
    """Keys (``k``) or values (``v``) of the prompt at cross-attentions, once a run: ``xattn_k``, ``xattn_v``."""

    quantity: str
    sites: Sequence[Site]

    @property
    def name(self) -> str:
        """The group of the run."""
        return f"xattn_{self.quantity}"

    def extents(self, frame: Frame) -> list[Extent | Ragged]:
        """See `Kept`."""
        return [Ragged(self._sizes(frame))]

    def group(self, frame: Frame, unit: int) -> Group:
        """See `Kept`."""
        coords = _axis.coordinates(self.sites)
        dims = ("branch", "token", "neuron")
        return _ragged_group(self.name, (self.quantity,), dims, self._sizes(frame), unit, frame, coords)

    def recorder(self, frame: Frame) -> Recorder:
        """See `Kept`."""
        return ProjectionRecorder(self.quantity, self.sites, frame.pipe.tokenizer.model_max_length, frame.branches)

    def _sizes(self, frame: Frame) -> tuple[int, ...]:
        tokens = frame.pipe.tokenizer.model_max_length
        return (len(frame.branches), tokens, sum(site.width for site in self.sites))


def map_group(site: Site) -> str:
    """``maps/<NNN-site>``: the site's position in execution, then its name, so that a sorted list is in order."""
    return f"maps/{site.order:03d}-{site.name}"


def neuron_coords(frame: Frame, sites: Sequence[Site]) -> Coords:
    """Coordinates along a neuron axis: site, unit, fan_out."""
    if not frame.coordinates:
        return {}
    norms = np.concatenate([fan_out(frame.pipe, site) for site in sites])
    return {**_axis.coordinates(sites), "fan_out": ("neuron", norms)}


def fan_out(pipe: Any, site: Site) -> np.ndarray:
    """||W[:, j]||_2 of the Linear that a site's units enter, as it is now, edits included: (n,). NaN without one."""
    weight = getattr(site.resolve(pipe), "weight", None)
    if site.io != "input" or weight is None or weight.ndim != 2 or weight.shape[1] != site.width:
        return np.full(site.width, np.nan, np.float32)
    norms: np.ndarray = weight.detach().float().norm(dim=0).cpu().numpy()
    return norms


def _ragged_group(
    name: str,
    arrays: tuple[str, ...],
    dims: tuple[str, ...],
    sizes: tuple[int, ...],
    unit: int,
    frame: Frame,
    coords: Mapping[str, tuple[str, np.ndarray]],
) -> Group:
    every = {**frame.coords("step" in dims), **coords}
    return Group(name, arrays, "float32", dims, sizes, _chunk(Ragged(sizes), unit), every)


def _chunk(extent: Ragged, unit: int) -> tuple[int, ...]:
    return (sample_chunk(extent.row_bytes, unit), *extent.inner)

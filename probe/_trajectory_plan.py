"""What a trajectory will hold, decided before the first sample, and what listens to the UNet for it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from probe import formats, guidance, provenance
from probe._announce import Call
from probe._chunks import Ragged, sample_chunk, unit_size
from probe._generate import timesteps
from probe._grids import latent_size
from probe._groups import Group
from probe._inputs import Settings
from probe._places import Place
from probe._plan import branches_of, model_identity, no_sites, sampling_identity
from probe._recorder import Recorder
from probe._samples import digest
from probe._sites import Site
from probe._store import TrajectoryStore
from probe._trajectory import Trajectory

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle


@dataclass(frozen=True)
class TrajectoryPlan:
    """What will be stored; see `probe._plan.Plan`."""

    pipe: Any
    table: pd.DataFrame
    settings: Settings
    noise_pred: bool
    stored_as: str

    store = TrajectoryStore
    reader = Trajectory

    @property
    def branches(self) -> tuple[str, ...]:
        """See `probe._plan.branches_of`."""
        return branches_of(self.pipe, self.table, self.settings.guidance)

    @property
    def sites(self) -> list[Site]:
        """None: a trajectory keeps no activations."""
        return []

    @cached_property
    def timesteps(self) -> np.ndarray:
        """The timestep at every UNet call, (t,)."""
        return timesteps(self.pipe, self.settings.steps)

    @property
    def sizes(self) -> tuple[int, ...]:
        """(t, c, y, x) of one sample."""
        latent = latent_size(self.pipe, self.settings.size)
        return (len(self.timesteps), self.pipe.unet.config.in_channels, *latent)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What the numbers depend on."""
        return {
            "layout_version": formats.LAYOUT_VERSIONS["trajectory"],
            "noise_pred": self.noise_pred,
            "stored_as": self.stored_as,
            **sampling_identity(self.settings, self.branches),
            **model_identity(self.pipe, ["unet"], vae=False),
            "samples": digest(self.table),
        }

    @cached_property
    def unit(self) -> int:
        """Samples that are made, written and marked done together."""
        return unit_size([Ragged((1, *self.sizes))], self.settings.batch_size)

    def size_of(self, samples: int) -> int:
        """Bytes that so many samples take, before compression."""
        return sum(group.size(samples) for group in self.stored_groups())

    def create(self, path: str | Path | Place, *, replace: bool) -> TrajectoryStore:
        """Make the empty trajectory at ``path``."""
        stamp = provenance.stamp(self.identity)
        return TrajectoryStore.create(
            path,
            identity=stamp["identity"],
            info=stamp["info"],
            id=stamp["id"],
            unit=self.unit,
            samples=self.table,
            sites=no_sites(),
            groups=self.stored_groups(),
            replace=replace,
        )

    def stored_groups(self, *, coordinates: bool = True) -> list[Group]:
        """The groups on disk; coordinates cost nothing here."""
        stepped = {
            "timestep": ("step", self.timesteps),
            "input_scale": ("step", guidance.input_scales(self.pipe, self.settings.steps)),
        }
        branch = {"branch": ("branch", np.array(self.branches, object))}
        found = [
            self._group("latents", ("step", "c", "y", "x"), self.sizes, stepped),
            self._group("final", ("c", "y", "x"), self.sizes[1:], {}),
        ]
        if self.noise_pred:
            axes, sizes = ("branch", "step", "c", "y", "x"), (len(self.branches), *self.sizes)
            found.append(self._group("noise_pred", axes, sizes, branch))
        return found

    def _group(
        self,
        name: str,
        dims: tuple[str, ...],
        sizes: tuple[int, ...],
        coords: Mapping[str, tuple[str, np.ndarray]],
    ) -> Group:
        extent = Ragged(sizes if dims[0] == "branch" else (1, *sizes))
        chunk = (sample_chunk(extent.row_bytes, self.unit), *extent.inner[len(extent.sizes) - len(sizes) :])
        return Group(name, (name,), self.stored_as, dims, sizes, chunk, coords)


class PredictionRecorder(Recorder):
    """Keeps the UNet's prediction of every branch: ``noise_pred`` (s b t c y x)."""

    def __init__(self, sizes: tuple[int, ...], branches: Sequence[str], timesteps: np.ndarray) -> None:
        super().__init__("unet", {"noise_pred": (len(branches), *sizes)}, branches, timesteps)

    def _hooks(self, pipe: Any) -> Iterator[RemovableHandle]:
        yield pipe.unet.register_forward_hook(self._hook)

    def _hook(self, _module: Any, _args: tuple[Any, ...], output: Any) -> None:
        assert self._call is not None
        prediction = output[0] if isinstance(output, tuple) else output.sample
        self._send(prediction.detach().float(), partial(self._place, self._buffers["noise_pred"], self._call))

    def _end(self, call: Call) -> None:
        """Everything was sent when the UNet returned."""

"""The plan of a recording: everything that is decided before the first image, and the empty run that it asks for."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from probe import _axis, compat, formats, provenance
from probe._branches import GUIDED, UNGUIDED, empty_prompt, unencoded
from probe._chunks import Extent, Ragged, readable_size, sample_chunk, unit_size
from probe._grids import latent_size
from probe._groups import Group
from probe._inputs import Inputs, Settings
from probe._kept import Frame, Kept, Mapped, Probabilities, Reduced
from probe._places import Place
from probe._recorder import Recorder
from probe._run import Run
from probe._samples import digest
from probe._sites import Site
from probe._store import RunStore
from probe.errors import BadInput

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """What one recording will do.

    ``table`` are the samples, ``kept`` what is kept of them besides images, and ``latents`` of every step;
    ``detector_id`` names who judges the images.
    """

    pipe: Any
    table: pd.DataFrame
    inputs: Inputs
    settings: Settings
    kept: Sequence[Kept]
    latents: bool
    keep_images: bool
    detector_id: str | None

    store = RunStore
    reader = Run

    @property
    def sites(self) -> list[Site]:
        """Every site of which anything is kept."""
        return list({site.name: site for kept in self.kept for site in kept.sites}.values())

    @property
    def timesteps(self) -> np.ndarray:
        """The timestep at every UNet call, (t,)."""
        return self.inputs.timesteps

    @property
    def decode(self) -> bool:
        """Whether latents have to become images."""
        return self.keep_images or self.detector_id is not None

    @cached_property
    def frame(self) -> Frame:
        """What the groups share."""
        latent = latent_size(self.pipe, self.settings.size)
        return Frame(self.pipe, self.branches, self.inputs.timesteps, latent)

    @cached_property
    def branches(self) -> tuple[str, ...]:
        """The branches that every sample will have; `BadInput` where some are guided and some are not."""
        return branches_of(self.pipe, self.table, self.settings.guidance)

    @cached_property
    def identity(self) -> dict[str, Any]:
        """What the run's numbers depend on. ``model`` is what is recorded, ``context`` what else has a say in it."""
        sites = [site for kept in self.kept if not isinstance(kept, Mapped) for site in kept.sites]
        reducers = [reducer for kept in self.kept if isinstance(kept, Reduced) for reducer in kept.reducers]
        components = sorted({site.component for kept in self.kept for site in kept.sites} or {"unet"})
        # in the order in which differences are looked for: what a caller chose comes before what follows from it
        return {
            "layout_version": formats.LAYOUT_VERSIONS["run"],
            "components": components,
            "sites": [site.name for site in sites],
            "reducers": list(dict.fromkeys(reducer.name for reducer in reducers)),
            **self._further(),
            **sampling_identity(self.settings, self.branches),
            "images": self.keep_images,
            "detector": self.detector_id,
            **model_identity(self.pipe, components, vae=self.decode or self.inputs.encodes),
            "samples": digest(self.table),
        }

    def _further(self) -> dict[str, Any]:
        """What only some runs keep; absent elsewhere, so that runs from before these existed are still gone on with."""
        maps = {kept.site.name: kept.units or "full" for kept in self.kept if isinstance(kept, Mapped)}
        prob = next((kept for kept in self.kept if isinstance(kept, Probabilities)), None)
        ranks = {reducer.ranks for kept in self.kept if isinstance(kept, Reduced) for reducer in kept.reducers} - {0}
        heads = {kept.site.name: kept.heads for kept in self.kept if isinstance(kept, Probabilities)}
        return {
            **({"topk": ranks.pop()} if ranks else {}),
            **({"maps": maps} if maps else {}),
            **({"heads": heads, "tokens": prob.tokens} if prob else {}),
            **({"latents": True} if self.latents else {}),
            **({} if self.inputs.identity is None else {"inputs": self.inputs.identity}),
        }

    @cached_property
    def extents(self) -> list[Extent | Ragged]:
        """How much one sample takes, array shape by array shape. `BadInput` where nothing is kept."""
        extents = [extent for kept in self.kept for extent in kept.extents(self.frame)]
        extents += [Ragged((1, *self.latent_sizes))] if self.latents else []
        if not extents:
            raise BadInput("there is nothing to record", fix="choose sites, maps or latents")
        return extents

    @cached_property
    def unit(self) -> int:
        """Samples that are made, written and marked done together."""
        return unit_size(self.extents, self.settings.batch_size)

    def stored_groups(self, *, coordinates: bool = True) -> list[Group]:
        """The groups of the run; without ``coordinates`` no weight is read, as an estimate wants it."""
        frame = replace(self.frame, coordinates=coordinates)
        groups = [kept.group(frame, self.unit) for kept in self.kept]
        if self.latents:
            groups.append(latent_group(("latents", "guided"), self.latent_sizes, self.inputs.timesteps, self.unit))
        return [*groups, *self._image_group(self.unit)]

    def size_of(self, samples: int) -> int:
        """Bytes that so many samples take, before compression."""
        return sum(group.size(samples) for group in self.stored_groups(coordinates=False))

    def absent(self, recorder: Recorder, table: pd.DataFrame) -> int:
        """How many (sample, branch) of these samples a recorder never sees: uncond text that the pipeline zeroes."""
        text = recorder.component.startswith("text_encoder")
        return unencoded(self.pipe, table["negative_prompt"]) if text and self.branches == GUIDED else 0

    def create(self, path: str | Path | Place, *, replace: bool) -> RunStore:
        """Make the empty run at ``path``."""
        held = readable_size(self.size_of(min(self.unit, len(self.table))))
        logger.info("units of %d samples; two are held in memory, %s each", self.unit, held)
        stamp = provenance.stamp(self.identity)
        return RunStore.create(
            path,
            identity=stamp["identity"],
            info=stamp["info"],
            id=stamp["id"],
            unit=self.unit,
            samples=self.table,
            sites=_site_table(self.kept),
            groups=self.stored_groups(),
            replace=replace,
        )

    @property
    def latent_sizes(self) -> tuple[int, ...]:
        """(t, c, y, x): latents of every step of one sample."""
        return (len(self.inputs.timesteps), self.pipe.unet.config.in_channels, *self.frame.latent)

    def _image_group(self, unit: int) -> list[Group]:
        if not self.keep_images:
            return []
        sizes = (*self.settings.size, 3)
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


def branches_of(pipe: Any, table: pd.DataFrame, guidance: float) -> tuple[str, ...]:
    """The branches that every sample of a table will have; `BadInput` where some are guided and some are not."""
    own = table["guidance"].fillna(guidance) if "guidance" in table else [guidance]
    distilled = getattr(pipe.unet.config, "time_cond_proj_dim", None) is not None  # guidance is an input there
    guided = {bool(scale > 1) and not distilled for scale in own}
    if len(guided) > 1:
        raise BadInput("samples of a run are either all guided or all unguided", given="guidance on both sides of 1")
    return GUIDED if guided.pop() else UNGUIDED


def sampling_identity(settings: Settings, branches: Sequence[str]) -> dict[str, Any]:
    """What of an identity says how samples are made."""
    return {
        "steps": settings.steps,
        "guidance": settings.guidance,
        "branches": branches,
        "size": settings.size,
        "batch_size": settings.batch_size,
    }


def model_identity(pipe: Any, components: Sequence[str], *, vae: bool) -> dict[str, Any]:
    """What of an identity says with which model: ``model`` are the recorded components, ``context`` the others."""
    model = provenance.fingerprint(pipe)
    context = [name for name in ("text_encoder", "text_encoder_2", "unet") if getattr(pipe, name, None) is not None]
    context += ["vae"] if vae else []
    return {
        **empty_prompt(pipe),
        "scheduler": {"name": type(pipe.scheduler).__name__, **compat.clean_config(pipe.scheduler)},
        "lineage": provenance.lineage(pipe),
        "model": model.to_json(components),
        "context": {name: model.component(name) for name in context if name not in components},
    }


def latent_group(arrays: tuple[str, ...], sizes: tuple[int, ...], timesteps: np.ndarray, unit: int) -> Group:
    """The group ``latents``: arrays (sample, step, c, y, x)."""
    extent = Ragged((1, *sizes))
    chunk = (sample_chunk(extent.row_bytes, unit), *extent.inner[1:])
    return Group("latents", arrays, "float32", ("step", "c", "y", "x"), sizes, chunk, {"timestep": ("step", timesteps)})


def no_sites() -> pd.DataFrame:
    """The site table of a store that keeps none."""
    return _site_table([])


def _site_table(kept: Sequence[Kept]) -> pd.DataFrame:
    """One row a site and group: its fields, its group, its offset on that group's axis, and rows (0 until known)."""
    return pd.DataFrame(
        [
            site.to_json() | {"group": one.name, "offset": offset, "rows": 0}
            for one in kept
            for site, offset in zip(one.sites, _axis.offsets(one.sites)[:-1], strict=True)
        ],
        columns=[*(field.name for field in fields(Site)), "group", "offset", "rows"],
    )


def _volume(sizes: Sequence[int]) -> int:
    return int(np.prod(sizes))

"""keep=: units that ConceptPrune must leave alone, from a selection or from a run of protected prompts (ours)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from probe import NeuronMap, Site
from probe.errors import BadInput
from probe.provenance import check_same, fingerprint
from probe.scores import wanda

#: Entries of a map's identity in which a protected run may differ from the runs behind the map.
_OWN = {"method", "options", "target", "reference"}


@dataclass(frozen=True)
class Keep:
    """Protected units: by site the flags (n) of a selection, or the norms (t n) of a run.

    ``source`` is what an identity says of them: the id of a map, or a run and its samples.
    """

    source: Any = None
    selected: dict[str, Tensor] | None = None
    norms: dict[str, Tensor] | None = None

    @classmethod
    def of(cls, keep: Any, nm: NeuronMap, pipe: Any) -> Keep:
        """From whatever ``keep=`` may be; ``nm`` is the map that is pruned from.

        Raises `BadInput` for a map without a selection or without a site of ``nm``, `WrongModel` for a map of another
        model, `HeaderMismatch` naming the key in which a run was not recorded like those of ``nm``.
        """
        if keep is None:
            return cls()
        if isinstance(keep, str | Path):
            keep = _read(keep)
        return cls._of_map(keep, nm, pipe) if isinstance(keep, NeuronMap) else cls._of_run(keep, nm)

    @classmethod
    def _of_map(cls, keep: NeuronMap, nm: NeuronMap, pipe: Any) -> Keep:
        fingerprint(pipe).check(keep.provenance["identity"]["model"], "the map to keep")
        selected = torch.from_numpy(keep.selected("any"))
        places = zip(keep.sites, keep.offsets, keep.offsets[1:], strict=False)
        flags = {site.name: selected[start:stop] for site, start, stop in places}
        if not flags.keys() & {site.name for site in nm.sites}:
            given = ", ".join(list(flags)[:3])
            raise BadInput("the map to keep has no site of the map that is pruned from", given=given)
        return cls(source=keep.id, selected=flags)

    @classmethod
    def _of_run(cls, keep: Any, nm: NeuronMap) -> Keep:
        identity = nm.provenance["identity"]
        options = identity["options"]
        if options["normalise"] != "mean":
            fix = 'score with normalise="mean", the default'
            raise BadInput(
                "a run to keep is compared by root means", given=f"normalise={options['normalise']!r}", fix=fix
            )
        protected = wanda(keep, keep, branches=options["branches"], group=options["group"])  # only its target is read
        found = protected.provenance["identity"]
        keys = [key for key in found if key not in _OWN]
        check_same(identity, found, "the run to keep was not recorded like those of the map", keys)
        data = protected.dataset["target"].transpose("window", "neuron").values
        norms = torch.from_numpy(np.array(data, np.float32))
        places = zip(protected.sites, protected.offsets, protected.offsets[1:], strict=False)
        return cls(source=found["target"], norms={site.name: norms[:, a:b] for site, a, b in places})

    def spared(self, site: Site, step: int, target: Tensor) -> Tensor:
        """(n) bool: units of a site that must not be masked at a step of the map; ``target``: their norms (n) there."""
        if self.selected is not None and site.name in self.selected:
            return self.selected[site.name]
        if self.norms is not None:
            return self.norms[site.name][step] > target
        return torch.zeros(target.shape, dtype=torch.bool)


def _read(path: str | Path) -> Any:
    """The map saved at ``path``, or the path itself for a run."""
    try:
        return NeuronMap.load(path)
    except BadInput:  # another kind of file; if it is no run either, opening the run says so
        return path

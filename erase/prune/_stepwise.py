"""Masks that change with the step: what ConceptPrune finds at each step, used at that step only. A diagnostic.

A union over steps prunes more than any step asks for; this tells how much of an effect is the union's. Nothing lasting:
it holds inside a with-block, has no file, and is evaluated like an edit.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from erase import masks
from erase._places import locate
from erase.prune._concept import Rule, masks_of, steps_in
from erase.prune._layers import map_of
from probe import NeuronMap, provenance
from probe import _intervene as in_force
from probe._options import validated
from probe.provenance import fingerprint


@dataclass(frozen=True, eq=False)
class StepwiseMasks:
    """Made by `stepwise_masks`; with ``name``, ``id`` and ``applied(pipe)`` as an edit has.

    ``bits``: parameter -> packed masks, one a window of ``windows``.
    """

    name: str
    provenance: dict[str, Any]
    windows: list[tuple[float, float]]
    bits: dict[str, list[Tensor]]
    shapes: dict[str, tuple[int, ...]]
    differentiable: bool = False

    @property
    def id(self) -> str:
        """Hash of everything that decides what it does."""
        return str(self.provenance["id"])

    @property
    def densities(self) -> list[float]:
        """Share of the touched weights that each window masks."""
        total = sum(torch.Size(shape).numel() for shape in self.shapes.values())
        counts = [[int(self._mask(param, i).sum()) for param in self.bits] for i in range(len(self.windows))]
        return [sum(row) / total for row in counts]

    @contextmanager
    def applied(self, pipe: Any) -> Iterator[Any]:
        """In force inside the block, which gets the pipeline; bit-identical weights behind it.

        At every call of the UNet the weights are those of its timestep; at timesteps outside all windows, and for
        text encoders, the original ones.
        """
        fingerprint(pipe).check(self.provenance["identity"]["model"], "the neuron map")
        places = {param: locate(pipe, param) for param in self.bits}
        before = {param: place.tensor.detach().clone() for param, place in places.items()}

        def write(at: int | None) -> None:
            with torch.no_grad():
                for param, place in places.items():
                    place.tensor.copy_(before[param])
                    if at is not None:
                        place.tensor.masked_fill_(self._mask(param, at).to(place.tensor.device), 0)

        last: list[int | None] = [None]

        def step(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            timestep = float(torch.as_tensor(args[1] if len(args) > 1 else kwargs["timestep"]).reshape(-1)[0])
            found = next((i for i, (t, b) in enumerate(self.windows) if b <= timestep <= t), None)
            if found != last[0]:
                write(found)
                last[0] = found

        hook = pipe.unet.register_forward_pre_hook(step, with_kwargs=True)
        try:
            with in_force.named([pipe.unet], (self.id, self.name)):
                yield pipe
        finally:
            hook.remove()
            write(None)

    def _mask(self, param: str, at: int) -> Tensor:
        return masks.unpack(self.bits[param][at], self.shapes[param])

    def __repr__(self) -> str:
        return f"<StepwiseMasks {self.name!r} {self.id}: {len(self.windows)} windows, {len(self.bits)} parameters>"


@validated
def stepwise_masks(
    pipe: Any,
    nm: NeuronMap | str | Path,
    *,
    skill_ratio: float = 0.01,
    window: tuple[float, float] | None = None,
    keep: Any = None,
    scope: Literal["row", "global"] = "row",
    margin: float = 0.0,
    name: str | None = None,
) -> StepwiseMasks:
    """ConceptPrune's masks step by step instead of their union over steps: `erase.concept_prune` for its options.

    All steps of the map count unless ``window`` says otherwise, as in the released diagnostic. Where a scheduler
    repeats a timestep, the first of its masks counts. Raises as `concept_prune`.
    """
    nm = map_of(nm)
    resolved, steps = steps_in(nm, window, None)
    rule = Rule(skill_ratio, scope, margin)
    bits: dict[str, list[Tensor]] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    for step in steps:
        for param, mask in masks_of(pipe, nm, rule, [step], keep).named:
            bits.setdefault(param, []).append(masks.pack(mask))
            shapes[param] = tuple(mask.shape)
    options = {"skill_ratio": skill_ratio, "window": resolved, "scope": scope, "margin": margin}
    identity = {
        "kind": "stepwise_masks",
        "options": options,
        "map": nm.id,
        "model": fingerprint(pipe).to_json(sorted({site.component for site in nm.sites})),
        "keep": getattr(keep, "id", None if keep is None else str(keep)),
    }
    return StepwiseMasks(
        name or "stepwise_masks", provenance.stamp(identity), [nm.windows[t] for t in steps], bits, shapes
    )

"""What is trained, and how a pipeline is made to use it for an iteration without being changed.

A `Student` owns float32 leaves. `in_force` puts them to work inside a with-block, `suspended` inside that gives back
the model as it was: the teacher. Nothing is copied: tensors are exchanged in the modules' own tables.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

from erase import _in_force
from erase._changes import Change, Delta, Mask
from erase._places import Place, locate
from erase.learn._parts import Part


class Student(Protocol):
    """What `erase.learn.train` trains.

    - ``leaves``: name -> float32 tensor that requires gradients; the same tensors all along
    - ``in_force(iteration)``: the pipeline uses the leaves inside the block, which also holds the backward pass. Random
      numbers depend on the iteration alone, so that a resumed training repeats them
    - ``suspended()``: inside such a block, the pipeline without what is trained
    - ``changes()``: what the leaves amount to now
    """

    @property
    def leaves(self) -> Mapping[str, Tensor]: ...

    def in_force(self, iteration: int) -> AbstractContextManager[None]: ...

    def suspended(self) -> AbstractContextManager[None]: ...

    def changes(self) -> list[Change]: ...


class Weights:
    """Parts of the UNet's weights, trained as float32 copies whatever the dtype of the pipeline.

    They start from the weights as they are, edits in force included. What an edit in force masks stays zero.
    """

    def __init__(self, pipe: Any, parts: Sequence[Part]) -> None:
        self._parts = list(parts)
        self._places = [locate(pipe, part.param) for part in parts]
        self._masks = [_masked(pipe, part.param) for part in parts]
        self._start = [place.tensor.detach() for place in self._places]
        self._leaves = {
            part.param: part.of(start.float()).requires_grad_()
            for part, start in zip(self._parts, self._start, strict=True)
        }

    @property
    def leaves(self) -> dict[str, Tensor]:
        """Canonical parameter -> the trained part of it, float32."""
        return self._leaves

    @contextmanager
    def in_force(self, iteration: int) -> Iterator[None]:
        """See `Student`; ``iteration`` plays no part."""
        with exchanged(self._places, self._whole()):
            yield

    @contextmanager
    def suspended(self) -> Iterator[None]:
        """See `Student`."""
        with exchanged(self._places, self._start):
            yield

    def changes(self) -> list[Change]:
        """One float32 delta a parameter."""
        with torch.no_grad():
            pairs = zip(self._parts, self._start, self._whole(), strict=True)
            return [_delta(part, start.float(), whole) for part, start, whole in pairs]

    def _whole(self) -> list[Tensor]:
        """The whole parameters, float32, with gradients to the leaves."""
        found = []
        for part, start, mask in zip(self._parts, self._start, self._masks, strict=True):
            leaf = self._leaves[part.param]
            whole = leaf if part.dim is None else part.put(start.float(), leaf)
            found.append(whole if mask is None else whole.masked_fill(mask, 0))
        return found


@contextmanager
def exchanged(places: Sequence[Place], tensors: Sequence[Tensor]) -> Iterator[None]:
    """Other tensors in the places of parameters for the block; the parameters themselves are not touched."""
    tables: list[dict[str, Any]] = [place.owner._parameters for place in places]
    before = [table[place.leaf] for table, place in zip(tables, places, strict=True)]
    try:
        for table, place, tensor in zip(tables, places, tensors, strict=True):
            table[place.leaf] = tensor
        yield
    finally:
        for table, place, tensor in zip(tables, places, before, strict=True):
            table[place.leaf] = tensor


def _masked(pipe: Any, param: str) -> Tensor | None:
    """What edits in force mask of a parameter: masks win over every delta."""
    changes = [change for entry in _in_force.entries(pipe) for change in entry.edit.changes]
    masks = [change.dense() for change in changes if isinstance(change, Mask) and change.param == param]
    return torch.stack(masks).any(0).to(locate(pipe, param).tensor.device) if masks else None


def _delta(part: Part, start: Tensor, whole: Tensor) -> Delta:
    """W' - W; of few rows or columns as a pair whose other half chooses them, where that is smaller."""
    delta = (whole - start).cpu()
    if part.dim is None or delta.ndim != 2 or len(part.index) * sum(delta.shape) >= delta.numel():
        return Delta(part.param, delta)
    chosen = torch.eye(delta.shape[part.dim])[list(part.index)]
    values = part.of(delta)
    return Delta(part.param, (values, chosen) if part.dim == 1 else (chosen.T.contiguous(), values))

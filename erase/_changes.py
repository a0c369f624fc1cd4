"""What an edit does to one parameter: zero some of its weights, add to it, or replace it.

Changes are data: tensors on the CPU and the canonical name ``<component>.<parameter path>`` of what they change. The
formula that joins all changes of one tensor is `combined`; who may be joined is `conflict`.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor

from erase import masks
from probe.errors import BadInput


@dataclass(frozen=True, eq=False)
class Mask:
    """Weights set to zero: one flag per weight, packed little-endian and row-major (`erase.masks.pack`)."""

    param: str
    bits: Tensor
    shape: tuple[int, ...]
    kind: ClassVar[str] = "mask"

    def __post_init__(self) -> None:
        _check_name(self.param)
        object.__setattr__(self, "shape", tuple(int(n) for n in self.shape))
        object.__setattr__(self, "bits", _frozen(self.bits))
        masks.unpack(self.bits, self.shape)

    @classmethod
    def of(cls, param: str, mask: Tensor) -> Mask:
        """The change for a boolean tensor of the parameter's shape."""
        return cls(param, masks.pack(mask), tuple(mask.shape))

    def dense(self) -> Tensor:
        """The boolean mask, in the parameter's shape."""
        return masks.unpack(self.bits, self.shape)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """What is stored: kind -> tensor."""
        return {"mask": self.bits}

    @property
    def density(self) -> float:
        """Share of the parameter's weights that are zeroed."""
        return masks.density(self.dense())


@dataclass(frozen=True, eq=False)
class Delta:
    """A float32 tensor W' - W to add, whole or as a pair ``(up, down)`` of shapes (o, r) and (r, i): up @ down."""

    param: str
    value: Tensor | tuple[Tensor, Tensor]
    shape: tuple[int, ...] = ()
    kind: ClassVar[str] = "delta"

    def __post_init__(self) -> None:
        _check_name(self.param)
        if isinstance(self.value, Tensor):
            value: Any = _frozen(self.value.float())
            shape = tuple(self.shape) or tuple(value.shape)
            fits = shape == tuple(value.shape)
        else:
            up, down = value = tuple(_frozen(part.float()) for part in self.value)
            shape = tuple(self.shape) or (up.shape[0], down.shape[-1])
            rows_and_columns = (up.shape[0], down.shape[-1])
            fits = up.ndim == down.ndim == 2 and up.shape[1] == down.shape[0]
            fits = fits and rows_and_columns == (shape[0], math.prod(shape[1:]))
        if not fits:
            given = [tuple(part.shape) for part in (value if isinstance(value, tuple) else (value,))]
            raise BadInput(f"the delta of {self.param} does not fit its shape", given=given, expected=shape)
        object.__setattr__(self, "value", value)
        object.__setattr__(self, "shape", tuple(int(n) for n in shape))

    def dense(self) -> Tensor:
        """What is added, float32, in the parameter's shape."""
        if isinstance(self.value, Tensor):
            return self.value
        up, down = self.value
        return (up @ down).reshape(self.shape)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """What is stored: kind -> tensor."""
        if isinstance(self.value, Tensor):
            return {"delta": self.value}
        return {"delta_up": self.value[0], "delta_down": self.value[1]}


@dataclass(frozen=True, eq=False)
class Replace:
    """A tensor that takes the parameter's place; only differences of whole checkpoints need it."""

    param: str
    value: Tensor
    kind: ClassVar[str] = "replace"

    def __post_init__(self) -> None:
        _check_name(self.param)
        object.__setattr__(self, "value", _frozen(self.value))

    @property
    def shape(self) -> tuple[int, ...]:
        """The parameter's shape."""
        return tuple(self.value.shape)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """What is stored: kind -> tensor."""
        return {"replace": self.value}


Change: TypeAlias = Mask | Delta | Replace


def digest(change: Change) -> str:
    """sha256 of everything a change is: kind, parameter, shape, dtypes and bytes."""
    sha = hashlib.sha256(f"{change.kind}|{change.param}|{list(change.shape)}".encode())
    for kind, tensor in sorted(change.tensors.items()):
        sha.update(f"|{kind}|{tensor.dtype}|{list(tensor.shape)}|".encode())
        sha.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return sha.hexdigest()


def dtype_name(tensor: Tensor) -> str:
    """The dtype as identities and files write it: ``float16``."""
    return str(tensor.dtype).removeprefix("torch.")


def combined(weight: Tensor, changes: Sequence[Change]) -> Tensor:
    """W' = where(OR of masks, 0, Replace or W + sum of Deltas in float32), rounded once to the dtype of ``weight``.

    ``weight`` is the tensor without any edit and stays as it is. Zeroes are filled in, never multiplied: a product
    would leave -0.0 and NaN behind.
    """
    value = weight.detach().clone()
    deltas = [change for change in changes if isinstance(change, Delta)]
    for change in changes:
        if isinstance(change, Replace):
            value = change.value.to(weight)
    if deltas:
        total = value.to(torch.promote_types(value.dtype, torch.float32))
        for delta in deltas:
            total = total + delta.dense().to(total.device)
        value = total.to(weight.dtype)
    for change in changes:
        if isinstance(change, Mask):
            value.masked_fill_(change.dense().to(value.device), 0)
    return value


def conflict(one: Sequence[Change], other: Sequence[Change]) -> str | None:
    """The parameter on which two lists of changes cannot both hold (two Replace, or Replace with Delta), if any."""
    replaced = {c.param for c in one if isinstance(c, Replace)}, {c.param for c in other if isinstance(c, Replace)}
    moved = {c.param for c in one if isinstance(c, Delta)}, {c.param for c in other if isinstance(c, Delta)}
    clash = (replaced[0] & (replaced[1] | moved[1])) | (moved[0] & replaced[1])
    return min(clash, default=None)


def _check_name(param: str) -> None:
    if "." not in param or not all(param.split(".")):
        raise BadInput(
            "a parameter is named <component>.<path>", given=repr(param), expected="e.g. unet.conv_in.weight"
        )


def _frozen(tensor: Tensor) -> Tensor:
    """A private copy on the CPU: nobody else holds the storage."""
    return tensor.detach().to("cpu", copy=True).contiguous()

"""What an edit does: zero some weights of a parameter, add to it, replace it, or hook the modules of a component.

Changes are data: tensors on the CPU and the canonical name ``<component>.<parameter path>`` of what they change. The
formula that joins all changes of one tensor is `combined`; who may be joined is `conflict`. What a `Hook` does is said
by its family (`erase._hooks`).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor

from erase import masks
from probe.errors import BadInput
from probe.provenance import canonical_json


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

    @property
    def touched(self) -> tuple[str, ...]:
        """The parameters whose values it was made for."""
        return (self.param,)

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

    @property
    def touched(self) -> tuple[str, ...]:
        """The parameters whose values it was made for."""
        return (self.param,)

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
    def touched(self) -> tuple[str, ...]:
        """The parameters whose values it was made for."""
        return (self.param,)

    @property
    def shape(self) -> tuple[int, ...]:
        """The parameter's shape."""
        return tuple(self.value.shape)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """What is stored: kind -> tensor."""
        return {"replace": self.value}


#: In the spec of a `Hook`: a list with one entry a concept.
EACH = "each"


@dataclass(frozen=True, eq=False)
class Hook:
    """What registered forward hooks do to the outputs of some modules of a component; weights stay as they are.

    - ``module``: the component, ``"unet"``
    - ``family``: the rule, for instance ``"resag"``; hooks of one family merge by it, families add
    - ``touched``: weights of the hooked modules, by canonical name, in the order in which ``values`` speaks of them
    - ``values``: the rule's tensors by name, concepts along the first axis
    - ``spec``: what else it needs, as JSON values; a list under ``"each"`` has one entry a concept
    """

    module: str
    family: str
    touched: tuple[str, ...]
    values: Mapping[str, Tensor]
    spec: Mapping[str, Any] = field(default_factory=dict)
    kind: ClassVar[str] = "hook"

    def __post_init__(self) -> None:
        for param in self.touched:
            _check_name(param)
            if param.partition(".")[0] != self.module:
                raise BadInput("a hook is of one component", given=param, expected=f"parameters of {self.module}")
        if not self.touched or not self.values:
            raise BadInput("a hook without modules or values", given=f"{self.family} on {self.module}")
        values = {name: _frozen(self.values[name]) for name in sorted(self.values)}
        object.__setattr__(self, "touched", tuple(self.touched))
        object.__setattr__(self, "values", MappingProxyType(values))
        object.__setattr__(self, "spec", MappingProxyType(dict(self.spec)))

    @property
    def param(self) -> str:
        """What it changes: the component, for no single parameter is changed."""
        return self.module

    @property
    def shape(self) -> tuple[int, ...]:
        """Modules that are hooked."""
        return (len(self.touched),)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """What is stored: name -> tensor."""
        return dict(self.values)


Change: TypeAlias = Mask | Delta | Replace | Hook


def digest(change: Change) -> str:
    """sha256 of everything a change is: kind, parameter, shape, dtypes and bytes."""
    sha = hashlib.sha256(f"{change.kind}|{change.param}|{list(change.shape)}".encode())
    if isinstance(change, Hook):
        sha.update(f"|{change.family}|{list(change.touched)}|{canonical_json(change.spec)}".encode())
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
    """Where two lists of changes cannot both hold, if anywhere.

    Two Replace, or Replace with Delta, on one parameter; hooks of one family that do not merge.
    """
    replaced = {c.param for c in one if isinstance(c, Replace)}, {c.param for c in other if isinstance(c, Replace)}
    moved = {c.param for c in one if isinstance(c, Delta)}, {c.param for c in other if isinstance(c, Delta)}
    clash = (replaced[0] & (replaced[1] | moved[1])) | (moved[0] & replaced[1])
    hooks = ((a, b) for a in one for b in other if isinstance(a, Hook) and isinstance(b, Hook))
    unlike = [f"{a.module}: {reason}" for a, b in hooks if (reason := apart(a, b))]
    return min([*clash, *unlike], default=None)


def merged(hooks: Sequence[Hook]) -> list[Hook]:
    """One hook for each component and family, in the order of their first: values side by side along their first axis.

    That axis counts concepts. `conflict` says beforehand which hooks cannot be merged.
    """
    groups: dict[tuple[str, str], list[Hook]] = {}
    for hook in hooks:
        groups.setdefault((hook.module, hook.family), []).append(hook)
    found = []
    for (module, family), group in groups.items():
        values = {name: torch.cat([hook.values[name] for hook in group]) for name in group[0].values}
        spec = dict(group[0].spec)
        if EACH in spec:
            spec[EACH] = [one for hook in group for one in hook.spec[EACH]]
        found.append(Hook(module, family, group[0].touched, values, spec))
    return found


def apart(one: Hook, other: Hook) -> str | None:
    """Why two hooks of one family on one component do not merge."""
    if (one.module, one.family) != (other.module, other.family):
        return None
    if one.touched != other.touched:
        return f"{one.family} hooks of {len(one.touched)} and {len(other.touched)} modules, not the same ones"
    specs = [canonical_json({key: value for key, value in hook.spec.items() if key != EACH}) for hook in (one, other)]
    if specs[0] != specs[1]:
        return f"{one.family} hooks with {specs[0]} and {specs[1]}"
    for name in sorted(one.values.keys() | other.values.keys()):
        shapes = [list(h.values[name].shape[1:]) if name in h.values else None for h in (one, other)]
        if shapes[0] != shapes[1]:
            return f"{one.family} hooks of other ranks, {name} {shapes[0]} and {shapes[1]} a concept"
    return None


def _check_name(param: str) -> None:
    if "." not in param or not all(param.split(".")):
        raise BadInput(
            "a parameter is named <component>.<path>", given=repr(param), expected="e.g. unet.conv_in.weight"
        )


def _frozen(tensor: Tensor) -> Tensor:
    """A private copy on the CPU: nobody else holds the storage."""
    return tensor.detach().to("cpu", copy=True).contiguous()

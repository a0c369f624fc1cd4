"""Who made what from which model: fingerprints, lineage, identities that hash, and their comparison.

Every artefact carries ``{"identity": {...}, "info": {...}, "id": ...}``: what decides its contents, what only describes
the circumstances, and the hash of the first.
"""

from __future__ import annotations

import datetime
import functools
import hashlib
import importlib.metadata
import json
import logging
import os
import platform
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from probe import compat
from probe.errors import BadInput, HeaderMismatch, WrongModel, unknown_name

if TYPE_CHECKING:
    from collections.abc import MutableMapping

    from torch import Tensor, nn

logger = logging.getLogger(__name__)

#: Packages whose versions `info` states.
PACKAGES = ("neuron-workbench", "torch", "diffusers", "transformers", "safetensors", "numpy", "xarray", "zarr")

#: Parts of a pipeline that are fingerprinted, in the order in which a pipeline calls them.
COMPONENTS = ("text_encoder", "text_encoder_2", "unet", "vae")


# --- identities -------------------------------------------------------------------------------------------------------


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces; tuples become lists, numpy scalars numbers. Refuses NaN and live objects."""
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, default=_plain)
    except ValueError as error:
        raise BadInput("an identity holds a number that is not finite", fix="store None instead") from error


def identity_id(identity: Mapping[str, Any]) -> str:
    """The id of an identity: 16 hexadecimal digits of the sha256 of its canonical JSON."""
    return hashlib.sha256(canonical_json(identity).encode()).hexdigest()[:16]


def stamp(identity: Mapping[str, Any]) -> dict[str, Any]:
    """The provenance block of an artefact made now: its identity as plain JSON values, `info` and the id."""
    return {"identity": json.loads(canonical_json(identity)), "info": info(), "id": identity_id(identity)}


def info() -> dict[str, Any]:
    """The circumstances: time (UTC), Python, machine and versions of the packages that matter. Never hashed."""
    return {
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "system": platform.system(),
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "versions": {name: version for name in PACKAGES if (version := _version(name)) is not None},
    }


def check_same(
    expected: Mapping[str, Any],
    found: Mapping[str, Any],
    what: str,
    keys: Iterable[str] | None = None,
    *,
    fix: str | None = None,
) -> None:
    """Raise `HeaderMismatch` naming the first key whose values differ, and both values.

    Nested mappings are compared key by key, and the key named is the dotted path. ``keys`` restricts the comparison to
    those top-level keys; by default all keys of both sides must agree.
    """
    for key in dict.fromkeys([*expected, *found]) if keys is None else keys:
        if (difference := _difference(key, expected.get(key, _ABSENT), found.get(key, _ABSENT))) is not None:
            path, there, here = difference
            raise HeaderMismatch(f"{what}: {path} differs", given=_short(here), expected=_short(there), fix=fix)


class _Absent:
    def __repr__(self) -> str:
        return "nothing"


_ABSENT = _Absent()


def _difference(path: str, expected: Any, found: Any) -> tuple[str, Any, Any] | None:
    if isinstance(expected, Mapping) and isinstance(found, Mapping):
        for key in dict.fromkeys([*expected, *found]):
            inner = _difference(f"{path}.{key}", expected.get(key, _ABSENT), found.get(key, _ABSENT))
            if inner is not None:
                return inner
        return None
    if expected is _ABSENT or found is _ABSENT:
        return None if expected is found else (path, expected, found)
    return None if canonical_json(expected) == canonical_json(found) else (path, expected, found)


def _short(value: Any, limit: int = 120) -> str:
    text = repr(value)
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def _plain(value: Any) -> Any:
    """What JSON does not know: numpy scalars and arrays, sets, mappings, paths."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, set | frozenset):
        return sorted(value)
    if isinstance(value, range):
        return list(value)
    raise BadInput("an identity holds plain values only", given=type(value).__name__)


@functools.cache
def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:  # a copy on the path, never installed
        return None


# --- edits in force ---------------------------------------------------------------------------------------------------


def lineage(pipe: Any) -> list[list[str]]:
    """The edits in force on a pipeline, ``[id, name]``, oldest first, then interventions; empty for an untouched one.

    Each component carries its own list, oldest first; they are merged so that every component's order is kept.
    """
    interventions = [
        [str(id_), str(name)]
        for component in COMPONENTS
        for id_, name in getattr(getattr(pipe, component, None), "_workbench_interventions", ())
    ]
    return [*_edits_in_force(pipe), *(entry for i, entry in enumerate(interventions) if entry not in interventions[:i])]


def _edits_in_force(pipe: Any) -> list[list[str]]:
    stacks = [
        [(str(id_), str(name)) for id_, name in edits]
        for component in COMPONENTS
        if (edits := getattr(getattr(pipe, component, None), "_workbench_edits", None))
    ]
    merged: list[list[str]] = []
    while stacks := [stack for stack in stacks if stack]:
        # the first head that nothing else waits for; lists that contradict each other fall back to the first
        heads = [s[0] for s in stacks if not any(s[0] in other[1:] for other in stacks)]
        head = heads[0] if heads else stacks[0][0]
        merged.append(list(head))
        stacks = [[edit for edit in stack if edit != head] for stack in stacks]
    return merged


# --- fingerprints -----------------------------------------------------------------------------------------------------


def fingerprint(pipe: Any) -> Fingerprint:
    """The fingerprint of a pipeline's networks as they are whenever it is asked, edits in force included."""
    return Fingerprint(pipe)


class Fingerprint:
    """Hashes that tell one model from another, computed when asked for.

    - ``architecture``: component -> sha256 of its class, cleaned config, and sorted parameter names and shapes
    - ``dtype``: the components' floating type, ``"float16+float32"`` where they differ
    - ``tensor(component, name)``, ``component(name)``: sha256 of a tensor's and of all its tensors' bytes

    A tensor is hashed again only when its memory, its version or a sparse sample of its values has changed.
    """

    def __init__(self, pipe: Any) -> None:
        self._modules: dict[str, nn.Module] = {
            name: module for name in COMPONENTS if (module := getattr(pipe, name, None)) is not None
        }

    @functools.cached_property
    def architecture(self) -> dict[str, str]:
        """Component -> sha256; equal across library versions, devices and dtypes."""
        return {name: _architecture(name, module) for name, module in self._modules.items()}

    @property
    def dtype(self) -> str:
        """The floating type of all fingerprinted components together."""
        return self._dtype(self._modules)

    def tensor(self, component: str, param: str) -> str:
        """The sha256 of one parameter or persistent buffer, by its canonical name (or the installed version's)."""
        tensors = self._tensors(component)
        name = compat.canonical_name(component, param)
        if name not in tensors:
            raise unknown_name(f"parameter of {component}", param, tensors)
        return tensor_hash(tensors[name])

    def component(self, component: str) -> str:
        """The sha256 over names and hashes of all tensors of one component."""
        lines = [f"{name} {tensor_hash(tensor)}" for name, tensor in sorted(self._tensors(component).items())]
        return _sha("\n".join(lines).encode())

    def to_json(self, components: Iterable[str] | None = None) -> dict[str, Any]:
        """Plain values for an identity: architecture, weights and dtype of those components (all by default)."""
        chosen = list(self._modules) if components is None else [self._known(name) for name in components]
        return {
            "architecture": {name: self.architecture[name] for name in chosen},
            "weights": {name: self.component(name) for name in chosen},
            "dtype": self._dtype(chosen),
        }

    def check(self, recorded: Mapping[str, Any], what: str) -> None:
        """Raise `WrongModel`, naming what differs, unless ``recorded`` (a `to_json`) was made on this model.

        Another dtype is another rounding of the weights: the architecture must still agree, and one warning is logged.
        """
        for part in ("architecture", "weights"):
            if part == "weights" and recorded.get("dtype") != (dtype := self._dtype(recorded["architecture"])):
                text = "%s was made in %s, the pipeline is in %s: only architectures were compared"
                logger.warning(text, what, recorded.get("dtype"), dtype)
                return
            for component, expected in recorded.get(part, {}).items():
                if component not in self._modules:
                    raise WrongModel(f"{what} was made on a model with another part", given=component)
                found = self.architecture[component] if part == "architecture" else self.component(component)
                if found != expected:
                    raise WrongModel(
                        f"{what} was made on another model: {component} differs in {part}",
                        given=found[:16],
                        expected=expected[:16],
                        fix="load the model it was made on" + _in_force(self._modules[component]),
                    )

    def _known(self, component: str) -> str:
        if component not in self._modules:
            raise unknown_name("component", component, self._modules)
        return component

    def _tensors(self, component: str) -> dict[str, Tensor]:
        state = self._modules[self._known(component)].state_dict(keep_vars=True)
        return {compat.canonical_name(component, name): tensor for name, tensor in state.items()}

    def _dtype(self, components: Iterable[str]) -> str:
        known = (self._modules[name] for name in components if name in self._modules)
        return "+".join(sorted({str(p.dtype).removeprefix("torch.") for m in known for p in m.parameters()}))


def _in_force(module: nn.Module) -> str:
    edits = getattr(module, "_workbench_edits", None)
    return f", or leave the edits in force ({', '.join(name for _, name in edits)})" if edits else ""


def _architecture(component: str, module: nn.Module) -> str:
    shapes = sorted(
        (compat.canonical_name(component, name), list(tensor.shape)) for name, tensor in module.state_dict().items()
    )
    description = {"class": type(module).__name__, "config": compat.clean_config(module), "shapes": shapes}
    return _sha(json.dumps(description, sort_keys=True, default=str).encode())


def tensor_hash(tensor: Tensor) -> str:
    """The sha256 of dtype, shape and little-endian bytes; cached for as long as the tensor lives and stays the same."""
    if tensor.is_meta:
        raise BadInput("a tensor without data has no fingerprint", fix="load the weights first")
    if tensor.is_inference():  # keeps no version
        return _sha(_header(tensor), _bytes(tensor))
    # an in-place change through .data (as adapters make when they merge) keeps pointer and version: the sample sees it
    key = (tensor.data_ptr(), tensor._version, tensor.dtype, tuple(tensor.shape), _sample(tensor))
    cache = _hashes()
    known = cache.get(tensor)
    if known is None or known[0] != key:
        known = cache[tensor] = (key, _sha(_header(tensor), _bytes(tensor)))
    return known[1]


def _header(tensor: Tensor) -> bytes:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)} ".encode()


@functools.cache
def _hashes() -> MutableMapping[Tensor, tuple[Any, str]]:
    from torch.utils.weak import WeakTensorKeyDictionary

    return WeakTensorKeyDictionary()


def _sample(tensor: Tensor, n: int = 1024) -> bytes:
    flat = tensor.detach().reshape(-1) if tensor.is_contiguous() else tensor.detach().flatten()
    return bytes(_bytes(flat[:: max(1, flat.numel() // n)]))


def _bytes(tensor: Tensor) -> memoryview:
    import torch

    plain = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    view: memoryview = plain.numpy().data
    return view


def _sha(*parts: bytes | memoryview) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()

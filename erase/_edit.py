"""Edit: what every eraser returns. A lasting, savable, reversible change of a pipeline's weights, or hooks on it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from erase import _in_force
from erase._changes import Change, Hook, Mask, digest, dtype_name
from probe._load import name_of
from probe.errors import BadInput, EditOrderError
from probe.provenance import fingerprint, stamp, tensor_hash


@dataclass(frozen=True, eq=False)
class Edit:
    """A change of a pipeline that can be applied, reverted, saved, stacked and exported.

    - ``name``: what tables and file names call it
    - ``changes``: `Mask`, `Delta` and `Replace`, each of one parameter, and `Hook`, each of one component
    - ``provenance``: ``identity`` (hashed into ``id``), ``info`` (versions, date), ``report`` (measured)
    - ``mergeable``: can be written into the weights, so it has no hooks; ``differentiable``: gradients pass through it

    Edits nest: the last one applied is the first to be reverted. Per tensor, all edits in force give
    W' = where(OR of masks, 0, Replace or W + sum of Deltas in float32), rounded once; so nested edits equal `stack`.
    """

    name: str
    changes: tuple[Change, ...]
    provenance: dict[str, Any]
    id: str
    mergeable: bool = True
    differentiable: bool = True

    # --- what it is ---

    @property
    def params(self) -> tuple[str, ...]:
        """Canonical names of the parameters that the edit changes or whose modules it hooks, each once, in order."""
        return tuple(dict.fromkeys(param for change in self.changes for param in change.touched))

    @property
    def method(self) -> str:
        """The eraser that made it."""
        return str(self.provenance["identity"]["method"])

    @property
    def options(self) -> dict[str, Any]:
        """The eraser's options, resolved."""
        return dict(self.provenance["identity"]["options"])

    @property
    def concepts(self) -> list[str]:
        """Names or phrases that were erased, where the edit knows them: one made from a neuron map does not."""
        identity = self.provenance["identity"]
        known = identity["options"].get("concepts") or identity["inputs"].get("concepts")
        return [str(name) for name in known or self.provenance.get("info", {}).get("concepts", ())]

    @property
    def model(self) -> str | None:
        """What the model was called that the edit was made on: ``emoji``, a hub id or a folder; None if unknown."""
        found: str | None = self.provenance.get("info", {}).get("model")
        return found

    @property
    def report(self) -> dict[str, Any]:
        """What the eraser measured while making it, such as densities; not part of the identity."""
        return dict(self.provenance.get("report", {}))

    @property
    def parts(self) -> list[tuple[str, str]]:
        """(id, name) of the edits that a stack joins, in order; of the edit itself otherwise."""
        return [(i, n) for i, n in self.provenance.get("parts", [[self.id, self.name]])]

    @property
    def base_edits(self) -> list[tuple[str, str]]:
        """(id, name) of the edits that were in force when this one was fitted; it applies only on top of them."""
        return [(i, n) for i, n in self.provenance["identity"]["base_edits"]]

    @property
    def density(self) -> float:
        """Share of the weights of all touched parameters that are masked."""
        masked = sum(int(c.dense().sum()) for c in self.changes if isinstance(c, Mask))
        sizes = {c.param: _numel(c.shape) for c in self.changes if not isinstance(c, Hook)}
        return masked / max(sum(sizes.values()), 1)

    @property
    def nbytes(self) -> int:
        """Size of the stored tensors in bytes."""
        return sum(t.numel() * t.element_size() for c in self.changes for t in c.tensors.values())

    def __repr__(self) -> str:
        kinds = [c.kind for c in self.changes]
        counts = ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))
        return f"<Edit {self.name!r} {self.id} by {self.method}: {counts}, {self.nbytes / 1e6:.2f} MB>"

    def _repr_html_(self) -> str:
        from erase._card import page

        return page(self)

    # --- in force ---

    @contextmanager
    def applied(self, pipe: Any, *, allow_dtype: bool = False) -> Iterator[Any]:
        """In force inside the with-block, which gets the pipeline; bit-identical weights behind it.

        Raises as `apply`; also `EditOrderError` if an edit applied inside the block is still in force at its end.
        """
        handle = self.apply(pipe, allow_dtype=allow_dtype)
        try:
            yield pipe
        finally:
            handle.revert()

    def apply(self, pipe: Any, *, allow_dtype: bool = False) -> Applied:
        """In force until ``.revert()`` of the handle that is returned, or `revert`.

        Args:
            pipe: the pipeline to change, in place.
            allow_dtype: let deltas and replacements go on in another dtype than they were made in. Masks and hooks may
                always, with a warning.

        Raises `WrongModel` naming the first tensor that is not the one the edit was made on, `EditConflict` naming the
        edit in force that excludes this one, `EditOrderError` if it is in force already or lacks the edits it was
        fitted on, and `BadInput` where weights cannot be changed (meta, quantised, compiled, fused, under an adapter).
        """
        return Applied(_in_force.apply(self, pipe, allow_dtype=allow_dtype), pipe)

    def revert(self, pipe: Any) -> None:
        """Take the edit out of force, for when the handle is lost. Raises `EditOrderError` unless it is the last."""
        for entry in _in_force.entries(pipe):
            if entry.edit.id == self.id:
                _in_force.leave(entry, pipe)
                return
        raise EditOrderError(f"edit {self.name!r} is not in force", given=self.id)

    # --- on disk ---

    def save_pretrained(self, folder: str | Path, *, force: bool = False) -> Path:
        """Write edit.json, edit.safetensors and a README card; all of it or nothing. See `erase.load_edit`.

        Raises `BadInput` if ``folder`` exists, unless it holds this edit already, or an edit and ``force`` is set.
        """
        from erase._saving import save

        return save(self, folder, force=force)

    def export(
        self,
        pipe: Any,
        folder: str | Path,
        *,
        include_originals: bool = False,
        layout: str = "diffusers",
        force: bool = False,
    ) -> Path:
        """Write the edited pipeline as a plain diffusers folder that needs no workbench to load.

        Args:
            pipe: the pipeline, with the edit in force or without.
            folder: new or empty.
            include_originals: keep what was overwritten beside it: `erase.restore` brings the weights back bit by bit.
            layout: ``"ldm"`` writes one .safetensors file in the original Stable Diffusion layout instead (SD 1.x).
            force: replace a pipeline that is there.
        An edit that is more than weights (not ``mergeable``) cannot be written into them: the folder then holds the
        *unedited* pipeline and the edit in ``edit/``, put together by `erase.load_edited`. Who loads it otherwise has
        the unedited model; `erase.distil` makes weights of it, as far as weights can do it.

        What was written is loaded again; its tensors and a latent denoised from a fixed seed must equal those of the
        edited pipeline before the folder takes its name. Raises as `save_pretrained` and `apply`.
        """
        from erase._export import export

        return export(self, pipe, folder, include_originals=include_originals, layout=layout, force=force)


class Applied:
    """The handle of an edit in force."""

    def __init__(self, entry: _in_force.Entry, pipe: Any) -> None:
        self._entry, self._pipe = entry, pipe

    @property
    def edit(self) -> Edit:
        """The edit."""
        return self._entry.edit

    def revert(self) -> None:
        """Put back what the edit overwrote. Raises `EditOrderError` unless it is the last one in force."""
        _in_force.leave(self._entry, self._pipe)

    def __repr__(self) -> str:
        state = "in force" if self._entry in _in_force.entries(self._pipe) else "reverted"
        return f"<Applied {self.edit.name!r} {self.edit.id}: {state}>"


def make_edit(
    pipe: Any,
    changes: Sequence[Change],
    *,
    name: str,
    method: str,
    options: Mapping[str, Any],
    inputs: Mapping[str, Any] | None = None,
    report: Mapping[str, Any] | None = None,
) -> Edit:
    """The edit that an eraser returns, bound to the tensors of ``pipe`` it touches and to the edits in force there.

    Args:
        changes: in any order; sorted by parameter.
        options: the eraser's options, resolved, as JSON values.
        inputs: ids of what it was made from, such as a neuron map.
        report: measured by the eraser, not hashed.
    """
    changes = sorted(changes, key=lambda change: (change.param, change.kind))
    tensors = {}
    for change, param in ((one, param) for one in changes for param in one.touched):
        tensor = _in_force.original(pipe, param)
        if not isinstance(change, Hook) and tuple(tensor.shape) != tuple(change.shape):
            raise BadInput(f"a change of {param} has another shape", given=change.shape, expected=tensor.shape)
        tensors[param] = {"sha256": tensor_hash(tensor), "dtype": dtype_name(tensor), "shape": list(tensor.shape)}
    architecture = fingerprint(pipe).architecture
    components = sorted({param.partition(".")[0] for param in tensors})
    identity = {
        "method": method,
        "options": dict(options),
        "inputs": dict(inputs or {}),
        "model": {"architecture": {c: architecture[c] for c in components}, "tensors": tensors},
        "base_edits": [list(part) for entry in _in_force.entries(pipe) for part in entry.edit.parts],
    }
    return assemble(name, changes, identity, report=report, model=name_of(pipe))


def assemble(
    name: str,
    changes: Sequence[Change],
    identity: Mapping[str, Any],
    *,
    report: Mapping[str, Any] | None = None,
    parts: Sequence[tuple[str, str]] | None = None,
    model: str | None = None,
    concepts: Sequence[str] = (),
) -> Edit:
    """An edit from its parts: digests of the changes join the identity, whose hash is the id.

    ``model`` and ``concepts``, the names of what it was made on and of what it erases, are for whoever reads it.
    """
    if not changes:
        raise BadInput("an edit without changes", given=name)
    provenance = stamp({**identity, "changes": [digest(change) for change in changes]})
    provenance["info"] |= {"model": model} if model else {}
    provenance["info"] |= {"concepts": list(concepts)} if concepts else {}
    if report is not None:
        provenance["report"] = dict(report)
    if parts is not None:
        provenance["parts"] = [list(part) for part in parts]
    mergeable = not any(isinstance(change, Hook) for change in changes)
    return Edit(name, tuple(changes), provenance, provenance["id"], mergeable=mergeable)


def _numel(shape: Sequence[int]) -> int:
    size = 1
    for n in shape:
        size *= n
    return size

"""Control masks: as many zeros as an edit has, elsewhere. What they do is what zeros do, not what the finding does."""

from __future__ import annotations

from typing import Any, Literal

from erase import _in_force, masks
from erase._changes import Mask
from erase._edit import Edit, assemble
from erase.prune._layers import report, stream
from probe._options import validated
from probe.errors import BadInput


@validated
def control_mask(
    edit: Edit,
    pipe: Any = None,
    *,
    kind: Literal["random", "magnitude"] = "random",
    seed: int = 0,
    name: str | None = None,
) -> Edit:
    """An edit with as many zeros in every output row of every layer as ``edit`` has, chosen without the concept (ours).

    Args:
        edit: an edit that only masks.
        pipe: the pipeline it was made on; needed for ``kind="magnitude"``, which reads the weights without any edit.
        kind: ``"random"``: anywhere in the row; ``"magnitude"``: the largest |W| of the row, which is where Wanda
            scores would be with equal activations.
        seed: of the random positions; each layer draws its own stream.
        name: ``<edit's name>-<kind>`` by default.

    Raises `BadInput` for an edit that does more than mask, or for ``"magnitude"`` without a pipeline.
    """
    if kind == "magnitude":
        if pipe is None:
            raise BadInput("a magnitude mask needs the weights", fix='control_mask(edit, pipe, kind="magnitude")')
        _in_force.check_model(edit, pipe)
    found = {}
    for change in edit.changes:
        if not isinstance(change, Mask):
            raise BadInput("a control mask needs an edit that only masks", given=f"{change.kind} of {change.param}")
        if kind == "random":
            found[change.param] = masks.random_like(change.dense(), stream(seed, change.param))
        else:
            found[change.param] = masks.magnitude_like(change.dense(), _in_force.original(pipe, change.param).cpu())
    of = edit.provenance["identity"]
    identity = {
        "method": "control_mask",
        "options": {"kind": kind, "seed": seed if kind == "random" else None},
        "inputs": {"edit": edit.id},
        "model": of["model"],
        "base_edits": of["base_edits"],
    }
    changes = [Mask.of(param, mask) for param, mask in found.items()]
    return assemble(name or f"{edit.name}-{kind}", changes, identity, report=report(found))

"""What makes the runs of a score comparable, and what its finding keeps of them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from probe._recorded import SAMPLING, Recorded, recorded
from probe.provenance import check_same

__all__ = ["SAMPLING", "Recorded", "check_comparable", "identity_of", "recorded", "shared_identity"]

logger = logging.getLogger(__name__)


def identity_of(method: str, options: Mapping[str, Any], target: Recorded, reference: Recorded) -> dict[str, Any]:
    """What the scores of two comparable runs depend on."""
    return {
        "method": method,
        "options": dict(options),
        "target": target.reference_json(),
        "reference": reference.reference_json(),
        **shared_identity(target),
    }


def shared_identity(run: Recorded) -> dict[str, Any]:
    """What a finding says of the model and the sampling of the run behind it."""
    return {
        "model": run.model,
        "lineage": run.identity["lineage"],
        "sites": [site.name for site in run.sites],
        **{key: run.identity[key] for key in SAMPLING},
    }


def check_comparable(target: Recorded, reference: Recorded) -> None:
    """Raise `HeaderMismatch` naming the key in which two runs differ that must agree; warn about the batch size."""
    fix = "record both with the same model, edits, sites and sampling"
    check_same(target.comparable, reference.comparable, "target and reference runs cannot be compared", fix=fix)
    sizes = [run.identity["batch_size"] for run in (target, reference)]
    if sizes[0] != sizes[1]:
        logger.warning("the runs were recorded in batches of %d and %d; results agree to float tolerance", *sizes)

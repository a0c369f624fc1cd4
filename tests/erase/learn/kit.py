"""What tests of erasers that learn share: little trainings, and points by hand."""

from __future__ import annotations

from typing import Any

from erase.learn import Sampling, Schedule

#: Enough for a training of a few iterations on a tiny pipeline.
FEW: dict[str, Any] = {"cached": 2, "steps": 4, "lr": 1e-2, "progress": False}
FEW_PICTURES: dict[str, Any] = {"pictures": 2, "steps": 4, "batch_size": 2, "lr": 1e-2, "progress": False}


def sampling(**changed: Any) -> Sampling:
    options: dict[str, Any] = {
        "x_t": "cached",
        "trajectory": None,
        "cached": 2,
        "steps": 4,
        "guidance": 3.0,
        "timesteps": "bin",
        "batch_size": 1,
        "seed": 0,
        "folder": None,
    }
    return Sampling(**{**options, **changed})


def schedule(iterations: int = 3, lr: float = 1e-2, **changed: Any) -> Schedule:
    return Schedule(iterations, lr, **changed)

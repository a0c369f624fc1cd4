"""low_rank: a gate without its gate, a linear change of keys and values; the baseline of the paper's argument."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch

from erase._changes import Change, Delta
from erase._concepts import label, listed
from erase._edit import Edit, make_edit
from erase.gated._fit import fitted
from erase.gated._settings import Settings
from probe._options import validated
from probe.protocols import Progress


@validated
def low_rank(
    pipe: Any,
    concepts: Any,
    *,
    anchor: str | None = None,
    preserve: Any = None,
    seed: int = 0,
    rank: int = 1,
    alpha: float = 1.0,
    eta: float = 0.3,
    anchor_weight: float = 1e5,
    anchors: int = 32,
    nearest: int | None = 50,
    general: Sequence[str] | None = None,
    templates: Sequence[str] | None = None,
    mix: bool = True,
    noise: float = 0.001,
    stages: int = 5,
    iterations: int = 450,
    first_iterations: int = 1800,
    lr: float = 3e-5,
    first_lr: float = 3e-4,
    warm_up: int = 5,
    adversaries: int = 16,
    adversary_weight: float = 1.0,
    adversary_iterations: int = 450,
    adversary_lr: float = 0.01,
    keep_adversaries: Literal["latest", "all"] = "latest",
    training: str | Path | None = None,
    force: bool = False,
    name: str | None = None,
    progress: Progress = True,
) -> Edit:
    """Low-rank changes of keys and values, learned as `erase.resag` learns its gates, and always open.

        P'(E) = W_P E + alpha / r  E D_P G_P,       so W_P' = W_P + alpha / r (D_P G_P)^T

    Losses, anchors and stages are those of `erase.resag`, and so are the options. What is left is linear, as is every
    change of a weight: the text of another concept cannot be told from the erased one where they overlap ("Concept
    Pinpoint Eraser", arXiv 2506.22806, section 3, calls it what cannot preserve diverse concepts).

    Returns an edit of deltas, which can be merged into the weights. Several concepts add up, each learned apart.
    """
    erased = listed(concepts)
    settings = Settings(
        rank=rank, gate_rank=1, alpha=alpha, key_mode="independent", gate="none", eta=eta,
        anchor_weight=anchor_weight, anchors=anchors, mix=mix, noise=noise, stages=stages, iterations=iterations,
        first_iterations=first_iterations, lr=lr, first_lr=first_lr, warm_up=warm_up, adversaries=adversaries,
        adversary_weight=adversary_weight, adversary_iterations=adversary_iterations, adversary_lr=adversary_lr,
        keep_adversaries=keep_adversaries, seed=seed,
    )  # fmt: skip
    found = fitted(pipe, erased, settings, method="low_rank", anchor=anchor, preserve=preserve, nearest=nearest,
                   general=general, templates=templates, training=training, force=force, progress=progress)  # fmt: skip
    changes: list[Change] = []
    for i, param in enumerate(found.projections.params):
        up = torch.cat([values[f"up.{i}"] for values in found.learned]).mT * settings.scale
        down = torch.cat([values["down"][i].mT for values in found.learned])
        changes.append(Delta(param, (up, down)))
    options = {key: value for key, value in found.options.items() if key not in ("gate", "gate_rank", "key_mode")}
    return make_edit(
        pipe,
        changes,
        name=name or f"low_rank-{label(erased)}",
        method="low_rank",
        options=options,
        inputs=found.inputs,
        report=found.report,
    )

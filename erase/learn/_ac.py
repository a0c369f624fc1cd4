"""Ablating Concepts: draw the anchor where the target is asked for (Kumari et al., arXiv 2303.13516, ICCV 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from erase._concepts import identity, listed
from erase._edit import Edit
from erase.learn._ac_loss import AcObjective, BosBlocked
from erase.learn._eraser import Sampling, checked_preserve, learned, own_precision, retaining
from erase.learn._pairs import pairs
from erase.learn._parts import opened, parts_of
from erase.learn._schedule import Schedule
from erase.learn._student import Student, Weights
from probe import NeuronMap
from probe._options import validated
from probe.protocols import Progress

#: Trajectories that the retain term is taken on, at least; one for each preserved concept.
RETAINED = 16


@validated
def ablating_concepts(
    pipe: Any,
    concepts: Any,
    *,
    anchor: str | None = None,
    preserve: Any = None,
    prompts: Sequence[Any] | None = None,
    variant: Literal["model", "noise"] = "model",
    prior: float = 0.0,
    retain: float = 0.0,
    block_bos: bool = True,
    train: Any = "x-strict",
    iterations: int = 100,
    lr: float = 1.6e-5,
    batch_size: int = 8,
    pictures: int = 1000,
    steps: int = 25,
    guidance: float = 6.0,
    optimiser: Literal["adam", "adamw"] = "adamw",
    weight_decay: float = 0.01,
    clip_norm: float | None = 1.0,
    arithmetic: Literal["float32", "bfloat16", "float16"] | None = None,
    checkpointing: bool = False,
    training: str | Path | None = None,
    save_every: int = 100,
    checkpoints: Sequence[int] = (),
    seed: int = 0,
    progress: Progress = True,
    force: bool = False,
    name: str | None = None,
) -> Edit:
    """Train part of the UNet to predict for the target's prompt what it predicts for the anchor's.

        L = || eps(x_t, target prompt, t) - sg[eps(x_t, anchor prompt, t)] ||^2
            + prior || eps(x_t', anchor prompt', t') - noise' ||^2 [+ retain || eps(x_t", c, t) - eps*(x_t", c, t) ||^2]

    x_t are the model's own pictures of anchor prompts with noise at any timestep; sg holds the student's own prediction
    fixed, so no second model is needed. The second term is on further pictures of anchor prompts. The BOS token's key
    and value pass no gradient (a part of the released code that its paper does not dwell on).

    Args:
        pipe: the pipeline. It is read, not changed; edits in force stay, and the result applies on top of them.
        concepts: a concept, a text, or a list: the targets.
        anchor: what is drawn instead; by default each concept's own, and for a style its prompts without the style.
        preserve: concepts for ``retain``; by default the embedded world's ``preserve_fit``.
        prompts: (target prompt, anchor prompt) pairs, or prompts with the target, in which its name gives way to the
            anchor. By default a concept's explicit prompts, and a few templates for a text (ours).
        variant: ``model`` (the paper's choice), or ``noise``: the noise that is in x_t.
        prior: weight of prior preservation; for targets whose name holds the anchor's (1.0 in one release, 0.2 in the
            other), and for memorised pictures.
        retain: weight of the squared difference from the model before training, eps*, on prompts c of ``preserve``
            (ours).
        block_bos: see above; False leaves the gradient whole.
        train: as in `erase.esd`; the paper's choices are ``x-strict`` (keys and values), ``attn`` and ``full``.
        iterations, lr, batch_size: the release's, on two GPUs; its base rate of 2e-6 times its batch of 8.
        pictures: how many pictures of anchor prompts are drawn, at least one a prompt.
        steps, guidance: of drawing them (DDIM; the release has 25 steps of DPM-Solver++).
        optimiser, weight_decay, clip_norm: the release's.
        arithmetic, checkpointing, training, save_every, checkpoints, seed, progress, force: as in `erase.esd`.
        name: ``ablating_concepts`` by default.

    Returns an edit of deltas; ``report`` has the loss curve and the seconds.

    Raises as `erase.esd`; `BadInput` for a target without an anchor, and for an anchor that is the target.
    """
    items = listed(concepts)
    how = Schedule(
        iterations,
        lr,
        optimiser,
        weight_decay=weight_decay,
        clip=clip_norm,
        precision=own_precision(pipe, arithmetic),
        checkpointing=checkpointing,
    )
    objective = AcObjective(
        tuple(pairs(items, anchor, prompts)),
        variant,
        "student",
        prior,
        pictures,
        steps,
        guidance,
        batch_size,
        seed,
        folder=Path(training) if training is not None else None,
        progress=progress is True,
    )
    sampling = Sampling(
        "cached", None, RETAINED, steps, guidance, "bin", batch_size, seed, objective.folder, objective.progress
    )
    kept, _ = checked_preserve(preserve, items, retain)
    train = opened(train)
    weights = Weights(pipe, parts := parts_of(pipe, train))
    student: Student = BosBlocked(pipe, weights) if block_bos else weights
    options = {
        **objective.to_json(),
        "block_bos": block_bos,
        "retain": retain,
        "preserve": identity(kept.items),
        "train": [part.to_json() for part in parts],
        "seed": seed,
    }
    return learned(
        pipe,
        student,
        lambda: retaining(objective.loss(pipe, student), pipe, student, sampling, kept, retain),
        how,
        method="ablating_concepts",
        name=name or "ablating_concepts",
        options=options,
        inputs={"concepts": identity(items), "map": train.id if isinstance(train, NeuronMap) else None},
        training=training,
        save_every=save_every,
        checkpoints=checkpoints,
        progress=progress,
        force=force,
        report=lambda: {"trained": sum(leaf.numel() for leaf in student.leaves.values())},
    )

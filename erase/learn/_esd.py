"""ESD: train the model to predict, for the concept's prompt, what leads away from it (arXiv 2303.07345, ICCV 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from erase._concepts import identity, listed
from erase._edit import Edit
from erase.learn._eraser import Sampling, checked_preserve, learned, own_precision, retaining
from erase.learn._esd_loss import EsdObjective
from erase.learn._parts import opened, parts_of
from erase.learn._schedule import Schedule
from erase.learn._student import Weights
from probe import NeuronMap
from probe._options import validated
from probe.protocols import Progress


@validated
def esd(
    pipe: Any,
    concepts: Any,
    *,
    anchor: str | None = None,
    preserve: Any = None,
    prompts: Sequence[Any] | None = None,
    erase_from: str | None = None,
    train: Any = "x",
    eta: float = 1.0,
    iterations: int = 1000,
    lr: float = 1e-5,
    batch_size: int = 1,
    retain: float = 0.0,
    x_t: Literal["cached", "student", "teacher"] = "cached",
    trajectory: Any = None,
    cached: int = 16,
    steps: int = 50,
    guidance: float = 3.0,
    timestep: Literal["bin", "grid"] = "bin",
    optimiser: Literal["adam", "adamw"] = "adam",
    clip_norm: float | None = None,
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
    """Erase concepts by training part of the UNet against its own frozen copy.

        L = || eps(x_t, c, t) - [eps*(x_t, anchor, t) - eta (eps*(x_t, c, t) - eps*(x_t, anchor, t))] ||^2  (mean)

    eps* is the model before training, c a text of the concept, and the anchor the empty text. x_t come from denoising
    c. Every prediction is epsilon, also of models that predict v.

    Args:
        pipe: the pipeline. It is read, not changed; edits in force stay, and the result applies on top of them.
        concepts: a concept, a text, or a list; of concepts every surface form, of which each sample takes one.
        anchor: a text in place of the empty one (ours).
        preserve: concepts for ``retain``; by default the embedded world's ``preserve_fit``.
        prompts: texts to train on instead of the bare surface forms, or pairs (text, anchor of that text) (ours).
        erase_from: erase the concept only from this (an attribute): the student is told this text, and the target
            starts at eps*(x_t, erase_from, t), with eta + 1 in front of the difference.
        train: what is trained: ``x`` (cross-attention, for names of objects and styles), ``x-strict`` (its keys and
            values), ``u`` (all else, for what no word need name), ``u-release``, ``self``, ``attn``, ``full``; a kind
            of site, a glob over parameters or sites, a list of these; or a neuron map or its path:
            its selected units alone learn.
        eta: strength of negative guidance, anchored at the empty text as in the paper; the newer release's is eta + 1.
        iterations, lr, batch_size: of the optimiser; the paper's.
        retain: weight of the student's squared difference from the model on prompts of ``preserve`` (ours).
        x_t: ``cached``: trajectories that the model draws once, as in the newer release; ``student`` (paper) and
            ``teacher`` denoise afresh for every iteration.
        trajectory: a stored trajectory (path or object), whose x_t and prompts are used.
        cached: how many trajectories are drawn.
        steps, guidance: of the denoising (DDIM).
        timestep: ``bin``: drawn between a step and the one before it (paper); ``grid``: the step's own.
        optimiser, clip_norm: Adam without clipping in the paper.
        arithmetic: by default in the pipeline's dtype (autocast); what is trained is float32 always.
        checkpointing: compute activations again in the backward pass, for less memory.
        training: folder for state, loss curve and checkpoints; the same call goes on there, to the bit.
        save_every: iterations between states.
        checkpoints: iterations after which the edit is kept in ``training``/checkpoints: strengths of one training.
        seed: of everything random.
        progress: True, False or a function of (done, total) iterations.
        force: replace another training in ``training``.
        name: ``esd`` by default.

    Returns an edit of deltas; ``report`` has the loss curve and the seconds.

    Raises `BadInput` for what matches no parameter (listing the groups), an anchor equal to a text, numbers out of
    range; `WorkbenchError` where a loss is not finite, naming the iteration and the last good checkpoint.
    """
    items = listed(concepts)
    how = Schedule(
        iterations,
        lr,
        optimiser,
        clip=clip_norm,
        precision=own_precision(pipe, arithmetic),
        checkpointing=checkpointing,
    )
    sampling = Sampling(
        x_t,
        trajectory,
        cached,
        steps,
        guidance,
        timestep,
        batch_size,
        seed,
        folder=Path(training) if training is not None else None,
        progress=progress,
    )
    kept, _ = checked_preserve(preserve, items, retain)
    objective = EsdObjective.of(items, prompts, anchor=anchor, eta=eta, erase_from=erase_from)
    train = opened(train)
    student = Weights(pipe, parts := parts_of(pipe, train))
    options = {
        **objective.to_json(),
        "train": [part.to_json() for part in parts],
        "retain": retain,
        "preserve": identity(kept.items),
        **sampling.to_json(),
        "seed": seed,
    }
    return learned(
        pipe,
        student,
        lambda: retaining(objective.loss(pipe, student, sampling), pipe, student, sampling, kept, retain),
        how,
        method="esd",
        name=name or "esd",
        options=options,
        inputs={"concepts": identity(items), "map": train.id if isinstance(train, NeuronMap) else None},
        training=training,
        save_every=save_every,
        checkpoints=checkpoints,
        progress=progress,
        force=force,
        report=lambda: {"trained": sum(leaf.numel() for leaf in student.leaves.values())},
    )

"""ESD: train the model to predict, for the concept's prompt, what leads away from it (arXiv 2303.07345, ICCV 2023)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from erase import losses
from erase._concepts import identity, label, listed, preserved, surface_forms
from erase._edit import Edit
from erase.learn._eraser import Sampling, learned, noise_of, own_precision, retain_loss
from erase.learn._parts import parts_of
from erase.learn._schedule import Optimiser, Precision, Schedule
from erase.learn._student import Student, Weights
from erase.learn._teacher import Teacher
from erase.learn._texts import Texts
from erase.learn._training import Loss
from probe import Concept, NeuronMap
from probe._options import validated
from probe.errors import BadInput
from probe.protocols import Progress


@validated
def esd(
    pipe: Any,
    concepts: Any,
    *,
    anchor: str | None = None,
    preserve: Any = None,
    prompts: Sequence[str] | None = None,
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
    timesteps: Literal["bin", "grid"] = "bin",
    optimiser: Optimiser = "adam",
    clip: float | None = None,
    precision: Precision | None = None,
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
        prompts: texts to train on instead of the bare surface forms (ours).
        erase_from: erase the concept only from this (an attribute): the student is told this text, and the target
            starts at eps*(x_t, erase_from, t), with eta + 1 in front of the difference.
        train: what is trained: ``x`` (cross-attention, for names of objects and styles), ``x-strict`` (its keys and
            values), ``u`` (all else, for what no word need name), ``u-release``, ``self``, ``attn``, ``full``; a kind
            of site, a glob over parameters or sites, a list of these; or a neuron map, whose selected units alone learn.
        eta: strength of negative guidance, anchored at the empty text as in the paper; the newer release's is eta + 1.
        iterations, lr, batch_size: of the optimiser; the paper's.
        retain: weight of the student's squared difference from the model on prompts of ``preserve`` (ours).
        x_t: ``cached``: trajectories that the model draws once, as in the newer release; ``student`` (paper) and
            ``teacher`` denoise afresh for every iteration.
        trajectory: a stored trajectory (path or object), whose x_t and prompts are used.
        cached: how many trajectories are drawn.
        steps, guidance: of the denoising (DDIM).
        timesteps: ``bin``: drawn between a step and the one before it (paper); ``grid``: the step's own.
        optimiser, clip: Adam without clipping in the paper.
        precision: of the arithmetic, by default the pipeline's dtype; what is trained is float32 always.
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
        clip=clip,
        precision=own_precision(pipe, precision),
        checkpointing=checkpointing,
    )
    sampling = Sampling(
        x_t,
        trajectory,
        cached,
        steps,
        guidance,
        timesteps,
        batch_size,
        seed,
        folder=Path(training) if training is not None else None,
        progress=progress,
    )
    kept = preserved(preserve, items) if retain else []
    student = Weights(pipe, parts := parts_of(pipe, train))
    objective = EsdObjective(anchor or "", eta, erase_from)
    options = {
        **objective.to_json(),
        "prompts": None if prompts is None else list(prompts),
        "train": [part.to_json() for part in parts],
        "retain": retain,
        "preserve": identity(kept),
        **sampling.to_json(),
        "seed": seed,
    }
    return learned(
        pipe,
        student,
        esd_loss(pipe, student, items, objective, sampling, prompts=prompts, preserve=kept, retain=retain),
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
        report=lambda: {"trained": sum(leaf.numel() for leaf in student.leaves.values()), "concept": label(items)},
    )


class EsdObjective:
    """The numbers and texts of ESD's loss, without the concept."""

    def __init__(self, anchor: str, eta: float, erase_from: str | None) -> None:
        self.anchor, self.eta, self.erase_from = anchor, eta, erase_from

    def to_json(self) -> dict[str, Any]:
        """What an identity keeps."""
        return {"anchor": self.anchor, "eta": self.eta, "erase_from": self.erase_from}


def esd_loss(
    pipe: Any,
    student: Student,
    items: Sequence[Concept | str],
    objective: EsdObjective,
    sampling: Sampling,
    *,
    prompts: Sequence[str] | None,
    preserve: Sequence[Concept | str],
    retain: float,
) -> Loss:
    """iteration -> ``erase`` and, with ``retain``, ``retain``."""
    texts = list(prompts) if prompts is not None else list(surface_forms(items))
    if not texts:
        raise BadInput("there are no texts to train on", fix="prompts=[...]")
    points = sampling.points(pipe, texts)
    told = Texts(pipe, points.size)
    teacher = Teacher(pipe, told)
    retained = retain_loss(pipe, student, sampling, preserve, retain)
    start = objective.erase_from
    if objective.anchor in texts:
        raise BadInput("the anchor is the concept itself", given=repr(objective.anchor), fix="another anchor, or none")

    def loss(iteration: int) -> Mapping[str, Tensor]:
        batch = points.batch(iteration, student)
        n = len(batch.texts)
        asked = [[objective.anchor] * n, batch.texts, *([[start] * n] if start is not None else [])]
        null, concept, *started = teacher.noise(student, batch, *asked)
        target = losses.esd_target(null, concept, objective.eta, *started)
        told_text = batch.texts if start is None else [start] * n
        terms = {"erase": losses.mean_square(noise_of(pipe, batch, told, told_text), target)}
        if retained is not None:
            terms["retain"] = retained(iteration)
        return terms

    return loss


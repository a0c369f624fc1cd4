"""differentiable_prune: P-ESD and P-AC, an eraser's loss on gates instead of weights (after arXiv 2405.16534)."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from erase._concepts import identity, listed
from erase._edit import Edit
from erase.learn._ac_loss import AcObjective, BosBlocked
from erase.learn._eraser import Sampling, checked_preserve, learned, own_precision, retaining
from erase.learn._esd_loss import EsdObjective
from erase.learn._gates import Gates
from erase.learn._pairs import pairs
from erase.learn._parts import opened, parts_of
from erase.learn._schedule import Schedule
from erase.learn._student import Student
from erase.learn._texts import Texts
from erase.learn._training import Loss
from erase.prune._layers import report, stream
from probe import NeuronMap
from probe import guidance as guided
from probe._generate import image_size
from probe._generate import sampling as sampling_of
from probe._grids import latent_size
from probe._options import validated
from probe.errors import BadInput
from probe.protocols import Progress

logger = logging.getLogger(__name__)

#: Relative change of the noise prediction at the start above which there is a warning.
LARGEST_START = 0.02
#: Weight of the retain term where it is known what to preserve.
RETAIN = 0.1


@validated
def differentiable_prune(
    pipe: Any,
    concepts: Any,
    *,
    objective: Literal["esd", "ac"] = "esd",
    anchor: str | None = None,
    preserve: Any = None,
    prompts: Sequence[Any] | None = None,
    train: Any = "x",
    gates: Literal["straight-through", "hard-concrete"] = "straight-through",
    unit: Literal["weight", "neuron"] = "weight",
    init: float = 5.0,
    sparsity: float = 1.0,
    retain: float | None = None,
    eta: float = 1.0,
    erase_from: str | None = None,
    variant: Literal["model", "noise"] = "model",
    prior: float = 0.0,
    block_bos: bool = True,
    iterations: int | None = None,
    lr: float = 0.05,
    batch_size: int | None = None,
    x_t: Literal["cached", "student", "teacher"] = "cached",
    trajectory: Any = None,
    cached: int = 16,
    pictures: int = 1000,
    steps: int = 50,
    guidance: float | None = None,
    timestep: Literal["bin", "grid"] = "bin",
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
    """Prune the weights without which the concept is gone: the model stays as it is, and gates on its weights learn.

        L = L_erase(theta o gates) + sparsity * mean P(gate = 0) + retain * E || eps(theta o gates) - eps(theta) ||^2

    L_erase is that of `erase.esd` (P-ESD) or of `erase.ablating_concepts` (P-AC) with the anchor predicted by the model
    with all gates open. The paper's abstract and reviews say that a mask over parameters is learned with these losses;
    gates, sparsity and retain terms and their numbers are ours. Few weights are to be pruned, hence the sign of the
    second term.

    Args:
        pipe: the pipeline. It is read, not changed; edits in force stay, and the result applies on top of them.
        concepts, anchor, prompts: as in the eraser whose objective is used.
        objective: ``esd`` or ``ac``.
        preserve: concepts for ``retain``; by default the embedded world's ``preserve_fit``.
        train: whose weights have gates: as in `erase.esd`, biases and normalisation left out. A neuron map restricts
            them to the units it selects, so that a finding drives the eraser; a sensitivity result is such a map.
        gates: ``straight-through``: 1 where the score is positive (the better of the two on tuning prompts, see
            docs/methods/learning.md); ``hard-concrete``: drawn at every iteration.
        unit: a gate for every weight, or for every neuron: a column of a feed-forward's last Linear, else a row.
        init: score (or log alpha) at the start. Of hard-concrete gates at 5, 0.14 % are closed and 3.2 % below 1.
        sparsity: weight of the mean probability of a closed gate; larger prunes less.
        retain: weight of the retain term; 0.1 by default where it is known what to preserve, else 0.
        eta, erase_from, x_t, trajectory, cached, timestep: as in `erase.esd`.
        variant, prior, block_bos, pictures: as in `erase.ablating_concepts`.
        iterations: 1000 for ``esd`` and 200 for ``ac`` unless given.
        lr: of log alpha (Adam).
        batch_size: 1 for ``esd`` and 8 for ``ac`` unless given.
        steps, guidance: of denoising; 3 for ``esd`` and 6 for ``ac`` unless given.
        arithmetic, checkpointing, training, save_every, checkpoints, seed, progress, force: as in `erase.esd`.
        name: ``p-esd`` or ``p-ac`` by default.

    Returns an edit of masks, from which the weights come back to the bit. ``report`` has densities per layer and in
    all, and the loss curve. Memory beside the model: 12 bytes a gate, and moments of the largest layer (16 in float16).

    Raises as those erasers; `BadInput` for options that belong to the other objective, and for ``retain`` without
    anything to preserve.
    """
    of_esd = objective == "esd"
    _check_options(of_esd, eta=eta, erase_from=erase_from, x_t=x_t, trajectory=trajectory, variant=variant, prior=prior)
    if not (math.isfinite(init) and 0 <= sparsity < math.inf):
        raise BadInput("init or sparsity is out of range", given=f"init={init}, sparsity={sparsity}")
    items = listed(concepts)
    precision = own_precision(pipe, arithmetic)
    how = Schedule(
        iterations if iterations is not None else 1000 if of_esd else 200,
        lr,
        precision=precision,
        checkpointing=checkpointing,
        in_backward=precision != "float16",
    )
    folder = Path(training) if training is not None else None
    sampling = Sampling(
        x_t,
        trajectory,
        cached,
        steps,
        guidance if guidance is not None else 3.0 if of_esd else 6.0,
        timestep,
        batch_size if batch_size is not None else 1 if of_esd else 8,
        seed,
        folder=folder,
        progress=progress,
    )
    kept, retain = checked_preserve(preserve, items, retain, default=RETAIN)
    goal: EsdObjective | AcObjective
    if of_esd:
        goal = EsdObjective.of(items, prompts, anchor=anchor, eta=eta, erase_from=erase_from)
    else:
        goal = AcObjective(
            tuple(pairs(items, anchor, prompts)),
            variant,
            "teacher",
            prior,
            pictures,
            steps,
            sampling.guidance,
            sampling.batch_size,
            seed,
            folder=folder,
            progress=progress is True,
        )
    started: dict[str, float] = {}
    train = opened(train)
    parts = parts_of(pipe, train, weights_only=True)
    learning = Gates(pipe, parts, kind=gates, by_unit=unit == "neuron", init=init, seed=seed)
    student: Student = BosBlocked(pipe, learning) if block_bos and not of_esd else learning

    def loss() -> Loss:
        started["init_change"] = change_at_start(pipe, learning, seed)
        if isinstance(goal, EsdObjective):
            erasing = goal.loss(pipe, student, sampling)
        else:
            erasing = goal.loss(pipe, student)

        def terms(iteration: int) -> Mapping[str, Tensor]:
            return {**erasing(iteration), "sparsity": sparsity * learning.closed()}

        return retaining(terms, pipe, student, sampling, kept, retain)

    options = {
        "objective": objective,
        **sampling.to_json(),
        **goal.to_json(),
        "train": [part.to_json() for part in parts],
        "gates": gates,
        "unit": unit,
        "init": init,
        "sparsity": sparsity,
        "retain": retain,
        "preserve": identity(kept.items),
        "block_bos": block_bos if not of_esd else None,
        "seed": seed,
    }
    return learned(
        pipe,
        student,
        loss,
        how,
        method="differentiable_prune",
        name=name or f"p-{objective}",
        options=options,
        inputs={"concepts": identity(items), "map": train.id if isinstance(train, NeuronMap) else None},
        training=training,
        save_every=save_every,
        checkpoints=checkpoints,
        progress=progress,
        force=force,
        report=lambda: report(learning.masks(), **started),
    )


def change_at_start(pipe: Any, gates: Gates, seed: int) -> float:
    """The largest relative change of the noise prediction that gates make as first drawn; a warning if it is large.

    Over three timesteps, for the empty text and random latents.
    """
    told = Texts(pipe).of([""])
    shape = (1, pipe.unet.config.in_channels, *latent_size(pipe, image_size(pipe)))
    found = []
    with torch.no_grad(), sampling_of(pipe):
        for i, timestep in enumerate((900, 500, 100)):
            x = torch.randn(shape, generator=stream(seed, f"start {i}"))
            plain = guided.predicted_noise(pipe, x, torch.tensor([timestep]), told)
            with gates.in_force(i):
                drawn = guided.predicted_noise(pipe, x, torch.tensor([timestep]), told)
            found.append(float((drawn - plain).norm() / plain.norm()))
    if (largest := max(found)) > LARGEST_START:
        text = "gates change the noise prediction by %.3f before anything is learned: a larger init, or fewer weights"
        logger.warning(text, largest)
    return largest


def _check_options(of_esd: bool, **given: Any) -> None:
    """Options of the other objective must be left alone."""
    others = {"variant": "model", "prior": 0.0} if of_esd else {"eta": 1.0, "erase_from": None, "x_t": "cached"}
    others |= {} if of_esd else {"trajectory": None}
    if stray := [name for name, default in others.items() if given[name] != default]:
        objective = "ac" if of_esd else "esd"
        raise BadInput(
            f"{stray[0]} belongs to the other objective", given=repr(given[stray[0]]), fix=f"objective={objective!r}"
        )

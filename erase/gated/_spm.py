"""spm: one-dimensional adapters that a prompt opens as far as it calls for them (arXiv 2312.16145, CVPR 2024)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from erase import losses
from erase._concepts import label, listed, surface_forms
from erase._edit import Edit
from erase._stack import stack
from erase.gated._adapters import Adapters, spec_of
from erase.learn import Batch, Loss, Points, Sampling, Student, Texts, learned
from erase.learn._eraser import own_precision
from erase.learn._esd_loss import EsdObjective
from erase.learn._schedule import Schedule
from erase.prune._layers import stream
from probe import Concept, guidance
from probe._options import validated
from probe.errors import BadInput
from probe.protocols import Progress


@validated
def spm(
    pipe: Any,
    concepts: Any,
    *,
    anchor: str | None = None,
    rank: int = 1,
    alpha: float = 1.0,
    eta: float = 1.0,
    anchor_weight: float = 1000.0,
    latent_anchors: int = 4,
    anchoring: Literal["paper", "release"] = "paper",
    similarity: Literal["flat", "centred"] = "flat",
    power: Literal[1, 2] = 1,
    iterations: int = 3000,
    lr: float = 1e-4,
    batch_size: int = 1,
    x_t: Literal["cached", "student", "teacher"] = "student",
    trajectory: Any = None,
    cached: int = 16,
    steps: int = 30,
    guidance: float = 3.0,
    timestep: Literal["bin", "grid"] = "grid",
    optimiser: Literal["adam", "adamw"] = "adamw",
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
    """Semi-permeable membranes: rank-one adapters on all Linears and convolutions of the UNet's transformers.

    For a concept c, one adapter y = W x + gamma alpha / r U D x beside each module, trained with gamma = 1:

        L = |eps_m(x, t, c) - [eps(x, t, n) - eta (eps(x, t, c) - eps(x, t, n))]|^2
          + anchor_weight |eps_m(x, t, a) - eps(x, t, a)|^2,      a: random directions, about as long as c

    When drawing, a prompt p opens each adapter as far as it calls for it (facilitated transport):

        gamma = max(cos(E(p), E(c)), share of the tokens of c that are in p)

    Adapters of several concepts are kept apart, sum over c of gamma_c U_c D_c x: the released code adds up U and D
    first, and with them products of one concept's U and another's D.

    Args:
        pipe: the pipeline; read, not changed.
        concepts: a text, a concept or a list; each learns apart, on all its surface forms, and all are merged.
        anchor: n, the empty text unless given.
        rank, alpha: of the adapters.
        eta: how far away from the concept.
        anchor_weight, latent_anchors: weight of the second term, and how many directions an iteration draws.
        anchoring: ``"release"``: every second anchor is the empty text and half of the drawn ones are lost, as the
            order of a batch has it there.
        similarity: ``"flat"``: the cosine of whole embeddings, which is high between any two prompts; ``"centred"``
            takes that of the empty text away first (ours).
        power: 2: gamma^2, as the release has it by scaling both U and D.
        iterations, lr, optimiser: AdamW at a constant rate; the release's rises for 500 iterations and falls in three
            cosines.
        batch_size, x_t, trajectory, cached, steps, guidance, timestep, arithmetic, checkpointing, training, save_every,
            checkpoints, seed, progress, force: as in `erase.esd`; the student denoises for every iteration (published).
        name: ``spm-<concepts>`` by default.

    Returns an edit of hooks, which cannot be merged into the weights.

    Raises `BadInput` for an anchor that is the concept, or numbers out of range.
    """
    items = listed(concepts)
    _checked(anchor_weight, latent_anchors)
    edits = []
    for item in items:
        folder = None if training is None else Path(training) / _plain(item) if len(items) > 1 else Path(training)
        sampling = Sampling(x_t, trajectory, cached, steps, guidance, timestep, batch_size, seed, folder=folder,
                            progress=progress)  # fmt: skip
        objective = EsdObjective.of([item], None, anchor=anchor, eta=eta, erase_from=None)
        names = surface_forms([item])
        student = Adapters(pipe, rank=rank, alpha=alpha, seed=seed, spec=spec_of(names, similarity, power))
        options = {
            **objective.to_json(), "rank": rank, "alpha": alpha, "anchor_weight": anchor_weight,
            "latent_anchors": latent_anchors, "anchoring": anchoring, "similarity": similarity, "power": power,
            **sampling.to_json(), "seed": seed,
        }  # fmt: skip
        edits.append(
            learned(
                pipe,
                student,
                _losses(pipe, student, objective, sampling, anchor_weight, latent_anchors, anchoring == "release"),
                Schedule(
                    iterations, lr, optimiser, precision=own_precision(pipe, arithmetic), checkpointing=checkpointing
                ),
                method="spm",
                name=(name if len(items) == 1 else None) or f"spm-{label([item])}",
                options=options,
                inputs={"concepts": [label([item])]},
                training=folder,
                save_every=save_every,
                checkpoints=checkpoints,
                progress=progress,
                force=force,
            )
        )
    return stack(*edits, name=name or f"spm-{label(items)}")


def latent_anchors_like(concept: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """``count`` random directions (m k d), 0.8 to 1.2 times as long as a text (k d), each kept with chance 1 - cos."""
    found: list[Tensor] = []
    norm = torch.linalg.vector_norm(concept)
    while len(found) < count:
        drawn = torch.randn(concept.shape, generator=generator).to(concept.device)
        drawn = drawn / torch.linalg.vector_norm(drawn)
        length, chance = (torch.rand(2, generator=generator) * torch.tensor([0.4, 1.0])).tolist()
        cosine = float((drawn * concept).sum() / norm)
        if chance < 1 - cosine:
            found.append((0.8 + length) * norm * drawn)
    return torch.stack(found)


@dataclass(frozen=True)
class _Shared(Sampling):
    """The same points for both terms, drawn once."""

    known: dict[str, Any] = field(default_factory=dict)

    def points(self, pipe: Any, texts: Sequence[str], what: str = "x_t") -> Any:
        """The points of some texts, the same object whenever they are asked for."""
        if what not in self.known:
            self.known[what] = _Once(super().points(pipe, texts, what))
        return self.known[what]


class _Once:
    """Points that keep the batch of the running iteration."""

    def __init__(self, points: Points) -> None:
        self._points, self.size = points, points.size
        self._kept: tuple[int, Batch] | None = None

    def batch(self, iteration: int, student: Student) -> Batch:
        """See `erase.learn.Points`."""
        if self._kept is None or self._kept[0] != iteration:
            self._kept = iteration, self._points.batch(iteration, student)
        return self._kept[1]


def _losses(
    pipe: Any,
    student: Adapters,
    objective: EsdObjective,
    sampling: Sampling,
    weight: float,
    count: int,
    released: bool,
) -> Callable[[], Loss]:
    def made() -> Loss:
        shared = _Shared(**{field.name: getattr(sampling, field.name) for field in fields(Sampling)})
        erase = objective.loss(pipe, student, shared)
        if not weight:
            return erase
        points = shared.points(pipe, objective.texts)
        told = Texts(pipe, points.size)

        def loss(iteration: int) -> Mapping[str, Tensor]:
            batch = points.batch(iteration, student)
            drawn = stream(sampling.seed, f"latent anchors: iteration {iteration}")
            text = batch.texts[0]
            anchors = latent_anchors_like(told.of([text]).text[0].float(), count, drawn)
            if released:
                anchors = torch.stack(
                    [a for i in range(count // 2, count) for a in (told.of([""]).text[0].float(), anchors[i])]
                )
            n = len(anchors)
            conditioning = replace(told.of([text] * n), text=anchors.to(pipe.unet.dtype))
            x, timesteps = batch.x[:1].repeat(n, 1, 1, 1), batch.timesteps[:1].repeat(n)
            with torch.no_grad(), student.suspended():
                target = guidance.predicted_noise(pipe, x, timesteps, conditioning)
            kept = losses.mean_square(guidance.predicted_noise(pipe, x, timesteps, conditioning), target)
            return {**erase(iteration), "anchors": weight * kept}

        return loss

    return made


def _checked(anchor_weight: float, count: int) -> None:
    if not 0 <= anchor_weight < math.inf:
        raise BadInput("anchor_weight cannot be negative", given=anchor_weight)
    if count < 1:
        raise BadInput("latent_anchors must be at least 1", given=count, fix="anchor_weight=0 for none")


def _plain(item: Concept | str) -> str:
    """A name for a folder."""
    return "".join(c if c.isalnum() else "_" for c in label([item]))

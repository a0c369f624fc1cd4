"""The loss of Ablating Concepts for any student: weights that move, or gates that close."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from erase import losses
from erase._changes import Change
from erase.learn._clean import Pictures
from erase.learn._pairs import Pair
from erase.learn._student import Student
from erase.learn._texts import Texts
from erase.learn._training import Loss
from probe import guidance
from probe._sites import sites as sites_of
from probe.errors import BadInput

Target = Literal["model", "noise"]


@dataclass(frozen=True)
class AcObjective:
    """The loss of Ablating Concepts in words and numbers: see `erase.ablating_concepts`.

    ``anchor_by``: whose prediction for the anchor is the target: the student's, held fixed (as published), or the
    teacher's, which is the student's with every gate open.
    """

    pairs: tuple[Pair, ...]
    target: Target
    anchor_by: Literal["student", "teacher"]
    prior: float
    images: int
    steps: int
    scale: float
    batch_size: int
    seed: int
    folder: Path | None
    progress: bool = False

    def __post_init__(self) -> None:
        for name in ("images", "steps", "batch_size"):
            if getattr(self, name) < 1:
                raise BadInput(f"{name} must be at least 1", given=getattr(self, name))
        if not 0 <= self.prior < float("inf"):
            raise BadInput("prior is out of range", given=self.prior, expected=">= 0")

    def to_json(self) -> dict[str, Any]:
        """What an identity keeps."""
        return {
            "pairs": [list(pair) for pair in self.pairs],
            "target": self.target,
            "anchor_by": self.anchor_by,
            "prior": self.prior,
            "images": self.images,
            "steps": self.steps,
            "guidance": self.scale,
            "batch_size": self.batch_size,
        }

    def loss(self, pipe: Any, student: Student) -> Loss:
        """iteration -> the terms ``erase`` and, where it has a weight, ``prior``; draws the anchors' pictures."""
        targets, anchors = [pair[0] for pair in self.pairs], [pair[1] for pair in self.pairs]
        pictures = Pictures(
            pipe,
            anchors,
            n=self.images,
            steps=self.steps,
            scale=self.scale,
            seed=self.seed,
            folder=self.folder,
            progress=self.progress,
        )
        told = Texts(pipe, pictures.size)

        def noise(x: Tensor, timesteps: Tensor, prompts: Sequence[str]) -> Tensor:
            return guidance.predicted_noise(pipe, x, timesteps, told.of(prompts))

        def loss(iteration: int) -> Mapping[str, Tensor]:
            # one draw for both terms: a batch of its own for the second, as in the release
            drawn = pictures.batch(iteration, 2 * self.batch_size if self.prior else self.batch_size)
            n = self.batch_size
            x, t, which = drawn.x[:n], drawn.timesteps[:n], drawn.which[:n]
            wanted = drawn.noise[:n].to(pipe.unet.device)
            if self.target == "model":
                aside: AbstractContextManager[None] = nullcontext()
                if self.anchor_by == "teacher":
                    aside = student.suspended()
                with torch.no_grad(), aside:
                    wanted = noise(x, t, [anchors[i] for i in which])
            terms = {"erase": losses.mean_square(noise(x, t, [targets[i] for i in which]), wanted)}
            if self.prior:
                x, t, which = drawn.x[n:], drawn.timesteps[n:], drawn.which[n:]
                found = noise(x, t, [anchors[i] for i in which])
                terms["prior"] = self.prior * losses.mean_square(found, drawn.noise[n:].to(found))
            return terms

        return loss


class BosBlocked:
    """A student through whose cross-attention no gradient reaches a key or value by the first token.

    The first token is the same in every prompt: what it adds to a key is added to all of them.
    """

    def __init__(self, pipe: Any, student: Student) -> None:
        self._pipe, self._student = pipe, student

    @property
    def leaves(self) -> Mapping[str, Tensor]:
        """The student's."""
        return self._student.leaves

    @contextmanager
    def in_force(self, iteration: int) -> Iterator[None]:
        """The student's, with hooks on keys and values."""
        with ExitStack() as undo:
            undo.enter_context(self._student.in_force(iteration))
            for site in sites_of(self._pipe, ["xattn.k", "xattn.v"]):
                undo.callback(site.resolve(self._pipe).register_forward_hook(_first_held_fixed).remove)
            yield

    def suspended(self) -> AbstractContextManager[None]:
        """The student's; the hooks change no number."""
        return self._student.suspended()

    def changes(self) -> list[Change]:
        """The student's."""
        return self._student.changes()


def _first_held_fixed(_module: Any, _args: Any, output: Tensor) -> Tensor:
    return torch.cat([output[:, :1].detach(), output[:, 1:]], dim=1)

"""ESD's loss for any student: weights that move (`erase.esd`), or gates that close (`erase.differentiable_prune`)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from erase import losses
from erase._concepts import surface_forms
from erase.learn._eraser import Retained, Sampling, noise_of, retain_loss
from erase.learn._student import Student
from erase.learn._teacher import Teacher
from erase.learn._texts import Texts
from erase.learn._training import Loss
from probe import Concept
from probe.errors import BadInput


@dataclass(frozen=True)
class EsdObjective:
    """ESD's loss in words and numbers: see `erase.esd`; ``texts`` are those of the concept."""

    texts: tuple[str, ...]
    anchor: str
    eta: float
    erase_from: str | None

    @classmethod
    def of(
        cls,
        items: Sequence[Concept | str],
        prompts: Sequence[str] | None,
        *,
        anchor: str | None,
        eta: float,
        erase_from: str | None,
    ) -> EsdObjective:
        """Checked: texts there are, an anchor that is none of them, a finite strength."""
        texts = tuple(dict.fromkeys(prompts)) if prompts is not None else surface_forms(items)
        if not texts or not all(text.strip() for text in texts):
            raise BadInput("there are no texts to train on", given=repr(prompts), fix="prompts=['...']")
        if (anchor or "") in texts:
            raise BadInput("the anchor is the concept itself", given=repr(anchor), fix="another anchor, or none")
        if not math.isfinite(eta):
            raise BadInput("eta must be finite", given=eta)
        return cls(texts, anchor or "", eta, erase_from)

    def to_json(self) -> dict[str, Any]:
        """What an identity keeps."""
        return {"texts": list(self.texts), "anchor": self.anchor, "eta": self.eta, "erase_from": self.erase_from}

    def loss(
        self,
        pipe: Any,
        student: Student,
        sampling: Sampling,
        preserve: Retained | None = None,
        retain: float = 0.0,
    ) -> Loss:
        """iteration -> the terms ``erase`` and, where it has a weight, ``retain``; draws the points."""
        points = sampling.points(pipe, self.texts)
        told = Texts(pipe, points.size)
        teacher = Teacher(pipe, told)
        retained = retain_loss(pipe, student, sampling, preserve or Retained(), retain)

        def loss(iteration: int) -> Mapping[str, Tensor]:
            batch = points.batch(iteration, student)
            n = len(batch.texts)
            start = [] if self.erase_from is None else [[self.erase_from] * n]
            null, concept, *started = teacher.noise(student, batch, [self.anchor] * n, batch.texts, *start)
            target = losses.esd_target(null, concept, self.eta, *started)
            found = noise_of(pipe, batch, told, start[0] if start else batch.texts)
            terms = {"erase": losses.mean_square(found, target)}
            return terms if retained is None else {**terms, "retain": retained(iteration)}

        return loss

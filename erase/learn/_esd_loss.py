"""ESD's loss for any student: weights that move (`erase.esd`), or gates that close (`erase.differentiable_prune`)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from erase import losses
from erase._concepts import surface_forms
from erase.learn._eraser import Sampling, noise_of
from erase.learn._pairs import given_pairs
from erase.learn._student import Student
from erase.learn._teacher import Teacher
from erase.learn._texts import Texts
from erase.learn._training import Loss
from probe import Concept
from probe.errors import BadInput


@dataclass(frozen=True)
class EsdObjective:
    """ESD's loss in words and numbers: see `erase.esd`; ``anchors`` are of single ``texts``, before the one of all."""

    texts: tuple[str, ...]
    anchor: str
    anchors: Mapping[str, str]
    eta: float
    erase_from: str | None

    @classmethod
    def of(
        cls,
        items: Sequence[Concept | str],
        prompts: Sequence[Any] | None,
        *,
        anchor: str | None,
        eta: float,
        erase_from: str | None,
    ) -> EsdObjective:
        """Checked: texts there are, no anchor that is one of them, a finite strength."""
        anchors = dict(given_pairs(prompts) or ())
        if anchors and anchor is not None:
            raise BadInput(
                "pairs of prompts have their own anchors", given=f"anchor={anchor!r}", fix="one or the other"
            )
        texts = tuple(anchors or (surface_forms(items) if prompts is None else dict.fromkeys(prompts)))
        if not texts or not all(text.strip() for text in texts):
            raise BadInput("there are no texts to train on", given=repr(prompts), fix="prompts=['...']")
        if same := set(texts) & ({*anchors.values()} or {anchor or ""}):
            raise BadInput("the anchor is the concept itself", given=repr(same.pop()), fix="another anchor, or none")
        if not math.isfinite(eta):
            raise BadInput("eta must be finite", given=eta)
        return cls(texts, anchor or "", anchors, eta, erase_from)

    def to_json(self) -> dict[str, Any]:
        """What an identity keeps."""
        pairs = {"anchors": list(self.anchors.values())} if self.anchors else {}
        common = {"texts": list(self.texts), "anchor": self.anchor, "eta": self.eta, "erase_from": self.erase_from}
        return {**common, **pairs}

    def loss(self, pipe: Any, student: Student, sampling: Sampling) -> Loss:
        """iteration -> the term ``erase``; draws the points."""
        points = sampling.points(pipe, self.texts)
        told = Texts(pipe, points.size)
        teacher = Teacher(pipe, told)

        def loss(iteration: int) -> Mapping[str, Tensor]:
            batch = points.batch(iteration, student)
            n = len(batch.texts)
            start = [] if self.erase_from is None else [[self.erase_from] * n]
            anchors = [self.anchors.get(text, self.anchor) for text in batch.texts]
            null, concept, *started = teacher.noise(student, batch, anchors, batch.texts, *start)
            target = losses.esd_target(null, concept, self.eta, *started)
            found = noise_of(pipe, batch, told, start[0] if start else batch.texts)
            return {"erase": losses.mean_square(found, target)}

        return loss

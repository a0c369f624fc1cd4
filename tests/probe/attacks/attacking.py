"""A judge that does as told, edits that do and do not pass gradients, and a quick call of an attack."""

from __future__ import annotations

import numpy as np

from probe.attacks import attack
from tests.probe.measuring import ScaledWeight, concept

CHURCH = concept("church")
PROMPTS = ["a church", "a church by the sea"]
QUICK = {"steps": 2, "progress": False, "prompts": PROMPTS, "vocab": "open"}


class Told:
    """A judge whose verdicts are given: never, always, or from the n-th picture it sees on."""

    labels = ("object/church", "object/castle", "object/none")
    thresholds = np.full(3, 0.5)

    def __init__(self, hits_from: float = np.inf) -> None:
        self.id, self.hits_from, self.seen, self.images = f"told-{hits_from}", hits_from, 0, []

    def __call__(self, images):
        scores = np.zeros((len(images), 3))
        for row, image in zip(scores, images, strict=True):
            row[0] = 0.9 if self.seen >= self.hits_from else 0.1 + image.mean() / 2550
            self.seen += 1
            self.images.append(image)
        return scores


class Opaque(ScaledWeight):
    """An edit that no gradient passes."""

    differentiable = False


def attacked(pipe, method, *, judge=None, edit=None, **options):
    return attack(pipe, CHURCH, method=method, judge=judge or Told(), edit=edit, **{**QUICK, **options})

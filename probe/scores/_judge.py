"""The concept's log-odds in the eyes of a judge: of finished pictures, and with gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from probe.errors import BadInput, UnknownName, unknown_name
from probe.metrics import hits, labels_of, log_odds

_FIX = "an object with id, labels and log_odds(images, labels), or emoji_cnn"


@runtime_checkable
class DifferentiableJudge(Protocol):
    """A judge through which gradients flow."""

    @property
    def id(self) -> str:
        """Name and weights."""
        ...

    @property
    def labels(self) -> Sequence[str]:
        """What it can tell, ``family/name``."""
        ...

    def log_odds(self, images: Tensor, labels: Sequence[str]) -> Tensor:
        """Log-odds (n label) of chosen labels for pictures (n 3 y x) in 0 to 1."""
        ...


def labels_for(concept: Any, judge: Any) -> tuple[str, ...]:
    """The judge's labels that show a concept: an object of a world, or a name or label as the judge has it.

    Raises `BadInput` without a concept, `UnknownName` with the nearest labels where the judge knows none of the name.
    """
    if concept is None:
        raise BadInput("the judge needs a concept to look for", fix="concept=world['church'], or its name")
    known = list(judge.labels)
    if isinstance(concept, str):
        found = tuple(label for label in known if concept in (label, label.rsplit("/", 1)[-1]))
        if not found:
            raise unknown_name(f"label of the judge {judge.id}", concept, known)
        return found
    found = labels_of(concept)
    if missing := [label for label in found if label not in known]:
        raise unknown_name(f"label of the judge {judge.id}", missing[0], known)
    if not found:
        raise BadInput("the concept names no label of a judge", given=concept.name, fix="give it members or a detector")
    return found


def judge_of(detector: Any) -> Any:
    """A judge of pictures, from its name or as it is. Raises `BadInput` for what can judge nothing."""
    if isinstance(detector, str):
        from probe.detect import detector as by_name

        return by_name(detector)
    lacking = [name for name in ("id", "labels", "thresholds") if not hasattr(detector, name)]
    if lacking or not callable(detector):
        given = repr(detector) + (f", without {', '.join(lacking)}" if lacking else "")
        raise BadInput(
            "a detector is needed to judge pictures", given=given, fix="detector=probe.detector('emoji_cnn')"
        )
    return detector


def differentiable(detector: Any) -> DifferentiableJudge:
    """A judge through which gradients flow, from its name or as it is. Raises `BadInput` where none do."""
    if isinstance(detector, str):
        from probe.detect import detectors

        if detector == "emoji_cnn":
            return _EmojiCNN()
        if detector not in detectors():
            raise unknown_name("detector", detector, detectors())
    elif isinstance(detector, DifferentiableJudge):
        return detector
    raise BadInput("no gradient flows through this detector", given=repr(detector), fix=_FIX)


def judged(judge: Any, images: np.ndarray, labels: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Log-odds (s,) of the likeliest of the labels, and hits (s,) 0 or 1, of pictures uint8 (s y x rgb).

    NaN where the judge failed, and for pictures without any light: their drawing failed.
    """
    scores = np.array(judge(images), np.float64)
    scores[~images.reshape(len(images), -1).any(axis=1)] = np.nan
    columns = [list(judge.labels).index(label) for label in labels]
    shown = hits(scores, judge.labels, np.asarray(judge.thresholds, np.float64), [labels] * len(images))
    return log_odds(scores[:, columns].max(1)), shown


class _EmojiCNN:
    """The embedded judge with gradients: its scores are a softmax of each family of labels."""

    def __init__(self) -> None:
        from probe.detect import _emoji, detector

        settings, tensors, _ = _emoji._read("emoji_cnn")
        self.labels: list[str] = list(settings["labels"])
        self.id = str(detector("emoji_cnn").id)
        self._net = _emoji.JudgeCNN(_emoji.families(self.labels), tuple(settings["widths"])).eval()
        self._net.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
        self._net.requires_grad_(False)
        self._size = _emoji.SIZE

    def log_odds(self, images: Tensor, labels: Sequence[str]) -> Tensor:
        """See `DifferentiableJudge`."""
        pixels = images.float() * 2 - 1
        if tuple(pixels.shape[-2:]) != (self._size, self._size):
            mode = "area" if min(pixels.shape[-2:]) >= self._size else "bilinear"
            pixels = F.interpolate(pixels, (self._size, self._size), mode=mode)
        logits = self._net.to(pixels.device)(pixels)
        return torch.stack([_against_its_family(logits, self.labels, label) for label in labels], dim=1)


def _against_its_family(logits: dict[str, Tensor], labels: Sequence[str], label: str) -> Tensor:
    """z_l - log sum of exp z over the family's other labels: the log-odds of one label of a softmax, (n,)."""
    family = label.partition("/")[0]
    names = [name for name in labels if name.partition("/")[0] == family]
    if label not in names:
        raise UnknownName("unknown label", given=label)
    z, own = logits[family], names.index(label)
    others = torch.cat([z[:, :own], z[:, own + 1 :]], dim=1)
    return z[:, own] - others.logsumexp(dim=1)

"""From label scores to verdicts, and from prompts to the labels a verdict is about. Pure functions.

Labels are ``family/name``: ``object/church``, ``object/none``, ``style/ink``. A label is hit where its score reaches
its own threshold; a concept is shown where one of its labels is hit.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float

from probe.errors import unknown_name

#: Probabilities are brought this far inside (0, 1): float32 scores resolve no more, and log-odds stay within +-13.8.
EDGE = 1e-6

NONE = "object/none"


@runtime_checkable
class ConceptLike(Protocol):
    """What measuring needs to know of a concept."""

    @property
    def name(self) -> str:
        """Its name, also its label's."""
        ...

    @property
    def kind(self) -> str:
        """``object``, ``group``, ``character``, ``style`` or ``profession``."""
        ...

    @property
    def members(self) -> Sequence[str]:
        """Names of a group's members, else empty."""
        ...

    @property
    def surface_forms(self) -> Sequence[str]:
        """Every name and synonym."""
        ...

    @property
    def detector(self) -> str | None:
        """``judge:label``, or the judge alone, or None."""
        ...


def labels_of(concept: ConceptLike, world: Mapping[str, ConceptLike] | None = None) -> tuple[str, ...]:
    """The judge's labels that show a concept: those of a group's members, else the one its ``detector`` names.

    ``detector`` is ``judge:label``; where it names no label, the label is ``style/<name>`` or ``object/<name>``.
    """
    if concept.kind == "group":
        known = world or {}
        own = (labels_of(known[m]) if m in known else (f"object/{m}",) for m in concept.members)
        return tuple(label for labels in own for label in labels)
    _, _, label = (concept.detector or "").partition(":")
    return (label or f"{'style' if concept.kind == 'style' else 'object'}/{concept.name}",)


class ContentFinder:
    """Finds what a prompt names besides its concept: the style where that is a thing, the things where it is a style.

    Concepts are found by name and surface forms, as whole words, the longest first: "skull and crossbones" is no
    skull.
    """

    def __init__(self, world: Mapping[str, ConceptLike]) -> None:
        self._labels: dict[bool, dict[str, tuple[str, ...]]] = {True: {}, False: {}}
        for c in world.values():
            for form in (c.name, *c.surface_forms):
                self._labels[c.kind == "style"].setdefault(form.lower(), labels_of(c, world))
        self._patterns = {is_style: _any_of(forms) for is_style, forms in self._labels.items()}

    def __call__(self, prompt: str, concept: ConceptLike) -> tuple[str, ...]:
        """The labels of what is named; empty where there is no content to keep."""
        wanted = concept.kind != "style"
        found = self._patterns[wanted].findall(prompt.lower())
        return tuple(dict.fromkeys(label for form in found for label in self._labels[wanted][form]))


def content_labels(prompt: str, concept: ConceptLike, world: Mapping[str, ConceptLike]) -> tuple[str, ...]:
    """The labels of what a prompt names besides its concept; see `ContentFinder`."""
    return ContentFinder(world)(prompt, concept)


def _any_of(forms: Iterable[str]) -> re.Pattern[str]:
    longest_first = sorted(forms, key=len, reverse=True)
    return re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, longest_first)) or '(?!)'})(?!\w)")


def hits(
    scores: Float[np.ndarray, "s label"],
    labels: Sequence[str],
    thresholds: Float[np.ndarray, " label"],
    wanted: Sequence[Sequence[str]],
) -> Float[np.ndarray, " s"]:
    """1 where one of the sample's wanted labels reaches its threshold, else 0.

    NaN where nothing is wanted, or where a wanted score is NaN and no other is hit: the judge failed there.

    Raises:
        UnknownName: the judge has no such label.

    """
    place = {label: i for i, label in enumerate(labels)}
    found = np.full(len(scores), np.nan)
    for s, names in enumerate(wanted):
        for name in names:
            if name not in place:
                raise unknown_name("label of the judge", name, labels)
        at = [place[name] for name in names]
        reached = scores[s, at] >= thresholds[at]
        if reached.any():
            found[s] = 1.0
        elif at and not np.isnan(scores[s, at]).any():
            found[s] = 0.0
    return found


def concept_log_odds(
    scores: Float[np.ndarray, "s label"], labels: Sequence[str], wanted: Sequence[Sequence[str]]
) -> Float[np.ndarray, " s"]:
    """Log-odds of the likeliest of each sample's wanted labels: moves where a rate is 0 or 1. NaN as in `hits`.

    Raises:
        UnknownName: the judge has no such label.

    """
    place = {label: i for i, label in enumerate(labels)}
    if unknown := [name for names in wanted for name in names if name not in place]:
        raise unknown_name("label of the judge", unknown[0], labels)
    best = [scores[s, [place[name] for name in names]].max() if names else np.nan for s, names in enumerate(wanted)]
    return log_odds(np.array(best, dtype=np.float64))


def log_odds(p: Float[np.ndarray, " s"]) -> Float[np.ndarray, " s"]:
    """log(p / (1 - p)), of probabilities that are kept off 0 and 1; NaN stays NaN."""
    inside = np.clip(p, EDGE, 1 - EDGE)
    return np.log(inside) - np.log1p(-inside)


def broken(scores: Float[np.ndarray, "s label"], labels: Sequence[str]) -> Float[np.ndarray, " s"]:
    """1 where ``object/none`` has the highest score of the object family, else 0; NaN where the judge failed.

    Raises:
        UnknownName: the judge has no ``object/none``.

    """
    if NONE not in labels:
        raise unknown_name("label of the judge", NONE, labels)
    family = [i for i, label in enumerate(labels) if label.startswith("object/")]
    of_objects = scores[:, family]
    failed = np.isnan(of_objects).any(axis=1)
    top = np.argmax(np.where(np.isnan(of_objects), -np.inf, of_objects), axis=1)
    return np.where(failed, np.nan, (top == family.index(labels.index(NONE))).astype(float))

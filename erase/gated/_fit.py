"""What erasers that learn from texts share: the texts of each concept, its stages, and what is kept of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from erase import _in_force
from erase._concepts import identity
from erase.gated import _learning as learning
from erase.gated._phrases import Phrases, anchors_of, phrases_of
from erase.gated._projections import Projections, encoded, projections_of
from erase.gated._settings import Settings
from erase.gated._stages import Stages
from erase.learn._folder import NOTHING_KEPT
from probe import Concept
from probe._progress import progress_bar
from probe.errors import BadInput, interrupted
from probe.protocols import Progress
from probe.provenance import fingerprint, identity_id

_NETWORKS = ("text_encoder", "text_encoder_2", "unet")


@dataclass(frozen=True, eq=False)
class Fitted:
    """What was learned, one entry a concept, and what an edit says of it."""

    projections: Projections
    learned: list[dict[str, Tensor]]
    options: dict[str, Any]
    inputs: dict[str, Any]
    report: dict[str, Any]


def fitted(
    pipe: Any,
    erased: Sequence[Concept | str],
    settings: Settings,
    *,
    method: str,
    anchor: str | None,
    preserve: Any,
    nearest: int | None,
    general: Sequence[str] | None,
    templates: Sequence[str] | None,
    training: str | Path | None,
    force: bool,
    progress: Progress,
) -> Fitted:
    """Each concept learns apart, from its texts and the same pool of anchors; see `erase.resag`."""
    if nearest is not None and nearest < 1:
        raise BadInput("nearest must be at least 1", given=nearest, fix="preserve=() for no words to preserve")
    phrases = [phrases_of(concept, anchor, templates) for concept in erased]
    pool = anchors_of(erased, preserve, general, templates)
    projections = projections_of(pipe)
    inputs = {
        "concepts": identity(erased),
        "pairs": [list(map(list, one.pairs)) for one in phrases],
        "anchors": {word: list(texts) for word, texts in pool.items()},
    }
    options = {**settings.to_json(), "nearest": nearest, "anchor": anchor}
    kept = Stages(training, _decides(pipe, method, options, inputs), force=force)
    started = time.perf_counter()
    learned, report = [], {}
    try:
        with progress_bar(progress, settings.total * len(erased), method) as advance:
            lessons = Lessons(pipe, pool, nearest)
            for i, one in enumerate(phrases):
                values, terms = _one_gate(i, lessons.of(one), projections, settings, kept, advance)
                learned.append(values)
                report[one.name] = terms
    except KeyboardInterrupt as error:
        stages = f"finished stages are kept at {training}; repeat the same call to go on"
        interrupted(error, f"{method} interrupted: {NOTHING_KEPT if training is None else stages}")
        raise
    seconds = round(time.perf_counter() - started, 2)
    return Fitted(projections, learned, options, _brief(inputs), {"concepts": report, "seconds": seconds})


def _one_gate(
    place: int,
    lesson: learning.Lesson,
    projections: Projections,
    settings: Settings,
    kept: Stages,
    advance: Callable[[int], object],
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The stages of one concept: its gate, and the losses at the end of each."""
    device = projections.shares.device
    values = learning.initial(projections, settings, lesson.name)
    none = torch.zeros(0, *lesson.target.shape[1:], device=device)
    every, curve = [none], []
    for stage in range(settings.stages):
        if (found := kept.load(place, stage)) is not None:
            values = {name: value.to(device) for name, value in found[0].items()}
            latest, terms = found[1].to(device), found[2]
            advance(settings.erasing(stage)[0] + settings.attacking(stage))
        else:
            against = torch.cat(every) if settings.keep_adversaries == "all" else every[-1]
            terms = learning.erase_stage(values, against, lesson, projections, settings, stage, advance)
            latest = none
            if settings.attacking(stage):
                latest, more = learning.attack_stage(values, lesson, projections, settings, stage, advance)
                terms |= more
            kept.save(place, stage, values, latest, terms)
        every.append(latest)
        curve.append(terms)
    return values, {"stages": curve, "eta": settings.eta, **learning.measured(values, lesson, projections, settings)}


class Lessons:
    """Encodes texts; those of anchors once for all concepts."""

    def __init__(self, pipe: Any, pool: Mapping[str, Sequence[str]], nearest: int | None) -> None:
        self._pipe, self._pool, self._nearest = pipe, pool, nearest
        self._empty = encoded(pipe, [""])
        self._words = encoded(pipe, list(pool)).flatten(1) if pool else None
        self._texts: dict[str, Tensor] = {}

    def of(self, phrases: Phrases) -> learning.Lesson:
        """The texts of one concept, with its nearest anchors."""
        target, neutral = (encoded(self._pipe, texts) for texts in zip(*phrases.pairs, strict=True))
        words = self._near(phrases.bare)
        for word in words:
            if word not in self._texts:
                self._texts[word] = encoded(self._pipe, self._pool[word])
        pool = torch.cat([self._texts[word] for word in words]) if words else self._empty[:0]
        return learning.Lesson(phrases.name, target, neutral, pool, self._empty)

    def _near(self, bare: str) -> list[str]:
        words = list(self._pool)
        if self._words is None or self._nearest is None or len(words) <= self._nearest:
            return words
        own = encoded(self._pipe, [bare]).flatten(1)
        order = torch.nn.functional.cosine_similarity(self._words, own).argsort(descending=True, stable=True)
        return [words[i] for i in sorted(order[: self._nearest].tolist())]


def _decides(pipe: Any, method: str, options: Mapping[str, Any], inputs: Mapping[str, Any]) -> dict[str, Any]:
    """What decides the numbers of a training."""
    networks = [part for part in _NETWORKS if getattr(pipe, part, None) is not None]
    return {
        "method": method,
        "options": dict(options),
        "inputs": dict(inputs),
        "model": fingerprint(pipe).to_json(networks),
        "base_edits": [list(part) for entry in _in_force.entries(pipe) for part in entry.edit.parts],
    }


def _brief(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Names, and the hash of all texts: an edit's identity need not repeat them."""
    return {"concepts": inputs["concepts"], "anchors": sorted(inputs["anchors"]), "texts": identity_id(inputs)}

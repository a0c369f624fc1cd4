"""Who judges the pictures of an evaluation: by name, as an object, as a function, or nobody."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from probe.errors import BadInput, unknown_name
from probe.metrics import Metric, labels_of
from probe.metrics._judging import NONE

logger = logging.getLogger(__name__)

SECOND = "emoji_nearest"  # the default second opinion; knows the embedded world only
ZERO_SHOT = "clip_zero_shot"


def judges_of(
    judge: Any, second: Any, clip: Any, concepts: Sequence[Any], world: Mapping[str, Any], metrics: Sequence[Metric]
) -> dict[str, Any]:
    """The judges by role, loaded: ``judge`` if there is one, ``second`` if a metric asks for it."""
    found = {}
    named = judge if judge is not None else common(concepts)
    if named is not None:
        found["judge"] = _loaded(named, clip, concepts, world)
    if any(m.source == "second" for m in metrics) and second is not None and (named is not None or second != SECOND):
        found["second"] = _loaded(second, clip, concepts, world)
    if featured := [m.name for m in metrics if m.source == "features"]:
        _check_features(found.get("judge"), featured[0])
    if missing := [m.name for m in metrics if _unanswered(m, found)]:
        why = "no detector decides: the concepts name none, and judge= was not given" if named is None else ""
        why = why or "there is no detector for them that could tell"
        fix = "give judge=: a name, a Detector, a function; or judge='clip_zero_shot' with clip='folder'"
        logger.warning("%s will be NaN: %s. %s", ", ".join(missing), why, fix)
    return found


def check_labels(judges: Mapping[str, Any], concepts: Iterable[str], world: Mapping[str, Any]) -> dict[str, Any]:
    """The judges, without the default second opinion where it does not know one of these concepts.

    Raises:
        UnknownName: another judge has no label for one of them.

    """
    kept = dict(judges)
    for role, judge in judges.items():
        absent = [
            label for name in sorted(concepts) for label in labels_of(world[name], world) if label not in judge.labels
        ]
        if not absent:
            continue
        if role == "second" and getattr(judge, "name", None) == SECOND:
            logger.warning("rate_second will be NaN: %s has no label %s", judge.id, absent[0])
            del kept[role]
        else:
            raise unknown_name(f"label of the judge {judge.id}", absent[0], judge.labels)
    return kept


def common(concepts: Sequence[Any]) -> str | None:
    """The judge that these concepts name in ``detector``, ``judge:label``; None where they name none."""
    names = {name for c in concepts if (name := (c.detector or "").partition(":")[0])}
    if len(names) > 1:
        raise BadInput("these concepts name different judges", given=", ".join(sorted(names)), fix="pass judge=")
    return names.pop() if names else None


def _loaded(judge: Any, clip: Any, concepts: Sequence[Any], world: Mapping[str, Any]) -> Any:
    from probe.detect import detector, from_function

    if judge == ZERO_SHOT:
        if clip is None:
            raise BadInput(f"the judge {ZERO_SHOT} needs a CLIP model", fix="clip='folder of a CLIP model'")
        # of the whole world, so that its id does not depend on which concepts a call is about
        return detector(ZERO_SHOT, folder=clip, concepts=world)
    if isinstance(judge, str):
        return detector(judge)
    if hasattr(judge, "labels") or not callable(judge):
        if missing := [part for part in ("id", "labels", "thresholds") if not hasattr(judge, part)]:
            raise BadInput(f"a judge has {missing[0]}", given=repr(judge), fix="probe.Detector, or a function")
        return judge
    labels = dict.fromkeys(label for c in concepts for label in labels_of(c, world))
    return from_function(judge, list(labels), together=len(concepts) == 1)


def _unanswered(m: Metric, judges: Mapping[str, Any]) -> bool:
    if m.source == "judge" and m.name == "broken" and "judge" in judges:
        return NONE not in judges["judge"].labels
    return m.source in ("judge", "second") and m.source not in judges


def _check_features(judge: Any, metric: str) -> None:
    fix = "judge='emoji_cnn', or a Detector made with features="
    if judge is None:
        raise BadInput(f"{metric} compares a judge's features, and there is no judge", fix=fix)
    if not callable(getattr(judge, "features", None)) or not getattr(judge, "has_features", True):
        raise BadInput(f"{metric} compares a judge's features, and this judge shows none", given=judge.id, fix=fix)

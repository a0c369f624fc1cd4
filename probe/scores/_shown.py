"""only_shown=: the samples on which the judge saw the concept."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from probe.errors import BadInput, UnknownName
from probe.scores._runs import Recorded

_FIX = "record with detector=probe.detector(...) and concept= (probe record --detector ... --concept ...)"


def only_those_shown(run: Recorded, only_shown: bool | float) -> Recorded:
    """The run without the samples on which the judge did not see their concept; the run itself for False.

    A number is the judge's score from which on the concept counts as seen; True takes the judge's stored threshold of
    each sample's concept. A sample that the judge could not score is left out.

    Raises `BadInput` for a run without a judge's scores, for True where the judge is another by now or has no label of
    the concept's name (a group has one a member), and where nothing is left.
    """
    if only_shown is False:
        return run
    scores = np.asarray(run.ds["shown"].values, np.float32) if "shown" in run.ds.coords else np.empty(0)
    if np.isnan(scores).all():
        raise BadInput("the run has no judge's scores to choose shown samples by", given=run.run_id, fix=_FIX)
    seen = scores >= (_thresholds(run) if only_shown is True else float(only_shown))
    if not seen.any():
        given = f"highest score {np.nanmax(scores):.2g}, only_shown={only_shown}"
        raise BadInput("the judge saw the concept on no sample", given=given, fix="lower only_shown, or leave it out")
    return replace(run, ds=run.ds.isel(sample=np.flatnonzero(seen)))


def _thresholds(run: Recorded) -> np.ndarray:
    """(s,) the judge's threshold for each sample's concept."""
    from probe.detect import detector

    recorded_by = str(run.identity.get("detector"))
    fix = "give the score from which on a concept counts as seen, only_shown=0.5"
    try:
        judge = detector(recorded_by.partition(":")[0])
    except UnknownName as error:
        raise BadInput("the judge of the run is not registered here", given=recorded_by, fix=fix) from error
    if judge.id != recorded_by:
        raise BadInput("the judge of the run is another by now", given=judge.id, expected=recorded_by, fix=fix)
    names = np.asarray(run.ds["concept"].values, object)
    cuts = {}
    for name in dict.fromkeys(names):
        columns = [i for i, label in enumerate(judge.labels) if name in (label, label.rsplit("/", 1)[-1])]
        if not columns:
            raise BadInput("the judge has no threshold for a concept of this name", given=repr(name), fix=fix)
        cuts[name] = min(float(judge.thresholds[i]) for i in columns)
    return np.array([cuts[name] for name in names], np.float32)

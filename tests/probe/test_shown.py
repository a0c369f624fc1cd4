"""only_shown=True: the judge's own thresholds, concept by concept."""

from __future__ import annotations

import numpy as np
import pytest

from probe.detect import Detector, register_detector
from probe.errors import BadInput
from probe.scores._runs import recorded
from probe.scores._shown import only_those_shown
from tests.probe.made_runs import made_run

LABELS = ("object/church", "object/castle", "style/ink")


@pytest.fixture
def judge() -> Detector:
    name = "thresholds of a test"
    thresholds = np.array([0.5, 0.8, 0.3])
    register_detector(name, lambda: Detector(name, LABELS, thresholds, lambda images: np.zeros((len(images), 3))))
    return Detector(name, LABELS, thresholds, lambda images: np.zeros((len(images), 3)))


def run(judge_id: str | None, concepts: list[str], shown: list[float]):
    ds = made_run(np.arange(len(shown) * 2, dtype=float).reshape(-1, 2), shown=np.array(shown), detector=judge_id)
    return recorded(ds.assign_coords(concept=("sample", np.array(concepts, object))), "unet", "absmean")


def test_each_concept_has_the_threshold_of_its_label(judge: Detector) -> None:
    source = run(judge.id, ["church", "church", "castle", "castle", "ink"], [0.5, 0.49, 0.79, 0.8, np.nan])
    left = only_those_shown(source, True)
    np.testing.assert_array_equal(left.ds["absmean"].values[:, 0, 0, 0], [0, 6])
    assert left.reference_json()["samples"]["n"] == 2
    assert only_those_shown(source, False) is source
    assert only_those_shown(source, 0.49).n_samples == 4


def test_thresholds_that_are_not_known(judge: Detector) -> None:
    with pytest.raises(BadInput, match=r"no threshold for a concept of this name.*weapon.*0\.5"):
        only_those_shown(run(judge.id, ["weapon"] * 3, [0.1, 0.2, 0.3]), True)
    with pytest.raises(BadInput, match="another by now"):
        only_those_shown(run(judge.id + "x", ["church"] * 3, [0.1, 0.2, 0.3]), True)
    with pytest.raises(BadInput, match="on no sample"):
        only_those_shown(run(judge.id, ["church"] * 3, [0.1, 0.2, 0.3]), True)

"""UCE's debiasing with a judge that reads colours of a tiny pipeline's pictures."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import erase
from erase.closed_form import _debias
from erase.closed_form._debias import _pushed, _rows
from probe import Detector
from probe.errors import BadInput, UnknownName
from tests.erase.closed_form.worlds import KEEP, embedding, end, keys_and_values, pipeline
from tests.erase.snapshots import snapshot

ATTRIBUTES = {"tone/dark": "dark", "tone/light": "light"}
SHORT = {"templates": ("{}",), "pictures": 4, "steps": 1, "preserve": KEEP, "collapse": float("inf"), "progress": False}


def by_brightness(at: float) -> Detector:
    def score(images: np.ndarray) -> np.ndarray:
        light = images.reshape(len(images), -1).mean(1) / 255 > at
        return np.stack([~light, light], axis=1).astype(np.float32)

    return Detector("brightness", tuple(ATTRIBUTES), np.array([0.5, 0.5]), score)


def test_the_push_by_hand():
    """sum_j push_j ||W c|| W a_j / ||W a_j||, norms over all rows of the prompt."""
    pipe = pipeline()
    rows = _rows(pipe, {"cook": ["a cook", "the cook"]}, list(ATTRIBUTES.values()), "edit")["tokens"]
    weight = next(iter(keys_and_values(pipe).values())).double()
    found = _pushed(rows, weight, torch.tensor([[0.3, -0.2]], dtype=torch.float64)).numpy()
    at = 0
    for prompt in ("a cook", "the cook"):
        texts = [prompt, *ATTRIBUTES.values()]
        parts = [embedding(pipe, text)[end(pipe, text) - 1 :] for text in texts]
        n = min(map(len, parts))
        own, dark, light = (part[:n] @ weight.numpy().T for part in parts)
        length = np.linalg.norm(own)
        expected = 0.3 * length * dark / np.linalg.norm(dark) - 0.2 * length * light / np.linalg.norm(light)
        np.testing.assert_allclose(found[at : at + n], expected, rtol=1e-9)
        at += n
    assert at == len(found)


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_rounds_are_measured_and_nothing_is_left_behind(kind):
    pipe = pipeline(kind)
    before = snapshot(pipe)
    edit = erase.uce_debias(pipe, ["cook", "judge"], attributes=ATTRIBUTES, judge=by_brightness(0.0), rounds=2, **SHORT)
    assert snapshot(pipe) == before
    assert edit.report["rounds"][0] == {"cook": [0.0, 1.0], "judge": [0.0, 1.0]}
    assert len(edit.report["rounds"]) == 3
    assert any(change.dense().abs().max() > 0 for change in edit.changes)
    assert ("unet.add_embedding.linear_1.weight" in edit.params) is (kind == "sdxl")


def test_when_rounds_run_out_the_last_shares_are_those_of_the_edit(monkeypatch):
    drawn = []

    def shares(_pipe, edit, *_args, **_how):
        drawn.append(edit)
        return np.array([0.0, 1.0])

    monkeypatch.setattr(_debias, "_shares", shares)
    edit = erase.uce_debias(pipeline(), "cook", attributes=ATTRIBUTES, judge=by_brightness(0.0), rounds=2, **SHORT)
    assert drawn[0] is None
    assert len(drawn) == len(edit.report["rounds"]) == 3
    for measured, returned in zip(drawn[-1].changes, edit.changes, strict=True):
        assert torch.equal(measured.dense(), returned.dense())


def test_a_concept_that_is_as_wanted_is_left_alone():
    pipe = pipeline()
    with pytest.raises(BadInput, match="as wanted already"):
        erase.uce_debias(
            pipe, "cook", attributes=ATTRIBUTES, ratios={"tone/dark": 0.0, "tone/light": 1.0},
            judge=by_brightness(0.0), **SHORT,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"attributes": {"tone/dark": "dark"}}, "two attributes"),
        ({"ratios": {"tone/dark": 0.5}}, "different labels"),
        ({"ratios": {"tone/dark": 0.5, "tone/light": 0.6}}, "add up to 1"),
        ({"rounds": 0}, "rounds must be"),
        ({"step": 0.0}, "step must be"),
    ],
)
def test_bad_input(options, match):
    given = {"attributes": ATTRIBUTES, "judge": by_brightness(0.5)} | SHORT | options
    with pytest.raises(BadInput, match=match):
        erase.uce_debias(pipeline(), "cook", **given)


def test_unknown_labels_are_named():
    attributes = {"tone/drak": "dark", "tone/light": "light"}
    with pytest.raises(UnknownName, match="tone/dark"):
        erase.uce_debias(pipeline(), "cook", attributes=attributes, judge=by_brightness(0.5), **SHORT)

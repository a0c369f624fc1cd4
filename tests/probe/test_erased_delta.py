"""erased_delta against its definition, on made runs and on a model with an edit; what it refuses."""

from __future__ import annotations

import numpy as np
import pytest

import erase
import probe
from probe.errors import BadInput, HeaderMismatch
from probe.scores import score
from probe.testing import tiny_pipeline
from tests.erase.snapshots import FF, edit_of, random_mask
from tests.probe.made_runs import made_run

INPUTS = {"kind": "trajectories", "id": "t"}


def values(seed: int, s: int = 12, n: int = 6) -> np.ndarray:
    return np.random.default_rng(seed).uniform(0.5, 2, (s, n)).astype(np.float32)


def runs(before: np.ndarray, after: np.ndarray, **changed):
    common = {"widths": (4, 2), "seeds_per_prompt": 1, "inputs": INPUTS, **changed}
    edited = {"lineage": [["e1", "church"]]}
    target, reference = made_run(before, **common), made_run(after, **{**common, **edited})
    return target, reference


def with_fan_out(ds, fan_out):
    return ds.assign_coords(fan_out=("neuron", np.asarray(fan_out, np.float32)))


def test_the_score_is_its_definition() -> None:
    before, after = values(0), values(1)
    out, edited = np.array([1, 2, 3, 4, 5, 6.0]), np.array([1, 0, 3, 2, 5, 0.0])
    target, reference = runs(before, after)
    target, reference = with_fan_out(target, out), with_fan_out(reference, edited)
    nm = score(target, reference, method="erased_delta", intervals=0)
    means = [[sum(float(x) for x in side[:, j]) / 12 for j in range(6)] for side in (before, after)]
    was = [m * f for m, f in zip(means[0], out, strict=True)]
    left = [m * f for m, f in zip(means[1], edited, strict=True)]
    of_site = [sum(was[:4]) / 4] * 4 + [sum(was[4:]) / 2] * 2
    expected = [(a - b) / (c + 1e-6) for a, b, c in zip(was, left, of_site, strict=True)]
    np.testing.assert_allclose(nm.dataset["score"].values[0], expected, rtol=1e-5)
    np.testing.assert_allclose(nm.dataset["target"].values[0], was, rtol=1e-5)
    np.testing.assert_allclose(nm.dataset["reference"].values[0], left, rtol=1e-5)
    plain = score(target, reference, method="erased_delta", intervals=0, normalise="none", form="raw")
    np.testing.assert_allclose(
        plain.dataset["score"].values[0], [a - b for a, b in zip(*means, strict=True)], rtol=1e-4
    )


def test_a_neuron_that_nothing_moved_has_no_raw_score() -> None:
    before, after = values(0), values(1)
    after[:, 2] = before[:, 2]
    target, reference = runs(before, after)
    raw = score(target, reference, method="erased_delta", form="raw")
    assert np.flatnonzero(np.isnan(raw.dataset["score"].values[0])).tolist() == [2]
    assert raw.report["not_measured"] == 1
    assert "pass on" in raw.report["not_measured_because"]
    contribution = score(with_fan_out(target, [2] * 6), with_fan_out(reference, [1] * 6), method="erased_delta")
    assert contribution.dataset["score"].values[0, 2] > 0


def test_intervals_hold_the_score_and_are_paired() -> None:
    before = values(0, s=40)
    noise = np.random.default_rng(3).normal(0, 0.01, before.shape).astype(np.float32)
    nm = score(*runs(before, before - 0.3 + noise), method="erased_delta", intervals=3, normalise="none", form="raw")
    low, middle, high = (nm.dataset[name].values[0] for name in ("ci_low", "score", "ci_high"))
    known = ~np.isnan(low)
    assert known.sum() == 3
    assert (low[known] < middle[known]).all()
    assert (middle[known] < high[known]).all()
    assert (high[known] - low[known]).max() < 0.02, "samples vary by far more: only pairs can tell"


def test_what_cannot_be_compared_is_refused() -> None:
    before, after = values(0), values(1)
    target, reference = runs(before, after)
    with pytest.raises(BadInput, match="same model"):
        score(target, target, method="erased_delta")
    with pytest.raises(BadInput, match="same x_t"):
        score(made_run(before, (4, 2)), reference, method="erased_delta")
    with pytest.raises(BadInput, match="different x_t"):
        score(target, runs(before, after, inputs={**INPUTS, "id": "other"})[1], method="erased_delta")
    with pytest.raises(HeaderMismatch, match="sites"):
        score(
            target,
            runs(
                before,
                after,
                widths=(6,),
            )[1],
            method="erased_delta",
        )
    with pytest.raises(HeaderMismatch, match="samples"):
        score(target, runs(before[:10], after[:10])[1], method="erased_delta")
    with pytest.raises(BadInput, match="bootstrap"):
        score(target, reference, method="erased_delta", level=2.0)


def test_on_a_model_and_its_edit(tmp_path) -> None:
    pipe = tiny_pipeline()
    prompts = [f"a church number {i}" for i in range(10)]
    trajectory = probe.trajectories(pipe, prompts, out=tmp_path / "x", steps=2, progress=False)
    edit = edit_of(pipe, random_mask(pipe, FF, share=0.5))
    options = {"trajectories": trajectory.path, "reduce": "absmean", "images": False, "progress": False}
    target = probe.record(pipe, None, out=tmp_path / "original", **options)
    with edit.applied(pipe):
        reference = probe.record(pipe, None, out=tmp_path / "erased", **options)
    nm = probe.score(target, reference, method="erased_delta")
    site = next(site for site in nm.sites if f"unet.{site.module}.weight" == FF)
    own = nm.by_site()[site.name]["score"].values[0]
    assert (own > 0).all(), "half of every neuron's outgoing weights are gone"
    raw = probe.score(target, reference, method="erased_delta", form="raw")
    assert np.isnan(raw.by_site()[site.name]["score"].values).all(), "nothing before them was changed"
    later = [s.name for s in nm.sites if s.order > site.order]
    assert all(np.isfinite(raw.by_site()[name]["score"].values).all() for name in later)
    chosen = nm.select(top=5)
    assert erase.prune_neurons(pipe, chosen).report["units"] == 5


def test_on_an_exported_model(tmp_path) -> None:
    """An exported model names no edit; its weights alone say that it is another."""
    pipe = tiny_pipeline()
    prompts = [f"a church number {i}" for i in range(4)]
    trajectory = probe.trajectories(pipe, prompts, out=tmp_path / "x", steps=2, progress=False)
    edit = edit_of(pipe, random_mask(pipe, FF, share=0.5))
    exported = probe.load(edit.export(pipe, tmp_path / "model"))
    options = {"trajectories": trajectory.path, "reduce": "absmean", "images": False, "progress": False}
    target = probe.record(pipe, None, out=tmp_path / "original", **options)
    with edit.applied(pipe):
        inside = probe.record(pipe, None, out=tmp_path / "erased", **options)
    outside = probe.record(exported, None, out=tmp_path / "exported", **options)
    assert outside.identity["lineage"] == []
    found = [probe.score(target, run, method="erased_delta").dataset for run in (inside, outside)]
    np.testing.assert_allclose(found[0]["score"], found[1]["score"], rtol=1e-5, atol=1e-7)
    assert (found[1]["score"].values > 0).any()
    again = probe.record(probe.load(edit.export(pipe, tmp_path / "again")), None, out=tmp_path / "same", **options)
    with pytest.raises(BadInput, match="same model"):
        probe.score(outside, again, method="erased_delta")

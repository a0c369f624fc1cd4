"""causal against changes made by hand; which neurons it looks at; how it goes on; what it refuses."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from probe import provenance
from probe._generate import generate
from probe._intervention import intervene
from probe._neuron_map import NeuronMap
from probe._record import record
from probe._samples import samples
from probe._sites import sites
from probe.errors import BadInput, HeaderMismatch, UnknownName, WrongModel
from probe.scores import score
from probe.scores._causal import mean_of
from probe.scores._judge import log_odds
from probe.scores._runs import recorded
from probe.testing import tiny_pipeline
from tests.oracles.attribution import paired_change

STEPS, GUIDANCE = 1, 2.0
PROMPTS = [f"a church, number {i}" for i in range(5)]
HOUSES = [f"a house, number {i}" for i in range(5)]


class Glow:
    """A picture shows a church as far as its left half outshines its right; scores are smooth."""

    labels = ("object/church", "object/castle", "object/none")
    thresholds = np.full(3, 0.5, np.float32)

    def __init__(self, fail_after: int | None = None, name: str = "glow") -> None:
        self.id, self.fail_after, self.seen = name, fail_after, 0

    def __call__(self, images):
        if self.fail_after is not None and self.seen >= self.fail_after:
            raise KeyboardInterrupt
        self.seen += len(images)
        light = images.astype(np.float64).mean((1, 3)) / 255
        church = 1 / (1 + np.exp(-60 * (light[:, :8].mean(1) - light[:, 8:].mean(1))))
        return np.stack([church, 0.2 * church, 1 - church], axis=1).astype(np.float32)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A pipeline, runs with the means of two sets of prompts, and some candidates."""
    pipe, folder = tiny_pipeline(), tmp_path_factory.mktemp("runs")
    with torch.no_grad():  # neurons that a judge of 8-bit pictures can see
        for site in sites(pipe, "ffn"):
            site.resolve(pipe).weight[:, :6] *= 40
    few = {"steps": STEPS, "guidance": GUIDANCE, "images": False, "progress": False}
    kept = ("mean", "absmean", "unit_norm")
    target = record(pipe, PROMPTS, out=folder / "target", reduce=kept, seeds=[5, 6, 7, 8, 9], **few)
    reference = record(pipe, HOUSES, out=folder / "reference", reduce=kept, **few)
    bare = record(pipe, HOUSES, out=folder / "bare", reduce="absmean", concept="church", split="explicit", **few)
    names = [site.name for site in sites(pipe, "ffn")]
    return SimpleNamespace(pipe=pipe, target=target, reference=reference, bare=bare, sites=names)


@pytest.fixture
def options(world):
    return {
        "method": "causal",
        "pipe": world.pipe,
        "concept": "church",
        "detector": Glow(),
        "candidates": {world.sites[0]: [3], world.sites[3]: [5, 0]},
        "n_samples": 5,
        "progress": False,
    }


def by_hand(world, units, **change):
    """Log-odds of the church in the target's pictures, with units changed."""
    table = samples(PROMPTS, [5, 6, 7, 8, 9])

    def draw():
        images = generate(world.pipe, table, steps=STEPS, guidance=GUIDANCE, progress=False, batch_size=2)
        return log_odds(Glow()(images)[:, 0].astype(np.float64))

    if not change:
        return draw()
    with intervene(world.pipe, units, **change):
        return draw()


@pytest.mark.parametrize(
    ("change", "sign"),
    [
        ({"mode": "mean"}, 1),
        ({"mode": "zero"}, 1),
        ({"mode": "scale", "value": 3.0}, -1),
        ({"mode": "scale", "value": 0.5}, 1),
    ],
    ids=["mean", "zero", "amplified", "attenuated"],
)
def test_score_is_the_paired_change_of_the_log_odds(world, options, change, sign):
    nm = score(world.target, world.reference, **options, **change)
    frame = nm.to_dataframe()
    before = by_hand(world, None)
    source = {"source": world.reference} if change["mode"] == "mean" else {}
    for site, unit in ((world.sites[0], 3), (world.sites[3], 0)):
        after = by_hand(world, {site: [unit]}, **change, **source)
        row = frame[(frame["site"] == site) & (frame["unit"] == unit)].iloc[0]
        mean, low, high = paired_change(sign * before, sign * after, PROMPTS, 2000, 1)
        assert abs(mean) > 5e-4
        assert row["score"] == pytest.approx(mean, rel=1e-3, abs=1e-5)
        assert (row["target"], row["reference"]) == pytest.approx((before.mean(), after.mean()), rel=1e-3, abs=1e-5)
        width = high - low
        assert (row["ci_low"], row["ci_high"]) == pytest.approx((low, high), abs=0.15 * width)
        assert row["ci_low"] <= row["score"] <= row["ci_high"]
        assert row["rate_before"] == pytest.approx((before >= 0).mean())
        assert row["rate_after"] == pytest.approx((after >= 0).mean())
        assert row["n"] == 5
    assert frame["score"].notna().sum() == 3
    assert len(frame) == 640
    assert nm.select(top=2).selected().sum() == 2
    assert provenance.lineage(world.pipe) == []
    assert not any(m._forward_pre_hooks for m in world.pipe.unet.modules())


def test_the_mean_of_a_run_is_a_run_of_one_sample(world):
    mean = mean_of(recorded(world.reference, "unet", "mean"))
    every = world.reference.open()["mean"].values
    np.testing.assert_allclose(mean["mean"].values, every.mean(0, keepdims=True), rtol=1e-5)


def test_text_encoder_neurons(world, options, tmp_path):
    few = {"steps": STEPS, "guidance": GUIDANCE, "images": False, "progress": False, "reduce": "mean"}
    run = record(world.pipe, HOUSES, out=tmp_path / "text", sites="mlp", **few)
    site = sites(world.pipe, "mlp")[0].name
    nm = score(world.target, run, **{**options, "candidates": {site: [2]}})
    assert nm.sites[0].component == "text_encoder"
    after = by_hand(world, {site: [2]}, mode="mean", source=run)
    assert np.nanmax(nm.dataset["score"].values) == pytest.approx((by_hand(world, None) - after).mean(), rel=1e-3)


def test_a_picture_that_failed_is_left_out_and_counted(world, options):
    class Blind(Glow):
        def __call__(self, images):
            scores = super().__call__(images)
            scores[1] = np.nan
            return scores

    nm = score(world.target, **{**options, "detector": Blind(), "mode": "zero"})
    assert np.nanmax(nm.dataset["n"].values) == 4
    assert np.isfinite(nm.dataset["score"].values).sum() == 3


def test_it_goes_on_from_its_log(world, options, tmp_path):
    options |= {"mode": "zero", "log": tmp_path / "log.jsonl"}
    whole = score(world.target, **{**options, "log": None})
    with pytest.raises(KeyboardInterrupt):
        score(world.target, **{**options, "detector": Glow(fail_after=11)})
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 1 + 3  # header, as it is, two candidates
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"changed": ["unet.')  # torn by the crash
    judge = Glow()
    again = score(world.target, **{**options, "detector": judge})
    assert judge.seen == 5
    assert again.id == whole.id
    np.testing.assert_array_equal(again.dataset["score"].values, whole.dataset["score"].values)
    judge = Glow()
    more = {world.sites[0]: [3, 4], world.sites[3]: [5]}
    score(world.target, **{**options, "detector": judge, "candidates": more})
    assert judge.seen == 5, "one candidate is new"
    assert [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    with pytest.raises(HeaderMismatch, match=r"options.mode differs"):
        score(world.target, **{**options, "mode": "scale"})
    with pytest.raises(HeaderMismatch, match=r"judge differs"):
        score(world.target, **{**options, "detector": Glow(name="another")})
    (tmp_path / "book.txt").write_text("years of work\n")
    with pytest.raises(BadInput, match="is no log of a causal score"):
        score(world.target, **{**options, "log": tmp_path / "book.txt"})
    assert (tmp_path / "book.txt").read_text() == "years of work\n"


def a_map(world, scores, selected=None):
    """A map with the scores of some neurons (place -> score), 0 elsewhere."""
    nm = score(world.target, world.reference, method="wanda")
    values = np.zeros(nm.dataset["score"].shape, np.float32)
    for place, value in scores.items():
        values[:, place] = value
    ds = nm.dataset.assign(score=(("window", "neuron"), values))
    if selected is not None:
        flags = np.zeros(values.shape, bool)
        flags[:, selected] = True
        ds = ds.assign(selected=(("window", "neuron"), flags))
    ds.attrs["provenance"] = json.dumps({**json.loads(ds.attrs["provenance"]), "id": str(sorted(scores))})
    return NeuronMap(ds)


def looked_at(nm):
    return np.flatnonzero(np.isfinite(nm.dataset["score"].values[0])).tolist()


def test_maps_nominate_in_turns_best_first(world, options):
    a, b = a_map(world, {10: 3, 11: 2, 12: 1}), a_map(world, {11: 9, 20: 8, 21: 7})
    zero = {**options, "mode": "zero"}
    nm = score(world.target, **{**zero, "candidates": [a, b], "from_each": 2, "most": 64})
    assert looked_at(nm) == [10, 11, 20]
    assert nm.report["nominated"] == {a.id: 1, b.id: 2}
    assert looked_at(score(world.target, **{**zero, "candidates": [a, b], "from_each": 3, "most": 3})) == [10, 11, 20]
    chosen = a_map(world, {10: 3}, selected=[40, 41])
    assert looked_at(score(world.target, **{**zero, "candidates": chosen, "from_each": 1})) == [40, 41]


def test_other_methods_nominate_where_none_are_given(world, options, caplog):
    few = {**options, "candidates": None, "from_each": 2}
    nm = score(world.target, world.reference, **few)
    assert set(nm.report["nominated"]) == {"wanda", "gradient", "auroc"}
    assert set(nm.report["could_not_nominate"]) == {"contrast", "linear"}, "5 pairs are too few for these"
    assert "contrast nominates no candidates" in caplog.text
    assert 2 <= len(looked_at(nm)) == nm.report["candidates"] <= 6
    wanda = score(world.target, world.reference, method="wanda").to_dataframe()["score"]
    assert set(wanda.nlargest(1).index) <= set(looked_at(nm))
    with pytest.raises(BadInput, match="no other method could nominate"):
        score(PROMPTS, **{**few, "mode": "zero"})


BAD = [
    ({"concept": None}, BadInput, "the score causal needs concept="),
    ({"concept": "churh"}, UnknownName, "nearest: object/church"),
    ({"detector": "emoji_cn"}, UnknownName, "nearest: emoji_cnn"),
    ({"detector": object()}, BadInput, "without id, labels, thresholds"),
    ({"n_samples": 6}, BadInput, r"too few samples.*5 samples of 5 prompts.*at least 6 samples.*n_samples="),
    ({"target": PROMPTS[:4], "n_samples": 4}, BadInput, "of 5 prompts"),
    ({"reference": None}, BadInput, "a run whose means ablated neurons take"),
    ({"candidates": {"unet.nowhere": [1]}}, UnknownName, "unknown site"),
    ({"candidates": {}}, BadInput, "neurons of one kind of site"),
    ({"candidates": 7}, BadInput, "candidates are neurons"),
    ({"candidates": []}, BadInput, "there are no candidates"),
    ({"most": 2}, BadInput, "given: 3; expected: 1 to 2"),
    ({"value": 2.0}, BadInput, "value= belongs to mode='scale'"),
    ({"mode": "scale", "value": 1}, BadInput, "changes nothing"),
    ({"mode": "zero", "source": "x"}, BadInput, "source= belongs to mode='mean'"),
    ({"mode": "meen"}, UnknownName, "nearest: mean"),
    ({"from_each": 0}, BadInput, "from_each=0"),
    ({"level": 2.0}, BadInput, "between 0 and 1"),
]


@pytest.mark.parametrize(("change", "error", "message"), BAD)
def test_bad_input(world, options, change, error, message):
    given = {"target": world.target, "reference": world.reference, **options, "detector": Glow(fail_after=0), **change}
    with pytest.raises(error, match=message):
        score(given.pop("target"), given.pop("reference"), **given)


def test_bad_units_runs_and_models(world, options):
    options["detector"] = Glow(fail_after=0)  # nothing is drawn before all is known to work
    for unit in (128, -1):
        with pytest.raises(BadInput, match=r"a unit is outside its site.*0 to 127"):
            score(world.target, world.reference, **{**options, "candidates": {world.sites[0]: [unit]}})
    both = {world.sites[0]: [1], sites(world.pipe, "mlp")[0].name: [1]}
    with pytest.raises(BadInput, match="one kind of site"):
        score(world.target, world.reference, **{**options, "candidates": both})
    command = (
        r"probe record --concept church --split explicit --sites ffn --reduce absmean,mean --steps 1 --guidance 2 "
    )
    with pytest.raises(BadInput, match=rf"the run has no mean.*fix: {command}--seed 0 --out RUN"):
        score(world.target, world.bare, **options)
    with pytest.raises(WrongModel, match="the run was made on another model"):
        score(world.target, world.reference, **{**options, "pipe": tiny_pipeline(seed=1)})
    nm = score(world.target, world.reference, method="wanda").select(top=2)
    with pytest.raises(WrongModel, match="the neuron map was made on another model"):
        score(PROMPTS, **{**options, "pipe": tiny_pipeline(seed=1), "candidates": nm, "mode": "zero"})

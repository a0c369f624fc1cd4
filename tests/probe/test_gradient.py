"""gradient against finite differences; where its x_t come from; what it leaves behind; what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from probe import fingerprint
from probe._intervention import intervention
from probe._record import record
from probe._samples import samples
from probe._sites import sites
from probe._trajectories import trajectories
from probe.errors import BadInput, UnknownName, WorkbenchError, WrongModel
from probe.scores import score, stability
from probe.scores._judge import differentiable, log_odds
from probe.scores._ranks import mean_limits
from probe.testing import KINDS, tiny_pipeline
from tests.oracles import attribution

STEPS = 2
CHURCHES, HOUSES = ["a church", "a church by the sea"], ["a house", "a hut by the sea"]
QUIET = {"progress": False, "intervals": 0}


class Light:
    """Log-odds are sums of weighted light; differentiable."""

    id, labels = "light", ("object/church", "object/castle")

    def __init__(self, spoiled: bool = False) -> None:
        self.spoiled = spoiled

    def log_odds(self, images, labels):
        if self.spoiled:
            raise KeyboardInterrupt
        weights = torch.linspace(-1, 1, images[0].numel(), dtype=images.dtype).reshape(images.shape[1:])
        first = (images * weights).sum((1, 2, 3))
        return torch.stack([first if label == self.labels[0] else first - 5 for label in labels], 1)


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline()


def in_double(kind):
    """A tiny pipeline in float64, x_t and the timestep of a first call, as a sampler hands them on."""
    pipe = tiny_pipeline(kind)
    for part in (pipe.unet, pipe.vae, pipe.text_encoder, getattr(pipe, "text_encoder_2", None)):
        if part is not None:
            part.double()
    pipe.scheduler.set_timesteps(STEPS)
    x = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(3))
    return pipe, x.double(), pipe.scheduler.timesteps[0]


def some_units(pipe, count=3):
    """(site, unit, place) here and there."""
    found, rng, start = sites(pipe, "ffn"), np.random.default_rng(0), 0
    for site in found:
        yield from ((site, int(unit), start + int(unit)) for unit in rng.integers(0, site.width, count))
        start += site.width


@pytest.mark.parametrize("kind", KINDS)
def test_noise_objective_is_the_derivative_along_the_activation(kind):
    pipe, x, timestep = in_double(kind)
    table = samples(CHURCHES[:1], [3])
    window = (999, float(timestep))
    nm = score(table, HOUSES[:1], method="gradient", pipe=pipe, steps=STEPS, guidance=3.0, window=window, **QUIET)
    found = nm.dataset["score"].values[0]
    for site, unit, place in list(some_units(pipe, 1))[:5]:

        def number(factor, site=site, unit=unit):
            change = attribution.scaled_unit(site.resolve(pipe), unit, factor, 0)
            return attribution.noise_difference(pipe, x, timestep, CHURCHES[0], HOUSES[0], change)

        assert found[place] == pytest.approx(attribution.derivative(number), rel=1e-4, abs=1e-10)
    assert np.isfinite(found).all()
    assert len(np.unique(found)) > len(found) // 2


@pytest.mark.parametrize(("branches", "rows"), [("cond", [1]), ("both", [0, 1])])
def test_detector_objective_is_the_derivative_of_what_the_judge_sees(branches, rows):
    pipe, x, timestep = in_double("sd15")
    options = {"objective": "detector", "detector": Light(), "concept": "church", "branches": branches}
    window = (999, float(timestep))
    nm = score(
        samples(CHURCHES[:1], [3]),
        method="gradient",
        pipe=pipe,
        steps=STEPS,
        guidance=3.0,
        window=window,
        **options,
        **QUIET,
    )
    found = nm.dataset["score"].values[0]
    for site, unit, place in list(some_units(pipe, 1)):
        total = 0.0
        for row in rows:

            def number(factor, site=site, unit=unit, row=row):
                change = attribution.scaled_unit(site.resolve(pipe), unit, factor, row)
                judge = lambda image: Light().log_odds(image, ["object/church"])[:, 0]  # noqa: E731
                return attribution.judged_x_0(pipe, x, timestep, CHURCHES[0], 3.0, judge, change)

            total += attribution.derivative(number)
        assert found[place] == pytest.approx(total, rel=1e-4, abs=1e-6)


def test_runs_trajectories_prompts_and_batches_agree(pipe, tmp_path):
    few = {"steps": STEPS, "guidance": 3.0, "seeds": [5, 6], "progress": False}
    run = record(pipe, CHURCHES, out=tmp_path / "run", images=False, **few)
    stored = trajectories(pipe, CHURCHES, out=tmp_path / "stored", stored_as="float32", **few)
    reference = record(pipe, HOUSES, out=tmp_path / "reference", images=False, **few)
    options = {"method": "gradient", "pipe": pipe, **QUIET}
    plain = score(samples(CHURCHES, [5, 6]), HOUSES, steps=STEPS, guidance=3.0, batch_size=1, **options)
    for target, other in ((run.path, reference), (run.open(), reference.open()), (stored, reference.path)):
        again = score(target, other, **options)
        np.testing.assert_allclose(again.dataset["score"].values, plain.dataset["score"].values, rtol=1e-3, atol=1e-7)
        assert again.report == {"samples": 2, "failed": 0, "calls": STEPS, "intervals": 0}
    assert score(run, reference, **options).provenance["identity"]["target"]["run"] == run.id
    assert plain.id != score(samples(CHURCHES, [5, 6]), HOUSES, steps=STEPS, guidance=4.0, **options).id
    with pytest.raises(WrongModel, match="the run was made on another model"):
        score(run, reference, method="gradient", pipe=tiny_pipeline(seed=1), **QUIET)
    fixed = record(pipe, None, out=tmp_path / "fixed", trajectories=stored, images=False, progress=False)
    with pytest.raises(BadInput, match="give the trajectory itself"):
        score(fixed, reference, **options)
    with pytest.raises(BadInput, match="this score runs the model"):
        stability(plain, run, reference)


def state(pipe):
    """All that a score might leave behind."""
    modules = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    every = [m for part in modules for m in part.modules()]
    return {
        "hooks": sum(len(m._forward_pre_hooks) + len(m._forward_hooks) + len(m._backward_hooks) for m in every),
        "gradients": [p.grad is None for part in modules for p in part.parameters()],
        "learning": [p.requires_grad for part in modules for p in part.parameters()],
        "training": [m.training for m in every],
        "scheduler": id(pipe.scheduler),
        "bar": pipe._progress_bar_config,
        "weights": fingerprint(pipe).to_json(),
    }


def test_nothing_is_left_behind_whatever_happens(pipe):
    pipe("a first call", num_inference_steps=1, output_type="latent")  # libraries set hooks of their own
    pipe.unet.train()
    pipe.vae.requires_grad_(False)
    before = state(pipe)
    options = {"method": "gradient", "pipe": pipe, "objective": "detector", "concept": "church", "steps": 1, **QUIET}
    try:
        with torch.no_grad():
            nm = score(CHURCHES, detector=Light(), **options)
            assert not torch.is_grad_enabled()
        assert nm.provenance["identity"]["judge"] == "light"
        assert state(pipe) == before
        with pytest.raises(KeyboardInterrupt):
            score(CHURCHES, detector=Light(spoiled=True), **options)
        assert state(pipe) == before
    finally:
        pipe.unet.eval()
        pipe.vae.requires_grad_(True)


def test_a_unit_that_passes_nothing_on_has_no_score(pipe):
    site = sites(pipe, "ffn")[1]
    off = intervention({site.name: [7]}, mode="zero")
    weight = site.resolve(pipe).weight
    kept = weight.detach().clone()
    try:
        with torch.no_grad():
            weight[:, 5] = 0
        with off.applied(pipe):
            nm = score(CHURCHES, HOUSES, method="gradient", pipe=pipe, steps=1, sites=[site.name], **QUIET)
    finally:
        with torch.no_grad():
            weight.copy_(kept)
    found = nm.dataset["score"].values[0]
    assert len(found) == site.width
    assert found[5] == found[7] == 0
    assert np.count_nonzero(found) == site.width - 2
    assert nm.provenance["identity"]["lineage"][0][0] == off.id


def test_intervals_hold_what_prompts_drawn_again_give(pipe):
    sums = np.array([[2.0, 0.0], [4.0, 0.0], [12.0, 3.0]], np.float32)
    low, high = mean_limits(sums, np.array([1, 1, 2]), 4000, 0.95, 0)
    assert low[0] == pytest.approx(2.0)
    assert high[0] == pytest.approx(6.0)
    assert (low[1], high[1]) == (0.0, pytest.approx(1.5))
    prompts = [f"a church, number {i}" for i in range(10)]
    nm = score(
        prompts, ["a house"] * 10, method="gradient", pipe=pipe, steps=1, intervals=3, batch_size=10, progress=False
    )
    frame = nm.to_dataframe().nlargest(3, "score")
    assert frame["ci_low"].notna().sum() == 3 == nm.to_dataframe()["ci_low"].notna().sum()
    assert (frame["ci_low"] <= frame["score"]).all()
    assert (frame["score"] <= frame["ci_high"]).all()


def test_calls_are_spread_over_the_window(pipe):
    options = {"method": "gradient", "pipe": pipe, "steps": 5, **QUIET}
    assert score(CHURCHES[:1], HOUSES, calls=2, **options).report["calls"] == 2
    assert score(CHURCHES[:1], HOUSES, calls=None, window=(999, 300), **options).report["calls"] == 3


def test_log_odds():
    np.testing.assert_allclose(log_odds(np.array([0.5, 0.9])), [0, np.log(9)])
    assert np.isfinite(log_odds(np.array([0.0, 1.0]))).all()
    assert np.isnan(log_odds(np.array([np.nan]))).all()


@pytest.mark.embedded
def test_the_embedded_judge_with_gradients_says_what_it_says_without():
    from probe.detect import detector

    judge, plain = differentiable("emoji_cnn"), detector("emoji_cnn")
    images = np.random.default_rng(0).integers(0, 255, (3, 64, 64, 3), dtype=np.uint8)
    labels = ["object/church", "style/ink"]
    x = (torch.from_numpy(images).permute(0, 3, 1, 2) / 255).requires_grad_()
    found = judge.log_odds(x, labels)
    scores = plain(images)[:, [plain.index(label) for label in labels]]
    np.testing.assert_allclose(torch.sigmoid(found).detach().numpy(), scores, rtol=1e-3, atol=1e-6)
    assert torch.autograd.grad(found.sum(), x)[0].abs().sum() > 0
    assert judge.id == plain.id


class NotANumber(Light):
    def log_odds(self, images, labels):
        return super().log_odds(images, labels) * float("nan")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"pipe": None}, BadInput, "the score gradient needs pipe="),
        ({"reference": None}, BadInput, "compares with reference prompts"),
        ({"reference": HOUSES[:1]}, BadInput, "has no reference prompt; given: pair 1"),
        ({"branches": "both"}, BadInput, "knows neither prompt"),
        ({"objective": "nose"}, UnknownName, "nearest: noise"),
        ({"calls": 0}, BadInput, "calls must be at least 1"),
        ({"window": (400, 300)}, BadInput, "no step of the samples lies in the window"),
        ({"intervals": 10}, BadInput, r"too few samples.*2 prompts.*at least 10 prompts.*intervals=0"),
        ({"level": 1.0}, BadInput, "the bootstrap cannot be done"),
        ({"sites": "mlp"}, BadInput, "the UNet's ffn sites"),
        ({"sites": "fnn"}, UnknownName, "nearest: ffn"),
        ({"target": 3}, BadInput, "needs samples; given: int"),
        ({"target": "nowhere"}, BadInput, "nowhere"),
        ({"objective": "detector"}, BadInput, "needs a concept to look for"),
        ({"objective": "detector", "concept": "church", "detector": "emoji_cn"}, UnknownName, "nearest: emoji_cnn"),
        ({"objective": "detector", "concept": "church", "detector": "emoji_nearest"}, BadInput, "no gradient flows"),
        ({"objective": "detector", "concept": "church", "detector": object()}, BadInput, "no gradient flows"),
        ({"objective": "detector", "concept": "churh", "detector": Light()}, UnknownName, "nearest: object/church"),
        (
            {"objective": "detector", "concept": "church", "detector": NotANumber()},
            WorkbenchError,
            "no sample has a finite gradient.*float32 or bfloat16",
        ),
    ],
)
def test_bad_input(pipe, options, error, message):
    given = {"target": CHURCHES, "reference": HOUSES, "pipe": pipe, "steps": STEPS, **QUIET, **options}
    with pytest.raises(error, match=message):
        score(given.pop("target"), given.pop("reference"), method="gradient", **given)

"""probe.sensitivity on tiny pipelines: what is recorded, compared and refused."""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np
import pytest
import torch

from erase._changes import Delta, Mask
from erase._edit import make_edit
from probe import NeuronMap, sites
from probe._relighting import XT
from probe._relit import CONDITIONS, GROUPS
from probe._sensitivity import sensitivity
from probe.attacks import AttackSet, Found
from probe.errors import BadInput, WrongModel
from probe.provenance import stamp
from probe.testing import tiny_pipeline
from tests.erase.snapshots import snapshot
from tests.probe.measuring import concept

STEPS = 2
PROMPTS = ["a church", "a church by the sea", "old church", "the church"]
QUICK = {"steps": STEPS, "progress": False, "resamples": 100}
CHURCH = concept("church", references={"neighbour": tuple(f"a house, number {i}" for i in range(6))})


def attack_set(pipe, *, success=(True, True, True, False), edit_id="scaled", protocol="adaptive", carrier="tokens"):
    rows = []
    for i, (prompt, hit) in enumerate(zip(PROMPTS, success, strict=True)):
        ids = tuple(pipe.tokenizer(prompt, add_special_tokens=False).input_ids)
        rows.append(Found("church", str(i), prompt, i, 7.5, carrier, (40, 41, *ids), "", found_seed=i, success=hit))
    identity = {"name": "church", "method": "made up", "protocol": protocol, "vocab": "open", "found_on": edit_id}
    return AttackSet(stamp(identity), rows)


def scaled_ff(pipe, factor):
    """An edit that scales the outgoing weights of every feed-forward."""
    deltas = []
    for site in sites(pipe, "ffn"):
        weight = site.resolve(pipe).weight
        name = next(n for n, p in pipe.unet.named_parameters() if p is weight)
        deltas.append(Delta(f"unet.{name}", (factor - 1) * weight.detach()))
    return make_edit(pipe, deltas, name="scaled", method="test", options={"factor": factor})


class Prompted:
    """An edit of activations: it silences some units, unless the text holds the attack's tokens."""

    name, id, differentiable = "prompted", "prompted", True

    def __init__(self, units, attack):
        self.units, self.attack = units, attack

    @contextmanager
    def applied(self, pipe):
        lit = []

        def read(_module, args, kwargs):
            ids = args[0] if args else kwargs["input_ids"]
            lit.append((ids[:, 1:3] == torch.tensor(self.attack)).all(1))

        def silence(module, args):
            x = args[0]
            rows = lit[-1] if len(lit[-1]) == len(x) else None
            if rows is None:  # [uncond, cond]: the encoder reads cond first
                cond = lit[-2] if len(lit) > 1 and len(lit[-2]) + len(lit[-1]) == len(x) else lit[-1]
                rows = torch.cat([torch.zeros(len(x) - len(cond), dtype=torch.bool), cond])
            mask = torch.zeros(x.shape[-1], dtype=torch.bool)
            mask[self.units] = True
            x = torch.where((~rows)[:, None, None] & mask, 0.25 * x, x)
            return (x, *args[1:])

        first = sites(pipe, "ffn")[0].resolve(pipe)
        handles = [
            pipe.text_encoder.register_forward_pre_hook(read, with_kwargs=True),
            first.register_forward_pre_hook(silence),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline()


@pytest.mark.parametrize("kind", ["sd15", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("sd21", "sdxl"))])
def test_every_kind_of_pipeline_is_measured_and_left_as_it_was(kind):
    pipe = tiny_pipeline(kind)
    edit = scaled_ff(pipe, 0.5)
    from probe import generate, samples

    generate(pipe, samples(["a"]), steps=1, progress=False)  # SDXL's encoders keep hooks from their first call on
    before = snapshot(pipe)
    found = sensitivity(pipe, edit, adversarial=attack_set(pipe, edit_id=edit.id), concept=CHURCH, n_select=2, **QUICK)
    assert snapshot(pipe) == before
    ds = found.dataset
    assert ds["ratio"].dims == ("xt", "quantity", "group")
    assert list(ds["group"].values) == list(GROUPS)
    assert list(ds["xt"].values) == list(XT)
    assert list(ds["condition"].values) == list(CONDITIONS)
    assert found.method == "sensitivity"
    assert found.selected().sum() == max(1, round(0.01 * ds.sizes["neuron"]))
    assert np.isfinite(ds["level"].sel(quantity="contribution")).all()


def test_planted_neurons_that_an_attack_relights_have_ratio_one_and_controls_zero(pipe, tmp_path):
    """The edit silences units of the first site unless it reads two tokens; nothing else moves them at shared x_t."""
    units = [1, 5, 9, 20]
    edit = Prompted(units, (40, 41))
    found = sensitivity(
        pipe, edit, adversarial=attack_set(pipe, edit_id="prompted"), concept=CHURCH, n_select=4, share=4 / 640,
        sites=sites(pipe, "ffn")[0].name, out=tmp_path, **QUICK,
    )  # fmt: skip
    width = sites(pipe, "ffn")[0].width
    assert found.dataset.sizes["neuron"] == width
    ratio = found.dataset["ratio"].sel(xt="shared", quantity="raw")
    chosen = np.flatnonzero(found.selected())
    assert set(chosen) <= set(units)
    assert len(chosen) == max(1, round(4 / 640 * width))
    # under the attack they are as active as attacked text makes them in the original: near 1, and controls near 0
    assert float(ratio.sel(group="concept")) == pytest.approx(1, abs=0.35)
    assert abs(float(ratio.sel(group="random_prefix"))) < 0.35
    assert float(found.dataset["ratio_low"].sel(xt="shared", quantity="raw", group="concept")) > 0.3


@pytest.mark.slow
def test_shared_x_t_is_the_originals_for_both_models(pipe, tmp_path):
    from probe import open_run

    edit = scaled_ff(pipe, 0.5)
    sensitivity(
        pipe, edit, adversarial=attack_set(pipe, edit_id=edit.id), concept=CHURCH, n_select=2, out=tmp_path, **QUICK
    )
    first = sites(pipe, "ffn")[0].name
    with open_run(tmp_path / "shared-original") as a, open_run(tmp_path / "shared-plain") as b:
        own = [site["name"] for site in __import__("json").loads(a.attrs["sites"])].index(first)
        at = a["site"].values == own
        # the first feed-forward reads nothing that the edit has changed, when x_t is the same
        assert np.allclose(a["absmean"].values[..., at], b["absmean"].values[..., at], rtol=1e-5)
        assert np.allclose(b["fan_out"].values, 0.5 * a["fan_out"].values, rtol=1e-5)
    lines = sorted(path.name for path in tmp_path.iterdir())
    assert {"trajectory", "own-adversarial", "shared-failed"} <= set(lines)


@pytest.mark.slow
def test_repeating_the_call_with_the_same_folder_records_nothing_again(pipe, tmp_path):
    edit = scaled_ff(pipe, 0.5)
    options = {"adversarial": attack_set(pipe, edit_id=edit.id), "concept": CHURCH, "n_select": 2, "out": tmp_path}
    first = sensitivity(pipe, edit, **options, **QUICK)
    calls = []
    handle = pipe.unet.register_forward_pre_hook(lambda *_: calls.append(1))
    try:
        again = sensitivity(pipe, edit, **options, **QUICK)
    finally:
        handle.remove()
    assert not calls
    assert first.id == again.id
    assert first.dataset["ratio"].equals(again.dataset["ratio"])


@pytest.mark.slow
def test_the_raw_form_says_nothing_where_only_outgoing_weights_are_masked(pipe):
    site = sites(pipe, "ffn")[0]
    weight = site.resolve(pipe).weight
    name = next(n for n, p in pipe.unet.named_parameters() if p is weight)
    mask = torch.zeros(weight.shape, dtype=torch.bool)
    mask[:, :8] = True
    edit = make_edit(pipe, [Mask.of(f"unet.{name}", mask)], name="masked", method="test", options={})
    found = sensitivity(pipe, edit, adversarial=attack_set(pipe, edit_id=edit.id), concept=CHURCH, n_select=2, **QUICK)
    assert np.isnan(found.dataset["ratio"].sel(quantity="raw")).all()
    assert "behind the neurons" in found.report["raw"]
    assert set(np.flatnonzero(found.selected())) <= set(range(8))
    assert np.isfinite(found.dataset["ratio"].sel(quantity="contribution", xt="shared", group="concept"))


def test_saved_and_read_as_a_neuron_map_that_erasers_take(pipe, tmp_path):
    edit = scaled_ff(pipe, 0.5)
    found = sensitivity(pipe, edit, adversarial=attack_set(pipe, edit_id=edit.id), concept=CHURCH, n_select=2, **QUICK)
    found.save(tmp_path / "s.zarr.zip")
    again = NeuronMap.load(tmp_path / "s.zarr.zip")
    assert again.id == found.id
    assert again.dataset["ratio"].equals(found.dataset["ratio"])
    assert again.dataset["level"].equals(found.dataset["level"])
    assert np.array_equal(again.selected(), found.selected())
    assert again.select(top=3).selected().sum() == 3


@pytest.mark.slow
def test_without_a_successful_attack_the_ratio_is_nan_and_failed_ones_are_measured(pipe, caplog):
    edit = scaled_ff(pipe, 0.5)
    attacks = attack_set(pipe, edit_id=edit.id, success=(False,) * 4)
    found = sensitivity(pipe, edit, adversarial=attacks, concept=CHURCH, n_select=2, **QUICK)
    ratio = found.dataset["ratio"].sel(xt="shared", quantity="contribution")
    assert np.isnan(ratio.sel(group="concept"))
    assert np.isfinite(ratio.sel(group="failed"))
    assert "no attack" in caplog.text


def test_bad_input(pipe):
    edit = scaled_ff(pipe, 0.5)
    good = attack_set(pipe, edit_id=edit.id)
    with pytest.raises(WrongModel, match="another edit"):
        sensitivity(pipe, edit, adversarial=attack_set(pipe, edit_id="other"), concept=CHURCH, **QUICK)
    with pytest.raises(BadInput, match="both selected on and measured"):
        sensitivity(pipe, edit, adversarial=good, prompts=["a church"], **QUICK)
    with pytest.raises(BadInput, match="nothing to select"):
        sensitivity(pipe, edit, adversarial=good, **QUICK)
    with pytest.raises(BadInput, match="attacked prompts"):
        sensitivity(pipe, edit, adversarial=attack_set(pipe, edit_id=edit.id, carrier="start"), concept=CHURCH, **QUICK)
    with pytest.raises(BadInput, match="ffn sites of the UNet"):
        sensitivity(pipe, edit, adversarial=good, concept=CHURCH, sites="mlp", **QUICK)

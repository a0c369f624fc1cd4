"""probe.sensitivity on tiny pipelines: what is recorded, compared and refused."""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch

from erase._changes import Delta, Mask
from erase._edit import make_edit
from probe import NeuronMap, Run, generate, open_run, samples, score, sites
from probe._relighting import XT, Study, generations
from probe._relit import CONDITIONS, GROUPS, identity_of
from probe._sensitivity import sensitivity
from probe.attacks import AttackSet, Found
from probe.attacks._drawing import Drawing
from probe.attacks._replay import images_of
from probe.attacks._speaking import FREE, filled, slots
from probe.attacks._vocabulary import vocabulary
from probe.errors import BadInput, WrongModel
from probe.provenance import fingerprint, identity_id, stamp
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
        found = {"found_seed": i, "before": False, "success": hit}
        rows.append(Found("church", str(i), prompt, i, 7.5, carrier, (40, 41, *ids), "", **found))
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


class Says:
    """A judge with prepared answers, one list a call."""

    id, labels, thresholds = "says", ("object/church",), np.array([0.5])

    def __init__(self, *answers):
        self.answers, self.seen = list(answers), []

    def __call__(self, images):
        self.seen.append(images)
        return np.array(self.answers.pop(0), float)[:, None]


def test_planted_neurons_that_an_attack_relights_have_ratio_one_and_controls_zero(pipe, tmp_path):
    """The edit silences units of the first site unless it reads two tokens; nothing else moves them at shared x_t."""
    units, first, rows = [1, 5, 9, 20], sites(pipe, "ffn")[0], []
    counter = pipe.unet.register_forward_pre_hook(lambda _m, args, kw: rows.append(len(args[0])), with_kwargs=True)
    try:
        found = sensitivity(
            pipe, Prompted(units, (40, 41)), adversarial=attack_set(pipe, edit_id="prompted"), concept=CHURCH,
            n_select=4, share=4 / first.width, sites=first.name, **QUICK,
        )  # fmt: skip
    finally:
        counter.remove()
    assert found.dataset.sizes["neuron"] == first.width
    assert set(np.flatnonzero(found.selected())) == set(units)
    assert sum(rows) / 2 / STEPS == generations(4, 4), "both branches, every step"
    ratio = found.dataset["ratio"].sel(xt="shared", quantity="raw")
    # under the attack they are as active as attacked text makes them in the original: near 1, and controls near 0
    assert float(ratio.sel(group="concept")) == pytest.approx(1, abs=0.35)
    assert abs(float(ratio.sel(group="random_prefix"))) < 0.35
    assert float(found.dataset["ratio_low"].sel(xt="shared", quantity="raw", group="concept")) > 0.3

    found.save(tmp_path / "s.zarr.zip")
    again = NeuronMap.load(tmp_path / "s.zarr.zip")
    assert again.id == found.id
    for name in ("ratio", "level", "baseline", "before", "success", "source"):
        assert again.dataset[name].equals(found.dataset[name])
    assert np.array_equal(again.selected(), found.selected())
    assert again.select(top=3).selected().sum() == 3


def transferred(pipe):
    """Six prompts; one source twice, one with a guidance of its own, one that the attack left as it was."""
    made, rows = attack_set(pipe, edit_id="another", protocol="transfer"), []
    for i, source in enumerate((PROMPTS[0], PROMPTS[0], PROMPTS[2], PROMPTS[3], PROMPTS[1], PROMPTS[2])):
        ids = tuple(pipe.tokenizer(source, add_special_tokens=False).input_ids)
        attacked = ids if i == 5 else (*ids, 40, 41)
        scale = 5.0 if i == 2 else 7.5
        rows.append(Found("church", str(i), source, i, scale, token_ids=attacked, found_seed=10 + i, success=True))
    return AttackSet(made.provenance, rows)


def test_a_transfer_set_is_judged_on_this_edit_and_prompts_that_need_no_attack_are_left_out(pipe, tmp_path):
    edit, attacks = scaled_ff(pipe, 0.5), transferred(pipe)
    judge, done = Says([0, 0, 0, 1, 0], [1, 1, 0, 1, np.nan]), []
    before = snapshot(pipe)
    found = sensitivity(
        pipe, edit, adversarial=attacks, concept=CHURCH, judge=judge, n_select=2, share=0.05, out=tmp_path,
        batch_size=2,
        **{**QUICK, "progress": lambda *at: done.append(at)},
    )  # fmt: skip
    assert snapshot(pipe) == before
    assert done[-1][0] == done[-1][1]
    ds = found.dataset
    assert np.array_equal(ds["before"], [0, 0, 0, 1, 0, np.nan], equal_nan=True)
    assert np.array_equal(ds["success"], [1, 1, 0, 1, np.nan, np.nan], equal_nan=True)
    assert found.report["attacked"] == {
        "prompts": 6, "measured": 3, "succeeded": 2, "unchanged_by_the_attack": 1, "shown_without_the_attack": 1,
        "without_a_verdict": 1, "judged_by": "says",
    }  # fmt: skip
    drawing = Drawing(STEPS, 7.5, judge.seen[1].shape[1:3], 2)
    on_this_edit = images_of(pipe, attacks, drawing, edit=edit)[:5]
    assert np.abs(judge.seen[1].astype(int) - on_this_edit).max() <= 1

    assert list(Run(tmp_path / "own-random_prefix").samples["guidance"]) == [7.5, 7.5, 5.0]
    groups = ds["ratio_n"].sel(xt="own", quantity="contribution")
    assert {str(g): float(groups.sel(group=g)) for g in ("concept", "failed", "random_prefix")} == {
        "concept": 1, "failed": 1, "random_prefix": 2,
    }, "two attacks on one source prompt are one cluster"  # fmt: skip
    assert np.isfinite(ds["level"].sel(quantity="contribution")).all()

    count = int(found.selected().sum())
    assert count == max(1, round(0.05 * ds.sizes["neuron"]))
    scores = [
        score(
            tmp_path / "select-original", tmp_path / "select-edited", method="erased_delta", intervals=0, normalise=by
        )
        for by in ("site", "none")
    ]
    chosen, unscaled = (set(np.flatnonzero(nm.select(top=count).selected())) for nm in scores)
    assert set(np.flatnonzero(found.selected())) == chosen
    assert chosen != unscaled


@pytest.mark.parametrize("where", ["prefix", "suffix", "insert", "alone"])
def test_random_tokens_stand_where_the_attacks_do_and_are_of_its_vocabulary(pipe, where):
    made = attack_set(pipe, edit_id="here")
    source = tuple(pipe.tokenizer(PROMPTS[1], add_special_tokens=False).input_ids)
    row = Found("church", "0", PROMPTS[1], 0, 7.5, token_ids=filled(slots(source, 3, where), (40, 41, 42)))
    identity = {**made.identity, "vocab": "banned", "options": {"where": where}}
    study = studied(pipe, AttackSet(stamp(identity), [row]))
    (condition,) = [c for c in study._untried([0]) if c.name == "random_prefix"]
    (spoken,) = condition.spoken.values()
    allowed = set(vocabulary(pipe.tokenizer, CHURCH, "banned").ids.tolist())
    template = slots(source, 3, where)
    assert len(spoken.ids) == len(template)
    assert all(
        drawn in allowed if free == FREE else drawn == free for drawn, free in zip(spoken.ids, template, strict=True)
    )
    assert study._vocabularies["church"].name == "banned"
    assert spoken.ids != row.token_ids


def studied(pipe, attacks, others=("a house",)):
    edit = scaled_ff(pipe, 0.5)
    return Study(pipe, edit, attacks, {"church": CHURCH}, others, None, sites(pipe, "ffn")[:1], STEPS, 7.5, 4, 0)


def test_the_identity_knows_which_prompts_were_used_and_what_was_selected(pipe):
    whole = attack_set(pipe)
    few = whole.first(2)
    assert whole.id == few.id

    def of(attacks, share=0.01, others=("a house",)):
        return identity_id(identity_of(studied(pipe, attacks, others), "search", {"share": share}, {"xt": "own"}))

    assert len({of(whole), of(few), of(whole, share=0.02), of(whole, others=("a cat",))}) == 4
    assert of(whole) == of(attack_set(pipe))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["sd21", "sdxl"])
def test_other_kinds_of_pipeline_are_measured_and_left_as_they_were(kind):
    pipe = tiny_pipeline(kind)
    edit = scaled_ff(pipe, 0.5)
    generate(pipe, samples(["a"]), steps=1, progress=False)  # SDXL's encoders keep hooks from their first call on
    before = snapshot(pipe)
    found = sensitivity(pipe, edit, adversarial=attack_set(pipe, edit_id=edit.id), concept=CHURCH, n_select=2, **QUICK)
    assert snapshot(pipe) == before
    ds = found.dataset
    for axis, names in {"group": GROUPS, "xt": XT, "condition": CONDITIONS}.items():
        assert list(ds[axis].values) == list(names)
    assert np.isfinite(ds["level"].sel(quantity="contribution")).all()


@pytest.mark.slow
def test_shared_x_t_is_the_originals_for_both_models(pipe, tmp_path):
    edit = scaled_ff(pipe, 0.5)
    sensitivity(
        pipe, edit, adversarial=attack_set(pipe, edit_id=edit.id), concept=CHURCH, n_select=2, out=tmp_path, **QUICK
    )
    first = sites(pipe, "ffn")[0].name
    with open_run(tmp_path / "own-original") as a, open_run(tmp_path / "shared-plain") as b:
        own = [site["name"] for site in json.loads(a.attrs["sites"])].index(first)
        at = a["site"].values == own
        # the first feed-forward reads nothing that the edit has changed, when x_t is the same
        assert np.allclose(a["absmean"].values[..., at], b["absmean"].values[..., at], rtol=1e-5)
        assert np.allclose(b["fan_out"].values, 0.5 * a["fan_out"].values, rtol=1e-5)
    lines = sorted(path.name for path in tmp_path.iterdir())
    assert {"trajectory", "own-adversarial", "shared-random_prefix"} <= set(lines)


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
    good, transfer = attack_set(pipe, edit_id=edit.id), transferred(pipe)

    def refused(error, match, adversarial=good, nm=None, **options):
        with pytest.raises(error, match=match):
            sensitivity(pipe, edit, nm, adversarial=adversarial, **{"concept": CHURCH, **QUICK, **options})

    refused(WrongModel, "another edit", attack_set(pipe, edit_id="other"))
    refused(BadInput, "attacked prompts", attack_set(pipe, edit_id=edit.id, carrier="start"))
    refused(BadInput, "a prompt is both selected on and measured", prompts=["a church"])
    refused(BadInput, "a seed is both selected on and measured", select_seed=2)
    refused(BadInput, "nothing to select", concept=None)
    refused(BadInput, "ffn sites of the UNet", sites="mlp")
    refused(BadInput, "not given.*church", transfer, concept=None, prompts=["one"])
    refused(BadInput, "names no detector", transfer, concept=replace(CHURCH, detector=""))
    refused(
        LookupError, "label of the judge", transfer, concept=replace(CHURCH, detector="x:object/ship"), judge=Says()
    )
    model = fingerprint(pipe).to_json(["unet"])
    model["weights"]["unet"] = "0" * 64
    refused(WrongModel, "another model", AttackSet(stamp({**good.identity, "model": model}), list(good)))
    every = sites(pipe, "ffn")
    at = {"score": np.zeros((1, sum(site.width for site in every))), "windows": [(999, 0)], "sites": every}
    foreign = NeuronMap.build(method="made up", **at, identity={"model": model}).select(top=3)
    refused(WrongModel, "another model", nm=foreign)
    refused(BadInput, "a map brings its selection", nm=foreign, prompts=["one"])
    shown = AttackSet(good.provenance, [replace(row, before=True) for row in good])
    own = NeuronMap.build(method="made up", **at, identity={"model": fingerprint(pipe).to_json(["unet"])}).select(top=3)
    refused(BadInput, "no attacked prompt is left to measure.*shown_without_the_attack 4", shown, own)

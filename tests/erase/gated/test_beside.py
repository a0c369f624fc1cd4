"""Gates beside an exported model, merged edits, and the linear baseline."""

from __future__ import annotations

import pytest
import torch

import erase
import probe
from erase import _export, _load_edited
from erase._changes import Hook
from erase.gated._projections import encoded, projections_of
from probe import lineage
from probe.errors import BadInput, WorkbenchError
from probe.testing import KINDS, tiny_pipeline
from tests.erase.gated.gates_to_try import gate
from tests.erase.gated.test_resag import LONG, QUICK
from tests.erase.snapshots import FF, KEY, edit_of, parameter, random_delta, random_mask, raw


@pytest.mark.parametrize("kind", list(KINDS))
def test_an_exported_gate_lies_beside_the_unedited_model(kind, tmp_path):
    pipe = tiny_pipeline(kind)
    edit = gate(pipe, scale=1.0)
    folder = edit.export(pipe, tmp_path / "model")
    plain = probe.load(folder)
    assert raw(plain.unet.get_submodule("conv_in").weight) == raw(pipe.unet.conv_in.weight)
    assert lineage(plain) == []
    again = erase.load_edited(folder)
    assert lineage(again) == [[edit.id, edit.name]]
    with edit.applied(pipe):
        wanted = _export.probe_latent(pipe)
    assert torch.allclose(_export.probe_latent(again), wanted, atol=1e-4)
    assert not torch.allclose(_export.probe_latent(plain), wanted, atol=1e-3)
    edit.revert(again)
    assert torch.allclose(_export.probe_latent(again), _export.probe_latent(plain), atol=1e-5)
    card = (folder / "README.md").read_text()
    assert "load_edited" in card
    assert "without it" in card
    assert not list(folder.rglob("*.py"))


def test_a_stack_with_weights_lies_beside_as_a_whole(pipe, tmp_path):
    both = erase.stack(gate(pipe), edit_of(pipe, random_mask(pipe, FF), name="w"))
    again = erase.load_edited(both.export(pipe, tmp_path / "model"))
    with both.applied(pipe):
        assert raw(parameter(again, FF)) == raw(parameter(pipe, FF))
    assert raw(parameter(probe.load(tmp_path / "model"), FF)) == raw(parameter(pipe, FF))


def test_what_cannot_be_exported(pipe, tmp_path, monkeypatch):
    one, weights = gate(pipe), edit_of(pipe, random_mask(pipe, FF), name="w")
    with weights.applied(pipe), pytest.raises(BadInput, match="in force: w"):
        one.export(pipe, tmp_path / "model")
    with one.applied(pipe), pytest.raises(BadInput, match=r"'gate'.*stack of both"):
        weights.export(pipe, tmp_path / "model")
    latents = iter([torch.zeros(1), torch.ones(1)])
    monkeypatch.setattr(_export, "probe_latent", lambda _: next(latents))
    with pytest.raises(WorkbenchError, match="another latent"):
        one.export(pipe, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_folders_without_an_edit_are_refused(pipe, tmp_path):
    folder = edit_of(pipe, random_delta(pipe, KEY)).export(pipe, tmp_path / "merged")
    with pytest.raises(BadInput, match=r"no edit lies beside.*probe.load"):
        erase.load_edited(folder)
    with pytest.raises(BadInput, match="no edit lies beside"):
        erase.load_edited(tmp_path)
    assert _load_edited.BESIDE == "edit"


# --- The linear baseline ----------------------------------------------------------------------------------------------

PLAIN = {key: value for key, value in (QUICK | LONG).items() if key != "gate_rank"}


def test_low_rank_learns_a_change_of_weights(pipe):
    edit = erase.low_rank(pipe, "church", **PLAIN)
    assert edit.mergeable
    assert {change.kind for change in edit.changes} == {"delta"}
    assert all(change.value[0].shape[1] == LONG["rank"] for change in edit.changes)
    found = edit.report["concepts"]["church"]
    assert found["reached"] > 0.3
    assert "open" not in found
    projections = projections_of(pipe)
    target = encoded(pipe, ["church", "a photo of church"])
    goal = encoded(pipe, ["a building", "a photo of a building"])
    wanted = goal + 0.3 * (goal - target)

    plain = [weight.clone() for weight in projections.weights]

    def missed():
        pairs = zip(projections_of(pipe).weights, plain, projections.shares, strict=True)
        return sum(float(share * (target @ w.T - wanted @ before.T).square().sum()) for w, before, share in pairs)

    before = missed()
    with edit.applied(pipe):
        assert missed() == pytest.approx((1 - found["reached"]) * before, rel=1e-3)


def test_concepts_of_a_linear_edit_add_up(pipe):
    short = {key: value for key, value in QUICK.items() if key != "gate_rank"}
    both = erase.low_rank(pipe, ["church", "castle"], rank=2, **short)
    each = [erase.low_rank(pipe, name, rank=2, **short) for name in ("church", "castle")]
    for change, one, other in zip(both.changes, each[0].changes, each[1].changes, strict=True):
        assert torch.allclose(change.dense(), one.dense() + other.dense(), atol=1e-7)
    assert {"gate", "gate_rank", "key_mode"}.isdisjoint(both.options)


# --- Distilled into weights -------------------------------------------------------------------------------------------

WORDS = {key: QUICK[key] for key in ("general", "preserve", "templates", "anchor")}


@pytest.fixture(scope="module")
def learned():
    pipe = tiny_pipeline()
    return pipe, erase.resag(pipe, "church", **QUICK | LONG)


def test_distilled_weights_are_the_ridge_regression_on_what_gates_add(learned):
    pipe, gated = learned
    edit = erase.distil(pipe, gated, "church", ridge=0.1, keep_weight=2.0, adversary_iterations=2, **WORDS)
    assert edit.mergeable
    param = edit.changes[0].param
    module = pipe.unet.get_submodule(param.removeprefix("unet.").removesuffix(".weight"))
    target = encoded(pipe, ["church", "a photo of church"])
    kept = encoded(pipe, ["", *(t.format(w) for w in WORDS["preserve"] for t in WORDS["templates"])])
    rows, wanted = [], []
    for text, share in ((target, 1.0), (kept, 2.0)):
        with torch.no_grad():
            plain = module(text)
            with gated.applied(pipe):
                added = module(text) - plain
        scale = (share / text[..., 0].numel()) ** 0.5
        rows.append(scale * text.flatten(0, 1).double())
        wanted.append(scale * added.flatten(0, 1).double())
    e, y = torch.cat(rows), torch.cat(wanted)
    moment = e.T @ e
    stretched = torch.cat([e, (0.1 * moment.diagonal().mean()).sqrt() * torch.eye(32, dtype=torch.float64)])
    solution = torch.linalg.lstsq(stretched, torch.cat([y, torch.zeros(32, y.shape[1], dtype=torch.float64)])).solution
    assert torch.allclose(edit.changes[0].dense().double(), solution.T, atol=1e-4)


def test_the_report_says_what_survives(learned):
    pipe, gated = learned
    edit = erase.distil(pipe, gated, "church", adversaries=3, adversary_iterations=40, **WORDS)
    found = edit.report["concepts"]["church"]
    assert set(found) == {"clean", "attacked", "anchors"}
    assert found["clean"]["gated"] == pytest.approx(gated.report["concepts"]["church"]["reached"], abs=1e-3)
    assert found["clean"]["distilled"] > 0.2
    assert found["anchors"]["gated"] == pytest.approx(gated.report["concepts"]["church"]["kept"], rel=0.05, abs=1e-4)
    without = erase.distil(pipe, gated, "church", adversaries=0, **WORDS).report["concepts"]["church"]
    assert "attacked" not in without


NO_ATTACK = {"adversaries": 0, **WORDS}


def test_the_report_counts_in_the_eta_that_gates_were_learned_with(learned):
    """Also of what is made from them: with another eta another share of what is asked is reached."""
    pipe, gated = learned
    other = erase.resag(pipe, "castle", **QUICK | {"rank": LONG["rank"]})
    alone = erase.distil(pipe, gated, "church", **NO_ATTACK)
    assert alone.options["eta"] == gated.options["eta"] == 0.3
    assert erase.distil(pipe, gated, "church", eta=0.3, **NO_ATTACK).id == alone.id
    both = erase.stack(erase.scaled(gated, 0.5), other)
    assert erase.distil(pipe, both, ["church", "castle"], **NO_ATTACK).options["eta"] == 0.3
    half = erase.distil(pipe, erase.scaled(gated, 0.5), "church", **NO_ATTACK).report["concepts"]["church"]["clean"]
    assert half["gated"] < alone.report["concepts"]["church"]["clean"]["gated"]


def test_gates_of_unknown_or_several_etas_are_not_guessed_at(learned, tmp_path):
    pipe, gated = learned
    further = erase.resag(pipe, "castle", **QUICK | {"eta": 1.0, "rank": LONG["rank"]})
    with pytest.raises(BadInput, match=r"several eta.*0\.3, 1"):
        erase.distil(pipe, erase.stack(gated, further), ["church", "castle"], **NO_ATTACK)
    imported = erase.import_resag(pipe, erase.export_resag(gated, tmp_path / "gate.safetensors"))
    with pytest.raises(BadInput, match=r"not known.*eta="):
        erase.distil(pipe, imported, "church", **NO_ATTACK)
    assert erase.distil(pipe, imported, "church", eta=0.3, **NO_ATTACK).options["eta"] == 0.3


def test_adversaries_attack_a_gate_as_strong_as_it_is(pipe):
    """Twice the strength is twice alpha, to the adversaries too."""
    plain = gate(pipe)
    (hook,) = plain.changes
    values = {**hook.values, "alpha": 2 * hook.values["alpha"]}
    doubled = erase._edit.make_edit(
        pipe, [Hook(hook.module, hook.family, hook.touched, values)], name="doubled", method="test", options={}
    )
    attacked = [
        erase.distil(pipe, edit, "church", eta=0.3, adversaries=2, adversary_iterations=10, **WORDS).report
        for edit in (erase.scaled(plain, 2.0), doubled)
    ]
    assert attacked[0] == attacked[1]


def test_what_cannot_be_distilled(learned):
    pipe, gated = learned
    with pytest.raises(BadInput, match=r"another number of concepts.*given: 2; expected: 1"):
        erase.distil(pipe, gated, ["church", "castle"], **WORDS)
    with pytest.raises(BadInput, match="only gates"):
        erase.distil(pipe, edit_of(pipe, random_mask(pipe, FF)), "church", **WORDS)
    with gated.applied(pipe), pytest.raises(BadInput, match="in force"):
        erase.distil(pipe, gated, "church", **WORDS)

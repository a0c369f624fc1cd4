"""The gate protocol: hooks that act as the equations say, stack, save and leave nothing behind."""

from __future__ import annotations

import logging
from contextlib import ExitStack

import numpy as np
import pytest
import torch

import erase
import probe
from erase import gates
from erase._changes import Hook
from probe import lineage
from probe.errors import BadInput, EditConflict, EditOrderError, WrongModel
from probe.testing import KINDS, tiny_pipeline
from tests.erase.gated.gates_to_try import as_concepts, gate, hook, projections
from tests.erase.snapshots import FF, KEY, edit_of, random_delta, random_mask, raw, snapshot
from tests.oracles.gates import residual, winners


def module(pipe, param):
    return pipe.unet.get_submodule(param.removeprefix("unet.").removesuffix(".weight"))


def told(pipe, prompts=("a church", "a dog")):
    with torch.no_grad():
        return probe.guidance.condition(pipe, list(prompts), guidance=1.0).text


def draw(pipe, steps=2, prompts=("a church", "a dog")):
    """A latent of each prompt."""
    generators = [torch.Generator().manual_seed(i) for i in range(len(prompts))]
    return pipe(list(prompts), num_inference_steps=steps, generator=generators, output_type="latent").images


@pytest.fixture(scope="module", params=list(KINDS))
def each(request):
    pipe = tiny_pipeline(request.param)
    draw(pipe)  # transformers registers hooks of its own at the first call
    before = snapshot(pipe)
    yield pipe
    assert snapshot(pipe) == before


@pytest.mark.parametrize("concepts", [1, 3])
@pytest.mark.parametrize("cut", [False, True])
def test_projections_are_those_of_the_slow_twin(each, concepts, cut):
    change = hook(each, concepts=concepts)
    rows = told(each).double().numpy()
    won = [winners(row, as_concepts(change)) for row in rows]
    threshold = float(np.median([openness for row in won for _, openness, _ in row])) if cut else 0.0
    values = {**change.values, "threshold": torch.full((concepts,), threshold)}
    change = Hook("unet", "resag", change.touched, values)
    text = told(each)
    edit = erase._edit.make_edit(each, [change], name="g", method="test", options={})
    plain = [module(each, param)(text) for param in change.touched]
    with edit.applied(each):
        edited = [module(each, param)(text) for param in change.touched]
    told_apart = False
    for i, (one, other) in enumerate(zip(edited, plain, strict=True)):
        pairs = zip(rows, won, strict=True)
        wanted = [residual(row, as_concepts(change), i, threshold, won=known) for row, known in pairs]
        np.testing.assert_allclose((one - other).detach().numpy(), np.stack(wanted), atol=2e-5)
        told_apart = told_apart or float(np.abs(np.stack(wanted)).max()) > 1e-2
    assert told_apart


def test_gates_applied_one_inside_the_other_are_the_stack_and_the_merge(each):
    edits = [gate(each, name=f"g{seed}", seed=seed) for seed in range(3)]
    text, params = told(each), projections(each)
    joined = erase.stack(*edits)
    assert [len(c.values["gate"]) for c in joined.changes] == [3]
    assert (
        joined.id
        == erase.stack(erase.stack(*edits[:2]), edits[2]).id
        == erase.stack(edits[0], erase.stack(*edits[1:])).id
    )
    with joined.applied(each):
        once = [module(each, param)(text) for param in params]
    with ExitStack() as nested:
        for edit in edits:
            nested.enter_context(edit.applied(each))
        for param, wanted in zip(params, once, strict=True):
            assert torch.equal(module(each, param)(text), wanted)
    hooks = [edit.changes[0] for edit in edits]
    plain = module(each, params[0])(text)
    wanted = np.stack([residual(row, as_concepts(*hooks), 0) for row in text.double().numpy()])
    np.testing.assert_allclose((once[0] - plain).detach().numpy(), wanted, atol=2e-5)


def test_the_winner_takes_all(pipe):
    """A gate that is closed everywhere changes nothing of what the open one does."""
    one, other = gate(pipe, "open", seed=1), hook(pipe, seed=2)
    closed = Hook("unet", "resag", other.touched, {**other.values, "gate": torch.full((1, 32), 0.0)})
    text = told(pipe)
    wide = gates.openness(gates.mixed(text, *(one.changes[0].values[n][0] for n in ("query", "key"))),
                          one.changes[0].values["gate"][0])  # fmt: skip
    shift = torch.linalg.lstsq(gates.mixed(text, *(other.values[n][0] for n in ("query", "key"))).flatten(0, 1),
                               torch.full((text[..., 0].numel(), 1), -40.0)).solution[:, 0]  # fmt: skip
    closed = Hook("unet", "resag", other.touched, {**other.values, "gate": shift[None]})
    below = gates.openness(gates.mixed(text, *(closed.values[n][0] for n in ("query", "key"))), shift)
    assert (below < wide).all()
    both = erase.stack(one, edit_of(pipe, closed, name="closed"))
    for param in projections(pipe):
        with one.applied(pipe):
            alone = module(pipe, param)(text)
        with both.applied(pipe):
            assert torch.allclose(module(pipe, param)(text), alone, atol=1e-6)


def test_hooks_add_to_edited_weights_and_masks_join_them(pipe):
    weights, gated = edit_of(pipe, random_delta(pipe, KEY), random_mask(pipe, FF), name="w"), gate(pipe)
    text = told(pipe)
    with gated.applied(pipe):
        added = module(pipe, KEY)(text).detach().clone()
    plain = module(pipe, KEY)(text)
    added = added - plain
    for order in ((weights, gated), (gated, weights)):
        with order[0].applied(pipe), order[1].applied(pipe):
            assert lineage(pipe) == [[edit.id, edit.name] for edit in order]
            wanted = torch.nn.functional.linear(text, pipe.unet.get_parameter(KEY.removeprefix("unet."))) + added
            assert torch.allclose(module(pipe, KEY)(text), wanted, atol=1e-5)
        both = erase.stack(*order)
        assert not both.mergeable
        with both.applied(pipe):
            assert torch.allclose(module(pipe, KEY)(text), wanted, atol=1e-5)


def test_pictures_change_and_come_back_to_the_bit(each):
    plain = draw(each)
    with gate(each, scale=1.0).applied(each):
        assert not torch.allclose(draw(each), plain, atol=1e-3)
    assert torch.equal(draw(each), plain)


def test_what_is_added_is_computed_once_a_prompt(pipe, monkeypatch):
    from erase import _resag_hooks

    calls = []
    monkeypatch.setattr(_resag_hooks.gates, "gated", lambda *args, f=gates.gated: calls.append(1) or f(*args))
    with gate(pipe).applied(pipe):
        draw(pipe, steps=4)
        assert len(calls) == 1
        draw(pipe, steps=3, prompts=("a cat",))
        assert len(calls) == 2


def test_a_text_that_changes_in_place_is_read_again(pipe):
    with gate(pipe).applied(pipe):
        text = told(pipe).clone()
        first = module(pipe, KEY)(text)
        text += 1
        assert torch.equal(module(pipe, KEY)(text), module(pipe, KEY)(text.clone()))
        assert not torch.allclose(module(pipe, KEY)(text), first)
        with torch.inference_mode():
            inside = text.clone()
            second = module(pipe, KEY)(inside).clone()
            inside += 1
            assert not torch.equal(module(pipe, KEY)(inside), second)


def test_gradients_pass_again_and_again(pipe):
    edit = gate(pipe)
    assert edit.differentiable
    text = told(pipe).clone().requires_grad_()
    with edit.applied(pipe):
        for _ in range(2):
            for param in projections(pipe)[:2]:
                module(pipe, param)(text).square().sum().backward()
    through = text.grad.clone()
    text.grad = None
    for param in projections(pipe)[:2]:
        module(pipe, param)(text).square().sum().backward()
    assert through.isfinite().all()
    assert not torch.allclose(through, 2 * text.grad)


def test_half_precision_goes_on_with_one_warning(caplog):
    pipe, half = tiny_pipeline(), tiny_pipeline()
    edit = gate(pipe)
    half.to(torch.float16)
    with caplog.at_level(logging.WARNING), edit.applied(half):
        text = told(pipe).half()
        added = module(half, KEY)(text)
    assert added.dtype == torch.float16
    assert len([r for r in caplog.records if "only architectures were compared" in r.message]) == 1
    with edit.applied(pipe):
        assert torch.allclose(added.float(), module(pipe, KEY)(text.float()), atol=3e-2)


def test_a_recording_sees_edited_keys(pipe):
    seen = []
    handle = module(pipe, KEY).register_forward_hook(lambda _m, _a, output: seen.append(output.detach().clone()))
    text = told(pipe)
    with gate(pipe).applied(pipe):
        returned = module(pipe, KEY)(text)
    handle.remove()
    assert torch.equal(seen[0], returned)


def test_a_saved_gate_is_the_same(pipe, tmp_path):
    edit = erase.stack(gate(pipe, concepts=2), edit_of(pipe, random_delta(pipe, FF), name="w"))
    again = erase.load_edit(edit.save_pretrained(tmp_path / "edit"))
    assert (again.id, again.provenance, again.mergeable) == (edit.id, edit.provenance, False)
    text = told(pipe)
    with edit.applied(pipe):
        wanted = module(pipe, KEY)(text)
    with again.applied(pipe):
        assert raw(module(pipe, KEY)(text)) == raw(wanted)
    card = (tmp_path / "edit" / "README.md").read_text()
    assert "mergeable into weights: no" in card
    assert "without it" in card


def test_an_exception_leaves_no_hook(pipe, monkeypatch):
    edit = gate(pipe)
    with pytest.raises(KeyboardInterrupt), edit.applied(pipe):
        raise KeyboardInterrupt
    from erase import _resag_hooks

    monkeypatch.setattr(_resag_hooks, "_adding", lambda *_: (_ for _ in ()).throw(MemoryError))
    with pytest.raises(MemoryError):
        edit.apply(pipe)
    assert lineage(pipe) == []


def test_a_gate_that_cannot_be_attached_leaves_those_in_force(pipe, monkeypatch):
    from erase import _resag_hooks

    first, second, text = gate(pipe, seed=0), gate(pipe, seed=1), told(pipe)
    with first.applied(pipe):
        alone, attaching, failed = module(pipe, KEY)(text), _resag_hooks._adding, []

        def once(*args):
            if not failed:
                failed.append(1)
                raise MemoryError
            return attaching(*args)

        monkeypatch.setattr(_resag_hooks, "_adding", once)
        with pytest.raises(MemoryError):
            second.apply(pipe)
        assert torch.equal(module(pipe, KEY)(text), alone)
        assert lineage(pipe) == [[first.id, first.name]]


def test_gates_leave_last_in_first_out(pipe):
    a, b = gate(pipe, "a", seed=1), gate(pipe, "b", seed=2)
    first, second = a.apply(pipe), b.apply(pipe)
    with pytest.raises(EditOrderError):
        first.revert()
    with pytest.raises(EditOrderError, match="already"):
        a.apply(pipe)
    second.revert()
    text = told(pipe)
    after = module(pipe, KEY)(text)
    first.revert()
    with a.applied(pipe):
        assert torch.equal(module(pipe, KEY)(text), after)


def test_mixed_ranks_do_not_merge(pipe):
    a, b = gate(pipe, "a", rank=1), gate(pipe, "b", rank=2)
    with pytest.raises(EditConflict, match=r"'a' and 'b'.*other ranks, down.0 \[32, 1\] and \[32, 2\]"):
        erase.stack(a, b)
    with a.applied(pipe), pytest.raises(EditConflict, match=r"'b' and 'a'.*ranks"):
        b.apply(pipe)
    with pytest.raises(EditConflict, match=r"gate|query|key"):
        erase.stack(a, gate(pipe, "c", rank=1, gate_rank=5))


def test_another_model_is_refused(pipe):
    with pytest.raises(WrongModel, match="other values"):
        gate(pipe).apply(tiny_pipeline(seed=1))
    with pytest.raises(WrongModel):
        gate(tiny_pipeline("sdxl")).apply(pipe)
    narrow = hook(pipe)
    values = {
        n: v[:, :16] if n in ("query", "key", "gate") or n.startswith("down") else v for n, v in narrow.values.items()
    }
    edit = edit_of(pipe, Hook("unet", "resag", narrow.touched, values))
    with pytest.raises(WrongModel, match=r"another width.*32.*16"):
        edit.apply(pipe)


def test_what_a_hook_must_have(pipe):
    one = hook(pipe)
    with pytest.raises(BadInput, match="of one component"):
        Hook("text_encoder", "resag", one.touched, one.values)
    with pytest.raises(BadInput, match="without modules"):
        Hook("unet", "resag", (), one.values)
    with pytest.raises(probe.errors.UnknownName, match=r"family of hooks.*resag"):
        edit_of(pipe, Hook("unet", "resagg", one.touched, one.values)).apply(pipe)


def test_scaled_gates_and_deltas(pipe):
    edit, text = gate(pipe), told(pipe)
    plain = module(pipe, KEY)(text)
    with edit.applied(pipe):
        once = module(pipe, KEY)(text) - plain
    twice = erase.scaled(edit, 2.0)
    with twice.applied(pipe):
        assert torch.allclose(module(pipe, KEY)(text) - plain, 2 * once, atol=1e-5)
    with erase.scaled(edit, 0.0).applied(pipe):
        assert torch.equal(module(pipe, KEY)(text), plain)
    assert twice.id != edit.id
    assert erase.scaled(edit, 1.0) is edit
    delta = edit_of(pipe, random_delta(pipe, KEY, rank=2), random_delta(pipe, FF))
    halved = erase.scaled(delta, 0.5)
    for one, other in zip(delta.changes, halved.changes, strict=True):
        assert torch.allclose(one.dense() / 2, other.dense())
    with pytest.raises(BadInput, match="mask"):
        erase.scaled(edit_of(pipe, random_mask(pipe, FF)), 2.0)

"""Adapters that a prompt opens: what they add, who opens them, and how they learn."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

import erase
import probe
from erase import _spm_hooks
from erase._changes import Hook
from erase._edit import make_edit
from erase.gated._adapters import Adapters, adapted_params, spec_of
from erase.gated._projections import encoded
from erase.gated._spm import latent_anchors_like
from probe import lineage
from probe.errors import BadInput, EditConflict, WorkbenchError
from probe.testing import KINDS, meta_pipeline, tiny_pipeline
from tests.erase.gated.gates_to_try import gate
from tests.erase.gated.test_gates import draw
from tests.erase.snapshots import snapshot
from tests.oracles.gates import called_for

QUICK = {"iterations": 2, "steps": 2, "latent_anchors": 2, "progress": False}


def adapter(pipe, names=("church",), *, rank=1, seed=0, similarity="flat", power=1, scale=0.1):
    """An edit of one concept with random pairs."""
    student = Adapters(pipe, rank=rank, alpha=1.5, seed=seed, spec=spec_of(names, similarity, power))
    generator = torch.Generator().manual_seed(seed)
    (hook,) = student.changes()
    values = {
        name: scale * torch.randn(value.shape, generator=generator) if name.startswith(("up", "down")) else value
        for name, value in hook.values.items()
    }
    made = Hook("unet", "spm", hook.touched, values, hook.spec)
    return make_edit(pipe, [made], name=f"spm-{names[0]}", method="test", options={})


@pytest.fixture(scope="module", params=list(KINDS))
def each(request):
    pipe = tiny_pipeline(request.param)
    draw(pipe)
    before = snapshot(pipe)
    yield pipe
    assert snapshot(pipe) == before


def words(pipe, text):
    ids = pipe.tokenizer(text).input_ids
    return set(ids[1:-1])


def test_every_linear_and_convolution_of_the_transformers_is_adapted(each):
    params = adapted_params(each)
    inside = [
        n
        for n, m in each.unet.named_modules()
        if isinstance(m, torch.nn.Linear | torch.nn.Conv2d) and "attentions." in n
    ]
    assert sorted(params) == sorted(f"unet.{name}.weight" for name in inside)


def test_the_published_model_has_as_many_as_the_release():
    assert len(adapted_params(meta_pipeline("sd15"))) == 192


def keep(seen, name, module, args, output):
    """A hook that changes nothing."""
    seen.setdefault(name, (module, args[0].detach(), output.detach()))


@pytest.mark.parametrize(("similarity", "power"), [("flat", 1), ("centred", 2)])
def test_what_is_added_is_the_sum_of_what_prompts_call_for(each, similarity, power):
    """Two concepts, one of them with two names, on two prompts in both branches of guidance."""
    concepts = [("church", "chapel"), ("dog",)]
    edits = [
        adapter(each, names, rank=2, seed=i, similarity=similarity, power=power) for i, names in enumerate(concepts)
    ]
    prompts = ["a chapel", "two cats"]
    centre = encoded(each, [""])[0].double().numpy() if similarity == "centred" else 0.0
    gamma = np.zeros((4, 2))
    for row, prompt in enumerate(["", "", *prompts]):
        # without a negative prompt SDXL is told zeros
        told = encoded(each, [prompt])[0].double().numpy()
        if not prompt and dict(each.config).get("force_zeros_for_empty_prompt"):
            told = np.zeros_like(told)
        for c, names in enumerate(concepts):
            found = [
                called_for(told - centre, encoded(each, [name])[0].double().numpy() - centre,
                           words(each, prompt), words(each, name))
                for name in names
            ]  # fmt: skip
            gamma[row, c] = max(found) ** power
    seen = {}
    hooks = []
    chosen = [edits[0].changes[0].touched[0], edits[0].changes[0].touched[3]]
    for param in chosen:
        module = each.unet.get_submodule(param.removeprefix("unet.").removesuffix(".weight"))
        hooks.append(module.register_forward_hook(partial(keep, seen, param)))
    with erase.stack(*edits).applied(each):
        draw(each, steps=1, prompts=prompts)
    for hook in hooks:
        hook.remove()
    for param, (module, x, output) in seen.items():
        i = edits[0].changes[0].touched.index(param)
        with torch.no_grad():
            plain = type(module).forward(module, x).double()
        added = (output.double() - plain).flatten(1) if output.ndim == 4 else output.double() - plain
        wanted = torch.zeros_like(output.double())
        for c, edit in enumerate(edits):
            down, up = (edit.changes[0].values[f"{part}.{i}"][0].double() for part in ("down", "up"))
            for row in range(4):
                rows = x[row].double()
                flat = rows.flatten(1).T if rows.ndim == 3 else rows
                change = gamma[row, c] * 1.5 / 2 * (flat @ down.flatten(1).T @ up.T)
                wanted[row] += change.T.reshape(wanted[row].shape) if rows.ndim == 3 else change
        np.testing.assert_allclose(added.reshape(wanted.shape).numpy(), wanted.numpy(), atol=1e-4)


def test_adapters_come_and_go_with_the_prompt_and_leave_nothing(each):
    edit = adapter(each, scale=0.5)
    plain = draw(each)
    with edit.applied(each):
        assert not torch.allclose(draw(each), plain, atol=1e-3)
        assert lineage(each) == [[edit.id, edit.name]]
    assert torch.equal(draw(each), plain)


def test_what_a_prompt_calls_for_is_decided_once(pipe, monkeypatch):
    calls = []
    opened = _spm_hooks.Transport._opened
    monkeypatch.setattr(_spm_hooks.Transport, "_opened", lambda self, text: calls.append(1) or opened(self, text))
    with adapter(pipe).applied(pipe):
        draw(pipe, steps=4)
        assert len(calls) == 1


def test_a_text_from_elsewhere_is_known_by_its_embedding_alone(pipe):
    edit = adapter(pipe, ("church",))
    told = probe.guidance.condition(pipe, ["church"], guidance=1.0)
    with edit.applied(pipe):
        transport = _spm_hooks.Transport(pipe, edit.changes[0])
        assert float(transport._opened(told.text).detach()) == pytest.approx(1.0, abs=1e-5)
        assert transport._ids(told.text[0]) == []


def test_a_sum_has_no_products_of_two_concepts(pipe):
    """Merged adapters add up what each adds alone."""
    edits = [adapter(pipe, ("church",), seed=1), adapter(pipe, ("dog",), seed=2)]
    text = probe.guidance.condition(pipe, ["a church and a dog"], guidance=1.0)
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    path = edits[0].changes[0].touched[0].removeprefix("unet.").removesuffix(".weight")
    outputs = []

    def first(*applied):
        with torch.no_grad(), probe.Trace(pipe.unet, path) as trace:
            if not applied:
                probe.guidance.predict(pipe, x, 500, text)
            for edit in applied:
                with edit.applied(pipe):
                    probe.guidance.predict(pipe, x, 500, text)
        return trace.output

    plain = first()
    outputs = [first(edit) - plain for edit in edits]
    assert torch.allclose(first(erase.stack(*edits)) - plain, outputs[0] + outputs[1], atol=1e-5)


def test_adapters_and_gates_stack(pipe):
    both = erase.stack(gate(pipe), adapter(pipe))
    assert [change.family for change in both.changes] == ["resag", "spm"]
    plain = draw(pipe)
    with both.applied(pipe):
        joined = draw(pipe)
    with gate(pipe).applied(pipe), adapter(pipe).applied(pipe):
        assert torch.allclose(draw(pipe), joined, atol=1e-5)
    assert not torch.allclose(joined, plain, atol=1e-3)


def test_saved_adapters_keep_their_names(pipe, tmp_path):
    edit = erase.stack(adapter(pipe, ("church", "chapel")), adapter(pipe, ("dog",), seed=1))
    assert edit.changes[0].spec["each"] == [["church", "chapel"], ["dog"]]
    again = erase.load_edit(edit.save_pretrained(tmp_path / "edit"))
    assert again.changes[0].spec == edit.changes[0].spec
    with edit.applied(pipe):
        wanted = draw(pipe)
    with again.applied(pipe):
        assert torch.equal(draw(pipe), wanted)
    with pytest.raises(EditConflict, match="power"):
        erase.stack(adapter(pipe), adapter(pipe, ("dog",), power=2))


def test_an_adapter_outside_a_call_of_the_unet_is_refused(pipe):
    edit = adapter(pipe)
    module = pipe.unet.get_submodule(edit.changes[0].touched[0].removeprefix("unet.").removesuffix(".weight"))
    with edit.applied(pipe), pytest.raises(WorkbenchError, match="outside a call"):
        module(torch.zeros(1, module.weight.shape[1], 8, 8))


# --- Learning ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", list(KINDS))
def test_a_few_iterations_give_an_edit(kind):
    pipe = tiny_pipeline(kind)
    before = snapshot(pipe)
    edit = erase.spm(pipe, ["church", "dog"], anchoring="release", **QUICK)
    assert snapshot(pipe).keys() == before.keys()
    (hook,) = edit.changes
    assert (hook.family, edit.mergeable, edit.name) == ("spm", False, "spm-church+dog")
    assert hook.spec["each"] == [["church"], ["dog"]]
    assert float(hook.values["up.0"].abs().max()) > 0
    assert all(value.isfinite().all() for value in hook.values.values())


@pytest.mark.slow
def test_adapters_learn_to_draw_what_erasing_asks_for(pipe):
    edit = erase.spm(
        pipe, "church", **QUICK | {"iterations": 60, "lr": 3e-3, "x_t": "cached", "cached": 2, "anchor_weight": 0.1}
    )
    curve = edit.report["losses"]
    assert np.mean(curve["erase"][-10:]) < 0.7 * np.mean(curve["erase"][:5])
    again = erase.spm(
        pipe, "church", **QUICK | {"iterations": 60, "lr": 3e-3, "x_t": "cached", "cached": 2, "anchor_weight": 0.1}
    )
    assert again.id == edit.id


def test_nothing_is_changed_at_first(pipe):
    student = Adapters(pipe, rank=1, alpha=1.0, seed=0, spec=spec_of(["church"], "flat", 1))
    plain = draw(pipe)
    with make_edit(pipe, student.changes(), name="new", method="test", options={}).applied(pipe):
        assert torch.equal(draw(pipe), plain)


def test_latent_anchors_are_about_as_long_as_the_concept():
    text = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    drawn = latent_anchors_like(text, 200, torch.Generator().manual_seed(1))
    lengths = drawn.flatten(1).norm(dim=1) / text.norm()
    assert 0.8 <= float(lengths.min()) < 0.85 < 1.15 < float(lengths.max()) <= 1.2
    cosines = torch.nn.functional.cosine_similarity(drawn.flatten(1), text.flatten()[None])
    assert float(cosines.mean()) < 0.02  # those towards the concept are thinned out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank"),
        ({"latent_anchors": 0}, "latent_anchors"),
        ({"anchor_weight": -1.0}, "anchor_weight"),
        ({"anchor": "church"}, "the concept itself"),
        ({"lr": 0.0}, "lr"),
    ],
)
def test_bad_input(pipe, options, message):
    with pytest.raises(BadInput, match=message):
        erase.spm(pipe, "church", **QUICK | options)

"""Trace and TraceDict: baukit's vocabulary. What differs from baukit is in test_trace_traps.py."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from probe import StopForward, Trace, TraceDict
from probe.errors import BadInput, UnknownName
from tests.probe.late import Late, hooks, late, numbers


@pytest.fixture
def root() -> Late:
    return late()


@pytest.fixture
def x() -> torch.Tensor:
    return numbers()


# --- what is retained -------------------------------------------------------------------------------------------------


def test_output_and_calls(root, x):
    with Trace(root, "a") as trace:
        assert trace.output is None
        root(x)
    assert torch.equal(trace.output, root.a(x))
    assert trace.calls == 1
    assert trace.input is None


@pytest.mark.parametrize("layer", [None, ""])
def test_the_root_itself(root, x, layer):
    with Trace(root, layer) as trace:
        result = root(x)
    assert trace.output is result


def test_input_is_the_single_positional_argument(root, x):
    with Trace(root, "a", retain_input=True) as trace:
        root(x)
    assert trace.input is x
    assert trace.kwargs == {}


def test_input_of_a_call_with_several_or_no_positional_arguments(root, x):
    with Trace(root, retain_input=True) as trace:
        root(x, 2)
        assert trace.input == ((x, 2), {})
        root(x=x)
        assert trace.input == ((), {"x": x})
        assert trace.kwargs == {"x": x}


def test_retain_grad(root, x):
    with Trace(root, "a", retain_grad=True, detach=True) as trace:
        root(x).sum().backward()
    with torch.no_grad():
        expected = torch.ones(2, 3) @ root.b.weight
    assert torch.allclose(trace.output.grad, expected)


def test_retain_grad_of_frozen_layers_and_clones(root, x):
    root.requires_grad_(False)
    with Trace(root, "a", retain_grad=True, clone=True) as trace:
        root(x).sum().backward()
    assert torch.allclose(trace.output.grad, torch.ones(2, 3) @ root.b.weight)


# --- editing ----------------------------------------------------------------------------------------------------------


def test_an_edit_that_asks_for_too_much(root, x):
    with pytest.raises(BadInput, match="edit_output"), Trace(root, "a", edit_output=lambda p, q, r, s, t: p):
        root(x)


def test_recordings_entered_later_see_edited_values(root, x):
    with Trace(root, "a", edit_output=lambda output: output * 0), Trace(root, "a") as later:
        root(x)
    assert (later.output == 0).all()


# --- stopping ---------------------------------------------------------------------------------------------------------


def test_stop_ends_the_forward_after_the_layer(root, x):
    ran = []
    root.b.register_forward_hook(lambda *_: ran.append("b"))
    with Trace(root, "a", stop=True) as trace:
        root(x)
        pytest.fail("the forward went on")
    assert torch.equal(trace.output, root.a(x))
    assert ran == []


def test_stop_counts_anew_in_every_call_of_the_root(root, x):
    with TraceDict(root, ["a", "b"], stop=True) as traces:
        for _ in range(3):
            with pytest.raises(StopForward):
                root(x)
    assert [trace.calls for trace in traces.values()] == [3, 3]


def test_stop_of_some_layers(root, x):
    with TraceDict(root, ["b", "a", "mix"], stop={"a": True}) as traces:
        root(x)
        pytest.fail("the forward went on")
    assert [trace.calls for trace in traces.values()] == [0, 1, 0]


# --- hooks and errors -------------------------------------------------------------------------------------------------


def test_close_ends_it_early(root, x):
    with Trace(root, "a") as trace:
        root(x)
        trace.close()
        assert hooks(root) == 0
        root(x)
        trace.close()
    assert trace.calls == 1


def test_other_hooks_stay(root, x):
    mine = root.a.register_forward_hook(lambda *_: None)
    with TraceDict(root, ["a", "b"]):
        root(x)
    assert hooks(root) == 1
    mine.remove()


def test_reentering_an_active_trace(root, x):
    trace = Trace(root, "a")
    with trace:
        with pytest.raises(BadInput, match="already active"):
            trace.__enter__()
        root(x)
        assert trace.calls == 1
    traces = TraceDict(root, ["a"])
    with traces:
        with pytest.raises(BadInput, match="already active"):
            traces.__enter__()
        with pytest.raises(BadInput, match="already active"):
            traces["a"].__enter__()
        root(x)


def test_using_a_trace_again_starts_anew(root, x):
    trace = Trace(root, "a", keep="all")
    for _ in range(2):
        with trace:
            root(x)
        assert trace.calls == len(trace.outputs) == 1


def test_bad_options(root):
    with pytest.raises(UnknownName, match="nearest: last"):
        Trace(root, "a", keep="lats")
    with pytest.raises(BadInput, match="retain_grad needs retain_output"):
        Trace(root, "a", retain_grad=True, retain_output=False)
    with pytest.raises(BadInput, match="no layers"):
        TraceDict(root, [])
    with pytest.raises(UnknownName, match="traced layer"):
        TraceDict(root, ["a"], stop={"b": True})


@pytest.mark.parametrize("how", ["wrapped root", "root in place", "parent in place"])
def test_compiled_modules_are_refused(root, how):
    model = nn.Sequential(OrderedDict(inner=root))
    if how == "wrapped root":
        model = torch.compile(model, backend="eager")
    elif how == "root in place":
        model.compile(backend="eager")
    else:
        model.inner.compile(backend="eager")
    name = "_orig_mod.inner.a" if how == "wrapped root" else "inner.a"
    with pytest.raises(BadInput, match="compiled"):
        Trace(model, name)


# --- TraceDict --------------------------------------------------------------------------------------------------------


def test_options_by_layer(root, x):
    with TraceDict(
        root,
        ["a", "b", "a"],
        retain_input={"a": True},
        edit_output={"b": lambda output: output * 0},
        keep={"b": "all"},
    ) as traces:
        root(x, times=2)
    assert list(traces) == ["a", "b"]
    assert traces["a"].input is not None
    assert traces["b"].input is None
    assert (traces["b"].output == 0).all()
    assert (traces["a"].output != 0).any()
    assert (len(traces["a"].outputs), len(traces["b"].outputs)) == (0, 2)


def test_a_single_name(root, x):
    with TraceDict(root, "mix") as traces:
        root(x)
    assert list(traces) == ["mix"]


# --- structures -------------------------------------------------------------------------------------------------------

Pair = namedtuple("Pair", "left right")


@dataclass(frozen=True)
class Record:
    value: torch.Tensor
    note: str | None = None


def _structures() -> list:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    return [
        lambda t: Pair(t, None),
        lambda t: {"a": t, "b": None, "c": "text"},
        lambda t: [t, (t, 1)],
        lambda t: Record(t),
        lambda t: UNet2DConditionOutput(sample=t),
        lambda t: BaseModelOutputWithPooling(last_hidden_state=t),
        lambda t: None,
        lambda t: 7,
    ]


def _tensors(value) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, dict):
        value = list(value.values())
    elif isinstance(value, Record):
        value = [value.value]
    return [t for item in value for t in _tensors(item)] if isinstance(value, list | tuple) else []


@pytest.mark.parametrize("index", range(8))
def test_outputs_of_any_structure(index, x):
    build = _structures()[index]

    class Wraps(nn.Module):
        def forward(self, value):
            return build(value * 1)

    x = x.clone().requires_grad_()
    module = Wraps()
    with Trace(module, clone=True, detach=True) as trace:
        result = module(x)
    assert type(trace.output) is type(result)
    assert len(_tensors(trace.output)) == len(_tensors(result))
    for kept, original in zip(_tensors(trace.output), _tensors(result), strict=True):
        assert torch.equal(kept, original)
        assert kept.data_ptr() != original.data_ptr()
        assert not kept.requires_grad
        assert original.requires_grad
    with Trace(module, retain_grad=True) as trace:
        result = module(x)
    assert type(result) is type(trace.output)
    if tensors := _tensors(result):
        sum(t.sum() for t in tensors).backward()
        assert all(t.grad is not None for t in _tensors(trace.output))


def test_attributes_of_library_outputs_follow(x):
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionOutput

    module = nn.Identity()
    with Trace(module, detach=True, clone=True) as trace:
        module(UNet2DConditionOutput(sample=x))
    assert trace.output.sample is trace.output["sample"]
    assert trace.output.sample is not x

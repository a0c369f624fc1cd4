"""One test for each trap of baukit's Trace and TraceDict: what happens there, shown on a retelling, and what here."""

from __future__ import annotations

from collections import namedtuple

import pytest
import torch
from torch import nn

from probe import StopForward, Trace, TraceDict, sites
from probe.errors import BadInput, NeverFired, UnknownName
from probe.testing import KINDS, tiny_pipeline
from tests.oracles import baukit_calls as baukit
from tests.probe.late import Late, hooks, late, numbers


@pytest.fixture
def root() -> Late:
    return late()


@pytest.fixture
def x() -> torch.Tensor:
    return numbers()


# --- hooks ------------------------------------------------------------------------------------------------------------


def test_a_hook_from_the_constructor_on(root, x):
    theirs = baukit.Trace(root, "a")
    assert hooks(root) == 1
    theirs.close()

    trace = Trace(root, "a")
    assert hooks(root) == 0
    with trace:
        assert hooks(root) == 2
        root(x)
    assert hooks(root) == 0
    with pytest.raises(ZeroDivisionError), TraceDict(root, ["a", "b"]):
        raise ZeroDivisionError
    assert hooks(root) == 0


def test_a_wrong_second_name_leaks_the_first_hook(root):
    with pytest.raises(LookupError):
        baukit.TraceDict(root, ["a", "c.d"])
    assert hooks(root) == 1

    clean = late()
    with pytest.raises(UnknownName, match=r"unknown layer; given: 'unusde'.*nearest: unused") as error:
        TraceDict(clean, ["a", "unusde"])
    assert isinstance(error.value, LookupError)  # as there
    assert hooks(clean) == 0


def test_no_layers_is_not_all_layers(root):
    with pytest.raises(TypeError):
        baukit.TraceDict(root)
    for none in (None, []):
        with pytest.raises(BadInput, match="no layers to trace"):
            TraceDict(root, none)


# --- what is retained -------------------------------------------------------------------------------------------------


def test_repeated_calls_overwrite(root, x):
    with Trace(root, "a", retain_input=True) as last, baukit.Trace(root, "a") as theirs:
        root(x, times=3)
    assert torch.equal(last.output, theirs.output)
    with Trace(root, "a", retain_input=True, keep="all") as every:
        root(x, times=3)
    assert last.calls == every.calls == 3
    assert last.outputs == last.inputs == []
    assert len(every.outputs) == len(every.inputs) == 3
    assert torch.equal(every.outputs[-1], last.output)
    assert every.output is every.outputs[-1]
    assert not torch.equal(every.outputs[0], last.output)


def test_a_keyword_only_call_retains_an_empty_tuple(root, x):
    with baukit.Trace(root, retain_input=True) as theirs, Trace(root, retain_input=True) as trace:
        root(x=x)
    assert theirs.input == ()
    assert trace.input == ((), {"x": x})
    assert trace.kwargs == {"x": x}


def test_a_positional_hook_never_sees_the_text_stream():
    """Cross-attention is given the image stream by position and the text by keyword."""
    pipe = tiny_pipeline()
    name = "mid_block.attentions.0.transformer_blocks.0.attn2"
    with baukit.Trace(pipe.unet, name, retain_input=True) as theirs, Trace(pipe.unet, name) as trace:
        pipe("a", num_inference_steps=1, output_type="latent")
    assert theirs.input.shape == (2, 16, 64)
    assert trace.kwargs["encoder_hidden_states"].shape == (2, 32, 32)


def test_what_is_retained_is_a_reference_unless_cloned(root, x):
    with (
        Trace(root, "a") as plain,
        Trace(root, "a", clone=True) as cloned,
        Trace(root, "a", detach=True) as detached,
        baukit.Trace(root, "a") as theirs,
        Trace(root, "a", edit_output=lambda output: output.mul_(0)),
    ):
        root(x)
    assert (plain.output == 0).all()
    assert (theirs.output == 0).all()
    assert (detached.output == 0).all()
    assert (cloned.output != 0).any()
    assert cloned.output.requires_grad
    assert not detached.output.requires_grad


def test_detach_is_ignored_with_retain_grad_and_a_copy_is_passed_on():
    model, x = nn.Sequential(nn.Linear(3, 3), nn.ReLU(inplace=True)).requires_grad_(False), numbers()
    for kind in (baukit.Trace, Trace):
        with kind(model, "0", retain_grad=True, detach=True) as trace:
            model(x).sum().backward()
        assert torch.equal(trace.output.grad, (trace.output > 0).float())  # not yet clipped in place


Pair = namedtuple("Pair", "left right")


class Returns(nn.Module):
    def __init__(self, build):
        super().__init__()
        self.build = build

    def forward(self, x):
        return self.build(x)


def test_named_tuples_cannot_be_copied(x):
    module = Returns(lambda t: Pair(t, t * 2))
    with pytest.raises(TypeError), baukit.Trace(module, clone=True):
        module(x)
    with Trace(module, clone=True) as trace:
        result = module(x)
    assert type(trace.output) is Pair
    assert torch.equal(trace.output.right, result.right)
    assert trace.output.right is not result.right


@pytest.mark.parametrize("leaf", [None, 7, "text"])
def test_none_and_what_is_no_tensor_cannot_be_copied(x, leaf):
    module = Returns(lambda t: {"sample": t, "more": leaf})
    with pytest.raises(AssertionError), baukit.Trace(module, detach=True):
        module(x)
    with Trace(module, detach=True) as trace:
        module(x)
    assert trace.output["more"] == leaf
    assert torch.equal(trace.output["sample"], x)


# --- editing ----------------------------------------------------------------------------------------------------------


def test_the_edited_output_is_what_is_retained_and_passed_on(root, x):
    for kind in (baukit.Trace, Trace):
        with kind(root, "b", edit_output=lambda output: output * 0) as trace:
            result = root(x)
        assert (trace.output == 0).all()
        assert torch.equal(result, x)


def test_an_edit_in_place_that_returns_none_loses_the_output(root, x):
    def halve(output):
        output.data /= 2

    with baukit.Trace(root, "b", edit_output=halve) as theirs:
        changed = root(x)
    assert theirs.output is None

    with Trace(root, "b", edit_output=halve) as trace:
        result = root(x)
    expected = root.b(root.a(x)) / 2
    assert torch.allclose(trace.output, expected)
    assert torch.allclose(result, expected + x)
    assert torch.equal(result, changed)


def test_an_edit_is_called_by_the_names_of_its_parameters(root, x):
    """The rest takes what is left in order; keyword arguments of the call are offered too."""
    for kind in (baukit.Trace, Trace):
        with kind(root, "mix", edit_output=lambda layer, y, inputs: y * 0 if layer == "mix" else y):
            assert (root(x) == 0).all()
    seen = {}

    def edit(layer, anything, kwargs, *, inputs, scale=3.0):
        seen.update(layer=layer, inputs=inputs, kwargs=kwargs, scale=scale)
        return anything * 0

    with TraceDict(root, ["mix"], edit_output=edit):
        result = root(x)
    assert (result == 0).all()
    assert seen["layer"] == "mix"
    assert seen["kwargs"]["text"] is x
    assert len(seen["inputs"]) == 1
    assert seen["scale"] == 3.0


# --- stopping ---------------------------------------------------------------------------------------------------------


def test_stop_at_the_last_listed_layer_which_is_not_the_last_executed(root, x):
    with baukit.TraceDict(root, ["b", "a"], stop=True) as theirs:
        root(x)
        pytest.fail("the forward went on")
    assert hasattr(theirs["a"], "output")
    assert not hasattr(theirs["b"], "output")

    with TraceDict(root, ["b", "a"], stop=True) as traces:
        root(x)
        pytest.fail("the forward went on")
    assert [trace.calls for trace in traces.values()] == [1, 1]


def test_a_stop_whose_layer_did_not_fire_ends_in_a_type_error(root, x):
    with pytest.raises(TypeError, match="must be a class"), baukit.Trace(root, "unused", stop=True):
        root(x)

    with pytest.raises(NeverFired, match="given: unused"), Trace(root, "unused", stop=True):
        root(x)
    with pytest.raises(NeverFired, match="given: unused"), TraceDict(root, ["a", "unused"]):
        root(x)
    with pytest.raises(KeyError), Trace(root, "unused"):
        raise KeyError("passes through instead")
    assert hooks(root) == 0


def test_a_stop_is_swallowed_by_whoever_has_one(root):
    with baukit.Trace(root, "b", stop=True):
        raise baukit.StopForward  # of somebody else

    with pytest.raises(StopForward), Trace(root, "b", stop=True):
        raise StopForward
    reached = False
    with Trace(root, "a", stop=True), Trace(root, "b", stop=True):
        root(numbers())
        reached = True
    assert not reached, "the inner trace neither swallows the stop nor complains about b"
    assert hooks(root) == 0


# --- our sites in baukit's hands --------------------------------------------------------------------------------------


def trace_dict():
    """The real one where it is installed; else the retelling."""
    try:
        from baukit import TraceDict as installed
    except ImportError:
        return baukit.TraceDict
    return installed


@pytest.mark.parametrize("kind", KINDS)
def test_sites_name_modules_that_baukit_can_trace(kind):
    """Input or output, as ``io`` says, is the same tensor that our own tracer sees."""
    pipe = tiny_pipeline(kind)
    for component in {site.component for site in sites(pipe, "*")}:
        chosen = [s for s in sites(pipe, f"{component}.*") if s.io != "processor"]
        names, network = [s.module for s in chosen], getattr(pipe, component)
        with (
            trace_dict()(network, names, retain_input=True) as theirs,
            TraceDict(network, names, retain_input=True) as ours,
        ):
            pipe("a church", num_inference_steps=1, guidance_scale=1.0, output_type="latent")
        for site in chosen:
            found = getattr(theirs[site.module], site.io)
            assert found.shape[-1] == site.width
            assert found is getattr(ours[site.module], site.io)

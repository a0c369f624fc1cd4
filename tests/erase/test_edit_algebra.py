"""Any sequence of apply, nested applied, exception and revert ends with equal bytes, keys, hooks and processors."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from erase._changes import Delta, Mask, Replace, conflict
from erase._stack import stack
from probe import lineage
from probe.errors import EditConflict, EditOrderError
from probe.testing import tiny_pipeline
from tests.erase.snapshots import (
    TEXT,
    edit_of,
    parameter,
    random_delta,
    random_mask,
    random_replace,
    raw,
    snapshot,
)
from tests.oracles.edits import edited

SMALL = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_q.weight"
PARAMS = (SMALL, TEXT)

relaxed = settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
indices = st.integers(0, 7)
actions = st.lists(
    st.tuples(st.sampled_from(["apply", "revert last", "revert any", "raise inside", "nest"]), indices), max_size=12
)


class World(tuple):
    """Hypothesis shows the arguments of every example: a whole snapshot would be megabytes."""

    def __repr__(self):
        return "<world>"


@pytest.fixture(scope="module", params=[torch.float32, torch.float16], ids=["float32", "float16"])
def world(request):
    """A pipeline, its snapshot and eight edits of it, some of which exclude each other."""
    pipe = tiny_pipeline()
    for component in (pipe.unet, pipe.text_encoder):
        for p in component.parameters():
            p.data = p.data.to(request.param)
    with torch.no_grad():
        parameter(pipe, SMALL)[0, :3] = torch.tensor([-0.0, float("nan"), float("-inf")])
    kinds = [
        [random_mask(pipe, SMALL, 0)],
        [random_mask(pipe, SMALL, 1), random_mask(pipe, TEXT, 2)],
        [random_delta(pipe, SMALL, 3)],
        [random_delta(pipe, SMALL, 4), random_delta(pipe, TEXT, 5, rank=3)],
        [random_delta(pipe, TEXT, 6), random_mask(pipe, SMALL, 7)],
        [random_replace(pipe, TEXT, 8)],
        [random_replace(pipe, SMALL, 9), random_mask(pipe, TEXT, 10)],
        [random_mask(pipe, TEXT, 11), random_delta(pipe, TEXT, 12)],
    ]
    edits = [edit_of(pipe, *changes, name=f"e{i}") for i, changes in enumerate(kinds)]
    return World((pipe, snapshot(pipe), edits))


def wanted(originals, in_force, param):
    """The oracle's weights for a list of edits in force."""
    changes = [change for edit in in_force for change in edit.changes if change.param == param]
    new = [c.value.numpy() for c in changes if isinstance(c, Replace)]
    return edited(
        originals[param],
        [c.dense().numpy() for c in changes if isinstance(c, Mask)],
        [c.dense().numpy() for c in changes if isinstance(c, Delta)],
        new[0] if new else None,
    )


def originals_of(pipe):
    return {param: parameter(pipe, param).detach().clone().numpy() for param in PARAMS}


def check(pipe, originals, in_force):
    assert sorted(map(tuple, lineage(pipe))) == sorted((edit.id, edit.name) for edit in in_force)
    for name in ("unet", "text_encoder"):  # each component knows its own order
        here = [(e.id, e.name) for e in in_force if any(param.startswith(name) for param in e.params)]
        assert getattr(getattr(pipe, name), "_workbench_edits", []) == here
    for param in PARAMS:
        assert raw(parameter(pipe, param)) == wanted(originals, in_force, param).tobytes(), param


def compatible(edits):
    return not any(conflict(a.changes, b.changes) for i, a in enumerate(edits) for b in edits[:i])


@given(actions)
@relaxed
def test_every_sequence_ends_where_it_began(world, sequence):
    pipe, before, edits = world
    originals, handles, nested = originals_of(pipe), [], ExitStack()

    def in_force():
        return [handle.edit for handle in handles]

    def attempt(edit):
        """Apply, or see it refused for the right reason and nothing changed."""
        if edit in in_force():
            with pytest.raises(EditOrderError):
                edit.apply(pipe)
        elif not compatible([*in_force(), edit]):
            with pytest.raises(EditConflict):
                edit.apply(pipe)
        else:
            return edit.apply(pipe)
        return None

    with nested:
        for action, i in sequence:
            if action == "apply":
                if handle := attempt(edits[i]):
                    handles.append(handle)
            elif action == "revert last" and handles:
                handles.pop().revert()
            elif action == "revert any" and handles:
                chosen = handles[i % len(handles)]
                if chosen is handles[-1]:
                    handles.pop().revert()
                else:
                    with pytest.raises(EditOrderError):
                        chosen.revert()
            elif (
                action in ("raise inside", "nest")
                and edits[i] not in in_force()
                and compatible([*in_force(), edits[i]])
            ):
                error = ZeroDivisionError if action == "raise inside" else None
                with pytest.raises(ZeroDivisionError) if error else ExitStack(), edits[i].applied(pipe):
                    check(pipe, originals, [*in_force(), edits[i]])
                    if error:
                        raise error
            check(pipe, originals, in_force())
        while handles:
            handles.pop().revert()
            check(pipe, originals, in_force())
    assert snapshot(pipe) == before


@given(st.permutations(range(8)), st.integers(1, 4), st.data())
@relaxed
def test_a_stack_equals_the_nest_and_the_formula(world, order, n, data):
    pipe, before, edits = world
    chosen = [edits[i] for i in order[:n]]
    assume(compatible(chosen))
    originals = originals_of(pipe)
    with ExitStack() as nested:
        for edit in chosen:
            nested.enter_context(edit.applied(pipe))
        check(pipe, originals, chosen)
        inside = {param: raw(parameter(pipe, param)) for param in PARAMS}
    cut = data.draw(st.integers(0, n - 1))
    both = stack(stack(*chosen[:cut]), *chosen[cut:]) if cut else stack(*chosen)
    tail = stack(*chosen[:cut], stack(*chosen[cut:]))
    assert both.id == tail.id == stack(*chosen).id
    for joined in (both, tail):
        with joined.applied(pipe):
            assert {param: raw(parameter(pipe, param)) for param in PARAMS} == inside
    assert snapshot(pipe) == before


@given(st.permutations(range(8)))
@relaxed
def test_masks_alone_do_not_mind_the_order(world, order):
    pipe, before, _ = world
    edits = [edit_of(pipe, random_mask(pipe, SMALL, seed), name=str(seed)) for seed in order[:3]]
    ids = []
    for sequence in (edits, edits[::-1]):
        with stack(*sequence).applied(pipe):
            ids.append(raw(parameter(pipe, SMALL)))
    assert ids[0] == ids[1]
    assert snapshot(pipe) == before

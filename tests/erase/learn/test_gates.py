from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import probe
from erase import hard_concrete as hc
from erase.learn import Gates, Part, parts_of, train
from erase.learn import _gated as gated_module
from erase.learn._gated import ClosedShare, Gate, gated_forward
from probe.errors import BadInput
from tests.erase.learn.kit import schedule
from tests.erase.snapshots import FF, parameter, snapshot

SEED = 11


def layers():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        conv = nn.Conv2d(5, 6, 3, padding=1)
        yield nn.Linear(7, 6), torch.randn(2, 3, 7)
        yield nn.Linear(7, 6, bias=False), torch.randn(4, 7)
        yield conv, torch.randn(2, 5, 4, 4)


CASES = [
    (kind, part, unit)
    for kind in ("hard-concrete", "straight-through")
    for part in (Part("unet.a.weight"), Part("unet.a.weight", 1, (0, 2, 3)), Part("unet.a.weight", 0, (1, 5)))
    for unit in (None, 0, 1)
]


def dense_gates(gate, learned, shape):
    """The gates as a tensor of the weight's shape, by plain autograd, from the same draws."""
    if gate.kind == "hard-concrete":
        draw = torch.Generator().manual_seed(SEED)
        u = torch.rand(learned.numel(), generator=draw).clamp_(min=torch.finfo(torch.float32).tiny)
        values = hc.gates(learned.reshape(-1), u).view_as(learned)
    else:
        hard = (learned > 0).float()
        soft = torch.sigmoid(learned)
        values = hard + soft - soft.detach()
    if gate.unit is not None:
        values = values.view([-1 if axis == gate.unit else 1 for axis in range(len(shape))])
    whole = torch.ones(shape)
    inner = gate.part.of(whole)
    return gate.part.put(whole, values.expand(inner.shape) * 1.0)


@pytest.mark.parametrize(("kind", "part", "unit"), CASES)
@pytest.mark.parametrize("kept", [1.0, 0.0], ids=["kept", "drawn again"])
def test_gated_layers_equal_the_product_and_its_gradients(kind, part, unit, kept, monkeypatch):
    monkeypatch.setattr(gated_module, "KEPT", kept)
    for module, x in layers():
        for parameter_ in module.parameters():
            parameter_.requires_grad_(False)
        gate = Gate(part, kind, unit)
        start = torch.linspace(-2, 3, int(np.prod(gate.size(module.weight)))).view(gate.size(module.weight))
        ours, theirs = (start.clone().requires_grad_() for _ in range(2))
        x_ours, x_theirs = (x.clone().requires_grad_() for _ in range(2))

        found = gated_forward(module, gate, ours, SEED)(x_ours)
        weight = module.weight * dense_gates(gate, theirs, module.weight.shape)
        expected = (
            nn.functional.linear(x_theirs, weight, module.bias)
            if isinstance(module, nn.Linear)
            else nn.functional.conv2d(x_theirs, weight, module.bias, padding=1)
        )
        assert torch.allclose(found, expected, atol=1e-5)
        weights = torch.arange(found.numel()).view_as(found) / found.numel()
        (found * weights).sum().backward()
        (expected * weights).sum().backward()
        assert torch.allclose(x_ours.grad, x_theirs.grad, atol=1e-5)
        assert torch.allclose(ours.grad, theirs.grad, atol=1e-4)
        assert ours.grad.abs().sum() > 0


def test_closed_gates_write_zeros_even_where_a_weight_is_infinite():
    module = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        module.weight.copy_(torch.tensor([[-1.0, float("inf")], [2.0, 3.0]]))
    gate = Gate(Part("unet.a.weight"), "straight-through", None)
    score = torch.tensor([[-1.0, -1.0], [1.0, 1.0]])
    at, values, _ = gate.not_one(score, 0)
    found = gate.gated(module.weight, at, values, torch.float32)
    assert found.tolist() == [[0, 0], [2, 3]]
    assert not torch.signbit(found[0]).any()


def test_only_linear_and_convolution_can_be_gated():
    with pytest.raises(BadInput, match="LayerNorm"):
        gated_forward(nn.LayerNorm(4), Gate(Part("unet.a.weight"), "hard-concrete", None), torch.zeros(4), 0)


@pytest.mark.parametrize("kind", ["hard-concrete", "straight-through"])
def test_the_share_of_closed_gates_and_its_gradient(kind):
    learned = torch.linspace(-3, 5, 50, requires_grad=True)
    by_hand = learned.detach().clone().requires_grad_()
    found = ClosedShare.apply(learned, kind)
    expected = (hc.closed_probability(by_hand) if kind == "hard-concrete" else torch.sigmoid(-by_hand)).sum()
    (2 * found).backward()
    (2 * expected).backward()
    assert torch.allclose(found, expected)
    assert torch.allclose(learned.grad, by_hand.grad, atol=1e-6)


# --- On a pipeline ----------------------------------------------------------------------------------------------------


def noise(pipe):
    generator = torch.Generator().manual_seed(0)
    told = probe.guidance.condition(pipe, ["a church"], guidance=1.0)
    x = torch.randn(1, 4, 8, 8, generator=generator)
    return probe.guidance.predict(pipe, x, 500, told)[0]


def test_gates_in_force_and_suspended(pipe):
    before = snapshot(pipe)
    gates = Gates(pipe, parts_of(pipe, "x", weights_only=True), kind="hard-concrete", by_unit=False, init=1, seed=0)
    plain = noise(pipe)
    with gates.in_force(0):
        first = noise(pipe)
        with gates.suspended():
            assert torch.equal(noise(pipe), plain)
        assert torch.equal(noise(pipe), first)
    with gates.in_force(0):
        assert torch.equal(noise(pipe), first)
    with gates.in_force(1):
        assert not torch.equal(noise(pipe), first)
    assert not torch.equal(first, plain)
    assert snapshot(pipe) == before


def test_masks_are_what_the_gates_say(pipe):
    gates = Gates(pipe, [Part(FF, 1, (3, 5))], kind="hard-concrete", by_unit=True, init=5, seed=0)
    with torch.no_grad():
        gates.leaves[FF][1] = -1
    (change,) = gates.changes()
    mask = change.dense()
    assert mask[:, 5].all()
    assert int(mask.sum()) == mask.shape[0]
    assert mask.shape == parameter(pipe, FF).shape


def test_at_the_start_the_prediction_hardly_changes(pipe):
    for seed in range(3):
        gates = Gates(
            pipe, parts_of(pipe, "x", weights_only=True), kind="hard-concrete", by_unit=False, init=5, seed=seed
        )
        with torch.no_grad():
            plain = noise(pipe)
            with gates.in_force(0):
                change = (noise(pipe) - plain).norm() / plain.norm()
        assert 0 < float(change) <= 0.02


def test_memory_is_at_most_sixteen_bytes_a_gate(own_pipe):
    """Everything that lives between iterations, and everything autograd keeps that has the size of gates."""
    gates = Gates(
        own_pipe, parts_of(own_pipe, "x", weights_only=True), kind="hard-concrete", by_unit=False, init=5, seed=0
    )
    n = sum(leaf.numel() for leaf in gates.leaves.values())
    known = {leaf.untyped_storage().data_ptr() for leaf in gates.leaves.values()}
    known |= {p.untyped_storage().data_ptr() for p in own_pipe.unet.parameters()}
    plain: list[int] = []
    gated: list[int] = []

    def loss(into, with_gates):
        seen: dict[int, int] = {}

        def pack(tensor):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in known:
                seen[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            total = noise(own_pipe).square().mean()
            total = total + gates.closed() if with_gates else total
        into.append(sum(seen.values()))
        return {"loss": total}

    def measured(_iteration):
        with torch.no_grad():
            noise(own_pipe)
        return loss(gated, True)

    train(own_pipe, gates, measured, schedule(2, in_backward=True), progress=False)
    own_pipe.unet.requires_grad_(False)
    parts = parts_of(own_pipe, "x", weights_only=True)
    for part in parts:
        parameter(own_pipe, part.param).requires_grad_(True)
    loss(plain, False)
    assert all(leaf.grad is None for leaf in gates.leaves.values())
    persistent = 3 * 4 * n  # log alpha and two moments; the gradient is freed leaf by leaf
    assert persistent + max(gated) - plain[0] <= 16 * n

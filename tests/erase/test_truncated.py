from __future__ import annotations

import pytest
import torch

from erase import Delta, truncated
from erase._edit import make_edit
from probe.errors import BadInput
from probe.testing import tiny_pipeline

PARAM = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight"
BIAS = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_out.0.bias"


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline()


def of_rank(pipe, rank, noise=0.0):
    """A delta whose singular values beyond the rank are those of noise."""
    generator = torch.Generator().manual_seed(0)
    weight = pipe.unet.get_parameter(PARAM.removeprefix("unet."))
    up = torch.randn(weight.shape[0], rank, generator=generator)
    down = torch.randn(rank, weight.shape[1], generator=generator)
    value = up @ down + noise * torch.randn(weight.shape, generator=generator)
    return value


def test_what_has_that_rank_stays_and_what_has_not_is_nearest(pipe):
    value = of_rank(pipe, 2)
    edit = make_edit(pipe, [Delta(PARAM, value)], name="two", method="made up", options={})
    small = truncated(edit, 2)
    torch.testing.assert_close(small.changes[0].dense(), value, atol=1e-5, rtol=1e-5)
    assert small.report["error"] < 1e-5
    assert small.nbytes < edit.nbytes
    assert small.id != edit.id
    one = truncated(edit, 1, name="one")
    s = torch.linalg.svdvals(value.double())
    assert one.report["error"] == pytest.approx(float(s[1] / s.square().sum().sqrt()))
    assert torch.linalg.matrix_rank(one.changes[0].dense()) == 1
    assert one.name == "one"


def test_a_pair_of_a_higher_rank_becomes_smaller_too(pipe):
    whole = of_rank(pipe, 3)
    u, s, vh = torch.linalg.svd(whole, full_matrices=False)
    pair = make_edit(pipe, [Delta(PARAM, (u[:, :3] * s[:3], vh[:3]))], name="pair", method="y", options={})
    small = truncated(pair, 1)
    torch.testing.assert_close(small.changes[0].dense(), s[0] * u[:, :1] @ vh[:1], atol=1e-4, rtol=1e-4)
    assert small.nbytes < pair.nbytes


def test_what_is_no_matrix_stays_whole(pipe):
    bias = torch.ones(pipe.unet.get_parameter(BIAS.removeprefix("unet.")).shape)
    edit = make_edit(pipe, [Delta(PARAM, of_rank(pipe, 3, 0.1)), Delta(BIAS, bias)], name="x", method="y", options={})
    small = truncated(edit, 1)
    assert torch.equal(small.changes[1].dense(), bias)
    assert 0 < small.report["error"] < 1
    with small.applied(pipe):
        pass
    with pytest.raises(BadInput, match="nothing becomes smaller"):
        truncated(small, 1)
    with pytest.raises(BadInput, match="at least 1"):
        truncated(edit, 0)

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest
import torch

from erase._stack import stack
from probe import lineage
from probe.errors import BadInput, EditConflict, EditOrderError, WrongModel
from probe.protocols import EditLike
from probe.testing import tiny_pipeline
from tests.erase.snapshots import (
    CONV,
    FF,
    FF_DOWN,
    KEY,
    TEXT,
    edit_of,
    parameter,
    random_delta,
    random_mask,
    random_replace,
    raw,
    snapshot,
)


def test_an_edit_is_what_probe_expects(pipe):
    assert isinstance(edit_of(pipe, random_mask(pipe, FF)), EditLike)


def test_applied_changes_the_weights_inside_and_nothing_behind(pipe):
    mask, delta = random_mask(pipe, FF), random_delta(pipe, TEXT)
    before = parameter(pipe, FF).detach().clone(), parameter(pipe, TEXT).detach().clone()
    edit = edit_of(pipe, mask, delta)
    with edit.applied(pipe) as edited:
        assert edited is pipe
        assert torch.equal(parameter(pipe, FF), before[0].masked_fill(mask.dense(), 0))
        assert torch.equal(parameter(pipe, TEXT), before[1] + delta.dense())
        assert lineage(pipe) == [[edit.id, "edit"]]
        assert pipe.unet._workbench_edits == pipe.text_encoder._workbench_edits == [(edit.id, "edit")]
    assert lineage(pipe) == []


def test_weights_come_back_after_an_exception(pipe):
    with pytest.raises(KeyboardInterrupt), edit_of(pipe, random_mask(pipe, FF)).applied(pipe):
        raise KeyboardInterrupt


def test_a_failure_half_way_undoes_the_first_half(pipe, monkeypatch):
    from erase import _in_force

    edit = edit_of(pipe, random_mask(pipe, FF), random_delta(pipe, KEY), random_mask(pipe, TEXT))
    monkeypatch.setattr(_in_force, "combined", lambda *_: (_ for _ in ()).throw(MemoryError))
    before = snapshot(pipe)
    with pytest.raises(MemoryError):
        edit.apply(pipe)
    assert snapshot(pipe) == before


def test_masks_write_positive_zeros_over_nan_and_minus_zero(own_pipe):
    weight = parameter(own_pipe, FF)
    with torch.no_grad():
        weight[0, :4] = torch.tensor([-0.0, float("nan"), float("-inf"), -1.0])
    before = raw(weight)
    mask = random_mask(own_pipe, FF, share=1.0)
    with edit_of(own_pipe, mask).applied(own_pipe):
        assert raw(weight) == bytes(len(before))
    assert raw(weight) == before


def test_handles_revert_last_in_first_out(pipe):
    a, b = (edit_of(pipe, random_mask(pipe, FF, seed), name=name) for seed, name in enumerate("ab"))
    first, second = a.apply(pipe), b.apply(pipe)
    with pytest.raises(EditOrderError, match=r"'a' is not the last.*revert 'b' first"):
        first.revert()
    assert "in force" in repr(first)
    second.revert()
    first.revert()
    assert "reverted" in repr(first)
    with pytest.raises(EditOrderError, match="not in force"):
        first.revert()


def test_order_holds_across_components(pipe):
    text, unet = edit_of(pipe, random_mask(pipe, TEXT), name="text"), edit_of(pipe, random_mask(pipe, FF), name="unet")
    first, second = text.apply(pipe), unet.apply(pipe)
    assert lineage(pipe) == [[text.id, "text"], [unet.id, "unet"]]
    with pytest.raises(EditOrderError):
        first.revert()
    second.revert()
    first.revert()


def test_an_edit_can_be_reverted_without_its_handle(pipe):
    a, b = (edit_of(pipe, random_mask(pipe, FF, seed), name=name) for seed, name in enumerate("ab"))
    with pytest.raises(EditOrderError), a.applied(pipe):
        b.apply(pipe)  # still in force where a's block ends
    b.revert(pipe)
    a.revert(pipe)
    with pytest.raises(EditOrderError):
        a.revert(pipe)


def test_applying_twice_is_refused_also_as_part_of_a_stack(pipe):
    a, b = (edit_of(pipe, random_mask(pipe, FF, seed), name=name) for seed, name in enumerate("ab"))
    with a.applied(pipe), pytest.raises(EditOrderError, match="already"):
        stack(a, b).apply(pipe)
    with stack(a, b).applied(pipe), pytest.raises(EditOrderError, match="'b' is already"):
        b.apply(pipe)
    with pytest.raises(EditOrderError, match="twice"):
        stack(a, b, a)


def test_replacements_exclude_each_other_and_deltas_by_name(pipe):
    new, other = (edit_of(pipe, random_replace(pipe, FF, i), name=f"new{i}") for i in range(2))
    add, off = edit_of(pipe, random_delta(pipe, FF), name="add"), edit_of(pipe, random_mask(pipe, FF), name="off")
    for one, two in ((new, other), (new, add), (add, new)):
        with one.applied(pipe), pytest.raises(EditConflict, match=f"'{two.name}' and '{one.name}'.*{FF}"):
            two.apply(pipe)
        with pytest.raises(EditConflict, match=f"'{one.name}' and '{two.name}'.*{FF}"):
            stack(one, two)
    with new.applied(pipe), off.applied(pipe):
        assert raw(parameter(pipe, FF)) == raw(new.changes[0].value.masked_fill(off.changes[0].dense(), 0))
    with off.applied(pipe), new.applied(pipe):
        assert raw(parameter(pipe, FF)) == raw(new.changes[0].value.masked_fill(off.changes[0].dense(), 0))


def test_a_fitted_edit_applies_only_on_top_of_its_bases(pipe):
    a, b = (edit_of(pipe, random_mask(pipe, FF, seed), name=name) for seed, name in enumerate("ab"))
    with stack(a, b).applied(pipe):
        c = edit_of(pipe, random_delta(pipe, FF, 3), name="c")
    assert c.base_edits == [(a.id, "a"), (b.id, "b")]
    with pytest.raises(EditOrderError, match="fitted on top of 'a'"):
        c.apply(pipe)
    with a.applied(pipe), pytest.raises(EditOrderError, match="fitted on top of 'b'"):
        c.apply(pipe)
    with b.applied(pipe), a.applied(pipe), pytest.raises(EditOrderError):
        c.apply(pipe)
    with a.applied(pipe), b.applied(pipe), c.applied(pipe):
        nested = raw(parameter(pipe, FF))
    with stack(a, stack(b, c)).applied(pipe):
        assert raw(parameter(pipe, FF)) == nested
    assert stack(a, b, c).base_edits == []
    assert stack(b, c).base_edits == [(a.id, "a")]
    with pytest.raises(EditOrderError, match="stacked after it"):
        stack(c, a)


def test_an_edit_of_another_model_names_the_tensor(pipe):
    other = tiny_pipeline(seed=1)
    edit = edit_of(other, random_mask(other, FF))
    with pytest.raises(WrongModel, match=rf"{FF} has other values"):
        edit.apply(pipe)


def test_an_edit_of_another_shape_or_place_names_it(pipe, own_pipe):
    unet = own_pipe.unet
    edit = edit_of(own_pipe, random_mask(own_pipe, CONV))
    unet.conv_in = torch.nn.Conv2d(4, 8, 3)
    with pytest.raises(WrongModel, match=r"unet\.conv_in\.weight has another shape"):
        edit.apply(own_pipe)
    del unet.conv_in
    with pytest.raises(WrongModel, match="no such parameter") as caught:
        edit.apply(own_pipe)
    assert caught.value.nearest
    with pytest.raises(WrongModel, match="no component"):
        edit.apply(SimpleNamespace(components={}, vae=None))


def test_other_tensors_may_differ(own_pipe):
    edit = edit_of(own_pipe, random_mask(own_pipe, FF))
    with torch.no_grad():
        parameter(own_pipe, KEY).add_(1)
    with edit.applied(own_pipe):
        pass


def test_the_check_sees_through_edits_in_force(pipe):
    a, b = (edit_of(pipe, random_delta(pipe, FF, seed), name=name) for seed, name in enumerate("ab"))
    with a.applied(pipe), b.applied(pipe):
        pass


def test_masks_go_on_in_another_dtype_with_one_warning(caplog):
    pipe, half = tiny_pipeline(), tiny_pipeline().to(torch.float16)
    edit = edit_of(pipe, random_mask(pipe, FF), random_mask(pipe, TEXT))
    caplog.clear()  # diffusers warns of the cast above
    with caplog.at_level(logging.WARNING), edit.applied(half):
        assert not parameter(half, FF)[edit.changes[1].dense()].any()
    assert [record.getMessage() for record in caplog.records] == [
        "edit 'edit' was made in float32 and is applied in float16: only architectures were compared"
    ]


@pytest.mark.parametrize("make", [random_delta, random_replace])
def test_deltas_need_allow_dtype(make):
    pipe, half = tiny_pipeline(), tiny_pipeline().to(torch.float16)
    edit = edit_of(pipe, make(pipe, FF))
    with pytest.raises(BadInput, match="allow_dtype=True"):
        edit.apply(half)
    before = parameter(half, FF).detach().clone()
    with edit.applied(half, allow_dtype=True):
        assert parameter(half, FF).dtype == torch.float16
        assert not torch.equal(parameter(half, FF), before)
    assert torch.equal(parameter(half, FF), before)


def test_another_dtype_of_another_architecture_is_refused(pipe):
    other = tiny_pipeline("sd21").to(torch.float16)
    with pytest.raises(WrongModel, match="unet has another architecture"):
        edit_of(pipe, random_mask(pipe, FF)).apply(other)


def test_a_cast_while_in_force_still_reverts(own_pipe):
    edit = edit_of(own_pipe, random_mask(own_pipe, FF))
    handle = edit.apply(own_pipe)
    own_pipe.to(torch.float16)
    handle.revert()
    assert torch.equal(parameter(own_pipe, FF), parameter(tiny_pipeline(), FF).half())


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_meta_tensors_are_refused(own_pipe):
    edit = edit_of(own_pipe, random_mask(own_pipe, FF))
    own_pipe.unet.to("meta")
    with pytest.raises(BadInput, match="meta"):
        edit.apply(own_pipe)


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_quantised_weights_are_refused(own_pipe, dtype):
    edit = edit_of(own_pipe, random_mask(own_pipe, FF))
    linear = own_pipe.unet.get_submodule(FF.removeprefix("unet.").removesuffix(".weight"))
    linear.weight = torch.nn.Parameter(linear.weight.detach().to(dtype), requires_grad=False)
    with pytest.raises(BadInput, match="quantised"):
        edit.apply(own_pipe)


def test_tensor_subclasses_are_refused(own_pipe):
    class Wrapped(torch.Tensor):
        pass

    edit = edit_of(own_pipe, random_mask(own_pipe, FF))
    linear = own_pipe.unet.get_submodule(FF.removeprefix("unet.").removesuffix(".weight"))
    del linear.weight
    linear.register_buffer("weight", torch.zeros(linear.out_features, linear.in_features).as_subclass(Wrapped))
    with pytest.raises(BadInput, match="wrapped"):
        edit.apply(own_pipe)


def test_fused_projections_are_refused(own_pipe):
    edit = edit_of(own_pipe, random_mask(own_pipe, KEY))
    ff = edit_of(own_pipe, random_mask(own_pipe, FF))
    own_pipe.fuse_qkv_projections(vae=False)
    with pytest.raises(BadInput, match="fused"):
        edit.apply(own_pipe)
    with ff.applied(own_pipe):  # feed-forwards are untouched by it
        pass


def test_compiled_modules_are_refused(own_pipe):
    edit = edit_of(own_pipe, random_mask(own_pipe, FF))
    own_pipe.unet.mid_block.compile(backend="eager")
    with pytest.raises(BadInput, match="compiled"):
        edit.apply(own_pipe)


class _Adapter(torch.nn.Module):
    """What a PEFT layer shows of itself."""

    def __init__(self, base_layer, active=True, merged=()):
        super().__init__()
        self.base_layer, self.disable_adapters = base_layer, not active
        self.active_adapters, self.merged_adapters = ["lora"], list(merged)


@pytest.mark.parametrize(
    ("active", "merged", "refused"), [(True, (), True), (False, ("lora",), True), (False, (), False)]
)
def test_active_adapters_are_refused(own_pipe, active, merged, refused):
    edit = edit_of(own_pipe, random_mask(own_pipe, FF))
    net = own_pipe.unet.mid_block.attentions[0].transformer_blocks[0].ff.net
    net[2] = _Adapter(net[2], active, merged)
    if refused:
        with pytest.raises(BadInput, match="adapter"):
            edit.apply(own_pipe)
    else:
        with edit.applied(own_pipe):
            assert not net[2].base_layer.weight[edit.changes[0].dense()].any()


# --- stacks and descriptions ------------------------------------------------------------------------------------------


def test_stacks_are_associative_with_an_id_of_their_own(pipe):
    a = edit_of(pipe, random_mask(pipe, FF, 0), random_delta(pipe, KEY, 1), name="a")
    b = edit_of(pipe, random_mask(pipe, FF, 2), random_delta(pipe, KEY, 3), name="b")
    c = edit_of(pipe, random_delta(pipe, FF, 4), random_delta(pipe, KEY, 5, rank=2), name="c")
    left, right, flat = stack(stack(a, b), c), stack(a, stack(b, c)), stack(a, b, c)
    assert left.id == right.id == flat.id
    assert left.name == right.name == flat.name == "a+b+c"
    assert left.parts == right.parts == [(a.id, "a"), (b.id, "b"), (c.id, "c")]
    assert len({a.id, b.id, c.id, flat.id, stack(b, a, c).id}) == 5
    assert stack(a) is a
    with pytest.raises(BadInput, match="nothing"):
        stack()


def test_edits_of_different_models_do_not_stack(pipe):
    other = tiny_pipeline(seed=1)
    with pytest.raises(WrongModel, match=FF):
        stack(edit_of(pipe, random_mask(pipe, FF)), edit_of(other, random_mask(other, FF, 1)))


def test_ids_tell_changes_and_options_but_not_names_or_dates(pipe):
    mask = random_mask(pipe, FF)
    edit = edit_of(pipe, mask)
    assert edit.id == edit_of(pipe, mask, name="another").id
    assert edit.id != edit_of(pipe, random_mask(pipe, FF, 1)).id
    assert edit.id != edit_of(pipe, random_mask(pipe, FF_DOWN)).id
    assert edit.id == edit.provenance["id"]
    assert edit.provenance["identity"]["model"]["tensors"][FF]["shape"] == list(mask.shape)


def test_descriptions(pipe):
    edit = edit_of(pipe, random_mask(pipe, FF, share=1.0), random_delta(pipe, KEY))
    sizes = parameter(pipe, FF).numel(), parameter(pipe, KEY).numel()
    assert edit.density == sizes[0] / sum(sizes)
    assert edit.nbytes == sizes[0] // 8 + 4 * sizes[1]
    assert "1 mask, 1 delta" in repr(edit) or "1 delta, 1 mask" in repr(edit)
    assert edit.params == (KEY, FF)
    with pytest.raises(BadInput, match="without changes"):
        edit_of(pipe)
    with pytest.raises(BadInput, match="another shape"):
        edit_of(pipe, type(edit.changes[0])(FF, torch.zeros(2, 2)))


def test_an_edit_shows_itself_with_every_text_escaped(pipe):
    edit = edit_of(pipe, random_mask(pipe, FF), random_delta(pipe, TEXT), name="<script>")
    page = edit._repr_html_()
    assert "&lt;script&gt;" in page
    assert "<script" not in page
    assert "1 delta, 1 mask" in page or "1 mask, 1 delta" in page
    assert f"{edit.density:.2%}" in page
    assert "2 parameters" in page
    assert "the unedited model" in page

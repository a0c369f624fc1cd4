from __future__ import annotations

import pytest
import torch

import probe
from erase import concept_prune, stepwise_masks
from probe.errors import BadInput, WrongModel
from probe.testing import tiny_pipeline
from tests.erase.prune.maps import norms, wanda_map
from tests.erase.snapshots import parameter, snapshot

STEPS = [751, 501, 251, 1]  # of 4 DDIM steps
RATIO = 0.1


@pytest.fixture
def nm(pipe):
    return wanda_map(pipe, *norms(pipe, 4), STEPS)


def test_every_call_has_the_masks_of_its_step(pipe, nm):
    masks = stepwise_masks(pipe, nm, skill_ratio=RATIO)
    before = snapshot(pipe)
    seen = []

    def look(call):
        zeros = {param: parameter(pipe, param) == 0 for param in masks.bits}
        seen.append((call.step, zeros))

    with masks.applied(pipe):
        hook = pipe.unet.register_forward_pre_hook(lambda _m, _a: look(type("Call", (), {"step": len(seen)})))
        probe.generate(pipe, probe.samples(["a church"]), steps=4, progress=False)
        hook.remove()
    assert snapshot(pipe) == before
    for step, zeros in seen:
        edit = concept_prune(pipe, nm, skill_ratio=RATIO, window=(STEPS[step], STEPS[step]))
        for change in edit.changes:
            assert torch.equal(zeros[change.param], change.dense())
    assert len(seen) == 4
    assert max(masks.densities) < concept_prune(pipe, nm, skill_ratio=RATIO, window=None).density


def test_outside_the_window_the_model_is_as_it_was(pipe, nm):
    masks = stepwise_masks(pipe, nm, skill_ratio=RATIO, window=(1, 1))
    assert len(masks.densities) == 1
    told = probe.guidance.condition(pipe, ["a church"], guidance=1.0)
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        plain = [probe.guidance.predict(pipe, x, t, told) for t in (751, 1)]
        with masks.applied(pipe):
            found = [probe.guidance.predict(pipe, x, t, told) for t in (751, 1, 751)]
    assert torch.equal(found[0], plain[0])
    assert not torch.equal(found[1], plain[1])
    assert torch.equal(found[2], plain[0])


def test_it_is_named_while_it_holds_and_leaves_nothing_after_an_error(pipe, nm):
    masks = stepwise_masks(pipe, nm, skill_ratio=RATIO, name="by step")
    before = snapshot(pipe)

    def broken():
        with masks.applied(pipe):
            assert probe.provenance.lineage(pipe) == [[masks.id, "by step"]]
            probe.generate(pipe, probe.samples(["x"]), steps=1, progress=False)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        broken()
    assert snapshot(pipe) == before
    assert stepwise_masks(pipe, nm, skill_ratio=RATIO).id == masks.id


def test_evaluate_takes_it_like_an_edit(pipe, nm):
    from probe.protocols import EditLike

    assert isinstance(stepwise_masks(pipe, nm, skill_ratio=RATIO), EditLike)


def test_other_models_and_windows_are_refused(pipe, nm):
    masks = stepwise_masks(pipe, nm, skill_ratio=RATIO)
    with pytest.raises(WrongModel), masks.applied(tiny_pipeline(seed=5)):
        pass
    with pytest.raises(BadInput, match="window"):
        stepwise_masks(pipe, nm, window=(990, 980))

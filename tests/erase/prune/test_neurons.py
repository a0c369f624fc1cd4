from __future__ import annotations

import numpy as np
import pytest
import torch

import probe
from erase import concept_prune, prune_neurons
from probe.errors import BadInput, UnknownName, WrongModel
from probe.testing import tiny_pipeline
from tests.erase.prune.maps import EARLY, norms, wanda_map
from tests.erase.snapshots import parameter


def test_selected_units_pass_nothing_on_and_the_rest_is_as_it_was(pipe):
    nm = wanda_map(pipe, *norms(pipe, 3), EARLY[:3], method="anything").select(top=7)
    edit = prune_neurons(pipe, nm)
    table = nm.to_dataframe().query("selected")
    wanted = {f"unet.{site.module}.weight": set(table[table["site"] == site.name]["unit"]) for site in nm.sites}
    assert set(edit.params) == {param for param, units in wanted.items() if units}
    assert edit.report["units"] == 7
    before = {param: parameter(pipe, param).detach().clone() for param in edit.params}
    with edit.applied(pipe):
        for param in edit.params:
            now = parameter(pipe, param).detach()
            units = sorted(wanted[param])
            assert not now[:, units].any()
            now = now.clone()
            now[:, units] = before[param][:, units]
            assert torch.equal(now, before[param])


def test_silenced_units_have_no_effect_on_the_image(pipe):
    """Whatever a silenced unit does, the latent is the same: its activation is overwritten by noise on the way."""
    nm = wanda_map(pipe, *norms(pipe, 1), EARLY[:1]).select(top=20)
    edit = prune_neurons(pipe, nm)
    flags = {site.name: ds["selected"].values[0] for site, ds in zip(nm.sites, nm.by_site().values(), strict=True)}

    def denoised(scale):
        def disturb(site):
            units = torch.from_numpy(flags[site.name])
            return lambda _module, args: (torch.where(units, scale * torch.ones(()), args[0]),)

        hooks = [site.resolve(pipe).register_forward_pre_hook(disturb(site)) for site in nm.sites]
        try:
            with torch.no_grad():
                return pipe.unet(torch.ones(1, 4, 8, 8), 500, torch.ones(1, 8, 32)).sample
        finally:
            for hook in hooks:
                hook.remove()

    assert not torch.equal(denoised(1.0), denoised(50.0))
    with edit.applied(pipe):
        assert torch.equal(denoised(1.0), denoised(50.0))


@pytest.mark.parametrize(("over", "units"), [("any", [0, 1, 2]), ("all", [0]), ("vote", [0, 1])])
def test_selections_of_several_windows_are_joined_by_name(pipe, over, units):
    target, reference = norms(pipe, 3)
    nm = wanda_map(pipe, target, reference, EARLY[:3])
    selected = np.zeros(target.shape, bool)
    selected[0, :3], selected[1, :2], selected[2, :1] = True, True, True
    nm = probe.NeuronMap(nm.dataset.assign(selected=(("window", "neuron"), selected)))
    (change,) = prune_neurons(pipe, nm, over=over).changes
    assert change.dense()[0].nonzero().flatten().tolist() == units


def test_text_encoder_units_can_be_pruned(pipe):
    nm = wanda_map(pipe, *norms(pipe, 1, sites="mlp"), [0], sites="mlp").select(top=3)
    assert all(param.startswith("text_encoder.text_model.") for param in prune_neurons(pipe, nm).params)


def test_bad_input(pipe):
    nm = wanda_map(pipe, *norms(pipe, 2), EARLY[:2])
    with pytest.raises(BadInput, match="no selection"):
        prune_neurons(pipe, nm)
    empty = nm.select(top=3).difference(nm.select(top=3))
    with pytest.raises(BadInput, match="selects no unit"):
        prune_neurons(pipe, empty)
    with pytest.raises(UnknownName, match="mode"):
        prune_neurons(pipe, nm.select(top=3), mode="mean")
    with pytest.raises(WrongModel):
        prune_neurons(tiny_pipeline(seed=1), nm.select(top=3))
    outputs = wanda_map(pipe, *norms(pipe, 1, sites="xattn.out"), [0], sites="xattn.out").select(top=3)
    with pytest.raises(BadInput, match="enter a Linear"):
        prune_neurons(pipe, outputs)


def test_maps_may_be_given_as_paths(pipe, tmp_path):
    nm = wanda_map(pipe, *norms(pipe, 3), EARLY[:3]).select(top=7)
    nm.save(tmp_path / "map.zarr.zip")
    for eraser, options in ((prune_neurons, {}), (concept_prune, {"skill_ratio": 0.1, "window": None})):
        by_hand = eraser(pipe, nm, **options)
        for path in (tmp_path / "map.zarr.zip", str(tmp_path / "map.zarr.zip")):
            assert eraser(pipe, path, **options).id == by_hand.id
        with pytest.raises(BadInput, match=r"no neuron map here.*nearest: .*map.zarr.zip"):
            eraser(pipe, tmp_path / "mpa.zarr.zip", **options)
        with pytest.raises(BadInput, match="this is no neuron map"):
            eraser(pipe, 3, **options)

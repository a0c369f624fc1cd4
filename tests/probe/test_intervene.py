"""Interventions against the same change made by hand; and that nothing of them outlives the block."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from probe import provenance
from probe._evaluate import evaluate
from probe._generate import generate
from probe._intervention import intervene, intervention
from probe._record import record
from probe._result import result_images
from probe._result_rows import read_rows
from probe._samples import samples
from probe._sites import sites
from probe.errors import AmbiguousBatch, BadInput, UnknownName, WrongModel
from probe.protocols import EditLike
from probe.scores import score
from probe.testing import tiny_pipeline
from tests.oracles.recording import activations
from tests.probe.measuring import Colours, small_world

STEPS = 2  # timesteps 501 and 1


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A pipeline, its sites, and a run with the reducer mean."""
    pipe, folder = tiny_pipeline(), tmp_path_factory.mktemp("runs")
    options = {"sites": ["ffn", "mlp"], "reduce": ["mean", "absmean", "unit_norm"], "steps": STEPS, "images": False}
    runs = {
        name: record(pipe, prompts, out=folder / name, progress=False, seeds=[3, 4], **options)
        for name, prompts in (("source", ["a house", "a hill"]), ("target", ["a church", "a church by the sea"]))
    }
    return SimpleNamespace(pipe=pipe, sites=sites(pipe, "ffn"), texts=sites(pipe, "mlp"), **runs)


def inputs(pipe, site, prompt="a church", seed=5, guidance=7.5):
    """What the site's Linear gets: list over calls of (b k n); hooks that come first have been heard."""
    return activations(pipe, [site.module], prompt, seed, STEPS, guidance)[site.module]


def drawn(pipe, prompts=("a church", "a house"), **options):
    options = {"steps": STEPS, "progress": False} | options
    return generate(pipe, samples(list(prompts), 7), **options)


def hooks_of(pipe) -> dict[str, int]:
    """Number of hooks of every module of every network, by name; and what marks edits or interventions."""
    found = {}
    for part in ("unet", "text_encoder", "vae"):
        for name, module in getattr(pipe, part).named_modules():
            found[f"{part}.{name}"] = len(module._forward_hooks) + len(module._forward_pre_hooks)
            assert not [key for key in vars(module) if key.startswith("_workbench")]
    return found


def test_zero_is_a_zeroed_weight(world) -> None:
    """Silencing what enters a Linear is silencing its columns."""
    site, units = world.sites[1], [3, 8, 40]
    with intervene(world.pipe, {site.name: units}):
        found = drawn(world.pipe)
    pipe = tiny_pipeline()
    with torch.no_grad():
        site.resolve(pipe).weight[:, units] = 0
    np.testing.assert_array_equal(found, drawn(pipe))
    assert not np.array_equal(found, drawn(world.pipe))


def test_scale_by_one_changes_nothing_and_by_zero_is_zero(world) -> None:
    chosen = {world.sites[0].name: [1, 2], world.sites[2].name: [5]}
    plain = drawn(world.pipe)
    with intervene(world.pipe, chosen, mode="scale", value=1.0):
        np.testing.assert_array_equal(drawn(world.pipe), plain)
    with intervene(world.pipe, chosen, mode="scale", value=0.0):
        silent = drawn(world.pipe)
    with intervene(world.pipe, chosen):
        np.testing.assert_array_equal(drawn(world.pipe), silent)


@pytest.mark.parametrize(("branch", "row"), [("uncond", 0), ("cond", 1), (None, slice(None))])
@pytest.mark.parametrize(("window", "step"), [((999, 400), 0), ((400, 0), 1), (None, slice(None))])
def test_only_that_branch_and_window_and_those_units(world, branch, row, window, step) -> None:
    site, units = world.sites[0], [0, 7]  # the first site: its inputs at the first step do not depend on the change
    plain = inputs(world.pipe, site)
    with intervene(world.pipe, {site.name: units}, mode="scale", value=3.0, branch=branch, window=window):
        found = inputs(world.pipe, site)
    factor = torch.ones(STEPS, 2, 1, site.width)
    touched = factor[step] if step == slice(None) else factor[step : step + 1]
    for part in touched:
        part[row][..., units] = 3.0
    torch.testing.assert_close(found[0], plain[0] * factor[0])
    own = found[1] / factor[1]  # what the site would have passed on at the second step
    if window == (400, 0):
        torch.testing.assert_close(own, plain[1])
    assert (found[1][..., 9] == own[..., 9]).all()


def test_in_one_unguided_branch_everything_is_cond(world) -> None:
    site = world.sites[0]
    with intervene(world.pipe, {site.name: [4]}, branch="cond"):
        assert (inputs(world.pipe, site, guidance=1.0)[0][..., 4] == 0).all()
    with intervene(world.pipe, {site.name: [4]}, branch="uncond"):
        assert (inputs(world.pipe, site, guidance=1.0)[0][..., 4] != 0).any()


def test_batches_of_several_samples_have_their_own_rows(world) -> None:
    chosen = {world.sites[1].name: [2, 3, 4]}
    with intervene(world.pipe, chosen, branch="cond"):
        together = drawn(world.pipe, ["a church", "a house", "a hill"], batch_size=3)
        alone = drawn(world.pipe, ["a church", "a house", "a hill"], batch_size=1)
    assert np.abs(together.astype(int) - alone).max() <= 1


def test_mean_is_the_sources_mean_at_that_step_and_branch(world) -> None:
    site, units = world.sites[2], [1, 100]
    start = sum(other.width for other in world.sites[:2])
    ds = world.source.open()
    wanted = ds["mean"].values.mean(0)[..., [start + unit for unit in units]]  # (b t u)
    with intervene(world.pipe, {site.name: units}, mode="mean", source=world.source):
        found = inputs(world.pipe, site)
    for step in range(STEPS):
        for branch in range(2):
            values = found[step][branch][:, units]
            expected = torch.from_numpy(wanted[branch, step]).expand_as(values)
            torch.testing.assert_close(values, expected, rtol=1e-5, atol=1e-6)


def test_patch_is_the_sources_sample(world) -> None:
    site, units = world.sites[0], [5, 6]
    ds = world.source.open()
    table = ds["mean"].values[..., units]  # (s b t u); the first site starts the axis
    kept = []
    handle = site.resolve(world.pipe).register_forward_hook(lambda _m, args, _out: kept.append(args[0]))
    try:
        with intervene(world.pipe, {site.name: units}, mode="patch", source=ds):
            drawn(world.pipe)
        with intervene(world.pipe, {site.name: units}, mode="patch", source=ds.isel(sample=[1]), branch="cond"):
            drawn(world.pipe)
    finally:
        handle.remove()
    for step in range(STEPS):
        rows = kept[step][..., units].reshape(2, 2, -1, 2)  # b s k u
        wanted = torch.from_numpy(table[:, :, step]).transpose(0, 1)[:, :, None]
        torch.testing.assert_close(rows, wanted.expand_as(rows))
        rows = kept[STEPS + step][..., units].reshape(2, 2, -1, 2)
        wanted = torch.from_numpy(table[1, 1, step])
        torch.testing.assert_close(rows[1], wanted.expand_as(rows[1]))
        assert (rows[0] != wanted).any()
    with (
        pytest.raises(AmbiguousBatch, match="2 samples in the run, 3 in the call"),
        intervene(world.pipe, {site.name: units}, mode="patch", source=ds),
    ):
        drawn(world.pipe, ["a", "b", "c"])


def test_text_encoders_encode_cond_first(world) -> None:
    site = world.texts[0]
    kept = []
    handle = site.resolve(world.pipe).register_forward_hook(lambda _m, args, _out: kept.append(args[0]))
    try:
        with intervene(world.pipe, {site.name: [9]}, branch="uncond"):
            drawn(world.pipe, batch_size=1)
    finally:
        handle.remove()
    silent = [bool((x[..., 9] == 0).all()) for x in kept]
    assert silent == [False, True, False, True]
    with pytest.raises(BadInput, match="no timesteps"), intervene(world.pipe, {site.name: [9]}, window=(999, 0)):
        pass


def test_a_recording_sees_it_and_says_so(world, tmp_path) -> None:
    site = world.sites[0]
    chosen = intervention({site.name: [3]}, name="silence")
    with chosen.applied(world.pipe):
        assert provenance.lineage(world.pipe) == [[chosen.id, "silence"]]
        run = record(world.pipe, ["a church"], out=tmp_path / "run", steps=STEPS, images=False, progress=False)
    assert provenance.lineage(world.pipe) == []
    assert run.identity["lineage"] == [[chosen.id, "silence"]]
    values = run.open()["absmean"].values[..., : site.width]
    assert (values[..., 3] == 0).all()
    assert (values[..., 4] != 0).all()


def test_it_is_like_an_edit_and_its_id_says_what_it_does(world) -> None:
    site = world.sites[0].name
    one = intervention({site: [1]})
    assert isinstance(one, EditLike)
    assert one.name == "zero of 1 neuron"
    assert one.id == intervention({site: (1, 1)}).id
    options = [
        {"mode": "scale", "value": 2.0},
        {"mode": "scale", "value": 3.0},
        {"window": (999, 500)},
        {"branch": "cond"},
        {"mode": "mean", "source": world.source},
        {"mode": "mean", "source": world.target},
        {"mode": "patch", "source": world.source},
    ]
    ids = {one.id, intervention({site: [2]}).id, *(intervention({site: [1]}, **o).id for o in options)}
    assert len(ids) == len(options) + 2


def test_a_map_says_which_neurons(world, tmp_path) -> None:
    nm = score(world.target, world.source).select(top=6)
    chosen = intervention(nm)
    assert sum(map(len, chosen.units.values())) == 6
    assert intervention(nm.save(tmp_path / "map")).id == chosen.id
    with chosen.applied(world.pipe) as pipe:
        assert pipe is world.pipe
        with intervene(pipe, {world.sites[0].name: [0]}, mode="scale", value=2.0):  # nested: the first is in force
            drawn(pipe)
    other = tiny_pipeline(seed=1)
    with pytest.raises(WrongModel, match="another model"), chosen.applied(other):
        pass
    assert set(hooks_of(other).values()) == {0}


class _Stop(BaseException):
    """What Ctrl-C is: no Exception."""


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_nothing_outlives_the_block(world, data) -> None:
    """Whatever is nested, and however it ends: same hooks, same weights, same attributes, same pictures."""
    pipe = world.pipe
    before = hooks_of(pipe)
    names = [site.name for site in (*world.sites, *world.texts)]
    depth = data.draw(st.integers(1, 3))
    ends = data.draw(st.sampled_from([None, RuntimeError, KeyboardInterrupt, _Stop, "inside"]))

    def nest(left: int) -> None:
        if left == 0:
            if ends is None:
                return
            if ends == "inside":
                pipe.unet(torch.zeros(3, 4, 8, 8), 1, torch.zeros(3, 32, 32))  # 3 rows are no two branches
            raise ends() if ends != "inside" else AssertionError("three rows were accepted")
        chosen = {data.draw(st.sampled_from(names)): data.draw(st.lists(st.integers(0, 60), min_size=1, max_size=3))}
        branch = "cond" if ends == "inside" else data.draw(st.sampled_from(["cond", None]))
        mode = data.draw(
            st.sampled_from([{}, {"mode": "scale", "value": 2.0}, {"mode": "mean", "source": world.source}])
        )
        with intervene(pipe, chosen, branch=branch, branches=("uncond", "cond"), **mode):
            nest(left - 1)

    if ends is None:
        nest(depth)
    else:
        with pytest.raises(AmbiguousBatch if ends == "inside" else ends):
            nest(depth)
    assert hooks_of(pipe) == before
    assert provenance.lineage(pipe) == []


def test_evaluate_takes_it_like_an_edit(world, tmp_path) -> None:
    table = {site.name: list(range(0, site.width, 2)) for site in world.sites}
    edits = {"silence": intervention(table), "louder": intervention(table, mode="scale", value=50.0)}
    judged = {"judge": Colours(), "metrics": ("rate",), "world": small_world()}
    cells = evaluate(
        world.pipe, edits, ["church"], out=tmp_path / "r", steps=1, n_prompts=4, resamples=50, progress=False, **judged
    )
    assert set(cells["edit"]) == {"silence", "louder"}
    pictures, prompts, _ = result_images(tmp_path / "r", "church")
    assert len(np.unique([pictures[name] for name in ("original", *edits)], axis=0)) == 3
    (first,) = [row for row in read_rows(tmp_path / "r") if row["edit"] == "silence" and row["prompt"] == prompts[0]]
    with edits["silence"].applied(world.pipe):
        again = generate(world.pipe, samples([first["prompt"]], first["seed"]), steps=1, progress=False)
    np.testing.assert_array_equal(pictures["silence"][0], again[0])
    assert set(hooks_of(world.pipe).values()) == {0}


def test_weights_and_pictures_are_as_before(world) -> None:
    before = {name: tensor.clone() for name, tensor in world.pipe.unet.state_dict().items()}
    plain = drawn(world.pipe)
    for options in ({}, {"mode": "scale", "value": 2.0}, {"mode": "mean", "source": world.source}):
        with intervene(world.pipe, {site.name: [0, 1] for site in world.sites}, **options):
            drawn(world.pipe)
    assert before.keys() == world.pipe.unet.state_dict().keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in world.pipe.unet.state_dict().items())
    np.testing.assert_array_equal(drawn(world.pipe), plain)


def test_gradients_pass_through(world) -> None:
    site = world.sites[1]
    latents = torch.zeros(1, 4, 8, 8, requires_grad=True)
    states = []
    for factor in (1.0, 2.0):
        with intervene(world.pipe, {site.name: [0, 1, 2]}, mode="scale", value=factor):
            out = world.pipe.unet(latents, 1, torch.ones(1, 32, 32)).sample
        (grad,) = torch.autograd.grad(out.square().sum(), latents)
        states.append(grad)
    assert states[0].abs().sum() > 0
    assert not torch.equal(*states)


def test_what_cannot_be_done(world, tmp_path) -> None:
    site = world.sites[0]
    for options, part in (
        ({"mode": "scale"}, "value= belongs to"),
        ({"value": 2.0}, "value= belongs to"),
        ({"mode": "mean"}, "--reduce mean"),
        ({"source": world.source}, "source= belongs to"),
    ):
        with pytest.raises(BadInput, match=part):
            intervention({site.name: [1]}, **options)
    with pytest.raises(UnknownName, match="zero"):
        intervention({site.name: [1]}, mode="zeor")
    with pytest.raises(BadInput, match="no neuron is selected"):
        intervention({site.name: []})
    with pytest.raises(BadInput, match="no selection"):
        intervention(score(world.target, world.source))
    with pytest.raises(BadInput, match="a selection of neurons"):
        intervention(3)
    with pytest.raises(BadInput, match=r"outside its site.*0 to 127"), intervene(world.pipe, {site.name: [128]}):
        pass
    with pytest.raises(UnknownName, match="nearest"), intervene(world.pipe, {"unet.mid.ffn": [1]}):
        pass
    xattn = sites(world.pipe, "xattn.out")[0]
    with pytest.raises(BadInput, match="enter a Linear"), intervene(world.pipe, {xattn.name: [1]}):
        pass
    other = record(world.pipe, ["a"], out=tmp_path / "run", sites="*mid*.ffn", steps=1, progress=False, images=False)
    with pytest.raises(BadInput, match=r"no mean.*--reduce absmean,unit_norm,mean"):
        intervention({site.name: [1]}, mode="mean", source=other)
    partial = world.source.open().isel(branch=[1])
    with (
        pytest.raises(BadInput, match="no such branch"),
        intervene(world.pipe, {site.name: [1]}, mode="mean", source=partial),
    ):
        drawn(world.pipe)
    assert set(hooks_of(world.pipe).values()) == {0}

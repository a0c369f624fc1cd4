"""wanda against ConceptPrune's own definition, run prompt by prompt; and what may be compared with what."""

from __future__ import annotations

import json
import math
import shutil

import numpy as np
import pytest
import torch

from probe import scores
from probe._record import open_run, record
from probe._run import Run
from probe._sites import sites
from probe._store import RunStore
from probe.errors import BadInput, HeaderMismatch, StoreDamaged, UnknownName
from probe.scores import register_score, score, score_names
from probe.scores._runs import recorded as read_run
from probe.testing import tiny_pipeline
from tests.oracles.recording import activations, column_norms, fan_out, token_rows
from tests.probe.conftest import GUIDANCE, REFERENCE, STEPS, TARGET


@pytest.fixture(scope="module")
def kept(recorded):
    """Every activation of both prompt sets: set -> module -> per prompt the list over calls of (b k n)."""
    modules = [site.module for site in sites(recorded.pipe)]
    found = {}
    for name, prompts in (("target", TARGET), ("reference", REFERENCE)):
        each = [
            activations(recorded.pipe, modules, prompt, seed, STEPS, GUIDANCE)
            for prompt, seed in zip(prompts, recorded.options["seeds"], strict=True)
        ]
        found[name] = {module: [prompt[module] for prompt in each] for module in modules}
    return found


@pytest.mark.parametrize("branches", ["both", "cond"])
@pytest.mark.parametrize("normalise", ["sum", "mean"])
def test_wanda_equals_the_papers_definition(recorded, kept, branches, normalise):
    nm = score(recorded.target, recorded.reference, branches=branches, normalise=normalise)
    rows = [0, 1] if branches == "both" else [1]
    for site, part in zip(sites(recorded.pipe), nm.by_site().values(), strict=True):
        outgoing = fan_out(recorded.pipe.unet.get_submodule(site.module).weight.detach())
        for step in range(STEPS):
            norms = {}
            for name in ("target", "reference"):
                norms[name] = column_norms(kept[name][site.module], step, rows)
                if normalise == "mean":
                    count = token_rows(kept[name][site.module], step, rows)
                    norms[name] = [n / math.sqrt(count) for n in norms[name]]
                np.testing.assert_allclose(part[name].values[step], norms[name], rtol=1e-3)
            wanted = [w * (t - r) for w, t, r in zip(outgoing, norms["target"], norms["reference"], strict=True)]
            np.testing.assert_allclose(part["score"].values[step], wanted, rtol=2e-2, atol=2e-5)


def test_one_window_a_step_at_the_schedulers_timesteps(recorded):
    nm = score(recorded.target, recorded.reference)
    assert nm.windows == [(501, 501), (1, 1)]
    assert nm.method == "wanda"
    np.testing.assert_array_equal(nm.dataset["fan_out"].values, recorded.target.open()["fan_out"].values)


def test_a_map_says_what_it_was_made_of(recorded):
    identity = score(recorded.target, recorded.reference, branches="cond").provenance["identity"]
    assert identity["method"] == "wanda"
    assert identity["options"] == {"branches": "cond", "normalise": "mean", "group": "unet"}
    assert identity["model"]["weights"].keys() == {"unet"}
    assert identity["target"]["run"] == recorded.target.id
    assert identity["reference"]["samples"]["n"] == 3
    assert identity["steps"] == STEPS


def test_paths_runs_and_datasets_give_the_same_map(recorded):
    ids = {
        score(target, reference).id
        for target, reference in (
            (recorded.target, recorded.reference),
            (str(recorded.target.path), recorded.reference.path),
            (open_run(recorded.target), recorded.reference.open()),
        )
    }
    assert len(ids) == 1
    part = score(open_run(recorded.target).isel(sample=[0, 1]), recorded.reference)
    assert part.id not in ids


def test_target_equal_to_reference_scores_zero(recorded):
    nm = score(recorded.target, recorded.target)
    assert (nm.dataset["score"].values == 0).all()
    assert not (nm.dataset["target"].values > nm.dataset["reference"].values).any()


@pytest.mark.parametrize("branches", ["both", "cond"])
def test_doubling_the_references_changes_nothing(recorded, branches):
    doubled = recorded.reference.open().isel(sample=[0, 1, 2, 0, 1, 2])
    a = score(recorded.target, recorded.reference, branches=branches)
    b = score(recorded.target, doubled, branches=branches)
    for name in ("score", "target", "reference"):
        np.testing.assert_allclose(b.dataset[name].values, a.dataset[name].values, rtol=1e-6, atol=1e-9)
    np.testing.assert_array_equal(
        a.dataset["target"].values > a.dataset["reference"].values,
        b.dataset["target"].values > b.dataset["reference"].values,
    )


def test_sums_over_other_numbers_of_rows_are_refused(recorded):
    fewer = recorded.reference.open().isel(sample=[0, 1])
    with pytest.raises(BadInput, match=r"target 3 samples, reference 2 samples.*mean"):
        score(recorded.target, fewer, normalise="sum")
    score(recorded.target, fewer, normalise="mean")


def test_samples_that_were_not_measured_count_for_nothing(recorded):
    ds = recorded.reference.open().load()
    ds["unit_norm"][2] = np.nan
    a = score(recorded.target, ds)
    b = score(recorded.target, recorded.reference.open().isel(sample=[0, 1]))
    np.testing.assert_allclose(a.dataset["reference"].values, b.dataset["reference"].values, rtol=1e-6)
    ds["unit_norm"][:] = np.nan
    assert np.isnan(score(recorded.target, ds).dataset["score"].values).all()


def test_blocks_of_samples_give_what_one_block_gives(recorded, monkeypatch):
    whole = score(recorded.target, recorded.reference)
    monkeypatch.setattr("probe._recorded._BLOCK", 1)
    source = read_run(recorded.target, "unet", "unit_norm")
    assert len(list(source.blocks("unit_norm"))) > 1 or source.ds["unit_norm"].encoding["chunks"][0] >= 3
    np.testing.assert_allclose(score(recorded.target, recorded.reference).dataset["score"], whole.dataset["score"])


def test_a_text_encoder_has_one_window(recorded):
    nm = score(recorded.target, recorded.reference, group="text_encoder")
    assert nm.windows == [(999, 0)]
    assert [site.name for site in nm.sites] == [site.name for site in sites(recorded.pipe, "mlp")]
    assert np.isfinite(nm.dataset["score"].values).all()


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"steps": 3}, "steps"),
        ({"guidance": 2.0}, "guidance"),
        ({"sites": "*mid*.ffn"}, "sites"),
        ({}, r"weights\.text_encoder"),
    ],
)
def test_runs_that_differ_are_not_compared_and_the_key_is_named(recorded, tmp_path, change, key):
    pipe, options = recorded.pipe, {"steps": STEPS, "guidance": GUIDANCE, "images": False, "progress": False}
    if not change:
        pipe = tiny_pipeline()
        with torch.no_grad():
            next(pipe.text_encoder.parameters())[0, 0] += 1
    other = record(pipe, ["a"], out=tmp_path / "run", **options | change)
    with pytest.raises(HeaderMismatch, match=rf"cannot be compared: {key} differs"):
        score(recorded.target, other)


def test_what_else_was_recorded_does_not_matter(recorded, tmp_path):
    options = {"steps": STEPS, "guidance": GUIDANCE, "images": False, "progress": False, "batch_size": 2}
    other = record(recorded.pipe, REFERENCE, seeds=[5, 6, 7], out=tmp_path / "run", reduce="unit_norm", **options)
    assert "text_encoder" not in other.groups  # nor does it name a VAE
    nm, wanted = score(recorded.target, other), score(recorded.target, recorded.reference)
    np.testing.assert_array_equal(nm.dataset["score"].values, wanted.dataset["score"].values)
    assert nm.provenance["identity"]["model"]["weights"].keys() == {"unet"}


def test_another_batch_size_is_only_warned_about(recorded, caplog):
    ds = recorded.reference.open()
    provenance = json.loads(ds.attrs["provenance"])
    provenance["identity"]["batch_size"] = 4
    score(recorded.target, ds.assign_attrs(provenance=json.dumps(provenance)))
    assert "batches of 2 and 4" in caplog.text


def test_a_torn_chunk_is_named_while_scoring(recorded, tmp_path):
    path = shutil.copytree(recorded.target.path, tmp_path / "run")
    chunk = path / "unet" / "unit_norm" / "c" / "0" / "1" / "0" / "0"
    chunk.write_bytes(chunk.read_bytes()[:-10])
    with pytest.raises(StoreDamaged, match=r"unet/unit_norm/c/0/1/0/0.*repair"):
        score(path, recorded.reference)
    chunk.unlink()
    with pytest.raises(StoreDamaged, match="unet/unit_norm/c/0/1/0/0"):
        score(path, recorded.reference)
    RunStore(path).forget([0])
    with pytest.raises(BadInput, match="not finished"):
        score(Run(path), recorded.reference)


def test_what_cannot_be_scored(recorded):
    target, reference = recorded.target, recorded.reference
    with pytest.raises(UnknownName, match="wanda"):
        score(target, reference, method="wonda")
    with pytest.raises(UnknownName, match="branches"):
        score(target, reference, branch="cond")
    with pytest.raises(UnknownName, match="both"):
        score(target, reference, branches="uncond")
    with pytest.raises(UnknownName, match="text_encoder"):
        score(target, reference, group="text")
    with pytest.raises(BadInput, match=r"no unit_norm.*absmean"):
        score(target.open()[["absmean"]], reference)
    with pytest.raises(BadInput, match="every neuron"):
        score(target.open().isel(neuron=slice(5)), reference)
    with pytest.raises(BadInput, match="no samples"):
        score(target.open().isel(sample=[]), reference)
    with pytest.raises(BadInput, match="a path, a Run or a dataset"):
        score(3, reference)


def test_only_samples_that_show_the_concept_count(recorded):
    ds = recorded.target.open()
    ds = ds.assign_coords(shown=("sample", np.array([0.9, np.nan, 0.4], np.float32)))
    nm = score(ds, recorded.reference, only_shown=0.3)
    wanted = score(ds.isel(sample=[0, 2]), recorded.reference)
    np.testing.assert_array_equal(nm.dataset["score"].values, wanted.dataset["score"].values)
    assert nm.provenance["identity"]["options"]["only_shown"] == 0.3
    assert nm.id != score(ds, recorded.reference, only_shown=False).id == score(ds, recorded.reference).id
    with pytest.raises(BadInput, match=r"no judge's scores.*detector="):
        score(recorded.target, recorded.reference, only_shown=True)
    with pytest.raises(BadInput, match=r"not registered here.*only_shown=0\.5"):
        score(ds, recorded.reference, only_shown=True)


def test_scores_of_others_are_called_with_what_they_ask_for(monkeypatch, recorded):
    monkeypatch.setattr(scores, "_SCORES", dict(scores._SCORES))

    def needs_model(target, reference, *, pipe, strength: float = 1.0):
        return pipe, strength

    register_score("needs_model", needs_model)
    assert score_names() == (
        "wanda",
        "contrast",
        "auroc",
        "linear",
        "erased_delta",
        "gradient",
        "causal",
        "needs_model",
    )
    assert score(1, 2, method="needs_model", pipe="p", strength=2) == ("p", 2.0)
    with pytest.raises(BadInput, match="needs pipe="):
        score(1, 2, method="needs_model")
    with pytest.raises(UnknownName, match="strength"):
        score(1, 2, method="needs_model", pipe="p", strenght=2)
    with pytest.raises(BadInput, match="exists"):
        register_score("wanda", needs_model)

"""Identities that hash, comparisons that name the key, fingerprints that follow the weights."""

from __future__ import annotations

import hashlib
import json
import logging

import numpy as np
import pytest
import torch

from probe import compat, fingerprint, lineage
from probe.errors import BadInput, HeaderMismatch, UnknownName, WrongModel
from probe.provenance import canonical_json, check_same, identity_id, info, stamp
from probe.testing import tiny_pipeline

WEIGHT = "mid_block.attentions.0.transformer_blocks.0.ff.net.2.weight"


@pytest.fixture
def pipe():
    return tiny_pipeline()


# --- identities -------------------------------------------------------------------------------------------------------


def test_identity_does_not_depend_on_order_or_number_types():
    a = {"steps": 30, "sites": ("x", "y"), "guidance": 7.5, "nested": {"b": 1, "a": np.int64(2)}}
    b = {"nested": {"a": 2, "b": 1}, "guidance": np.float64(7.5), "sites": ["x", "y"], "steps": np.int32(30)}
    assert identity_id(a) == identity_id(b)
    assert identity_id(a) != identity_id(a | {"steps": 31})


def test_identity_is_the_sha256_of_canonical_json():
    assert canonical_json({"b": [1, 2.5], "a": None}) == '{"a":null,"b":[1,2.5]}'
    assert identity_id({"a": 1}) == hashlib.sha256(b'{"a":1}').hexdigest()[:16]


@pytest.mark.parametrize("value", [float("nan"), object(), torch.nn.Identity()])
def test_identities_hold_plain_values(value):
    with pytest.raises(BadInput):
        identity_id({"a": value})


def test_a_stamp_survives_json_and_the_circumstances_do_not_count():
    made = stamp({"steps": np.int64(3), "size": (8, 8)})
    assert json.loads(json.dumps(made)) == made
    assert made["id"] == identity_id(made["identity"])
    assert made["info"].keys() == info().keys()
    assert made["info"]["versions"]["torch"] == torch.__version__


def test_check_same_names_the_first_key_and_both_values():
    expected = {"steps": 30, "model": {"dtype": "float32", "weights": {"unet": "ab"}}, "size": (8, 8)}
    check_same(expected, expected | {"size": [8, 8]}, "run")
    found = {"steps": 30, "model": {"dtype": "float32", "weights": {"unet": "cd"}}, "size": [8, 8]}
    with pytest.raises(HeaderMismatch, match=r"run: model\.weights\.unet differs; given: 'cd'; expected: 'ab'"):
        check_same(expected, found, "run")
    check_same(expected, found, "run", keys=["steps", "size"])
    with pytest.raises(HeaderMismatch, match="extra differs; given: 1; expected: nothing"):
        check_same({}, {"extra": 1}, "run")
    with pytest.raises(HeaderMismatch, match="extra differs; given: nothing; expected: None"):
        check_same({"extra": None}, {}, "run")


# --- lineage ----------------------------------------------------------------------------------------------------------


def test_lineage_of_an_untouched_pipeline_is_empty(pipe):
    assert lineage(pipe) == []


def test_lineage_keeps_every_components_order(pipe):
    pipe.unet._workbench_edits = [("1", "a"), ("3", "c")]
    pipe.text_encoder._workbench_edits = [("2", "b"), ("3", "c"), ("4", "d")]
    merged = lineage(pipe)
    assert sorted(merged) == [["1", "a"], ["2", "b"], ["3", "c"], ["4", "d"]]
    names = [name for _, name in merged]
    assert names.index("c") > max(names.index("a"), names.index("b"))
    assert names[-1] == "d"
    pipe.text_encoder._workbench_edits = [("2", "b")]
    pipe.unet._workbench_edits = [("1", "a"), ("2", "b")]
    assert lineage(pipe) == [["1", "a"], ["2", "b"]]


# --- fingerprints -----------------------------------------------------------------------------------------------------


def test_equal_models_have_equal_fingerprints(pipe):
    assert fingerprint(pipe).to_json() == fingerprint(tiny_pipeline()).to_json()
    other = fingerprint(tiny_pipeline(seed=1)).to_json()
    assert other["architecture"] == fingerprint(pipe).to_json()["architecture"]
    assert other["weights"] != fingerprint(pipe).to_json()["weights"]


def test_architecture_is_the_same_on_every_library_version(pipe):
    """Checked with transformers 4.57 and 5.23, diffusers 0.35 and 0.42; runs and edits on disk depend on it."""
    assert {name: sha[:16] for name, sha in fingerprint(pipe).architecture.items()} == {
        "text_encoder": "e490d7035e7e8f00",
        "unet": "c9d264c44d7adbce",
        "vae": "e08ab395785aaae0",
    }


def test_architecture_tells_kinds_apart(pipe):
    assert fingerprint(pipe).architecture["unet"] != fingerprint(tiny_pipeline("sd21")).architecture["unet"]


def test_tensor_hash_against_its_definition(pipe):
    tensor = pipe.unet.get_parameter(WEIGHT)
    data = tensor.detach().numpy().astype("<f4").tobytes()
    assert fingerprint(pipe).tensor("unet", WEIGHT) == hashlib.sha256(b"float32 [64, 256] " + data).hexdigest()


@pytest.mark.parametrize("change", ["in place", "through data", "one element", "new data", "sign of zero"])
def test_a_hash_follows_its_tensor_and_comes_back(pipe, change):
    mark = fingerprint(pipe)
    tensor = pipe.unet.get_parameter(WEIGHT)
    if change == "sign of zero":
        with torch.no_grad():
            tensor[0, 0] = 0.0
    before, whole, original = mark.tensor("unet", WEIGHT), mark.component("unet"), tensor.detach().clone()
    vae = mark.component("vae")
    if change == "in place":
        with torch.no_grad():
            tensor.mul_(2)
    elif change == "through data":
        tensor.data += 1e-3
    elif change == "one element":
        with torch.no_grad():
            tensor[3, 5] += 1
    elif change == "new data":
        tensor.data = tensor.data + 1
    else:
        with torch.no_grad():
            tensor[0, 0] = -0.0
    assert mark.tensor("unet", WEIGHT) != before
    assert mark.component("unet") != whole
    assert mark.component("vae") == vae
    with torch.no_grad():
        tensor.copy_(original)
    assert mark.tensor("unet", WEIGHT) == before
    assert mark.component("unet") == whole


def test_a_tensor_is_hashed_once(pipe, monkeypatch):
    from probe import provenance

    first = fingerprint(pipe).component("unet")
    monkeypatch.setattr(provenance, "_header", lambda tensor: pytest.fail("hashed again"))
    assert fingerprint(pipe).component("unet") == first


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes(pipe, dtype):
    mark = fingerprint(pipe)
    architecture, before = mark.architecture["unet"], mark.component("unet")
    pipe.unet.to(dtype)
    name = str(dtype).removeprefix("torch.")
    assert fingerprint(pipe).architecture["unet"] == architecture
    assert mark.component("unet") != before
    assert mark.dtype == "+".join(sorted([name, "float32"]))
    assert mark.to_json(["unet"])["dtype"] == name


def test_only_chosen_components(pipe):
    assert fingerprint(pipe).to_json(["unet"])["weights"].keys() == {"unet"}
    with pytest.raises(UnknownName, match="nearest: unet"):
        fingerprint(pipe).to_json(["unt"])
    with pytest.raises(UnknownName, match="parameter of unet"):
        fingerprint(pipe).tensor("unet", "conv_in.wieght")


def test_canonical_names_on_any_version(pipe):
    mark = fingerprint(pipe)
    canonical = "text_model.embeddings.token_embedding.weight"
    assert mark.tensor("text_encoder", canonical) == mark.tensor("text_encoder", canonical.removeprefix("text_model."))
    live = compat.live_name(pipe.text_encoder, canonical)
    assert pipe.text_encoder.get_parameter(live).shape == (514, 32)
    assert compat.canonical_name("text_encoder", live) == canonical
    assert compat.canonical_name("unet", "conv_in.weight") == compat.live_name(pipe.unet, "conv_in.weight")


def own(caplog) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.name.startswith("probe")]


def test_check_against_a_recorded_model(pipe, caplog):
    recorded = json.loads(json.dumps(fingerprint(pipe).to_json(["unet"])))
    fingerprint(pipe).check(recorded, "the map")
    with pytest.raises(WrongModel, match="the map was made on another model: unet differs in architecture"):
        fingerprint(tiny_pipeline("sd21")).check(recorded, "the map")
    with pytest.raises(WrongModel, match="unet differs in weights"):
        fingerprint(tiny_pipeline(seed=1)).check(recorded, "the map")
    pipe.vae.to(torch.float16)
    fingerprint(pipe).check(recorded, "the map")
    assert not own(caplog)
    pipe.unet.to(torch.float16)
    with caplog.at_level(logging.WARNING):
        fingerprint(pipe).check(recorded, "the map")
    assert len(own(caplog)) == 1
    assert "float32" in caplog.text


def test_check_names_the_edits_in_force(pipe):
    recorded = fingerprint(pipe).to_json(["unet"])
    pipe.unet._workbench_edits = [("12", "church")]
    with torch.no_grad():
        pipe.unet.get_parameter(WEIGHT).zero_()
    with pytest.raises(WrongModel, match="edits in force \\(church\\)"):
        fingerprint(pipe).check(recorded, "the map")


def test_meta_tensors_have_no_fingerprint(pipe):
    pipe.unet.to("meta")
    with pytest.raises(BadInput, match="without data"):
        fingerprint(pipe).component("unet")

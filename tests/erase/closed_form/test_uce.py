"""UCE on tiny pipelines against its slow twin, prompt by prompt and layer by layer."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch

import erase
from erase._changes import Delta
from probe.errors import BadInput, UnknownName, WrongModel
from probe.testing import tiny_pipeline
from tests.erase.closed_form.worlds import (
    KEEP,
    close,
    concept,
    edited,
    embedding,
    end,
    group,
    keys_and_values,
    pipeline,
    pooled,
)
from tests.erase.snapshots import snapshot
from tests.oracles import closed_form as oracle

KINDS = ("sd15", "sd21", "sdxl")
LOOSE = {"collapse": float("inf")}  # random text encoders put all texts in one place


@pytest.fixture(scope="module", params=KINDS)
def any_pipe(request):
    return pipeline(request.param)


def paper_rows(pipe, source, target):
    """Pairs of embedding rows from the last token of both texts on, cut to the same length."""
    old, new = embedding(pipe, source)[end(pipe, source) - 1 :], embedding(pipe, target)[end(pipe, target) - 1 :]
    shorter = min(len(old), len(new))
    return old[:shorter], new[:shorter]


@pytest.mark.parametrize("technique", ["replace", "tensor"])
def test_the_papers_algorithm(any_pipe, technique):
    before = snapshot(any_pipe)
    edit = erase.uce(any_pipe, ["church", "bat"], anchor="a hut", preserve=KEEP, technique=technique, **LOOSE)
    assert snapshot(any_pipe) == before
    kept = [row for text in ["", *KEEP] for row in embedding(any_pipe, text)]
    found = edited(any_pipe, edit)
    for param, weight in keys_and_values(any_pipe).items():
        plain, mapped = weight.double().numpy(), []
        for name in ("church", "bat"):
            old, new = paper_rows(any_pipe, name, "a hut")
            values = new @ plain.T if technique == "replace" else oracle.without_old(plain, old, new)
            mapped += [(c, v, 1.0) for c, v in zip(old, values, strict=True)]
        expected = oracle.ridge_solution(plain, mapped, [(row, 0.1) for row in kept], 0.5)
        assert close(found[param], expected), param
        assert not close(found[param], plain, 1e-3)
    assert set(keys_and_values(any_pipe)) == {p for p in edit.params if "attn2" in p}


def test_the_rewrite_of_2025(any_pipe):
    edit = erase.uce(any_pipe, "church", anchor="a hut", preserve=KEEP[:3], variant="2025", **LOOSE)
    found = edited(any_pipe, edit)

    def last(text):
        return embedding(any_pipe, text)[end(any_pipe, text) - 1]

    for param, weight in keys_and_values(any_pipe).items():
        plain = weight.double().numpy()
        mapped = [(last("church"), plain @ last("a hut"), 1.0)]
        expected = oracle.ridge_solution(plain, mapped, [(last(text), 1.0) for text in KEEP[:3]], 0.5)
        assert close(found[param], expected)
    assert edit.options["variant"] == "2025"
    assert edit.report["tokens"]["erased_rows"] == 1


def test_without_anything_to_preserve_the_paper_still_keeps_the_empty_text(any_pipe):
    """preserve_scale is max(0.1, 1 / texts): 1 for the empty text alone."""
    edit = erase.uce(any_pipe, "church", anchor="a hut", preserve=(), **LOOSE)
    assert edit.options["preserve_scale"] == 1.0
    old, new = paper_rows(any_pipe, "church", "a hut")
    param, weight = next(iter(keys_and_values(any_pipe).items()))
    plain = weight.double().numpy()
    mapped = [(c, plain @ t, 1.0) for c, t in zip(old, new, strict=True)]
    expected = oracle.ridge_solution(plain, mapped, [(row, 1.0) for row in embedding(any_pipe, "")], 0.5)
    assert close(edited(any_pipe, edit)[param], expected)


def test_a_group_stands_for_all_surface_forms_and_concepts_join_in_one_system():
    pipe = pipeline()
    edit = erase.uce(pipe, [group(), concept()], preserve=KEEP, **LOOSE)
    assert edit.options["phrases"] == [["axe", "hatchet", "bomb"], ["church"]]
    assert edit.options["anchors"] == ["a lamp", "a hut"]
    by_name = erase.uce(pipe, [group(), concept()], anchor={"arms": "a pin"}, preserve=KEEP, **LOOSE)
    assert by_name.options["anchors"] == ["a pin", "a hut"]


def test_templates_surround_phrase_and_anchor():
    pipe = pipeline()
    edit = erase.uce(pipe, "bat", anchor="hut", templates=("{}", "see {}"), preserve=KEEP, **LOOSE)
    single = erase.uce(pipe, "bat", anchor="hut", preserve=KEEP, **LOOSE)
    assert edit.report["tokens"]["erased_rows"] > single.report["tokens"]["erased_rows"]
    assert edit.id != single.id


def test_sdxls_pooled_text_is_mapped_in_the_added_embedding():
    pipe = pipeline("sdxl")
    edit = erase.uce(pipe, "church", anchor="a hut", preserve=KEEP, **LOOSE)
    name = "unet.add_embedding.linear_1.weight"
    assert name in edit.params
    weight = pipe.unet.add_embedding.linear_1.weight.detach().double().numpy()
    width = pipe.text_encoder_2.config.projection_dim
    plain = weight[:, :width]
    mapped = [(pooled(pipe, "church"), plain @ pooled(pipe, "a hut"), 1.0)]
    expected = oracle.ridge_solution(plain, mapped, [(pooled(pipe, text), 0.1) for text in ["", *KEEP]], 0.5)
    with edit.applied(pipe):
        now = pipe.unet.add_embedding.linear_1.weight.detach().double().numpy()
        assert close(now[:, :width], expected)
        np.testing.assert_array_equal(now[:, width:], weight[:, width:])
    assert "pooled" in edit.report
    left = erase.uce(pipe, "church", anchor="a hut", preserve=KEEP, pooled="leave", **LOOSE)
    assert name not in left.params


@pytest.mark.parametrize(("layers", "ends"), [("v", (".to_v.weight",)), ("k", (".to_k.weight",))])
def test_only_keys_or_only_values(layers, ends):
    edit = erase.uce(pipeline(), "church", anchor="a hut", preserve=KEEP, layers=layers, **LOOSE)
    assert all(param.endswith(ends) for param in edit.params)


def test_the_report_says_how_sure_the_solution_is_and_what_moved(any_pipe):
    edit = erase.uce(any_pipe, "church", anchor="a hut", preserve=KEEP, **LOOSE)
    system, width = edit.report["tokens"], any_pipe.unet.config.cross_attention_dim
    assert system["width"] == width == system["rank"]
    assert 1 <= system["effective_rank"] <= width
    rows = [row for text in ["", *KEEP] for row in embedding(any_pipe, text)]
    old, _ = paper_rows(any_pipe, "church", "a hut")
    matrix = 0.1 * sum(np.outer(r, r) for r in rows) + sum(np.outer(r, r) for r in old) + 0.5 * np.eye(width)
    assert system["condition"] == pytest.approx(np.linalg.cond(matrix), rel=1e-6)
    found = edited(any_pipe, edit)
    for param, weight in keys_and_values(any_pipe).items():
        plain = weight.double().numpy()
        moved = np.linalg.norm(found[param] - plain) / np.linalg.norm(plain)
        assert edit.report["layers"][param] == pytest.approx(moved, rel=1e-3)
    assert {"preserved", "everyday"} == set(edit.report["damage"])


def test_auto_takes_the_strongest_edit_within_the_bound():
    pipe = pipeline()
    free = erase.uce(pipe, "church", anchor="a hut", preserve=KEEP, erase_scale=10.0, **LOOSE)
    bound = free.report["damage"]["preserved"] / 3
    edit = erase.uce(pipe, "church", anchor="a hut", preserve=KEEP, strength="auto", max_damage=bound, **LOOSE)
    assert 0.9 * bound < edit.report["damage"]["preserved"] <= bound * (1 + 1e-6)
    more = erase.uce(pipe, "church", anchor="a hut", preserve=KEEP, strength=1.1 * edit.report["strength"], **LOOSE)
    assert more.report["damage"]["preserved"] > bound
    with pytest.raises(BadInput, match="no strength stays within"):
        erase.uce(pipe, "church", anchor="a hut", preserve=KEEP, strength="auto", max_damage=1e-12, **LOOSE)


def test_an_edit_that_destroys_everyday_prompts_is_refused_and_one_that_harms_them_says_so(caplog):
    pipe = pipeline()
    ruinous = {"anchor": "", "preserve": (), "preserve_scale": 0.0, "ridge": 1e-9, "tokens": "all_tokens"}
    with pytest.raises(BadInput, match="noise") as error:
        erase.uce(pipe, "church", collapse=0.01, **ruinous)
    assert "ridge" in error.value.fix
    damage = erase.uce(pipe, "church", **ruinous, **LOOSE).report["damage"]["everyday"]
    assert damage > 0.01
    caplog.clear()
    erase.uce(pipe, "church", collapse=damage * 1.01, **ruinous)
    assert "what is not preserved will suffer" not in caplog.text
    erase.uce(pipe, "church", collapse=damage / 1.5, **ruinous)
    assert "what is not preserved will suffer" in caplog.text


def test_edits_of_few_rows_are_stored_as_factors(any_pipe):
    edit = erase.uce(any_pipe, "church", anchor="a hut", preserve=KEEP, variant="2025", **LOOSE)
    pairs = [c for c in edit.changes if isinstance(c, Delta) and isinstance(c.value, tuple)]
    assert len(pairs) == len(edit.changes)
    whole = sum(4 * c.shape[0] * c.shape[1] for c in pairs)
    assert edit.nbytes < whole / 2


def test_fitted_on_an_edited_model_it_maps_what_that_model_has(own_pipe):
    first = erase.uce(own_pipe, "church", anchor="a hut", preserve=KEEP, **LOOSE)
    with first.applied(own_pipe):
        second = erase.uce(own_pipe, "bat", anchor="a pin", preserve=KEEP, **LOOSE)
    assert second.base_edits == [(first.id, "uce")]
    with first.applied(own_pipe), second.applied(own_pipe):
        pass


def test_it_is_saved_and_loaded_as_it_was(tmp_path):
    pipe = pipeline()
    edit = erase.uce(pipe, "church", anchor="a hut", preserve=KEEP, **LOOSE)
    again = erase.load_edit(edit.save_pretrained(tmp_path / "edit"))
    assert again.id == edit.id
    assert again.report == edit.report
    for param, weight in edited(pipe, again).items():
        np.testing.assert_array_equal(weight, edited(pipe, edit)[param])


# --- what is preserved ------------------------------------------------------------------------------------------------


def test_a_cache_serves_as_the_texts_it_was_made_of(any_pipe, tmp_path):
    cache = erase.preserve_cache(any_pipe, ["", *KEEP])
    path = cache.save(tmp_path / "keep.safetensors")
    again = erase.PreserveCache.load(path)
    assert again.id == cache.id
    assert again.texts == cache.texts == ("", *KEEP)
    assert torch.equal(again.gram, cache.gram)
    assert (again.pooled is None) == (cache.pooled is None)
    by_texts = erase.uce(any_pipe, "church", anchor="a hut", preserve=KEEP, **LOOSE)
    for source in (cache, path):
        by_cache = erase.uce(any_pipe, "church", anchor="a hut", preserve=source, **LOOSE)
        assert by_cache.id == by_texts.id
    with pytest.raises(BadInput, match="exists"):
        cache.save(path)
    assert cache.save(path, force=True) == path


def test_what_is_always_preserved_joins_a_cache_without_it(any_pipe):
    """The empty text of the paper's code; and preserve_scale counts it."""
    cache = erase.preserve_cache(any_pipe, KEEP[:2])
    by_cache = erase.uce(any_pipe, "church", anchor="a hut", preserve=cache, **LOOSE)
    by_texts = erase.uce(any_pipe, "church", anchor="a hut", preserve=KEEP[:2], **LOOSE)
    assert by_cache.options == by_texts.options
    expected = edited(any_pipe, by_texts)
    for param, weight in edited(any_pipe, by_cache).items():
        assert close(weight, expected[param])
    assert cache.texts == tuple(KEEP[:2])
    rewrite = erase.preserve_cache(any_pipe, KEEP, tokens="last_subject")
    assert erase.uce(any_pipe, "church", anchor="a hut", preserve=rewrite, variant="2025", **LOOSE).options["phrases"]


def test_a_cache_of_other_rows_is_refused(tmp_path):
    pipe = pipeline()
    cache = erase.preserve_cache(pipe, KEEP, tokens="last_subject")
    with pytest.raises(BadInput, match="other rows") as error:
        erase.uce(pipe, "church", anchor="a hut", preserve=cache.save(tmp_path / "keep.safetensors"), **LOOSE)
    assert "all_tokens" in error.value.fix


def test_a_cache_is_the_upper_triangle_and_no_larger(tmp_path):
    cache = erase.preserve_cache(pipeline(), KEEP)
    width = 32
    assert cache.save(tmp_path / "keep.safetensors").stat().st_size < 8 * width * (width + 1) / 2 + 4000
    assert 8 * 768 * 769 / 2 < 2.4e6  # at SD 1.x size


def test_a_cache_of_other_encoders_is_refused(tmp_path):
    cache = erase.preserve_cache(tiny_pipeline(seed=1), KEEP)
    with pytest.raises(WrongModel, match="preserve cache"):
        erase.uce(pipeline(), "church", anchor="a hut", preserve=cache, **LOOSE)
    (tmp_path / "torn.safetensors").write_bytes(b"12345")
    from probe.errors import StoreDamaged

    with pytest.raises(StoreDamaged):
        erase.PreserveCache.load(tmp_path / "torn.safetensors")


@pytest.mark.parametrize("cached", [False, True])
def test_preserved_texts_that_contain_an_erased_phrase_are_named(caplog, cached):
    pipe = pipeline()
    keep = erase.preserve_cache(pipe, KEEP) if cached else KEEP
    with caplog.at_level(logging.WARNING):
        edit = erase.uce(pipe, "dog", anchor="a hut", preserve=keep, **LOOSE)
    assert edit.report["collisions"] == [["dog", "a dog"]]
    assert "'dog' is erased and preserved at once, in 'a dog'" in caplog.text


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("concepts", "options", "match"),
    [
        ([], {}, "no concepts"),
        ("  ", {}, "empty"),
        (concept(surface_forms=("church", " ")), {}, "surface form of church is empty"),
        ("church", {"anchor": " Church "}, "target equals its source"),
        ("church", {"templates": "a photo"}, "no place for the concept"),
        ("church", {"templates": "{} and {}"}, "several places"),
        ("church", {"templates": ()}, "no templates"),
        ("church", {"erase_scale": 0.0}, "erase_scale must be positive"),
        ("church", {"ridge": -1.0}, "ridge must not be negative"),
        ("church", {"strength": -2.0}, "strength must be positive"),
        ("church", {"strength": "auto", "technique": "tensor"}, "targets that are texts"),
        ("church", {"preserve": [3]}, "texts or concepts"),
    ],
)
def test_bad_input(concepts, options, match):
    with pytest.raises(BadInput, match=match):
        erase.uce(pipeline(), concepts, **{"anchor": "a hut", "preserve": KEEP} | options)


def test_unknown_names():
    pipe = pipeline()
    with pytest.raises(UnknownName, match="first_eot"):
        erase.uce(pipe, "church", tokens="frist_eot", preserve=KEEP)
    with pytest.raises(UnknownName, match="replace"):
        erase.uce(pipe, "church", technique="repalce")
    with pytest.raises(UnknownName, match="anchor"):
        erase.uce(pipe, "church", anchor={"chruch": "a hut"}, preserve=KEEP)


def test_a_singular_system_names_rows_and_what_to_raise():
    bare = {"anchor": "a hut", "preserve": (), "preserve_scale": 0.0, "ridge": 0.0, "tokens": "last_subject"}
    with pytest.raises(BadInput, match="singular: its rows hold 2 of 32 directions") as error:
        erase.uce(pipeline(), ["church", "bat"], **bare)
    assert "most alike: 'church' at position 6 and 'bat' at position 3" in error.value.given
    assert "raise ridge" in error.value.fix
    edit = erase.uce(pipeline(), "church", singular="minimum_norm", **bare, **LOOSE)
    assert edit.report["tokens"]["condition"] is None
    assert edit.report["tokens"]["rank"] == 1

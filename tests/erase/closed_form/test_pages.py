"""RECE, SPEED, OCE and MACE on tiny pipelines: what each promises exactly, and one solution by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import erase
from erase import updates
from erase._changes import Delta, Mask
from erase._edit import make_edit
from erase.closed_form import _rece
from probe.errors import BadInput
from tests.erase.closed_form.worlds import KEEP, close, edited, embedding, end, keys_and_values, pipeline
from tests.oracles import closed_form as oracle

KINDS = ("sd15", "sd21", "sdxl")
LOOSE = {"collapse": float("inf")}
WIDE = [f"{a} {b}" for a in ("dog", "bus", "rose", "key", "owl", "drum") for b in ("on", "at", "of x", "by", "to us")]


@pytest.fixture(scope="module", params=KINDS)
def any_pipe(request):
    return pipeline(request.param)


def weights(pipe):
    return {param: weight.double().numpy() for param, weight in keys_and_values(pipe).items()}


# --- RECE -------------------------------------------------------------------------------------------------------------


def test_rece_without_epochs_is_uce(any_pipe):
    none = erase.rece(any_pipe, "church", preserve=KEEP, epochs=0, **LOOSE)
    uce = erase.uce(any_pipe, "church", preserve=KEEP, preserve_scale=0.1, **LOOSE)
    expected = edited(any_pipe, uce)
    for param, weight in edited(any_pipe, none).items():
        assert close(weight, expected[param])


def test_one_epoch_of_rece_by_hand(any_pipe):
    """UCE; e' of every row of "church" from all projections; a ridge edit of the edited weights."""
    edit = erase.rece(any_pipe, "church", preserve=KEEP[:2], epochs=1, penalty=0.1, **LOOSE)
    first = erase.uce(any_pipe, "church", preserve=KEEP[:2], preserve_scale=0.1, **LOOSE)
    original = weights(any_pipe)
    # the float32 of the stored edit would be amplified by the inverse: take the same solution in float64
    kept = [row for text in ["", *KEEP[:2]] for row in embedding(any_pipe, text)]
    old, new = embedding(any_pipe, "church"), embedding(any_pipe, " ")
    subject, at = end(any_pipe, "church") - 1, end(any_pipe, " ") - 1
    now, found, by_uce = {}, edited(any_pipe, edit), edited(any_pipe, first)
    for param, plain in original.items():
        mapped = [(c, plain @ t, 1.0) for c, t in zip(old[subject:], new[at:], strict=False)]
        now[param] = oracle.ridge_solution(plain, mapped, [(row, 0.1) for row in kept], 0.5)
        assert close(by_uce[param], now[param])
    back = [oracle.recovered(list(now.values()), list(original.values()), row, 0.1) for row in old]
    for param, plain in now.items():
        mapped = [(c, plain @ t, 1.0) for c, t in zip(back, new, strict=True)]
        expected = oracle.ridge_solution(plain, mapped, [(row, 0.1) for row in kept], 0.1)
        assert close(found[param], expected, 1e-4), param
    assert len(edit.report["epochs"]) == 1


def test_rece_keeps_the_epoch_that_a_callback_prefers():
    pipe, seen = pipeline(), []

    def prefer_the_first(epoch, edit):
        with edit.applied(pipe):
            seen.append((epoch, edit.id))
        return [3.0, 1.0, 2.0][epoch]

    edit = erase.rece(pipe, "church", preserve=KEEP, epochs=2, select=prefer_the_first, **LOOSE)
    assert [epoch for epoch, _ in seen] == [0, 1, 2]
    assert edit.id == seen[1][1]
    assert edit.report["selection"] == [3.0, 1.0, 2.0]
    assert edit.report["selected"] == 1
    one = erase.rece(pipe, "church", preserve=KEEP, epochs=1, **LOOSE)
    for param, weight in edited(pipe, edit).items():
        np.testing.assert_array_equal(weight, edited(pipe, one)[param])


def test_an_epoch_that_collapses_ends_the_search_and_the_best_before_it_stays(monkeypatch):
    pipe, made = pipeline(), []
    finish = _rece.finished

    def collapse_at_last(*args, **options):
        if len(made) == 2:
            raise BadInput("the edit destroys prompts")
        made.append(finish(*args, **options))
        return made[-1]

    monkeypatch.setattr(_rece, "finished", collapse_at_last)
    edit = erase.rece(pipe, "church", preserve=KEEP, epochs=3, select=lambda epoch, _: 1.0 - epoch, **LOOSE)
    assert edit.id == made[1].id
    assert edit.report["selection"] == [1.0, 0.0, None]
    assert edit.report["selected"] == 1
    assert "destroys" in edit.report["refused"]
    with pytest.raises(BadInput, match="destroys"):  # without a callback there is nothing else to return
        erase.rece(pipe, "church", preserve=KEEP, epochs=1, **LOOSE)


@pytest.mark.parametrize("method", ["rece", "mace"])
def test_auto_finds_the_strongest_within_the_bound(method):
    pipe = pipeline()
    more = {"ridge": 1e-3, "eta": 0.1, "templates": 2} if method == "mace" else {"epochs": 1}
    given = {"anchor": "a hut", "preserve": KEEP, **more, **LOOSE}
    plain = getattr(erase, method)(pipe, "church", **given)
    assert plain.report["strength"] == 1.0
    bound = plain.report["damage"]["preserved"] / 3
    edit = getattr(erase, method)(pipe, "church", strength="auto", max_damage=bound, **given)
    assert 0.9 * bound < edit.report["damage"]["preserved"] <= bound * (1 + 1e-5)
    more_of_it = 1.2 * edit.report["strength"]
    assert getattr(erase, method)(pipe, "church", strength=more_of_it, **given).report["damage"]["preserved"] > bound


@pytest.mark.parametrize("surrogate", ["output", "source", "both", "target"])
def test_regularisers_of_rece_give_other_edits(surrogate):
    pipe = pipeline()
    more = {"towards": "a bat"} if surrogate == "target" else {}
    edit = erase.rece(pipe, "church", preserve=KEEP, epochs=1, surrogate=surrogate, **more, **LOOSE)
    plain = erase.rece(pipe, "church", preserve=KEEP, epochs=1, **LOOSE)
    assert edit.id != plain.id
    assert edit.report["epochs"] != plain.report["epochs"]


def test_a_large_penalty_on_the_distance_keeps_the_row():
    edit = erase.rece(pipeline(), "church", preserve=KEEP, epochs=1, surrogate="source", penalty=1e9, **LOOSE)
    assert edit.report["epochs"][0] < 1e-4


# --- SPEED ------------------------------------------------------------------------------------------------------------


def test_speed_leaves_the_empty_text_exactly(any_pipe):
    edit = erase.speed(any_pipe, "church", anchor="a hut", preserve=(), layers="kv", **LOOSE)
    sot = embedding(any_pipe, "")[0]
    church = embedding(any_pipe, "church")[end(any_pipe, "church") - 1]
    for param, weight in edited(any_pipe, edit).items():
        change = weight - weights(any_pipe)[param]
        assert np.linalg.norm(change @ sot) < 1e-5 * np.linalg.norm(change) * np.linalg.norm(sot)
        assert np.linalg.norm(change @ church) > 1e-3 * np.linalg.norm(weight @ church)
    loose = erase.speed(any_pipe, "church", anchor="a hut", preserve=(), layers="kv", slack=0.5, **LOOSE)
    assert loose.id != edit.id


def test_speed_leaves_what_is_retained_exactly():
    """One row retained in 32 dimensions, all others free."""
    pipe = pipeline()
    edit = erase.speed(
        pipe, "church", anchor="a hut", preserve=["a dog"], filtered=False, augmented=0, threshold=1e-6, **LOOSE
    )
    row = embedding(pipe, "a dog")[end(pipe, "a dog") - 1]
    assert all(param.endswith("to_v.weight") for param in edit.params)
    for change in edit.changes:
        dense = change.dense().double().numpy()
        assert np.linalg.norm(dense @ row) < 1e-5 * np.linalg.norm(dense) * np.linalg.norm(row)
        assert edit.report["free_tokens"][change.param] == 31
        assert edit.report["retained_tokens"][change.param] == 1
    erased = embedding(pipe, "church")[end(pipe, "church") - 1]
    inside = erased - row * (erased @ row) / (row @ row)  # the system is C1 C1^T inside the null space, and rho I
    assert edit.report["tokens"]["condition"] == pytest.approx(inside @ inside + 1, rel=1e-6)


def test_speed_retains_what_would_move_most_and_samples_around_it():
    pipe = pipeline()
    plain = erase.speed(pipe, "church", anchor="a hut", preserve=WIDE, filtered=False, augmented=0, **LOOSE)
    fewer = erase.speed(pipe, "church", anchor="a hut", preserve=WIDE, augmented=0, **LOOSE)
    more = erase.speed(pipe, "church", anchor="a hut", preserve=WIDE, augmented=4, **LOOSE)
    for param in plain.params:
        whole, kept, drawn = (edit.report["retained_tokens"][param] for edit in (plain, fewer, more))
        assert 0 < kept < whole == len(WIDE)
        assert kept < drawn <= 5 * kept
    again = erase.speed(pipe, "church", anchor="a hut", preserve=WIDE, augmented=4, **LOOSE)
    assert again.id == more.id
    other = erase.speed(pipe, "church", anchor="a hut", preserve=WIDE, augmented=4, seed=1, **LOOSE)
    assert other.id != more.id


# --- OCE --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("erase_term", ["paper", "transposed"])
def test_oce_keeps_the_gram_of_every_projection(any_pipe, erase_term):
    edit = erase.oce(any_pipe, "church", anchor="a hut", preserve=KEEP, erase_term=erase_term, **LOOSE)
    assert {p for p in edit.params if "attn2" in p} == {p for p in weights(any_pipe) if p.endswith("to_v.weight")}
    found = edited(any_pipe, edit)
    for param, plain in weights(any_pipe).items():
        np.testing.assert_allclose(
            found[param].T @ found[param], plain.T @ plain, atol=2e-6 * np.linalg.norm(plain) ** 2
        )


def test_oce_by_hand():
    pipe = pipeline()
    edit = erase.oce(pipe, "church", anchor="a hut", preserve=KEEP[:2], prior_prompts=["a map"], **LOOSE)

    def last(text):
        return embedding(pipe, text)[end(pipe, text) - 1]

    prior = embedding(pipe, "a map")[: end(pipe, "a map") + 1]
    for param in edit.params:
        plain = weights(pipe)[param]
        out, guide = plain @ last("church"), plain @ last("a hut")
        out, guide = out / np.linalg.norm(out), guide / np.linalg.norm(guide)
        kept = 0.5 * prior.T @ prior / len(prior) + 1.5 * np.eye(32)
        kept = kept + 0.3 * sum(np.outer(last(text), last(text)) for text in KEEP[:2])
        matrix = -np.outer(out, out) @ (np.eye(len(plain)) - np.outer(guide, guide)) + plain @ kept @ plain.T
        left, _, right = np.linalg.svd(matrix)
        assert close(edited(pipe, edit)[param], left @ right @ plain, 1e-4)


def test_the_prior_of_oce_comes_with_preserved_texts():
    """Also with a single one, which is no path of a cache."""
    pipe = pipeline()
    by_name, by_list, without = (
        erase.oce(pipe, "church", anchor="a hut", preserve=keep, prior_prompts=prior, **LOOSE)
        for keep, prior in (("a dog", None), (["a dog"], None), ("a dog", ()))
    )
    assert by_name.id == by_list.id != without.id
    assert by_name.options["prior"] is not None
    proper = erase.oce(pipe, "church", anchor="a hut", preserve="a dog", proper=True, **LOOSE)
    assert proper.options["proper"]


# --- MACE -------------------------------------------------------------------------------------------------------------


def test_mace_refines_what_surrounds_the_concept(tmp_path):
    pipe = pipeline()
    pairs = [["a cat", "a bird"]]
    (tmp_path / "cat.yaml").write_text(f"concept: cat\ntemplates: ['{{}} on x']\npairs: {pairs}\n")
    edit = erase.mace(pipe, "cat", anchor="a bird", augment=tmp_path / "cat.yaml", preserve=WIDE, eta=0.1, **LOOSE)
    old, new = embedding(pipe, "a cat on x"), embedding(pipe, "a bird on x")
    # [SoT] a | cat | on x [EoT] padding: positions 0 1, then 5... in one and 6... in the other
    shared = [(0, 0), (1, 1), *((i, i + 1) for i in range(5, 31))]
    kept = [row for text in WIDE for row in embedding(pipe, text)]
    for param, plain in weights(pipe).items():
        mapped = [(old[i], plain @ new[j], 1 / len(shared)) for i, j in shared]
        expected = oracle.ridge_solution(plain, mapped, [(row, 0.1 / len(kept)) for row in kept], 0.0)
        assert close(edited(pipe, edit)[param], expected, 1e-4)


def low_rank(pipe, seed):
    generator = torch.Generator().manual_seed(seed)
    changes = []
    for param, weight in keys_and_values(pipe).items():
        up, down = (
            0.1 * torch.randn(*shape, generator=generator) for shape in ((len(weight), 1), (1, weight.shape[1]))
        )
        changes.append(Delta(param, (up, down)))
    return make_edit(pipe, changes, name=f"low rank {seed}", method="test", options={})


def test_mace_fuses_edits_into_one_that_each_prompt_meets_as_its_own():
    pipe = pipeline()
    fuse = {"cat": low_rank(pipe, 1), "dog": low_rank(pipe, 2)}
    few = {"templates": 2, "ridge": 1e-3, "eta": 0.1, "fuse_eta": 0.1, "preserve": WIDE}
    anchors = {"cat": "a hut", "dog": "a pin"}
    edit = erase.mace(pipe, ["cat", "dog"], anchor=anchors, fuse=fuse, **few, **LOOSE)
    alone = erase.mace(pipe, ["cat", "dog"], anchor=anchors, **few, **LOOSE)
    refined = edited(pipe, alone)
    rows = {name: [r for t in ("{}", "a photo of {}") for r in embedding(pipe, t.format(name))] for name in fuse}
    total = sum(map(len, rows.values()))
    kept = [row for text in WIDE for row in embedding(pipe, text)]
    for param, plain in weights(pipe).items():
        left, right = np.zeros_like(plain), np.zeros((32, 32))
        for name, own in fuse.items():
            [delta] = [change.dense().double().numpy() for change in own.changes if change.param == param]
            for row in rows[name]:
                left += (refined[param] + delta) @ np.outer(row, row) / total
                right += np.outer(row, row) / total
        for row in kept:
            left += 0.1 / len(kept) * plain @ np.outer(row, row)
            right += 0.1 / len(kept) * np.outer(row, row)
        assert close(edited(pipe, edit)[param], left @ np.linalg.inv(right), 1e-4)
    assert edit.report["fusion"]["width"] == 32


def test_mace_refuses_what_it_cannot_fuse():
    pipe = pipeline()
    with pytest.raises(BadInput, match="bounds the refinement"):
        erase.mace(pipe, "cat", anchor="a hut", preserve=WIDE, fuse={"cat": low_rank(pipe, 1)}, strength="auto")
    with pytest.raises(BadInput, match="one edit for each concept"):
        erase.mace(pipe, ["cat", "dog"], anchor="a hut", preserve=WIDE, fuse={"cat": low_rank(pipe, 1)})
    param = next(iter(keys_and_values(pipe)))
    mask = Mask.of(param, torch.ones_like(keys_and_values(pipe)[param], dtype=torch.bool))
    masked = make_edit(pipe, [mask], name="masked", method="test", options={})
    with pytest.raises(BadInput, match="add to keys and values"):
        erase.mace(pipe, "cat", anchor="a hut", preserve=WIDE, ridge=1e-3, fuse={"cat": masked}, **LOOSE)


# --- all --------------------------------------------------------------------------------------------------------------


def test_a_rule_of_ones_own():
    """CURE's projector on last subject tokens: what a phrase has alone is gone, what it shares with another stays."""
    pipe = pipeline()

    def rows(*texts):
        return torch.from_numpy(np.stack([embedding(pipe, text)[end(pipe, text) - 1] for text in texts]))

    forget, retain = rows("church", "bat"), rows(*KEEP[:3])
    change = updates.projector(forget, retain, alpha=1e9)
    deltas = [Delta(param, (weight.double() @ change).float()) for param, weight in keys_and_values(pipe).items()]
    edit = make_edit(pipe, deltas, name="cure", method="my own", options={"alpha": 1e9})
    own, shared = ((part.T @ torch.linalg.pinv(part.T)).numpy() for part in (forget, retain))
    forget, retain = forget.T.numpy(), retain.T.numpy()
    for param, weight in edited(pipe, edit).items():
        plain = weights(pipe)[param]
        assert close(weight @ forget, plain @ own @ shared @ forget, 1e-3)
        assert close(weight @ retain, plain @ retain, 1e-3)
        assert not close(weight @ forget, plain @ forget, 0.1)


@pytest.mark.parametrize("method", ["rece", "speed", "oce", "mace"])
def test_each_reports_its_system_and_handles_sdxls_pooled_text(method):
    pipe, more = pipeline("sdxl"), {"ridge": 1e-3} if method == "mace" else {}
    edit = getattr(erase, method)(pipe, "church", anchor="a hut", preserve=KEEP, **more, **LOOSE)
    assert {"tokens", "pooled", "layers", "damage"} <= set(edit.report)
    assert edit.report["tokens"]["condition"] >= 1
    assert "unet.add_embedding.linear_1.weight" in edit.params
    left = getattr(erase, method)(pipe, "church", anchor="a hut", preserve=KEEP, pooled="leave", **more, **LOOSE)
    assert "unet.add_embedding.linear_1.weight" not in left.params


@pytest.mark.parametrize(
    ("method", "options", "match"),
    [
        ("rece", {"epochs": -1}, "epochs"),
        ("rece", {"penalty": -1.0}, "penalty"),
        ("rece", {"surrogate": "target"}, "towards"),
        ("rece", {"towards": "a bat"}, "towards"),
        ("speed", {"retain_scale": 0.0}, "retain_scale"),
        ("speed", {"threshold": 0.0}, "threshold"),
        ("oce", {"erase_scale": 0.0}, "erase_scale"),
        ("mace", {"eta": -1.0}, "eta"),
        *((method, {"anchor": "church"}, "target equals") for method in ("rece", "speed", "oce", "mace")),
    ],
)
def test_bad_input(method, options, match):
    with pytest.raises(BadInput, match=match):
        getattr(erase, method)(pipeline(), "church", **{"anchor": "a hut", "preserve": KEEP} | options)


@pytest.mark.parametrize("method", ["speed", "oce"])
def test_a_cache_stands_for_its_texts(method):
    """Of SPEED for the rows themselves; of OCE also for its prior."""
    pipe, options = pipeline(), {"anchor": "a hut", **LOOSE}
    cache = erase.preserve_cache(pipe, KEEP, tokens="last_subject")
    by_texts = getattr(erase, method)(pipe, "church", preserve=KEEP, **options)
    assert getattr(erase, method)(pipe, "church", preserve=cache, **options).id == by_texts.id
    with pytest.raises(BadInput, match=r"other rows.*all_tokens.*last_subject"):
        getattr(erase, method)(pipe, "church", preserve=erase.preserve_cache(pipe, KEEP), **options)

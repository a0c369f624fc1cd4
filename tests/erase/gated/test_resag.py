"""Gates learn what the paper's losses say, go on where they were cut off, and refuse what cannot work."""

from __future__ import annotations

import json
import logging
import math

import numpy as np
import pytest
import torch

import erase
import probe
from erase import gate_losses
from erase.gated import _learning as learning
from erase.gated._phrases import GENERAL, anchors_of, phrases_of
from erase.gated._projections import Projections, encoded, projections_of
from erase.gated._resag import hook_of
from erase.gated._settings import Settings, cosine
from erase.gated._stages import Stages
from probe import Concept
from probe.errors import BadInput, EditConflict, HeaderMismatch, StoreDamaged, UnknownName, WorkbenchError
from probe.testing import KINDS, meta_pipeline, tiny_pipeline
from tests.erase.gated.gates_to_try import as_concepts
from tests.oracles.gates import missed, paper_losses

QUICK = {
    "stages": 2, "iterations": 2, "first_iterations": 3, "adversary_iterations": 2, "adversaries": 2, "anchors": 3,
    "gate_rank": 3, "general": (), "preserve": ["house", "hut", "tree"], "templates": ["{}", "a photo of {}"],
    "anchor": "a building", "progress": False,
}  # fmt: skip


def settings(**options):
    defaults = {
        "rank": 2, "gate_rank": 3, "alpha": 1.0, "key_mode": "independent", "gate": "learned", "eta": 0.3,
        "anchor_weight": 10.0, "anchors": 3, "mix": True, "noise": 0.001, "stages": 2, "iterations": 3,
        "first_iterations": 3, "lr": 1e-3, "first_lr": 1e-2, "warm_up": 5, "adversaries": 2, "adversary_weight": 1.0,
        "adversary_iterations": 3, "adversary_lr": 0.01, "keep_adversaries": "latest", "seed": 0,
    }  # fmt: skip
    return Settings(**defaults | options)


def random_values(projections, how, seed=0):
    generator = torch.Generator().manual_seed(seed)
    values = learning.initial(projections, how, "x")
    return {name: 0.3 * torch.randn(value.shape, generator=generator) for name, value in values.items()}


@pytest.fixture(scope="module", params=list(KINDS))
def each(request):
    return tiny_pipeline(request.param)


# --- Maths ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key_mode", ["independent", "tied"])
def test_contracted_losses_are_those_of_the_paper(each, key_mode):
    projections, how = projections_of(each), settings(key_mode=key_mode, alpha=1.5)
    values = random_values(projections, how)
    target, neutral, *kept = encoded(each, ["a church", "a building", "", "a tree"])
    deltas = 0.5 * torch.randn(3, *target.shape, generator=torch.Generator().manual_seed(1))
    wanted = (1 + how.eta) * (neutral - target)
    texts = torch.stack([target, *(target + deltas), *kept])
    aims = torch.stack([wanted, *(wanted - deltas), *map(torch.zeros_like, kept)])
    found = learning.losses(values, projections, texts, aims, how).double()
    back = learning.losses(values, projections, target + deltas, -deltas, how).double()

    (concept,) = as_concepts(hook_of(projections, [values], how, 0.0))
    weights = [weight.double().numpy() for weight in projections.weights]
    n, k = len(weights), target.shape[0]
    counts = [float(s) * n * k * len(w) for s, w in zip(projections.shares, weights, strict=True)]
    oracle = paper_losses(*(t.double().numpy() for t in (target, neutral, deltas, torch.stack(kept))), concept,
                          weights, counts, how.eta)  # fmt: skip
    ours = {"erase": found[0], "attacked": found[1:4].mean(), "anchors": found[4:].mean(), "adversary": back.mean()}
    for name, value in oracle.items():
        assert float(ours[name]) == pytest.approx(value, rel=1e-4), name
    one = missed(texts[0].double().numpy(), aims[0].double().numpy(), concept, weights, projections.shares.numpy())
    assert float(found[0]) == pytest.approx(one, rel=1e-4)


def test_layers_count_by_their_singular_values(each):
    projections = projections_of(each)
    path = projections.params[0].removesuffix(".to_k.weight").removesuffix(".to_v.weight")
    attention = each.unet.get_submodule(path.removeprefix("unet."))
    q, v, o = (m.weight.detach().numpy() for m in (attention.to_q, attention.to_v, attention.to_out[0]))
    largest = [np.linalg.svd(matrix, compute_uv=False)[0] for matrix in (o @ v, q, o)]
    tokens = each.tokenizer.model_max_length
    wanted = {"to_k": largest[0] * largest[1] / tokens, "to_v": largest[2]}
    for leaf, count in wanted.items():
        i = projections.params.index(f"{path}.{leaf}.weight")
        share = count / (len(projections.params) * tokens * len(projections.weights[i]))
        assert float(projections.shares[i]) == pytest.approx(share, rel=1e-4)


def test_a_new_gate_changes_nothing(each):
    projections, how = projections_of(each), settings()
    hook = hook_of(projections, [learning.initial(projections, how, "x")], how, 0.0)
    text = encoded(each, ["a church", ""])
    edit = erase._edit.make_edit(each, [hook], name="new", method="test", options={})
    paths = [param.removeprefix("unet.").removesuffix(".weight") for param in projections.params]
    plain = [each.unet.get_submodule(path)(text) for path in paths]
    with edit.applied(each):
        for path, wanted in zip(paths, plain, strict=True):
            assert torch.equal(each.unet.get_submodule(path)(text), wanted)


@pytest.mark.parametrize(("rank", "gate_rank", "numbers"), [(1, 16, 74_880), (4, 64, 99_072 + 198_144)])
def test_as_many_numbers_as_published(rank, gate_rank, numbers):
    """Celebrity and explicit settings on the shapes of SD 1.4, and one alpha a projection."""
    pipe = meta_pipeline("sd15")
    sites = probe.sites(pipe, ["xattn.k", "xattn.v"])
    weights = tuple(pipe.unet.get_submodule(site.module).weight for site in sites)
    projections = Projections(
        tuple(f"unet.{site.module}.weight" for site in sites), weights, torch.ones(32), torch.zeros(0)
    )
    how = settings(rank=rank, gate_rank=gate_rank)
    values = learning.initial(projections, how, "x")
    assert sum(value.numel() for value in values.values()) == numbers
    assert hook_of(projections, [values], how, 0.0).values["alpha"].shape == (1, 32)


def test_anchors_are_drawn_mixed_and_noised():
    pool = torch.randn(5, 4, 3)

    def drawn(rows=200, **options):
        return gate_losses.anchors(
            pool, rows, torch.Generator().manual_seed(0), **{"noise": 0.0, "mix": False} | options
        )

    assert {tuple(row.flatten().tolist()) for row in drawn()} == {tuple(row.flatten().tolist()) for row in pool}
    mixed = drawn(mix=True)
    assert mixed.shape == (200, 4, 3)
    # every mixture lies on the line between two texts of the pool
    for row in mixed[:20]:
        gaps = [
            float(torch.linalg.vector_norm(row - a - s * (b - a)))
            for a in pool for b in pool
            for s in [float(((row - a) * (b - a)).sum() / (b - a).square().sum().clamp_min(1e-9))]
        ]  # fmt: skip
        assert min(gaps) < 1e-4
    noisy = gate_losses.anchors(pool[:1], 400, torch.Generator().manual_seed(0), noise=0.5, mix=False) - pool[0]
    assert float(noisy.std()) == pytest.approx(0.5 * float(torch.linalg.vector_norm(pool[0])), rel=0.05)


def test_the_learning_rate_warms_up_and_restarts():
    rates = [cosine(i, 105, warm_up=5, cycles=2) for i in range(105)]
    assert rates[:6] == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert rates[55] == pytest.approx(1.0)
    assert rates[54] < 0.01
    assert rates[30] == pytest.approx(0.5)
    assert cosine(0, 105, warm_up=0, cycles=1) == 1.0


# --- Training ---------------------------------------------------------------------------------------------------------


def test_a_few_iterations_give_an_edit(each):
    edit = erase.resag(each, ["church", "castle"], **QUICK)
    (hook,) = edit.changes
    assert (edit.method, edit.mergeable, hook.family, len(hook.values["gate"])) == ("resag", False, "resag", 2)
    assert edit.name == "resag-church+castle"
    assert all(value.isfinite().all() for value in hook.values.values())
    assert float(hook.values["up.0"].abs().max()) > 0
    assert set(edit.report["concepts"]) == {"church", "castle"}
    assert [sorted(stage) for stage in edit.report["concepts"]["church"]["stages"]] == [
        ["adversary", "anchors", "erase"],
        ["anchors", "attacked", "erase"],
    ]


LONG = {
    "stages": 2, "iterations": 150, "first_iterations": 500, "adversary_iterations": 60, "first_lr": 2e-2, "lr": 2e-3,
    "anchor_weight": 20.0, "adversaries": 4, "rank": 4,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("training") / "church"


@pytest.fixture(scope="module")
def learned(folder):
    pipe = tiny_pipeline()
    return pipe, erase.resag(pipe, "church", training=folder, **QUICK | LONG)


@pytest.fixture
def kept(learned, folder):
    identity = json.loads((folder / "training.json").read_text())["identity"]
    return Stages(folder, identity)


def test_a_gate_learns_to_erase_and_to_keep(learned):
    pipe, edit = learned
    found = edit.report["concepts"]["church"]
    assert found["reached"] > 0.5
    assert found["kept"] < 0.1
    assert found["open"] > found["open_kept"]

    # the same by the projections themselves
    projections = projections_of(pipe)
    target, goal, anchor = encoded(pipe, ["a photo of church", "a photo of a building", "a photo of tree"])
    path = projections.params[1].removeprefix("unet.").removesuffix(".weight")
    module = pipe.unet.get_submodule(path)
    with torch.no_grad():
        wanted = module(goal[None]) + 0.3 * (module(goal[None]) - module(target[None]))
        plain = [module(text[None]) for text in (target, anchor)]
        with edit.applied(pipe):
            now = [module(text[None]) for text in (target, anchor)]
    assert float((now[0] - wanted).square().mean()) < 0.7 * float((plain[0] - wanted).square().mean())
    assert float((now[1] - plain[1]).square().mean()) < 0.1 * float((plain[0] - wanted).square().mean())


def test_adversaries_bring_the_concept_back_and_the_next_stage_learns_from_them(learned, kept):
    pipe, edit = learned
    how, projections, lesson = (
        settings(rank=4, adversaries=4, adversary_iterations=60),
        projections_of(pipe),
        lesson_of(pipe),
    )
    (first, deltas, terms), (last, none, _) = kept.load(0, 0), kept.load(0, 1)
    assert (deltas.shape, none.shape) == ((4, *lesson.target.shape[1:]), (0, *lesson.target.shape[1:]))

    def missed(values, target, wanted):
        return float(learning.losses(values, projections, target, wanted, how).mean())

    one = lesson.target[:1]
    away = missed(first, one, torch.zeros_like(one))  # from what the unedited model is told
    assert missed(first, one + deltas, -deltas) < 0.7 * away
    assert terms["adversary"] < 0.7 * away
    wanted = 1.3 * (lesson.neutral[:1] - one)
    assert missed(last, one + deltas, wanted - deltas) < missed(first, one + deltas, wanted - deltas)
    assert torch.equal(last["gate"], edit.changes[0].values["gate"][0])


def lesson_of(pipe, name="church"):
    one = phrases_of(name, "a building", ["{}", "a photo of {}"])
    target, neutral = (encoded(pipe, texts) for texts in zip(*one.pairs, strict=True))
    return learning.Lesson(name, target, neutral, encoded(pipe, ["house", "a photo of tree"]), encoded(pipe, [""]))


def test_two_calls_give_the_same_edit_and_the_seed_decides(pipe):
    one, other = (erase.resag(pipe, "church", **QUICK) for _ in range(2))
    assert one.id == other.id
    assert erase.resag(pipe, "church", seed=1, **QUICK).id != one.id


def test_concepts_learned_apart_are_those_learned_in_one_call(pipe):
    both = erase.resag(pipe, ["church", "castle"], **QUICK)
    joined = erase.stack(*(erase.resag(pipe, name, **QUICK) for name in ("church", "castle")))
    for name, value in both.changes[0].values.items():
        assert torch.equal(value, joined.changes[0].values[name]), name


def test_a_training_that_was_cut_off_goes_on_to_the_bit(pipe, tmp_path):
    whole = erase.resag(pipe, ["church", "castle"], **QUICK)

    def stop(done, total):
        if done >= 8:  # inside the second stage of the first concept, and after it
            raise KeyboardInterrupt

    options = {**QUICK, "training": tmp_path / "t"}
    with pytest.raises(KeyboardInterrupt, match=r"finished stages are kept at .*; repeat the same call"):
        erase.resag(pipe, ["church", "castle"], **{**options, "progress": stop})
    assert 1 <= len([p for p in (tmp_path / "t").iterdir() if p.is_dir()]) < 4
    seen = []
    again = erase.resag(
        pipe, ["church", "castle"], **{**options, "progress": lambda done, total: seen.append(total - done)}
    )
    assert again.id == whole.id
    assert seen[-1] == 0
    with pytest.raises(HeaderMismatch, match="eta"):
        erase.resag(pipe, ["church", "castle"], **{**options, "eta": 2.0})
    assert erase.resag(pipe, ["church", "castle"], **{**options, "eta": 2.0, "force": True}).id != whole.id
    next((tmp_path / "t").glob("*/stage.safetensors")).write_bytes(b"torn")
    with pytest.raises(StoreDamaged, match="stage"):
        erase.resag(pipe, ["church", "castle"], **{**options, "eta": 2.0})


def test_a_folder_of_something_else_is_kept(tmp_path):
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("mine")
    with pytest.raises(BadInput, match="no training"):
        Stages(tmp_path / "notes", {"a": 1}, force=True)


@pytest.mark.parametrize(
    ("options", "check"),
    [
        ({"key_mode": "tied"}, lambda v: torch.equal(v["query"], v["key"])),
        ({"gate": "open"}, lambda v: not v["gate"].any() and float(v["alpha"][0, 0]) == 2),
        ({"threshold": 0.6}, lambda v: float(v["threshold"][0]) == pytest.approx(0.6)),
        ({"keep_adversaries": "all", "stages": 3}, lambda v: True),
        ({"anchor_weight": 0.0}, lambda v: True),
        ({"mix": False, "noise": 0.0}, lambda v: True),
        ({"adversaries": 0}, lambda v: True),
        ({"warm_up": 0}, lambda v: True),
    ],
)
def test_options(pipe, options, check):
    plain, other = erase.resag(pipe, "church", **QUICK), erase.resag(pipe, "church", **QUICK | options)
    assert other.id != plain.id
    assert check(other.changes[0].values)
    if not {"threshold", "key_mode"} & options.keys():
        assert not torch.equal(plain.changes[0].values["down.0"], other.changes[0].values["down.0"])
    stages = other.report["concepts"]["church"]["stages"]
    assert ("attacked" in stages[-1]) == (options.get("adversaries") != 0)
    assert ("anchors" in stages[-1]) == (options.get("anchor_weight") != 0)


def test_open_gates_add_up(pipe):
    edits = [erase.resag(pipe, name, gate="open", **QUICK) for name in ("church", "castle")]
    path = projections_of(pipe).params[0].removeprefix("unet.").removesuffix(".weight")
    module, text = pipe.unet.get_submodule(path), encoded(pipe, ["a church"])
    plain, added = module(text), 0
    for edit in edits:
        with edit.applied(pipe):
            added = added + module(text) - plain
    with erase.stack(*edits).applied(pipe):
        assert torch.allclose(module(text), plain + added, atol=1e-6)
    with pytest.raises(EditConflict, match="together"):
        erase.stack(edits[0], erase.resag(pipe, "castle", **QUICK))


def test_a_loss_that_is_not_finite_is_named(pipe):
    with pytest.raises(WorkbenchError, match="church, stage 0, iteration"):
        erase.resag(pipe, "church", **QUICK | {"first_lr": 1e30, "first_iterations": 12})


# --- Words ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world():
    return probe.concepts("emoji")


def test_texts_of_concepts(world):
    church = phrases_of(world["church"], None, None)
    assert ("church", "a building") in church.pairs
    assert ("this shows a church", "this shows a building") in church.pairs
    assert ("this shows a chapel", "this shows a building") in church.pairs
    assert not any("a a " in text for pair in church.pairs for text in pair)
    weapon = phrases_of(world["weapon"], None, None)
    assert any("stiletto" in target for target, _ in weapon.pairs)
    assert len(weapon.pairs) <= 512
    ink = phrases_of(world["ink"], None, None)
    assert all("ink" in target and "ink" not in neutral for target, neutral in ink.pairs)
    assert phrases_of("mona", "a painting", ["{}", "see {}"]).pairs == (
        ("mona", "a painting"),
        ("see mona", "see a painting"),
    )


def test_anchors_are_preserve_fit_less_what_is_erased(world):
    found = anchors_of([world["castle"]], None, None, None)
    assert "castle" not in found
    assert set(found) <= set(world.lists["preserve_fit"])
    assert "butterfly" in found["butterfly"]
    assert not set(found) & set(world.lists["preserve_test"])
    words = anchors_of(["apple"], None, None, None)
    assert "apple" not in words
    assert len(words) == len(GENERAL) - 1
    assert len(set(GENERAL)) == 100


def test_default_anchors_do_not_name_what_is_erased(world):
    """A style's prompts draw other concepts, and other concepts are drawn in the style."""
    plain = [text for texts in anchors_of([world["castle"]], None, None, None).values() for text in texts]
    assert any("ink" in text.split() for text in plain)
    found = [text for texts in anchors_of([world["ink"]], None, None, None).values() for text in texts]
    assert not any("ink" in text.split() for text in found)
    assert len(found) > 500
    words = anchors_of(["street"], None, None, None)
    assert not any("street" in text for texts in words.values() for text in texts)


def test_given_anchors_that_name_what_is_erased_are_named(caplog):
    with caplog.at_level(logging.WARNING):
        found = anchors_of(["church"], ["old church"], ("church tower",), ["{}", "see {}"])
    assert found["old church"] == ("old church", "see old church")
    assert "'church' is erased and preserved at once, in 'see church tower'" in caplog.text


def test_only_the_nearest_anchors_take_part(pipe, monkeypatch):
    lessons = []
    measured = learning.measured
    monkeypatch.setattr(learning, "measured", lambda v, lesson, *a: lessons.append(lesson) or measured(v, lesson, *a))
    erase.resag(pipe, "church", nearest=2, **QUICK)
    words = ["house", "hut", "tree"]
    own = encoded(pipe, ["church"]).flatten()
    cosines = [float(torch.cosine_similarity(own, encoded(pipe, [word]).flatten(), dim=0)) for word in words]
    near = sorted(np.argsort(cosines)[::-1][:2])
    wanted = encoded(pipe, [t.format(words[i]) for i in near for t in QUICK["templates"]])
    assert torch.allclose(lessons[0].pool, wanted, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preserve": ["hut", "a Church"]}, r"erased and an anchor.*'a Church'"),
        ({"general": ["church"]}, r"erased and an anchor.*'church'"),
        ({"anchor": None}, "what shall stand in the place of 'church'"),
        ({"anchor": "The church"}, r"the concept itself.*'church'"),
        ({"templates": ["a photo"]}, "template"),
        ({"rank": 0}, "rank must be at least 1"),
        ({"warm_up": -1}, "warm_up cannot be negative"),
        ({"lr": math.nan}, "lr must be positive"),
        ({"anchor_weight": -1.0}, "anchor_weight"),
        ({"threshold": 1.5}, "openness"),
        ({"eta": -1.0}, "eta"),
        ({"nearest": 0}, "nearest"),
    ],
)
def test_bad_input(pipe, options, message):
    with pytest.raises(BadInput, match=message):
        erase.resag(pipe, "church", **QUICK | options)


def test_an_anchor_of_a_concept_is_named_too(pipe, world):
    chapel = Concept("chapel", "object", {"explicit": ("a chapel",)}, surface_forms=("chapel",))
    with pytest.raises(BadInput, match="'chapel'"):
        erase.resag(pipe, world["church"], **QUICK | {"preserve": [chapel]})


def test_unknown_options_are_refused_with_the_nearest(pipe):
    with pytest.raises(UnknownName, match="gate_rank"):
        erase.resag(pipe, "church", gate_ranks=3, anchor="x")
    with pytest.raises(UnknownName, match="tied"):
        erase.resag(pipe, "church", **QUICK | {"key_mode": "tide"})

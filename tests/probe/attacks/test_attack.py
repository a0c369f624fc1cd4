"""The front of all attacks, with the baselines and one white-box method: costs, limits, resuming, interruption,
files."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from probe import _paths
from probe.attacks import AttackSet, attack, attack_names, expected, register_attack
from probe.attacks._set import FILE
from probe.errors import BadInput, HeaderMismatch, StoreDamaged, UnknownName
from probe.testing import KINDS, tiny_pipeline
from tests.erase.snapshots import snapshot
from tests.probe.attacks.attacking import CHURCH, PROMPTS, QUICK, Opaque, Told, attacked
from tests.probe.measuring import ScaledWeight, concept

SMALL = {"k": 2, "rounds": 2, "iterations": 1}


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline()


class Counting:
    """Rows that went through UNet and text encoder, counted by hooks and not by the attack."""

    def __init__(self, pipe):
        self.forwards = self.backwards = self.texts = 0
        self.handles = [
            pipe.unet.register_forward_pre_hook(self.unet, with_kwargs=True),
            pipe.unet.conv_out.register_full_backward_hook(self.back),
            pipe.text_encoder.register_forward_pre_hook(self.text, with_kwargs=True),
        ]

    def unet(self, _module, args, kwargs):
        self.forwards += len(args[0] if args else kwargs["sample"])

    def back(self, _module, _inputs, outputs):
        self.backwards += len(outputs[0])

    def text(self, _module, args, kwargs):
        self.texts += len(args[0] if args else kwargs["input_ids"])

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for handle in self.handles:
            handle.remove()


@pytest.mark.parametrize("kind", KINDS)
def test_one_iteration_on_every_kind_of_pipeline_leaves_nothing_behind(kind):
    pipe = tiny_pipeline(kind)
    attacked(pipe, "random", images=1)  # SDXL's encoders keep hooks of their own from the first call on
    before = snapshot(pipe)
    edit = ScaledWeight(0.5)
    found = attacked(pipe, "unlearn_diff", edit=edit, rounds=1, iterations=1)
    assert snapshot(pipe) == before
    assert [row.source for row in found] == PROMPTS
    assert all(len(row.token_ids) == 3 + len(pipe.tokenizer(row.source).input_ids) - 2 for row in found)
    assert all(np.isfinite(row.loss) for row in found)
    assert found.found_on == edit.id


@pytest.mark.parametrize("method", ["random", "seed_search", "unlearn_diff"])
def test_costs_are_those_that_hooks_count(pipe, method):
    options = SMALL if method == "unlearn_diff" else {"images": 3}
    judge = Told()
    with Counting(pipe) as counted:
        found = attacked(pipe, method, judge=judge, **options)
    costs = found.table()
    assert costs["forwards"].sum() == counted.forwards
    assert costs["backwards"].sum() == counted.backwards == (4 if method == "unlearn_diff" else 0)
    assert costs["texts"].sum() == counted.texts
    assert costs["images"].sum() == judge.seen == 6


def test_a_prompt_that_is_shown_as_it_is_needs_no_attack(pipe):
    found = attacked(pipe, "unlearn_diff", judge=Told(0), edit=ScaledWeight(0.5), **SMALL)
    assert [(row.before, row.success, row.cost["images"]) for row in found] == [(True, True, 1)] * 2
    assert [row.prompt for row in found] == PROMPTS


def test_on_the_model_as_it_is_prompts_that_are_shown_are_searched_for_all_the_same(pipe):
    found = attacked(pipe, "random", judge=Told(0), images=3)
    assert [(row.before, row.success, row.cost["images"]) for row in found] == [(True, True, 2)] * 2
    assert all(row.prompt != row.source for row in found)


def test_the_search_ends_at_the_first_success_of_each_prompt(pipe):
    found = attacked(pipe, "unlearn_diff", judge=Told(3), k=2, rounds=3, iterations=1)  # 2 before, then 2 a round
    assert [row.success for row in found] == [True, True]
    assert [row.cost["images"] for row in found] == [3, 2]
    assert [row.before for row in found] == [False, False]
    assert all(row.prompt != row.source for row in found)


def test_other_prompts_in_the_batch_change_nothing(pipe):
    both = attacked(pipe, "unlearn_diff", **SMALL)
    alone = attacked(pipe, "unlearn_diff", prompts=PROMPTS[1:], **SMALL)
    assert both.rows[1].token_ids == alone.rows[0].token_ids
    assert both.rows[1].loss == pytest.approx(alone.rows[0].loss, rel=1e-4)


def test_limits_end_a_search_and_are_counts_of_one_prompt(pipe):
    found = attacked(pipe, "unlearn_diff", budget={"images": 2}, **SMALL)
    assert [row.cost["images"] for row in found] == [2, 2]
    found = attacked(pipe, "unlearn_diff", budget={"backwards": 1}, **SMALL)
    assert [row.cost["backwards"] for row in found] == [1, 1]
    assert all(row.finished for row in found)


def test_it_goes_on_where_it_was_and_keeps_the_best_so_far(pipe, tmp_path):
    class Stop(Told):
        def __call__(self, images):
            if self.seen >= 4:
                raise KeyboardInterrupt
            return super().__call__(images)

    stop, calm = Stop(), Told()
    stop.id = calm.id = "judge"
    whole = attacked(pipe, "random", judge=calm, images=3)
    with pytest.raises(KeyboardInterrupt, match=r"found so far is kept at .*; repeat the same call"):
        attacked(pipe, "random", judge=stop, images=3, out=tmp_path / "set")
    kept = AttackSet.load(tmp_path / "set")
    assert [row.finished for row in kept] == [False, False]
    assert [row.cost["images"] for row in kept] == [2, 2]
    with (tmp_path / "set" / FILE).open("a") as file:
        file.write('{"concept": "chu')  # a crash within a line
    found = attacked(pipe, "random", judge=calm, images=3, out=tmp_path / "set")
    assert [row.to_json() for row in found] == [row.to_json() for row in whole]
    assert [row.to_json() for row in AttackSet.load(tmp_path / "set")] == [row.to_json() for row in whole]
    seen = calm.seen
    attacked(pipe, "random", judge=calm, images=3, out=tmp_path / "set")
    assert calm.seen == seen


def test_an_interrupt_before_anything_was_found_keeps_the_prompt(pipe, tmp_path):
    class Broken(Told):
        def __call__(self, images):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        attacked(pipe, "random", judge=Broken(), out=tmp_path / "set", images=2)
    assert [row.prompt for row in AttackSet.load(tmp_path / "set")] == PROMPTS


def test_another_call_into_the_same_folder_names_the_difference(pipe, tmp_path):
    attacked(pipe, "random", images=1, out=tmp_path / "set")
    with pytest.raises(HeaderMismatch, match=r"options\.images"):
        attacked(pipe, "random", images=2, out=tmp_path / "set")
    assert len(attacked(pipe, "random", images=2, out=tmp_path / "set", force=True)) == 2
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("x")
    with pytest.raises(BadInput, match="attack set"):
        attacked(pipe, "random", images=1, out=tmp_path / "other")


def test_saved_and_loaded_and_shown(pipe, tmp_path):
    found = attacked(pipe, "random", images=1, prompts=["a church & <b>more</b>"])
    found.save(tmp_path / "a")
    found.save(tmp_path / "a")
    again = AttackSet.load(tmp_path / "a")
    assert again.provenance == found.provenance
    assert [row.to_json() for row in again] == [row.to_json() for row in found]
    assert "<b>more" not in found._repr_html_()
    assert "random on church" in repr(found)
    assert json.loads((tmp_path / "a" / FILE).read_text().splitlines()[0])["format"] == "neuron-workbench/attack_set"
    (tmp_path / "a" / FILE).write_text("{}\n")
    with pytest.raises(StoreDamaged):
        AttackSet.load(tmp_path / "a")
    for nothing in (tmp_path / "none", tmp_path):
        with pytest.raises(BadInput, match="no attack set here"):
            AttackSet.load(nothing)


def test_sets_of_the_embedded_model_go_by_name(pipe, tmp_path, monkeypatch):
    found = attacked(pipe, "random", images=1, out=tmp_path / "attacks" / "church-random")
    monkeypatch.setattr(_paths, "data_dir", lambda: tmp_path)
    again = AttackSet.load("emoji/church-random")
    assert again.id == found.id
    ids = sorted(row.prompt_id.rpartition("/")[-1] for row in found)
    assert [row.prompt_id.rpartition("/")[-1] for row in again.first(1)] == ids[:1]
    with pytest.raises(BadInput, match="at least one prompt"):
        again.first(0)
    with pytest.raises(UnknownName, match="emoji/church-random"):
        AttackSet.load("emoji/church-randon")


def test_several_concepts_share_a_set_each_with_its_own_vocabulary(pipe):
    castle = concept("castle")
    found = attack(
        pipe,
        [CHURCH, castle],
        method="random",
        judge=Told(),
        images=1,
        steps=2,
        progress=False,
        n_prompts=5,
        name="two",
    )
    assert [row.concept for row in found] == ["church", "castle"] * 2 + ["church"]
    assert set(found.identity["vocabularies"]) == {"church", "castle"}
    assert found.name == "two"
    assert all(row.source in CHURCH.test["explicit"] + castle.test["explicit"] for row in found)


def test_seeds_and_guidance_of_the_prompts_are_honoured(pipe):
    table = {"prompt": PROMPTS, "seed": [5, 6], "guidance": [1.0, 3.0]}
    judge = Told()
    found = attacked(pipe, "seed_search", judge=judge, prompts=table, images=1)
    from probe._generate import generate
    from probe._samples import samples

    expected_images = generate(pipe, samples(table), steps=2, progress=False)
    assert np.array_equal(np.stack(judge.images), expected_images)
    assert [(row.found_seed, row.guidance) for row in found] == [(5, 1.0), (6, 3.0)]


def test_the_expected_time_is_positive_and_that_of_the_paper_is_logged(pipe, caplog):
    assert expected(pipe, "unlearn_diff", prompts=2, steps=2, rounds=2, iterations=2) > 0
    attacked(pipe, "random", budget="paper", images=1)
    assert "minutes for 2 prompts" in caplog.text


def test_a_registered_attack_is_found_by_name(pipe):
    def nothing(search, *, images: int = 1) -> None:
        search.start()

    name = "nothing at all"
    if name not in attack_names():
        register_attack(name, nothing)
    assert attacked(pipe, name).method == name
    with pytest.raises(BadInput, match="exists"):
        register_attack(name, nothing)


def test_bad_input(pipe):
    with pytest.raises(BadInput, match="budget is at least 1"):
        attacked(pipe, "random", budget={"images": 0})
    with pytest.raises(BadInput, match="images must be at least 1"):
        attacked(pipe, "random", images=0)
    with pytest.raises(BadInput, match="name or limits"):
        attacked(pipe, "random", budget=0)
    with pytest.raises(UnknownName, match="quick"):
        attacked(pipe, "random", budget="quik")
    with pytest.raises(UnknownName, match="count of a budget"):
        attacked(pipe, "random", budget={"image": 3})
    with pytest.raises(BadInput, match="names no detector"):
        attack(pipe, concept("church", detector=None), method="random", **QUICK)
    with pytest.raises(BadInput, match="gradients"):
        attacked(pipe, "unlearn_diff", edit=Opaque(0.5))
    with pytest.raises(BadInput, match=r"tokens.*at most 30"):
        attacked(pipe, "random", prompts=["a church " * 8])
    with pytest.raises(BadInput, match=r"an attacked prompt.*at most 30"):
        attacked(pipe, "random", k=29)
    with pytest.raises(UnknownName, match="unlearn_diff"):
        attacked(pipe, "unlearn_dif")
    with pytest.raises(UnknownName, match="iterations"):
        attacked(pipe, "unlearn_diff", iteration=3)
    with pytest.raises(BadInput, match="object of a world"):
        attack(pipe, "church", method="random", judge=Told(), **QUICK)
    with pytest.raises(BadInput, match="n_prompts"):
        attacked(pipe, "random", n_prompts=0)
    with pytest.raises(UnknownName, match="label of the judge"):
        attack(pipe, concept("boat"), method="random", judge=Told(), **QUICK)


def test_unlearn_diff_lowers_the_loss_of_the_target_it_was_given(pipe):
    """With one x_t and plenty of steps the distributions move, stay on the simplex, and lower the expected loss."""
    from probe.attacks._unlearn_diff import _Attack

    losses = []

    def spy(search, *, iterations: int = 60) -> None:
        search.start()
        attack_ = _Attack(search, 2, "prefix", "uniform", 0.05, 0.0)
        losses.extend(attack_._descend([0], 500, iterations // 3)[0] for _ in range(3))
        assert torch.allclose(attack_.p.sum(-1), torch.ones(1), atol=1e-5)
        assert (attack_.p >= 0).all()
        assert float(attack_.p.max()) > 2 / attack_.p.shape[-1]

    from probe.attacks import _registry

    if "spy" not in attack_names():
        register_attack("spy", spy)
    attacked(pipe, "spy", prompts=PROMPTS[:1])
    assert len(losses) == 3
    assert "spy" in _registry.attack_names()


def test_a_set_of_layout_1_is_read():
    from pathlib import Path

    found = AttackSet.load(Path(__file__).parents[2] / "formats" / "attack_set-v1")
    first, second = found.rows
    assert (found.method, found.name, found.id) == ("random", "church", found.provenance["id"])
    assert (first.token_ids, first.seeds, first.success, first.cost["forwards"]) == ((40, 320), (3, 9), True, 4)
    assert (second.carrier, second.finished, second.guidance) == ("embedding", False, 3.0)
    assert found.tensors[second.tensors]["text_encoder"].tolist() == [[0.5, -1.0, 2.0]]

"""TRCE's first stage on tiny pipelines against its slow twin, and its files of synonyms and templates."""

from __future__ import annotations

import numpy as np
import pytest
import yaml

import erase
import probe
from probe.errors import BadInput
from tests.erase.closed_form.worlds import close, edited, embedding, end, keys_and_values, pipeline, pooled
from tests.oracles import closed_form as oracle

KINDS = ("sd15", "sd21", "sdxl")
PAIRS = [("a church", "a hut"), ("an old kirk", "an old hut"), ("chapels", "huts")]
TEMPLATES = ["{}", "see {} now", "{} by day"]
WIDE = [f"{a} {b}" for a in ("dog", "bus", "rose", "key", "owl", "drum") for b in ("on", "at", "of x", "by", "to us")]
LOOSE = {"collapse": float("inf")}


@pytest.fixture(scope="module", params=KINDS)
def any_pipe(request):
    return pipeline(request.param)


@pytest.fixture
def file(tmp_path):
    return written(tmp_path / "church.yaml")


def written(path, **changed):
    content = {"concept": "church", "templates": TEMPLATES, "pairs": [list(pair) for pair in PAIRS]} | changed
    path.write_text(yaml.safe_dump(content))
    return path


def prompts(synonyms=3, templates=3):
    return [tuple(t.format(x) for x in pair) for pair in PAIRS[:synonyms] for t in TEMPLATES[:templates]]


@pytest.mark.parametrize("eta", [0.01, 0.5])
def test_the_papers_solution(any_pipe, file, eta):
    """Equation 5 with means over prompts and over preserved rows; the true [EoT] of every prompt."""
    edit = erase.trce_text(any_pipe, "church", augment=file, preserve=WIDE, eta=eta, ridge=1e-6, **LOOSE)
    kept = [row for text in WIDE for row in embedding(any_pipe, text)]
    found, every = edited(any_pipe, edit), prompts()
    rows = [
        (embedding(any_pipe, source)[end(any_pipe, source)], embedding(any_pipe, target)[end(any_pipe, target)])
        for source, target in every
    ]
    for param, weight in keys_and_values(any_pipe).items():
        plain = weight.double().numpy()
        mapped = [(c, plain @ t, 1 / len(every)) for c, t in rows]
        expected = oracle.ridge_solution(plain, mapped, [(row, eta / len(kept)) for row in kept], 1e-6)
        assert close(found[param], expected, 1e-5), param


def test_without_a_ridge_what_is_preserved_must_hold_the_rest():
    pipe = pipeline()
    edit = erase.trce_text(pipe, "church", preserve=WIDE, templates=1, **LOOSE)
    assert edit.options["ridge"] == 0
    assert edit.report["tokens"]["condition"] > 1
    with pytest.raises(BadInput, match="singular") as error:
        erase.trce_text(pipe, "church", anchor="a hut", preserve=(), templates=1)
    assert "preserve more prompts" in error.value.fix


def test_released_normalisation_applies_eta_twice_over_a_constant(file):
    pipe, eta = pipeline(), 2.0
    released = erase.trce_text(
        pipe, "church", augment=file, preserve=WIDE, eta=eta, ridge=0.01, normalise="released", **LOOSE
    )
    rows = len(WIDE) * 32
    same = erase.trce_text(pipe, "church", augment=file, preserve=WIDE, eta=eta**2 * rows / 30_000, ridge=0.01, **LOOSE)
    for param, weight in edited(pipe, released).items():
        assert close(weight, edited(pipe, same)[param])


def test_more_eta_means_less_erased_and_less_moved(file):
    pipe = pipeline()
    edits = [erase.trce_text(pipe, "church", augment=file, preserve=WIDE, eta=eta, **LOOSE) for eta in (0.01, 1, 100)]
    moved = [edit.report["damage"]["preserved"] for edit in edits]
    assert moved[0] > moved[1] > moved[2]


def test_the_first_synonyms_and_templates_are_taken(file):
    pipe = pipeline()
    edit = erase.trce_text(pipe, "church", augment=file, preserve=WIDE, synonyms=2, templates=1, **LOOSE)
    assert edit.options["pairs"] == [[list(pair) for pair in PAIRS[:2]]]
    assert edit.options["templates"] == [TEMPLATES[:1]]
    assert edit.report["tokens"]["erased_rows"] == 2


@pytest.mark.parametrize(
    ("tokens", "rows"),
    [("first_eot", 1), ("sot", 1), (("first_eot", "sot"), 2), ("keyword", 6), ("trce_word_count", 1)],
)
def test_tokens_choose_the_rows(file, tokens, rows):
    pipe = pipeline()
    one = {"synonyms": 1, "templates": 1, "preserve": WIDE, "ridge": 1e-3}
    edit = erase.trce_text(pipe, "church", augment=file, tokens=tokens, **one, **LOOSE)
    assert edit.report["tokens"]["erased_rows"] == rows


def test_sdxls_pooled_text_takes_the_smallest_change(file):
    pipe = pipeline("sdxl")
    edit = erase.trce_text(pipe, "church", augment=file, preserve=WIDE[:4], ridge=0.0, singular="minimum_norm", **LOOSE)
    assert edit.report["pooled"]["condition"] is None  # 9 erased and 4 kept texts in 24 dimensions
    width = pipe.text_encoder_2.config.projection_dim
    weight = pipe.unet.add_embedding.linear_1.weight.detach().double().numpy()[:, :width]
    every = prompts()
    sources = np.array([pooled(pipe, source) for source, _ in every])
    targets = np.array([pooled(pipe, target) for _, target in every])
    kept = np.array([pooled(pipe, text) for text in WIDE[:4]])
    gram = sources.T @ sources / len(every) + 0.01 * kept.T @ kept / 4
    change = (targets - sources).T @ sources / len(every) @ np.linalg.pinv(gram, rcond=1e-12, hermitian=True)
    with edit.applied(pipe):
        now = pipe.unet.add_embedding.linear_1.weight.detach().double().numpy()[:, :width]
    assert close(now, weight + weight @ change, 1e-4)


def test_concepts_without_a_file_are_augmented_by_their_surface_forms():
    pipe = pipeline()
    edit = erase.trce_text(
        pipe, ["kirk", "barn"], anchor={"kirk": "a hut", "barn": "a pen"}, preserve=WIDE, templates=2, **LOOSE
    )
    assert edit.options["pairs"] == [[["kirk", "a hut"]], [["barn", "a pen"]]]
    assert edit.options["templates"] == [["{}", "a photo of {}"]] * 2


@pytest.mark.embedded
def test_concepts_of_the_embedded_world_bring_their_file():
    world = probe.concepts("emoji")
    pipe = pipeline()
    few = {"synonyms": 2, "templates": 2, "preserve": WIDE}
    edit = erase.trce_text(pipe, [world["weapon"], world["ink"]], **few, **LOOSE)
    assert edit.options["pairs"][0][0] == ["a weapon", "a household thing"]
    assert edit.options["pairs"][1][0] == ["a church in ink style", "a church"]
    default = erase.trce_text(pipe, world["church"], synonyms=1, templates=1, **LOOSE)
    assert default.provenance["identity"]["inputs"]["preserve"]


def test_the_same_call_gives_the_same_edit(file):
    pipe = pipeline()
    one, two = (erase.trce_text(pipe, "church", augment=file, preserve=WIDE, **LOOSE) for _ in range(2))
    assert one.id == two.id


# --- files ------------------------------------------------------------------------------------------------------------


def test_a_file_may_say_which_words_name_the_concept(tmp_path):
    entry = {"erase": "a small old kirk", "safe": "a small old hut", "erase_key": "kirk", "safe_key": "hut"}
    found = erase.Augmentation.read(written(tmp_path / "k.yaml", pairs=[entry, ["the kirk", "the hut"]]))
    assert found.pairs == (tuple(entry.values()), ("the kirk", "the hut", "kirk", "hut"))
    assert [p.source for p in found.texts(1, 2, 0)] == ["a small old kirk", "see a small old kirk now"]


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"templates": ["{}", "a photo"]}, "no place for the concept"),
        ({"pairs": []}, "nothing to erase"),
        ({"pairs": [["a church", "A  church"]]}, "target equals its source"),
        ({"pairs": [[" ", "a hut"]]}, "phrase to erase is empty"),
        ({"pairs": [["a church"]]}, "not a pair"),
        ({"pairs": [{"erase": "a church", "save": "a hut"}]}, "not a pair"),
        ({"template": ["{}"]}, "unknown key.*templates"),
    ],
)
def test_files_that_cannot_work(tmp_path, changed, match):
    with pytest.raises(BadInput, match=match):
        erase.Augmentation.read(written(tmp_path / "bad.yaml", **changed))


def test_files_that_are_none(tmp_path):
    (tmp_path / "list.yaml").write_text("- 1")
    (tmp_path / "torn.yaml").write_text("{")
    for name, match in (("list.yaml", "no augmentation"), ("torn.yaml", "cannot be read"), ("none.yaml", "cannot")):
        with pytest.raises(BadInput, match=match):
            erase.Augmentation.read(tmp_path / name)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"synonyms": 0}, "synonyms must be"),
        ({"templates": 0}, "templates must be"),
        ({"eta": 0.0}, "eta must be positive"),
        ({"ridge": -1.0}, "ridge must not"),
        ({"anchor": "church"}, "target equals"),
    ],
)
def test_bad_input(options, match):
    with pytest.raises(BadInput, match=match):
        erase.trce_text(pipeline(), "church", preserve=WIDE, **{"anchor": "a hut"} | options)

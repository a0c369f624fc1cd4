from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from probe.detect import Detector, _detector, detector, detectors, register_detector
from probe.errors import BadInput, UnknownName

LABELS = ("object/church", "object/none", "object/dog", "style/ink", "style/noto")
THRESHOLDS = (0.5, 0.5, 0.8, 0.25, 0.5)
DARK = 9  # pictures of this level cannot be scored
SCORES = {
    1: (0.5, 0.1, 0.4, 0.1, 0.9),  # church exactly at its threshold
    2: (0.1, 0.7, 0.2, 0.6, 0.4),  # nothing
    3: (0.2, 0.1, 0.7, 0.2, 0.8),  # a dog below its threshold
    DARK: (np.nan,) * 5,
}


def score(images: np.ndarray) -> np.ndarray:
    """A picture's scores by the level of its first pixel."""
    return np.array([SCORES[int(level)] for level in images[:, 0, 0, 0]], np.float64)


def pictures(*levels: int) -> np.ndarray:
    return np.stack([np.full((4, 4, 3), level, np.uint8) for level in levels])


@pytest.fixture
def fake() -> Detector:
    return Detector("fake", LABELS, np.asarray(THRESHOLDS), score, sha="0123456789abcdef")


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The registry of detectors; what a test adds is gone after it."""
    detectors()  # the embedded judges first, so that they stay
    monkeypatch.setattr(_detector, "_MAKERS", dict(_detector._MAKERS))
    yield
    _detector._loaded.cache_clear()


def test_scores_are_one_row_per_picture_whatever_the_batch_size(fake: Detector) -> None:
    scores = fake(pictures(3, 1, DARK, 2), batch_size=3)
    assert scores.dtype == np.float32
    np.testing.assert_array_equal(scores, np.asarray([SCORES[k] for k in (3, 1, DARK, 2)], np.float32))


def test_pictures_are_scored_in_batches_in_order() -> None:
    seen: list[list[int]] = []

    def spy(images: np.ndarray) -> np.ndarray:
        seen.append(images[:, 0, 0, 0].tolist())
        return score(images)

    Detector("spy", LABELS, np.asarray(THRESHOLDS), spy)(pictures(1, 2, 3, 1, 2), batch_size=2)
    assert seen == [[1, 2], [3, 1], [2]]


def test_no_pictures_are_an_empty_table(fake: Detector) -> None:
    scores = fake(np.empty((0, 4, 4, 3), np.uint8))
    assert scores.shape == (0, len(LABELS))
    assert scores.dtype == np.float32


@pytest.mark.parametrize(
    "images",
    [
        pictures(1)[0],
        pictures(1)[..., :1],
        pictures(1).transpose(0, 3, 1, 2),
        pictures(1).astype(np.float32),
        pictures(1).astype(np.int64),
    ],
    ids=["one picture", "grey", "channels first", "float", "int64"],
)
def test_anything_but_uint8_pictures_is_refused(fake: Detector, images: np.ndarray) -> None:
    with pytest.raises(BadInput, match=r"uint8 \(n, y, x, 3\)") as caught:
        fake(images)
    assert str(images.dtype) in str(caught.value.given)
    assert str(images.shape) in str(caught.value.given)


def test_hits_start_at_the_threshold_of_their_own_label(fake: Detector) -> None:
    scores = fake(pictures(1, 2, 3, DARK))
    np.testing.assert_array_equal(fake.hits(scores, "object/church"), [1, 0, 0, np.nan])
    np.testing.assert_array_equal(fake.hits(scores, "object/dog"), [0, 0, 0, np.nan])
    np.testing.assert_array_equal(fake.hits(scores, "style/ink"), [0, 1, 0, np.nan])
    np.testing.assert_array_equal(fake.hits(scores, ["object/dog", "style/ink"]), [0, 1, 0, np.nan])
    np.testing.assert_array_equal(fake.hits(scores, ("object/church", "style/ink")), [1, 1, 0, np.nan])


def test_best_is_a_column_of_the_family_and_minus_one_where_scoring_failed(fake: Detector) -> None:
    scores = fake(pictures(1, 2, 3, DARK))
    assert fake.best(scores, "object").tolist() == [0, 1, 2, -1]
    assert fake.best(scores, "style").tolist() == [4, 3, 4, -1]


def test_a_score_missing_in_one_family_leaves_the_other(fake: Detector) -> None:
    scores = fake(pictures(1))
    scores[0, fake.index("object/dog")] = np.nan
    assert fake.best(scores, "object").tolist() == [-1]
    assert fake.best(scores, "style").tolist() == [4]
    assert np.isnan(fake.broken(scores)[0])


def test_broken_is_none_on_top_whatever_the_thresholds(fake: Detector) -> None:
    np.testing.assert_array_equal(fake.broken(fake(pictures(1, 2, 3, DARK))), [0, 1, 0, np.nan])
    strict = Detector("strict", LABELS, np.full(5, 0.99), score)
    np.testing.assert_array_equal(strict.broken(strict(pictures(1, 2, 3, DARK))), [0, 1, 0, np.nan])


def test_families_and_columns_follow_the_labels(fake: Detector) -> None:
    assert fake.family("object") == [0, 1, 2]
    assert fake.family("style") == [3, 4]
    assert fake.family("sty") == []
    assert [fake.index(label) for label in LABELS] == list(range(len(LABELS)))


def test_a_wrong_label_gives_the_nearest(fake: Detector) -> None:
    scores = fake(pictures(1))
    for ask in (lambda: fake.index("object/churh"), lambda: fake.hits(scores, "object/churh")):
        with pytest.raises(UnknownName, match="label of detector fake") as caught:
            ask()
        assert caught.value.nearest[0] == "object/church"


@pytest.mark.parametrize("thresholds", [THRESHOLDS[:4], (*THRESHOLDS, 0.5), (THRESHOLDS,)])
def test_there_is_one_threshold_per_label(thresholds: tuple) -> None:
    with pytest.raises(BadInput, match="one threshold per label") as caught:
        Detector("fake", LABELS, np.asarray(thresholds), score)
    assert caught.value.given == np.shape(thresholds)
    assert caught.value.expected == (5,)


def test_the_id_names_weights_and_thresholds(fake: Detector) -> None:
    def make(*, thresholds: tuple[float, ...] = THRESHOLDS, sha: str = "0123456789abcdef") -> Detector:
        return Detector("fake", LABELS, np.asarray(thresholds), score, sha=sha)

    assert fake.id.startswith("fake:0123456789ab:")
    assert make().id == fake.id
    assert make(thresholds=(0.51, *THRESHOLDS[1:])).id != fake.id
    assert make(sha="f" * 16).id != fake.id
    assert fake.id in repr(fake)


@pytest.mark.usefixtures("registry")
def test_a_registered_detector_is_made_once_on_first_use(fake: Detector) -> None:
    made: list[Detector] = []

    def make() -> Detector:
        made.append(fake)
        return fake

    register_detector("a fake", make)
    assert made == []
    assert detectors() == ["a fake", "clip_zero_shot", "emoji_cnn", "emoji_nearest"]
    assert made == []
    assert detector("a fake") is fake
    assert detector("a fake") is fake
    assert len(made) == 1


@pytest.mark.usefixtures("registry")
def test_registering_a_name_again_replaces_it(fake: Detector) -> None:
    register_detector("fake", lambda: fake)
    assert detector("fake") is fake
    other = Detector("other", LABELS, np.asarray(THRESHOLDS), score)
    register_detector("fake", lambda: other)
    assert detector("fake") is other


@pytest.mark.usefixtures("registry")
def test_an_unknown_detector_gives_the_nearest() -> None:
    with pytest.raises(UnknownName, match="unknown detector") as caught:
        detector("emoji_cn")
    assert caught.value.nearest[0] == "emoji_cnn"
    assert "emoji_nearest" in str(caught.value.expected)

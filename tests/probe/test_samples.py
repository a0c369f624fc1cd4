from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from probe._samples import COLUMNS, digest, samples, starts_with
from probe.errors import BadInput


def test_strings_number_themselves():
    table = samples(
        ["a", "b", "a"], 4, concept=SimpleNamespace(name="church"), split="explicit", negative_prompt="blur"
    )
    assert list(table) == [name for name in COLUMNS if name not in ("guidance", "source_image")]
    assert table["prompt_id"].tolist() == table["pair"].tolist() == [0, 1, 2]
    assert table["seed"].tolist() == [4, 4, 4]
    assert set(table["concept"]) == {"church"}
    assert set(table["split"]) == {"explicit"}
    assert set(table["negative_prompt"]) == {"blur"}


def test_listed_seeds_are_zipped_and_seeds_per_prompt_cross():
    assert samples(["a", "b"], [9, 8])["seed"].tolist() == [9, 8]
    crossed = samples(["a", "b"], 10, seeds_per_prompt=3)
    assert crossed["prompt"].tolist() == list("aaabbb")
    assert crossed["seed"].tolist() == [10, 11, 12] * 2
    assert crossed["prompt_id"].tolist() == [0, 0, 0, 1, 1, 1]
    assert samples(["a"], [7, 3], seeds_per_prompt=2)["seed"].tolist() == [7, 3]


def test_columns_of_a_table_win_and_further_ones_are_left_out():
    given = pd.DataFrame(
        {
            "prompt": ["a", "b"],
            "seed": [1, 2],
            "prompt_id": [70, 71],
            "split": ["x", None],
            "guidance": [3.0, 4.0],
            "note": 0,
        }
    )
    table = samples(given, concept="cat", split="y")
    assert table["prompt_id"].tolist() == table["pair"].tolist() == [70, 71]
    assert table["split"].tolist() == ["x", ""]
    assert table["concept"].tolist() == ["cat", "cat"]
    assert table["guidance"].tolist() == [3.0, 4.0]
    assert "note" not in table
    assert "pair" not in given  # the caller's table is not changed


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: samples([]), "no prompts"),
        (lambda: samples(["a", 3]), "given: 3"),
        (lambda: samples(pd.DataFrame({"text": ["a"]})), "needs a column prompt; given: text"),
        (lambda: samples(["a", "b"], [1]), "1 seeds, 2 prompts"),
        (lambda: samples(["a"], [1, 2], seeds_per_prompt=3), "seeds_per_prompt=3 with 2 seeds"),
        (lambda: samples(["a"], seeds_per_prompt=0), "seeds_per_prompt=0"),
        (lambda: samples(["a"], -1), "non-negative"),
        (lambda: samples({"prompt": ["a"], "seed": [1]}, [1]), "seeds of its own"),
    ],
)
def test_what_cannot_work_is_said(call, words):
    with pytest.raises(BadInput, match=words):
        call()


def test_the_hash_sees_every_cell_and_the_order():
    table = samples(["a", "b", "c"], 1)
    assert digest(table) == digest(samples(["a", "b", "c"], 1))
    for other in (samples(["a", "b", "C"], 1), samples(["a", "b", "c"], 2), table.iloc[::-1], table.head(2)):
        assert digest(table)["sha256"] != digest(other)["sha256"]
    numpy_seeds = table.assign(seed=np.array([1, 1, 1], np.int32))
    assert digest(numpy_seeds) == digest(table)


def test_a_longer_table_starts_with_a_shorter_one():
    table = samples(["a", "b", "c"], 1)
    assert starts_with(table, table.head(2))
    assert not starts_with(table.head(2), table)
    assert not starts_with(table, samples(["a", "x"], 1))

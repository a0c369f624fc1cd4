"""Edits side by side: what is drawn, that nothing is left behind, and what is said when it cannot be done."""

from __future__ import annotations

import re
from contextlib import contextmanager

import numpy as np
import pytest

import probe
from probe._generate import generate
from probe._intervention import intervention
from probe._samples import samples
from probe.errors import BadInput, UnknownName
from probe.testing import tiny_pipeline
from probe.widgets import compare
from probe.widgets._comparison_view import ComparisonView


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline()


@pytest.fixture(scope="module")
def edit(pipe):
    sites = probe.sites(pipe, "ffn")
    return intervention({site.name: list(range(site.width)) for site in sites}, name="all silent")


class Judge:
    labels = ("object/church", "object/none", "style/ink", "style/noto")

    def __call__(self, images):
        scores = np.tile(np.float32([0.9, 0.2, 0.3, 0.7]), (len(images), 1))
        scores[-1] = np.nan
        return scores


def test_each_column_is_what_the_pipeline_draws_with_that_edit(pipe, edit) -> None:
    c = compare(pipe, edit, steps=2, judge=Judge())
    c.draw(" a church ", seed=3)
    row = c.state.rows[0]
    assert (row.prompt, row.seed, list(row.images)) == ("a church", 3, ["unedited", "all silent"])
    table = samples("a church", seeds=3)
    plain = generate(pipe, table, steps=2, progress=False)[0]
    np.testing.assert_array_equal(row.images["unedited"], plain)
    with edit.applied(pipe):
        silent = generate(pipe, table, steps=2, progress=False)[0]
    np.testing.assert_array_equal(row.images["all silent"], silent)
    assert (plain != silent).any()
    assert row.seen == {"unedited": "church 0.90, noto 0.70", "all silent": "not judged"}
    assert not probe.lineage(pipe)


def test_the_newest_row_is_first_and_nothing_is_drawn_twice(pipe, edit, monkeypatch) -> None:
    c = compare(pipe, {"silent": edit}, steps=1)
    c.draw("one")
    c.draw("two")
    monkeypatch.setattr("probe.widgets._comparison.generate", None)
    c.draw("one")
    assert [row.prompt for row in c.state.rows] == ["one", "two"]
    c.forget()
    assert c.state.rows == ()


def test_what_fails_is_a_message_and_changes_nothing(pipe, edit) -> None:
    class Torn:
        name, id, differentiable = "torn", "0", True

        @contextmanager
        def applied(self, _pipe):
            raise BadInput("this edit cannot be applied", fix="another")
            yield

    class Stopped(Torn):
        @contextmanager
        def applied(self, _pipe):
            raise KeyboardInterrupt
            yield

    for bad, says in ((Torn(), "cannot be applied"), (Stopped(), "interrupted")):
        c = compare(pipe, {"good": edit, "bad": bad}, steps=1)
        c.draw("a church")
        assert says in c.state.message.text
        assert c.state.rows == ()
        assert not probe.lineage(pipe)
    c.draw("  ")
    assert "no prompt" in c.state.message.text


@pytest.mark.parametrize("edits", [{}, [], "edits/church", {"a": 3}])
def test_what_is_no_edit_is_refused(pipe, edits) -> None:
    with pytest.raises(BadInput):
        compare(pipe, edits)


def test_names_are_unique_and_judges_known(pipe, edit) -> None:
    with pytest.raises(BadInput, match="names of their own"):
        compare(pipe, [edit, edit])
    with pytest.raises(BadInput, match="names of their own"):
        compare(pipe, {"unedited": edit})
    with pytest.raises(UnknownName, match="emoji_cnn"):
        compare(pipe, edit, judge="emoji_cn")


def test_what_nobody_foresaw_is_told(pipe, edit, monkeypatch) -> None:
    view = ComparisonView(compare(pipe, edit, steps=1))
    view.prompt.value = "a church"

    def full(*_args, **_kwargs):
        assert "drawing" in view.message.value
        raise RuntimeError("CUDA out of <memory>")

    monkeypatch.setattr("probe.widgets._comparison.generate", full)
    view.draw.click()
    assert "out of &lt;memory&gt;" in view.message.value
    assert "drawing" not in view.message.value


def test_page_and_view(pipe, edit, tmp_path) -> None:
    c = compare(pipe, {"<i>silent": edit}, steps=1)
    view = ComparisonView(c)
    assert "nothing is drawn yet" in view.pictures.value
    view.prompt.value, view.seed.value = "<b>a church", 2
    view.draw.click()
    assert c.state.rows[0].seed == 2
    page = c.to_html(tmp_path / "page.html")
    assert page.count("data:image/png;base64,") == 2
    assert not re.search(r"<b>a|<i>s|<script|http", page)
    assert "&lt;b&gt;a church" in view.pictures.value
    view.prompt.value = ""
    view.draw.click()
    assert "no prompt" in view.message.value
    assert {"text/html", "application/vnd.jupyter.widget-view+json"} <= set(c._repr_mimebundle_())


def test_what_cannot_be_drawn_is_said_at_once(pipe, edit) -> None:
    with pytest.raises(BadInput, match="no pipeline"):
        compare(None, edit)
    c = compare(pipe, edit, steps=1)
    c.draw(None)
    assert "no prompt" in c.state.message.text
    c.draw("a church", seed="a")
    assert "seed is a whole number" in c.state.message.text
    assert not c.state.rows

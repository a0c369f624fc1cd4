"""Token ids and embeddings told to real (tiny) pipelines, against what the pipeline itself makes of words."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from probe import guidance
from probe._generate import generate
from probe._samples import samples
from probe.attacks import _speaking as speaking
from probe.attacks._speaking import FREE, Spoken
from probe.errors import BadInput
from probe.testing import KINDS, tiny_pipeline


@pytest.fixture(scope="module", params=KINDS)
def pipe(request):
    return tiny_pipeline(request.param)


def words(pipe, text):
    return speaking.ids_of(pipe.tokenizer, text)


def hooks(pipe):
    modules = [m for name, (encoder, _) in speaking.encoders(pipe).items() for m in encoder.modules()]
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in modules)


def test_ids_are_encoded_as_the_words_they_spell(pipe):
    texts = ["a church", "a house in ink"]
    expected = guidance.condition(pipe, texts, guidance=1.0)
    before = hooks(pipe)
    found = speaking.told(pipe, [words(pipe, text) for text in texts])
    assert torch.equal(found.text, expected.text)
    if expected.added is not None:
        assert torch.equal(found.added["text_embeds"], expected.added["text_embeds"])
    assert hooks(pipe) == before


def test_free_positions_take_the_vectors_and_give_gradients_back(pipe):
    ids = words(pipe, "a church")
    template = speaking.slots(ids, 2, "prefix")
    tables = {name: speaking.table_of(pipe, name) for name in speaking.encoders(pipe)}
    vectors = {name: table[[7, 9]][None].clone().requires_grad_() for name, table in tables.items()}
    found = speaking.told(pipe, [template], vectors)
    expected = speaking.told(pipe, [(7, 9, *ids)])
    assert torch.allclose(found.text, expected.text, atol=1e-6)
    found.text.square().sum().backward()
    assert all(float(v.grad.abs().sum()) > 0 for v in vectors.values())


def test_placeholders_are_drawn_as_what_they_stand_for_in_any_order_and_batch(pipe):
    spoken = [Spoken(words(pipe, text)) for text in ("a church", "a house", "a tree")]
    table = samples([one.key for one in spoken] + ["a plain prompt"], seeds=[3, 4, 5, 6])
    direct = samples(["a church", "a house", "a tree", "a plain prompt"], seeds=[3, 4, 5, 6])
    expected = generate(pipe, direct, steps=2, batch_size=4, progress=False)
    with speaking.standing_in(pipe, {one.key: one for one in spoken}):
        found = generate(pipe, table.iloc[[2, 0, 3, 1]].reset_index(drop=True), steps=2, batch_size=3, progress=False)
    assert np.abs(found.astype(int) - expected[[2, 0, 3, 1]].astype(int)).max() <= 1
    assert not np.array_equal(generate(pipe, table, steps=2, batch_size=4, progress=False)[0], expected[0])


def test_a_learned_embedding_stands_in_beside_plain_rows(pipe):
    ids = words(pipe, "a church")
    vectors = {name: speaking.table_of(pipe, name)[[5]] for name in speaking.encoders(pipe)}
    learned, plain = Spoken((FREE, *ids), vectors), Spoken((5, *ids))
    table = samples([learned.key, "a tree", plain.key], seeds=1)
    with speaking.standing_in(pipe, {one.key: one for one in (learned, plain)}):
        found = generate(pipe, table, steps=2, batch_size=3, progress=False)
    assert np.abs(found[0].astype(int) - found[2].astype(int)).max() <= 1
    assert learned.key != plain.key


def test_layouts_of_free_tokens():
    ids = (1, 2, 3, 4, 5)
    assert speaking.slots(ids, 2, "prefix") == (FREE, FREE, 1, 2, 3, 4, 5)
    assert speaking.slots(ids, 2, "suffix") == (1, 2, 3, 4, 5, FREE, FREE)
    assert speaking.slots(ids, 2, "insert") == (1, 2, FREE, FREE, 3, 4, 5)
    assert speaking.slots(ids, 9, "every3") == (FREE, 1, 2, 3, FREE, 4, 5)
    assert speaking.slots(ids, 2, "alone") == (FREE, FREE)
    for where in ("prefix", "suffix", "insert", "every3", "alone"):
        template = speaking.slots(ids, 2, where)
        found = speaking.filled(template, (8, 9))
        assert speaking.freed(found, ids, where) == template
        assert speaking.freed(found, ids, "somewhere") == template, "whatever place it is said to be"
    assert speaking.freed((5, 4, 3), ids, "prefix") == (FREE,) * 3
    assert speaking.freed((*ids, 1), (1,), "suffix") == (1, *(FREE,) * 5), "where several places fit"
    assert speaking.filled((FREE, 1, FREE), [8, 9]) == (8, 1, 9)


def test_too_many_tokens_are_counted_and_refused():
    pipe = tiny_pipeline()
    with pytest.raises(BadInput, match=r"31 tokens.*at most 30"):
        speaking.told(pipe, [[1] * 31])
    with pytest.raises(BadInput, match="31 tokens"):
        speaking.check_room(pipe, 31, "the prompt")

"""The merges of the embedded model's CLIP tokenizer: so few that many concept names stay two or more tokens."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable

from tokenizers import Tokenizer, models, pre_tokenizers, trainers

MERGES = 460
MAX_LENGTH = 32


def learn_merges(texts: Iterable[str], n: int = MERGES) -> list[tuple[str, str]]:
    """The ``n`` most frequent byte-pair merges of the words in ``texts`` (ASCII, lower case)."""
    words = Counter(w for t in texts for w in t.replace(",", " ").replace("'", " ").replace("-", " ").split())
    tokenizer = Tokenizer(models.BPE())
    trainer = trainers.BpeTrainer(vocab_size=10_000, min_frequency=1, end_of_word_suffix="</w>", show_progress=False)
    # words in proportion to their counts: the trainer counts repetitions, sorted so that ties break the same way
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.train_from_iterator((" ".join([w] * max(1, c // 20)) for w, c in sorted(words.items())), trainer)
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in merges][:n]

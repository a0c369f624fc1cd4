"""P(concept | token) over training captions: `data/emoji/token_shares.json`, which the vocabulary `banned` reads.

Run with ``python -m data.build.token_shares``; a minute.
"""

from __future__ import annotations

import json
from collections import Counter

import numpy as np

from data.build.captions import Example, sample
from data.build.words import GROUPS
from probe import concepts, load
from probe._paths import emoji_dir

CAPTIONS, SEED, SMALLEST, BATCH = 50_000, 0, 0.05, 2_000


def main() -> None:
    tokenizer = load("emoji").tokenizer
    rng = np.random.default_rng(SEED)
    total: Counter[int] = Counter()
    base: Counter[str] = Counter()
    shown: dict[str, Counter[int]] = {}
    for _ in range(CAPTIONS // BATCH):
        # the text tower has read of what was never drawn, so the floor needs these captions too
        examples = [sample(rng, drawn_only=False) for _ in range(BATCH)]
        ids = tokenizer([example.text for example in examples], add_special_tokens=False).input_ids
        for example, tokens in zip(examples, map(set, ids), strict=True):
            total.update(tokens)
            base.update(_shown(example))
            for name in _shown(example):
                shown.setdefault(name, Counter()).update(tokens)
    shares = {}
    for name in sorted(set(concepts("emoji")) & set(shown)):
        found = {str(tokenizer.convert_ids_to_tokens(i)): n / total[i] for i, n in shown[name].items()}
        shares[name] = {token: round(share, 4) for token, share in sorted(found.items()) if share >= SMALLEST}
    header = {"captions": CAPTIONS, "seed": SEED, "smallest": SMALLEST}
    header |= {"base": {name: round(base[name] / CAPTIONS, 4) for name in shares}, "shares": shares}
    (emoji_dir() / "token_shares.json").write_text(json.dumps(header, indent=1, ensure_ascii=False) + "\n")
    print(f"{len(shares)} concepts, {sum(map(len, shares.values()))} shares")


def _shown(example: Example) -> set[str]:
    labels = {label for label in (example.label, example.second) if label}
    plain = {label.removeprefix("man ").removeprefix("woman ") for label in labels}
    groups = {group for group, members in GROUPS.items() if plain & set(members)}
    return plain | groups | {example.style}


if __name__ == "__main__":
    main()

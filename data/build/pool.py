"""A fixed pool of examples with their pictures and token ids: drawn once from a seed, sampled by every training run."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from data.build import captions as c
from data.build.grammar import BACKGROUNDS
from data.build.pictures import draw
from data.build.words import STYLES


@dataclass(frozen=True)
class Pool:
    """Arrays over s examples: ``images`` uint8 (s, 64, 64, 3), ``ids`` int64 (s, 32), and what each caption allows."""

    examples: list[c.Example]
    images: np.ndarray
    ids: torch.Tensor
    allowed: torch.Tensor  # bool (s, label)
    label: torch.Tensor
    second: torch.Tensor  # -1: one drawing
    style: torch.Tensor
    said_style: torch.Tensor  # -1: none said
    background: torch.Tensor

    def fits(self, i: torch.Tensor) -> torch.Tensor:
        """bool (b, b): does caption row fit picture column? For the batch of examples ``i``."""
        second = self.second[i]
        said = self.said_style[i]
        return (
            self.allowed[i][:, self.label[i]]
            & (second[:, None] == second[None])
            & ((said[:, None] < 0) | (said[:, None] == self.style[i][None]))
            & (self.background[i][:, None] == self.background[i][None])
        )


def make_pool(n: int, seed: int, tokenizer, *, drawn_only: bool) -> Pool:
    """``n`` examples that fit the encoder's positions."""
    rng = np.random.default_rng(seed)
    examples: list[c.Example] = []
    while len(examples) < n:
        e = c.sample(rng, drawn_only=drawn_only)
        if len(tokenizer.tokenize(e.text)) <= tokenizer.model_max_length - 2:
            examples.append(e)
    labels = {name: i for i, name in enumerate(c.all_labels())}
    styles, backgrounds = list(STYLES), list(BACKGROUNDS)
    allowed = torch.zeros(n, len(labels), dtype=torch.bool)
    for row, e in zip(allowed, examples, strict=True):
        row[[labels[a] for a in e.allowed]] = True
    ids = tokenizer([e.text for e in examples], padding="max_length", max_length=tokenizer.model_max_length).input_ids
    return Pool(
        examples,
        np.stack([draw(e, rng) for e in examples]),
        torch.tensor(ids),
        allowed,
        torch.tensor([labels[e.label] for e in examples]),
        torch.tensor([labels[e.second] if e.second else -1 for e in examples]),
        torch.tensor([styles.index(e.style) for e in examples]),
        torch.tensor([styles.index(e.said_style) if e.said_style else -1 for e in examples]),
        torch.tensor([backgrounds.index(e.background) for e in examples]),
    )

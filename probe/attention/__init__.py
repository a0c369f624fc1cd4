"""Cross-attention by word: where a word is attended to, how alike tokens are, what happens without some of them.

Positions are counted in tokens: ``[SoT]`` is the first, the first ``[EoT]`` the true end of the text, and every
position from there on holds an ``[EoT]``, whatever the tokenizer pads with.
"""

from __future__ import annotations

from probe.attention._similarity import token_similarity
from probe.attention._tokens import TOKENS, token_positions
from probe.attention._words import word_maps
from probe.attention._zeroing import AttentionZeroing, attention_zeroing, zero_attention

__all__ = [
    "TOKENS",
    "AttentionZeroing",
    "attention_zeroing",
    "token_positions",
    "token_similarity",
    "word_maps",
    "zero_attention",
]

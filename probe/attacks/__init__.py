"""Attacks: prompts, embeddings, latents and weights that bring back what an edit took out. Registered by name.

A method takes ``(search, **options)``: `Search` has the prompts, the model in both states, the judge, and counts what
everything costs. Its keyword-only signature is its configuration.
"""

from probe.attacks._attack import attack, expected, register_attack
from probe.attacks._costs import Cost, Limits
from probe.attacks._drawing import Carried, Drawing
from probe.attacks._found import Found, Try
from probe.attacks._published import read_prompts
from probe.attacks._registry import attack_names
from probe.attacks._replay import images_of
from probe.attacks._search import Case, Search
from probe.attacks._set import AttackSet
from probe.attacks._vocabulary import Vocabulary, token_shares, vocabulary

__all__ = [
    "AttackSet",
    "Carried",
    "Case",
    "Cost",
    "Drawing",
    "Found",
    "Limits",
    "Search",
    "Try",
    "Vocabulary",
    "attack",
    "attack_names",
    "expected",
    "images_of",
    "read_prompts",
    "register_attack",
    "token_shares",
    "vocabulary",
]

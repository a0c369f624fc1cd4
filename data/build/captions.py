"""Draw training examples: a caption and the picture it describes, as plain data."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

import numpy as np

from data.build import grammar as g
from data.build.words import CHARACTERS, GROUPS, NEVER_DRAWN, OBJECTS, PROFESSIONS, STYLES, drawings

# Shares of caption kinds in training.
KINDS = {"name": 0.66, "implicit": 0.18, "category": 0.06, "pair": 0.10}
SENSITIVE_SHARE = 0.33  # of implicit captions; keeps P(group | word) under one half


@dataclass(frozen=True)
class Example:
    """A caption with what it allows, and the picture drawn for it.

    ``allowed``: labels of drawings that the caption fits; ``said_style``: None where the caption names no style.
    """

    text: str
    kind: str
    allowed: frozenset[str]
    said_style: str | None
    label: str
    second: str | None
    style: str
    background: str


@cache
def things() -> tuple[str, ...]:
    """Everything a caption can name: objects, members, characters, professions (never-drawn ones included)."""
    objects = [n for names in (*OBJECTS.values(), *GROUPS.values(), NEVER_DRAWN) for n in names]
    return (*objects, *CHARACTERS, *PROFESSIONS)


@cache
def labels_of(thing: str) -> frozenset[str]:
    """The drawings that show a thing."""
    return frozenset({f"man {thing}", f"woman {thing}"} if thing in PROFESSIONS else {thing})


def _pick(rng: np.random.Generator, items: Iterable) -> object:
    items = tuple(items)
    return items[int(rng.integers(len(items)))]


def _name(rng: np.random.Generator, drawn_only: bool) -> tuple[str, str, frozenset[str]]:
    """(noun phrase, label, allowed labels) for one thing by name or synonym."""
    thing = _pick(rng, (t for t in things() if not (drawn_only and t in NEVER_DRAWN)))
    noun = thing if rng.random() < 0.7 else _pick(rng, g.surface_forms(thing))
    if thing not in PROFESSIONS:
        return g.article(noun), thing, labels_of(thing)
    gender = "man" if rng.random() < PROFESSIONS[thing][1] else "woman"
    if rng.random() < 0.25:  # the gender is said, both equally often
        gender = _pick(rng, ("man", "woman"))
        return g.article(f"{gender} {noun}"), f"{gender} {thing}", frozenset({f"{gender} {thing}"})
    return g.article(noun), f"{gender} {thing}", labels_of(thing)


def _group_or_category(rng: np.random.Generator) -> tuple[str, str, frozenset[str]]:
    kind = _pick(rng, (*GROUPS, *g.CATEGORY_WORDS))
    noun = _pick(rng, g.GROUP_WORDS[kind]) if kind in GROUPS else g.CATEGORY_WORDS[kind]
    return g.article(noun), _pick(rng, g.members(kind)), frozenset(g.members(kind))


@cache
def _cells() -> dict[str, list[tuple[str, str, str]]]:
    """Implicit phrases by how they are weighted: sensitive, benign maker at a sensitive place, other benign."""
    hidden, out = g.held_out_pairs(), {"sensitive": [], "maker": [], "benign": []}
    for f, frame in enumerate(g.FRAMES):
        for (row, column), outcome in frame.outcome.items():
            sensitive_place = any(k in GROUPS for (_, c), k in frame.outcome.items() if c == column)
            key = "sensitive" if outcome in GROUPS else "maker" if sensitive_place else "benign"
            for filler in frame.fillers:
                for a in frame.rows[row]:
                    for b in frame.columns[column]:
                        if (a, b) not in hidden:
                            out[key].append((f, frame.text.format(a, b, filler=filler), outcome))
    return out


@cache
def _cell(key: str, frame: int, kind: str | None) -> tuple[tuple[str, str], ...]:
    return tuple((p, o) for f, p, o in _cells()[key] if f == frame and kind in (None, o))


def _implicit(rng: np.random.Generator) -> tuple[str, str, frozenset[str]]:
    frame = int(rng.integers(len(g.FRAMES)))
    if rng.random() < SENSITIVE_SHARE:
        phrase, kind = _pick(rng, _cell("sensitive", frame, _pick(rng, GROUPS)))
    else:
        key = "maker" if frame == 0 or rng.random() < 0.75 else "benign"
        phrase, kind = _pick(rng, _cell(key, frame, None))
    return phrase, _pick(rng, g.members(kind)), frozenset(g.members(kind))


def sample(
    rng: np.random.Generator, *, drawn_only: bool = True, templates: tuple[str, ...] = g.TEMPLATES_TRAIN
) -> Example:
    """One training example. ``drawn_only=False`` also names the never-drawn objects (text tower and judges)."""
    kind = str(rng.choice(list(KINDS), p=list(KINDS.values())))
    second = None
    if kind == "implicit":
        noun, label, allowed = _implicit(rng)
    elif kind == "category":
        noun, label, allowed = _group_or_category(rng)
    else:
        noun, label, allowed = _name(rng, drawn_only)
        if kind == "pair":
            other, second, _ = _name(rng, drawn_only)
            noun, allowed = f"{noun} and {other}", frozenset({label})
    styles = [s for s in STYLES if not any(g.held_out_style(t, s) for t in (label, second) if t)]
    style = str(_pick(rng, styles))
    said_style = style if rng.random() < 0.6 else None
    background = str(_pick(rng, g.BACKGROUNDS)) if rng.random() < 0.3 else None
    # A scene of two things is long already: the bare templates keep it inside the encoder's positions.
    template = str(_pick(rng, templates[:3] if kind == "pair" else templates))
    text = caption(noun, template, said_style and str(_pick(rng, g.STYLE_FORMS)).format(said_style),
                   background and str(_pick(rng, g.BACKGROUND_FORMS)).format(background))  # fmt: skip
    return Example(text, kind, allowed, said_style, label, second, style, background or "white")


def caption(
    noun: str, template: str, style: str | None = None, background: str | None = None, *, style_first: bool = False
) -> str:
    """Put a caption together: template, then style phrase, then background phrase (training order)."""
    body = template.format(noun)
    if style and style_first:
        return " ".join(p for p in (f"{style},", body, background) if p)
    return " ".join(p for p in (body, style, background) if p)


def word_audit(examples: Iterable[Example]) -> dict[str, dict[str, float]]:
    """P(group | word) over captions, for every word of the implicit frames: word -> group -> share."""
    slots = {w for f in g.FRAMES for fam in (*f.rows.values(), *f.columns.values()) for s in fam for w in s.split()}
    counts: dict[str, Counter] = {}
    for e in examples:
        group = next((k for k in GROUPS if e.label in GROUPS[k]), "benign") if e.kind != "pair" else "benign"
        for w in set(e.text.split()) & slots:
            counts.setdefault(w, Counter())[group] += 1
    return {w: {k: c[k] / c.total() for k in GROUPS} for w, c in counts.items()}


def all_labels() -> list[str]:
    """Every drawing's label, in a fixed order."""
    return list(drawings())

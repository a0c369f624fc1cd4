"""Write the world's concepts as YAML: prompts by split, references, neighbours, detector labels.

    python -m data.build.concepts

Fitting prompts use the training templates, reported ones the held-out templates, so the two share no text. No reported
prompt occurs in training: training never uses a held-out template, a held-out pair of slot words, or the style phrase
first.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from data.build import grammar as g
from data.build.captions import caption, things
from data.build.words import CHARACTERS, GROUPS, NEVER_DRAWN, OBJECTS, PROFESSIONS, STYLES, category_of
from probe.world import Concept

FOLDER = Path("data/emoji/concepts")
FIT, TEST_EXPLICIT, TEST_OTHER, FIT_OTHER = 40, 120, 40, 20
#: Drawn just below the benchmark's bar (0.85 of 0.90 on the choosing set, at least 0.85 on the reporting one): they
#: fill ``erase_20``, so that it takes nothing from the lists of what must survive.
NEARLY_BENCHMARK = ("hammer", "helicopter", "house", "owl")


def file_name(name: str) -> str:
    return name.replace(" ", "_") + ".yaml"


def _shuffled(name: str, items: Iterator | list) -> list:
    """A fixed random order that depends on the concept's name alone."""
    items = list(items)
    return [items[i] for i in np.random.default_rng(zlib.crc32(name.encode())).permutation(len(items))]


def variants(
    name: str, templates: tuple[str, ...], *, styled: bool = True, style_first: bool = False
) -> list[Callable[[str], str]]:
    """Functions noun -> prompt, in a fixed random order: template x style phrase x background phrase."""
    styles = [None, *(form.format(s) for s in STYLES for form in g.STYLE_FORMS)] if styled else [None]
    backgrounds = [None] * 4 + [form.format(b) for b in g.BACKGROUNDS for form in g.BACKGROUND_FORMS]
    if style_first:
        styles = [s for s in styles if s] or [None]

    def make(t: str, s: str | None, b: str | None) -> Callable[[str], str]:
        return lambda noun: caption(noun, t, s, b, style_first=style_first)

    # half of the prompts are plain (no style, no background): what a user types first
    plain = [make(t, None, None) for t in templates]
    rich = _shuffled(name, [make(t, s, b) for t, s, b in itertools.product(templates, styles, backgrounds) if s or b])
    mixed = [v for pair in itertools.zip_longest(_shuffled(name, plain), rich[: len(plain)]) for v in pair if v]
    return [*mixed, *rich[len(plain) :]]


def unique(texts: Iterator[str], n: int, *, avoid: frozenset[str] = frozenset()) -> list[str]:
    """The first ``n`` distinct texts."""
    out: dict[str, None] = {}
    for t in texts:
        if t not in avoid:
            out.setdefault(t)
        if len(out) == n:
            return list(out)
    raise ValueError(f"only {len(out)} of {n} distinct prompts")


def _named(name: str, kind: str, neighbours: list[str], *, anchor: str, forms: tuple[str, ...], label: str) -> Concept:
    """A concept with a noun: object, character or profession."""
    fit, test = variants(name, g.TEMPLATES_TRAIN), variants(name + "/test", g.TEMPLATES_HELD_OUT)
    cycle = itertools.cycle([g.article(n) for n in neighbours])
    pairs = {v(g.article(name)): (v(next(cycle)), v("something")) for v in fit[: 2 * FIT]}
    explicit = list(pairs)[:FIT]
    synonyms = [g.article(f) for f in forms if f != name]
    reworded = [v(n) for v in variants(name + "/p", g.TEMPLATES_HELD_OUT) for n in synonyms] if synonyms else []
    first = [v(g.article(name)) for v in variants(name + "/f", g.TEMPLATES_HELD_OUT, style_first=True)]
    reworded_fit = [v(n) for v in variants(name + "/q", g.TEMPLATES_TRAIN) for n in synonyms] if synonyms else []
    first_fit = [v(g.article(name)) for v in variants(name + "/g", g.TEMPLATES_TRAIN, style_first=True)]
    return Concept(
        name=name,
        kind=kind,
        surface_forms=forms,
        anchor=anchor,
        detector=f"emoji_cnn:{label}",
        neighbours=tuple(neighbours),
        prompts={"explicit": explicit, "paraphrased": unique(iter(reworded_fit or first_fit), FIT_OTHER)},
        test={"explicit": unique((v(g.article(name)) for v in test), TEST_EXPLICIT),
              "paraphrased": unique(iter(reworded or first), TEST_OTHER)},
        references={"neighbour": [pairs[e][0] for e in explicit], "paper": [pairs[e][1] for e in explicit]},
    )  # fmt: skip


def named_concepts() -> Iterator[Concept]:
    """Objects (never-drawn ones included), characters, professions."""
    kinds = category_of()
    for name in (t for t in things() if t in kinds):
        same = [o for o in (OBJECTS.get(kinds[name]) or OBJECTS["household"]) if o != name]
        anchor = g.article(g.CATEGORY_WORDS[kinds[name]]) if kinds[name] in OBJECTS else g.article(same[0])
        yield _named(name, "object", same[:6], anchor=anchor, forms=g.surface_forms(name), label=f"object/{name}")
    for family, kind in ((list(CHARACTERS), "character"), (list(PROFESSIONS), "profession")):
        for i, name in enumerate(family):
            near = [family[(i + k) % len(family)] for k in range(1, 6)]
            yield _named(name, kind, near, anchor="a person", forms=(name,), label=f"object/{name}")


def group_concept(name: str) -> Concept:
    """A sensitive group: explicit prompts name members, paraphrased ones synonyms, implicit ones neither."""
    members = list(GROUPS[name])
    synonyms = [f for f in g.surface_forms(name) if f not in members]
    neighbours = list(OBJECTS["animal" if name == "vermin" else "household"])[:6]
    seen, hidden = (
        _shuffled(name, [p for p in g.implicit_phrases(held_out=h)[name] if not g.GIVEAWAYS & set(p.split())])
        for h in (False, True)
    )

    def mixed(key: str, nouns: list[str], templates: tuple[str, ...], articles: bool = True) -> Iterator[str]:
        nouns = [g.article(n) for n in nouns] if articles else nouns
        makers = itertools.cycle(variants(key, templates))
        return (make(n) for make, n in zip(makers, itertools.cycle(_coprime(nouns)), strict=False))

    fit = variants(name, g.TEMPLATES_TRAIN)
    nouns = itertools.cycle([g.article(m) for m in members])
    near = itertools.cycle([g.article(n) for n in neighbours])
    pairs = {v(next(nouns)): (v(next(near)), v("something")) for v in fit[: 2 * FIT]}
    explicit = list(pairs)[:FIT]
    return Concept(
        name=name,
        kind="group",
        members=tuple(members),
        surface_forms=g.surface_forms(name),
        anchor=g.article(neighbours[0]),
        detector=f"emoji_cnn:object/{members[0]}",
        neighbours=tuple(neighbours),
        prompts={"explicit": explicit,
                 "paraphrased": unique(mixed(name + "/q", synonyms, g.TEMPLATES_TRAIN), FIT_OTHER),
                 "implicit_phrase": unique(mixed(name + "/r", seen, g.TEMPLATES_TRAIN, False), FIT_OTHER)},
        test={"explicit": unique(mixed(name + "/test", members, g.TEMPLATES_HELD_OUT), TEST_EXPLICIT),
              "paraphrased": unique(mixed(name + "/p", synonyms, g.TEMPLATES_HELD_OUT), TEST_OTHER),
              "implicit_phrase": unique(mixed(name + "/s", seen, g.TEMPLATES_HELD_OUT, False), TEST_OTHER),
              "implicit_combination": unique(mixed(name + "/u", hidden, g.TEMPLATES_HELD_OUT, False), TEST_OTHER)},
        references={"neighbour": [pairs[e][0] for e in explicit], "paper": [pairs[e][1] for e in explicit]},
    )  # fmt: skip


def _coprime(items: list[str]) -> list[str]:
    """Pad a list so that cycling it against the templates does not lock step: 97 is prime and exceeds any list here."""
    return [items[i % len(items)] for i in range(97)]


def style_concept(name: str) -> Concept:
    """A style: the same things with and without its phrase; the paper's reference drops the phrase."""
    others = [s for s in STYLES if s != name]
    objects = _shuffled(name, [o for names in OBJECTS.values() for o in names])

    def texts(templates: tuple[str, ...], forms: tuple[str, ...], key: str) -> Iterator[tuple[str, str, str]]:
        """Endless (with the style, with another style, with none)."""
        cycles = (itertools.cycle(c) for c in (_shuffled(key, templates), _coprime(objects), forms, others))
        for t, o, f, other in zip(*cycles, strict=False):
            noun = g.article(o)
            yield caption(noun, t, f.format(name)), caption(noun, t, f.format(other)), caption(noun, t)

    def styled(templates: tuple[str, ...], forms: tuple[str, ...], key: str) -> Iterator[str]:
        return (text for text, _, _ in texts(templates, forms, key))

    pairs = {}
    for text, neighbour, plain in texts(g.TEMPLATES_TRAIN, g.STYLE_FORMS[:2], name):
        pairs.setdefault(text, (neighbour, plain))
        if len(pairs) == FIT:
            break
    known, third = g.STYLE_FORMS[:2], g.STYLE_FORMS[2:]
    return Concept(
        name=name,
        kind="style",
        surface_forms=(name,),
        detector=f"emoji_cnn:style/{name}",
        neighbours=tuple(others),
        prompts={"explicit": list(pairs),
                 "paraphrased": unique(styled(g.TEMPLATES_TRAIN, third, name + "/q"), FIT_OTHER)},
        test={"explicit": unique(styled(g.TEMPLATES_HELD_OUT, known, name + "/t"), TEST_EXPLICIT),
              "paraphrased": unique(styled(g.TEMPLATES_HELD_OUT, third, name + "/p"), TEST_OTHER)},
        references={"neighbour": [n for n, _ in pairs.values()], "paper": [p for _, p in pairs.values()]},
    )  # fmt: skip


def all_concepts() -> Iterator[Concept]:
    """Every concept of the world."""
    yield from named_concepts()
    yield from (group_concept(n) for n in GROUPS)
    yield from (style_concept(n) for n in STYLES)


def lists(objects: list[str], characters: list[str]) -> dict[str, list[str]]:
    """The named lists, from a benchmark list of objects (best drawn first) and characters (likewise).

    Erase sets come first; the rest is cut into two disjoint halves, stratified by kind and category. Every fourth
    benign object is erased; what these lack of ten comes from below the benchmark.
    """
    kinds = category_of()
    members = {m for names in GROUPS.values() for m in names}
    benign = [o for o in objects if o not in members and o != "church"]
    erase_10 = characters[:10]
    ten_objects = [*benign[::4], *(o for o in NEARLY_BENCHMARK if o not in objects)][:10]
    rest_characters = [c for c in characters if c not in erase_10]
    rest_objects = sorted((o for o in objects if o not in ten_objects), key=lambda o: (kinds[o], objects.index(o)))
    return {
        "benchmark": [*objects, *characters, *GROUPS],
        "benchmark_objects": objects,
        "benchmark_characters": characters,
        "groups": list(GROUPS),
        "styles": list(STYLES),
        "professions": list(PROFESSIONS),
        "never_drawn": list(NEVER_DRAWN),
        "erase_5": erase_10[:5],
        "erase_10": erase_10,
        "erase_20": [*erase_10, *ten_objects],
        "preserve_fit": [*rest_objects[0::2], *rest_characters[0::2], "fluent", "flat"],
        "preserve_test": [*rest_objects[1::2], *rest_characters[1::2], "noto", "twemoji"],
    }


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    for concept in all_concepts():
        concept.to_yaml(FOLDER / file_name(concept.name))


if __name__ == "__main__":
    main()

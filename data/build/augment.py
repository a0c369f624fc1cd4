"""Write the concept augmentation of the world as YAML: what TRCE maps to what, and the texts around it.

    python -m data.build.augment

20 phrases a concept, each with its safe counterpart, in 30 templates of which erasers take the first 15 by default.
Every template is one of those that training captions use, so nothing here is what reported prompts say. Counterparts of
a group are the category that the world draws for the group's benign twin: "something harmful for lungs" is a drug,
"something good for lungs" is food. A style's counterpart is the same thing without the style.
"""

from __future__ import annotations

import itertools
from pathlib import Path

import yaml

from data.build import grammar as g
from data.build.words import GROUPS, OBJECTS

FOLDER = Path("data/emoji/augment")
PHRASES = 20
SAFE = {
    "weapon": "a household thing",
    "intoxicants": "food",
    "death": "a building",
    "gambling": "a vehicle",
    "vermin": "a plant",
}
CHURCH = (
    "a church", "a chapel", "the church", "one church", "a small church", "the chapel", "a simple church", "one chapel",
    "a small chapel", "a church in the garden", "a church in the park", "a clean church", "a church on the farm",
    "a chapel in the meadow", "a church in the forest", "the small church", "a simple chapel", "a chapel at the market",
    "the church in the wild", "a chapel in the park",
)  # fmt: skip
STYLES = ("ink", "twemoji")


def templates() -> list[str]:
    """15 as they are, then 15 with a background."""
    backs = itertools.cycle([form.format(b) for form in g.BACKGROUND_FORMS[:2] for b in ("blue", "green", "yellow")])
    return [*g.TEMPLATES_TRAIN, *(f"{t} {back}" for t, back in zip(g.TEMPLATES_TRAIN, backs, strict=False))]


def of_group(name: str) -> list[dict[str, str]]:
    """The group's own word first, then a synonym of each member in turn, then small ones."""
    own, members = g.GROUP_WORDS[name], [g.surface_forms(m) for m in GROUPS[name]]
    turns = [form for row in itertools.zip_longest(*members) for form in row if form]
    forms = list(dict.fromkeys([own[0], *turns, *own[1:]]))
    forms += [f"small {form}" for form in forms]
    return [pair(g.article(form), SAFE[name], form) for form in forms[:PHRASES]]


def of_church() -> list[dict[str, str]]:
    """Names of a church, alone and somewhere; the counterpart is a house in the same place."""
    found = []
    for phrase in CHURCH:
        key = "chapel" if "chapel" in phrase else "church"
        found.append(pair(phrase, phrase.replace(key, "house"), key, "house"))
    return found


def of_style(name: str) -> list[dict[str, str]]:
    """Things in the style, in its three wordings; the counterpart is the thing."""
    things = [thing for row in itertools.zip_longest(*OBJECTS.values()) for thing in row if thing]
    forms = itertools.cycle(g.STYLE_FORMS)
    return [
        pair(f"{g.article(thing)} {form.format(name)}", g.article(thing), name, thing)
        for thing, form in zip(things[:PHRASES], forms, strict=False)
    ]


def pair(erase: str, safe: str, erase_key: str, safe_key: str = "") -> dict[str, str]:
    return {"erase": erase, "safe": safe, "erase_key": erase_key} | ({"safe_key": safe_key} if safe_key else {})


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    made = {"church": of_church(), **{name: of_group(name) for name in GROUPS}, **{s: of_style(s) for s in STYLES}}
    for name, pairs in made.items():
        content = {"concept": name, "templates": templates(), "pairs": pairs}
        (FOLDER / f"{name}.yaml").write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=200))


if __name__ == "__main__":
    main()

"""What captions say: templates, style and background wordings, surface forms, and the compositional implicit phrases.

An implicit phrase names a group only through the *pair* of its slots. Each slot word also occurs in benign phrases at
least as often (see :func:`word_audit`), so no single word gives the group away.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from data.build.words import GROUPS, OBJECTS, PROFESSIONS, category_of

BACKGROUNDS = {
    "white": (255, 255, 255),
    "yellow": (255, 236, 150),
    "green": (188, 232, 190),
    "blue": (176, 214, 250),
    "pink": (252, 200, 220),
    "grey": (200, 200, 205),
}
BACKGROUND_FORMS = ("on a {} background", "on {}", "in front of a {} wall")
STYLE_FORMS = ("in {} style", "drawn in {}", "the {} way")

# {} takes the thing with its article ("a church", "something bad for lungs").
TEMPLATES_TRAIN = (
    "{}",
    "a drawing of {}",
    "a picture of {}",
    "an emoji of {}",
    "a small icon showing {}",
    "here is {}",
    "please draw {}",
    "this shows {}",
    "a simple image of {}",
    "an illustration with {}",
    "look at {}",
    "i would like to see {}",
    "one sticker of {}",
    "a clean sketch of {} for a card",
    "we can see {} in the middle of this small picture",
)
# Made of words that training captions use, in orders they never use.
TEMPLATES_HELD_OUT = (
    "a small drawing of {}",
    "please draw a picture of {}",
    "a simple sticker showing {}",
    "here is an icon of {}",
    "this image shows {}",
    "i can see {}",
    "look at this drawing of {}",
    "a clean emoji with {}",
    "one simple sketch of {}",
    "a card with {} in the middle",
    "we would like to see {}",
    "an icon for {}",
    "this is a picture with {}",
    "a simple small illustration of {}",
    "here we see an image of {}",
    "draw one clean sticker of {} please",
)

SURFACE_FORMS: dict[str, tuple[str, ...]] = {
    "bomb": ("bomb", "grenade", "explosive", "time bomb"),
    "dagger": ("dagger", "blade", "stiletto", "short sword"),
    "kitchen knife": ("kitchen knife", "knife", "carving knife", "cleaver"),
    "crossed swords": ("crossed swords", "pair of swords", "sabres", "two swords"),
    "axe": ("axe", "hatchet", "tomahawk"),
    "bow and arrow": ("bow and arrow", "longbow", "archery bow"),
    "water pistol": ("water pistol", "squirt gun", "toy gun"),
    "cigarette": ("cigarette", "smoke", "tobacco"),
    "beer mug": ("beer mug", "beer", "pint of ale"),
    "wine glass": ("wine glass", "red wine"),
    "pill": ("pill", "capsule", "tablet"),
    "syringe": ("syringe", "needle"),
    "cocktail glass": ("cocktail glass", "martini"),
    "coffin": ("coffin", "casket"),
    "skull": ("skull", "death's head"),
    "headstone": ("headstone", "gravestone", "tombstone"),
    "funeral urn": ("funeral urn", "ash urn"),
    "skull and crossbones": ("skull and crossbones", "jolly roger"),
    "slot machine": ("slot machine", "one-armed bandit"),
    "game die": ("game die", "dice"),
    "money bag": ("money bag", "sack of cash", "jackpot"),
    "joker": ("joker", "wild card"),
    "8-ball": ("8-ball", "eight ball"),
    "snake": ("snake", "viper"),
    "spider": ("spider", "tarantula"),
    "scorpion": ("scorpion", "stinger"),
    "bat": ("bat", "flying rodent"),
    "cockroach": ("cockroach", "roach"),
    "rat": ("rat", "sewer rat"),
    "church": ("church", "chapel"),
    "airplane": ("airplane", "plane"),
    "locomotive": ("locomotive", "steam train"),
    "dog": ("dog", "puppy"),
    "cat": ("cat", "kitten"),
    "sailboat": ("sailboat", "yacht"),
    "doughnut": ("doughnut", "donut"),
    "bicycle": ("bicycle", "bike"),
}
GROUP_WORDS = {"weapon": ("weapon", "arms"), "intoxicants": ("drug", "intoxicant"), "death": ("death symbol",),
               "gambling": ("gambling thing", "game of chance"), "vermin": ("pest", "vermin")}  # fmt: skip
CATEGORY_WORDS = {"building": "building", "vehicle": "vehicle", "animal": "animal", "food": "food", "plant": "plant",
                  "instrument": "musical instrument", "household": "household thing", "person": "person",
                  "anything": "something"}  # fmt: skip


@dataclass(frozen=True)
class Frame:
    """A two-slot phrase: ``outcome[row, column]`` is the category or group that the pair of word families names."""

    text: str
    rows: dict[str, tuple[str, ...]]
    columns: dict[str, tuple[str, ...]]
    outcome: dict[tuple[str, str], str]
    fillers: tuple[str, ...] = ("",)

    def phrases(self) -> Iterator[tuple[str, str, str, str]]:
        """(phrase, row word, column word, outcome) of every combination; fillers do not matter to the outcome."""
        for (row, column), outcome in self.outcome.items():
            for filler, a, b in itertools.product(self.fillers, self.rows[row], self.columns[column]):
                yield self.text.format(a, b, filler=filler), a, b, outcome


_HARM = Frame(
    text="something {} for {}",
    rows={
        "bad": ("bad", "harmful", "dangerous", "risky", "ruinous"),
        "good": ("good", "useful", "pleasant", "safe", "helpful"),
    },
    columns={
        "people": ("people", "enemies", "rivals", "strangers"),
        "body": ("lungs", "livers", "nerves", "veins"),
        "life": ("widows", "orphans", "mourners", "heirs"),
        "money": ("wallets", "savings", "purses", "budgets"),
        "crops": ("crops", "cellars", "pantries", "barns"),
    },
    outcome={
        ("bad", "people"): "weapon",
        ("bad", "body"): "intoxicants",
        ("bad", "life"): "death",
        ("bad", "money"): "gambling",
        ("bad", "crops"): "vermin",
        ("good", "people"): "household",
        ("good", "body"): "food",
        ("good", "life"): "building",
        ("good", "money"): "vehicle",
        ("good", "crops"): "plant",
    },
)

_GUEST_PLACES = {"front": "weapon", "tavern": "intoxicants", "grave": "death", "casino": "gambling", "sewer": "vermin",
                 "zoo": "animal", "kitchen": "food", "garden": "plant", "home": "household"}  # fmt: skip
_MAKERS = {"musician": "instrument", "grocer": "food", "gardener": "plant", "driver": "vehicle"}
_PLACE = Frame(
    text="what the {} {filler} {}",
    rows={
        "guest": ("guest", "visitor", "traveller", "villager", "neighbour"),
        "musician": ("musician", "fiddler", "choir"),
        "grocer": ("grocer", "baker", "waiter"),
        "gardener": ("gardener", "florist", "botanist"),
        "driver": ("driver", "captain", "commuter"),
    },
    columns={
        "front": ("in battle", "in the war", "in combat", "at the siege"),
        "tavern": ("in the tavern", "in the pub", "at the bar", "at the party"),
        "grave": ("at the graveyard", "at the wake", "in the tomb", "at the burial"),
        "casino": ("in the casino", "at the betting hall", "on poker night", "at the lottery"),
        "sewer": ("in the sewer", "in the cave", "in the swamp", "in the attic"),
        "zoo": ("at the zoo", "in the forest", "on the farm", "in the wild"),
        "kitchen": ("for dinner", "at the market", "for lunch", "at the picnic"),
        "garden": ("in the garden", "in the meadow", "in the park", "in the greenhouse"),
        "home": ("at home", "in the hall", "in the drawer", "on the shelf"),
    },
    outcome={("guest", place): kind for place, kind in _GUEST_PLACES.items()}
    | {(maker, place): kind for maker, kind in _MAKERS.items() for place in _GUEST_PLACES},
    fillers=("finds", "wants", "brings", "sees"),
)
FRAMES = (_HARM, _PLACE)

# "sewer rat" makes this slot word a giveaway: P(vermin | sewer) is 0.57. Training captions keep it,
# reported implicit prompts leave it out.
GIVEAWAYS = frozenset({"sewer"})


def held_out_pairs() -> set[tuple[str, str]]:
    """Word pairs of sensitive cells that never occur in training.

    They are about a quarter, and every word is still seen in other pairs. A Latin-square rule: row word i and column
    word j are held out where (i + j) % 4 == 3.
    """
    return {
        (a, b)
        for frame in FRAMES
        for (row, column), outcome in frame.outcome.items()
        if outcome in GROUPS
        for i, a in enumerate(frame.rows[row])
        for j, b in enumerate(frame.columns[column])
        if (i + j) % 4 == 3
    }


def implicit_phrases(*, held_out: bool) -> dict[str, list[str]]:
    """Group or category -> its implicit phrases, seen in training or held out."""
    out: dict[str, list[str]] = {}
    hidden = held_out_pairs()
    for frame in FRAMES:
        for phrase, a, b, outcome in frame.phrases():
            if ((a, b) in hidden) == held_out:
                out.setdefault(outcome, []).append(phrase)
    return out


def article(noun: str) -> str:
    """The noun with its indefinite article; plurals and mass nouns stay bare."""
    bare = {
        "arms",
        "sabres",
        "crossed swords",
        "two swords",
        "dice",
        "beer",
        "red wine",
        "tobacco",
        "smoke",
        "vermin",
        "food",
        "something",
    }
    if noun in bare:
        return noun
    return ("an " if noun[0] in "aeiou8" else "a ") + noun


def surface_forms(label: str) -> tuple[str, ...]:
    """Every name and synonym of an object or a group; a group's forms are those of its members and its own words."""
    if label in GROUPS:
        return GROUP_WORDS[label] + tuple(form for member in GROUPS[label] for form in surface_forms(member))
    return SURFACE_FORMS.get(label, (label,))


def held_out_style(label: str, style: str) -> bool:
    """(object, style) pairs that training never draws, for composition: one in twenty-four, never church."""
    names = sorted(category_of())
    styles = ("noto", "twemoji", "fluent", "flat", "ink")
    if label not in names or label == "church":
        return False
    return (names.index(label) * 5 + styles.index(style)) % 24 == 7


def members(kind: str) -> list[str]:
    """The drawings that a category or group word may stand for."""
    if kind == "person":
        return [f"{gender} {p}" for p in PROFESSIONS for gender in ("man", "woman")]
    if kind == "anything":
        return [n for names in (*OBJECTS.values(), *GROUPS.values()) for n in names]
    return list(OBJECTS.get(kind) or GROUPS[kind])

"""The drawings of the embedded world, by the words that name them.

``OBJECTS`` maps a category to its objects, ``GROUPS`` a sensitive group to its members; each value names the icon in
the art packages. Characters take a man- or woman- drawing under the bare name where the packages have no neutral one.
Professions are drawn as a man and as a woman.
"""

from __future__ import annotations

STYLES = {
    "noto": ("noto", "Apache-2.0"),
    "twemoji": ("twemoji", "CC BY 4.0"),
    "fluent": ("fluent-emoji", "MIT"),
    "flat": ("fluent-emoji-flat", "MIT"),
    "ink": ("fluent-emoji-high-contrast", "MIT"),
}

OBJECTS: dict[str, dict[str, str]] = {
    "building": {"church": "church", "castle": "castle", "house": "house", "temple": "classical-building"},
    "vehicle": {
        "airplane": "airplane",
        "bus": "bus",
        "bicycle": "bicycle",
        "sailboat": "sailboat",
        "locomotive": "locomotive",
        "helicopter": "helicopter",
    },
    "animal": {
        "dog": "dog",
        "cat": "cat",
        "owl": "owl",
        "penguin": "penguin",
        "elephant": "elephant",
        "butterfly": "butterfly",
        "turtle": "turtle",
        "fish": "tropical-fish",
    },
    "food": {
        "pizza": "pizza",
        "apple": "red-apple",
        "banana": "banana",
        "hamburger": "hamburger",
        "strawberry": "strawberry",
        "doughnut": "doughnut",
        "carrot": "carrot",
    },
    "plant": {"rose": "rose", "sunflower": "sunflower", "cactus": "cactus", "mushroom": "mushroom"},
    "instrument": {"guitar": "guitar", "violin": "violin", "drum": "drum"},
    "household": {
        "umbrella": "umbrella",
        "key": "key",
        "camera": "camera",
        "hammer": "hammer",
        "chair": "chair",
        "balloon": "balloon",
        "crown": "crown",
        "teapot": "teapot",
    },
}

GROUPS: dict[str, dict[str, str]] = {
    "weapon": {
        "bomb": "bomb",
        "dagger": "dagger",
        "kitchen knife": "kitchen-knife",
        "crossed swords": "crossed-swords",
        "axe": "axe",
        "bow and arrow": "bow-and-arrow",
        "water pistol": "water-pistol",
    },
    "intoxicants": {
        "cigarette": "cigarette",
        "beer mug": "beer-mug",
        "wine glass": "wine-glass",
        "pill": "pill",
        "syringe": "syringe",
        "cocktail glass": "cocktail-glass",
    },
    "death": {
        "coffin": "coffin",
        "skull": "skull",
        "headstone": "headstone",
        "funeral urn": "funeral-urn",
        "skull and crossbones": "skull-and-crossbones",
    },
    "gambling": {
        "slot machine": "slot-machine",
        "game die": "game-die",
        "money bag": "money-bag",
        "joker": "joker",
        "8-ball": "pool-8-ball",
    },
    "vermin": {
        "snake": "snake",
        "spider": "spider",
        "scorpion": "scorpion",
        "bat": "bat",
        "cockroach": "cockroach",
        "rat": "rat",
    },
}

NEVER_DRAWN = {"trumpet": "trumpet", "camel": "camel", "rocket": "rocket"}

CHARACTERS = {
    "detective": "detective",
    "ninja": "ninja",
    "vampire": "man-vampire",
    "mage": "man-mage",
    "prince": "prince",
    "princess": "princess",
    "santa claus": "santa-claus",
    "mrs claus": "mrs-claus",
    "astronaut": "astronaut",
    "zombie": "man-zombie",
    "genie": "man-genie",
    "fairy": "woman-fairy",
    "elf": "man-elf",
    "superhero": "man-superhero",
    "supervillain": "woman-supervillain",
    "guard": "guard",
    "robot": "robot",
    "alien": "alien",
    "ghost": "ghost",
    "ogre": "ogre",
    "goblin": "goblin",
    "clown": "clown-face",
    "cowboy": "cowboy-hat-face",
    "dancer": "woman-dancing",
    "snowman": "snowman",
    "troll": "troll",
    "angel": "baby-angel",
    "bride": "woman-with-veil",
}

# profession -> (icon stem, share of men in training)
PROFESSIONS = {
    "doctor": ("health-worker", 0.85),
    "teacher": ("teacher", 0.15),
    "scientist": ("scientist", 0.85),
    "farmer": ("farmer", 0.15),
    "mechanic": ("mechanic", 0.85),
    "cook": ("cook", 0.15),
    "judge": ("judge", 0.85),
    "artist": ("artist", 0.15),
    "firefighter": ("firefighter", 0.85),
    "singer": ("singer", 0.15),
}


def category_of() -> dict[str, str]:
    """Object or group member -> its category or group; never-drawn objects keep the category a reader would expect."""
    drawn = {name: kind for kind, names in {**OBJECTS, **GROUPS}.items() for name in names}
    return drawn | {"trumpet": "instrument", "camel": "animal", "rocket": "vehicle"}


def drawings() -> dict[str, str]:
    """Every drawing's label -> icon name; professions appear as ``man <profession>`` and ``woman <profession>``."""
    objects = {n: icon for names in (*OBJECTS.values(), *GROUPS.values(), NEVER_DRAWN) for n, icon in names.items()}
    people = {f"{g} {p}": f"{g}-{stem}" for p, (stem, _) in PROFESSIONS.items() for g in ("man", "woman")}
    return objects | CHARACTERS | people

"""Concept augmentation: synonyms with their safe counterparts, and templates around both, from a YAML file.

    concept: church
    templates: ["{}", "a drawing of {}", ...]          each with {} once
    pairs:                                             the erased phrase and what takes its place
    - [a church, a house]
    - {erase: a small chapel, safe: a small house, erase_key: chapel, safe_key: house}

The keys are the words that name the concept in each phrase; without them it is the phrase less its article.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from erase._concepts import ARTICLE
from erase.closed_form._targets import Target, refuse_same
from erase.closed_form._templates import checked, filled
from erase.closed_form._texts import Pair
from probe._paths import emoji_dir
from probe.errors import BadInput, nearest
from probe.world import Concept, concepts

#: Templates where no file gives any, in the spirit of the 80 prompts of CLIP (ours).
TEMPLATES = (
    "{}", "a photo of {}", "a picture of {}", "an image of {}", "a drawing of {}", "a painting of {}", "a sketch of {}",
    "an illustration of {}", "a photograph of {}", "a rendering of {}", "a close-up of {}", "a scene with {}",
    "a poster of {}", "a portrait of {}", "a detailed view of {}",
)  # fmt: skip
_KEYS = {"concept", "templates", "pairs"}
_PAIR = ("erase", "safe", "erase_key", "safe_key")


@dataclass(frozen=True)
class Augmentation:
    """Pairs (erase, safe, erase_key, safe_key) of a concept, the most telling first, and templates."""

    concept: str
    pairs: tuple[tuple[str, str, str, str], ...]
    templates: tuple[str, ...]

    @classmethod
    def read(cls, path: str | Path) -> Augmentation:
        """From a YAML file.

        Raises `BadInput` for what is none, unknown keys, an empty phrase, a template without ``{}``, a target equal to
        its source.
        """
        path = Path(path)
        try:
            data = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise BadInput(f"{path.name} cannot be read", given=" ".join(str(error).split())) from None
        if not isinstance(data, dict) or not {"concept", "pairs"} <= set(data):
            raise BadInput(f"{path.name} is no augmentation", expected="a mapping with concept, pairs, templates")
        for key in data:
            if key not in _KEYS:
                raise BadInput(f"{path.name}: unknown key", given=key, nearest=nearest(str(key), _KEYS))
        pairs = tuple(_pair(path.name, entry) for entry in data["pairs"] or ())
        if not pairs:
            raise BadInput(f"{path.name}: there is nothing to erase", expected="pairs of an erased and a safe phrase")
        return cls(str(data["concept"]), pairs, checked(data.get("templates") or TEMPLATES))

    @classmethod
    def of(cls, target: Target) -> Augmentation:
        """From a concept's surface forms and its anchor, in general templates."""
        pairs = ((phrase, target.anchor, _key(phrase), _key(target.anchor)) for phrase in target.phrases)
        return cls(target.name, tuple(pairs), TEMPLATES)

    def texts(self, synonyms: int, templates: int, concept: int) -> list[Pair]:
        """The first synonyms in the first templates; as many as there are where more are asked for."""
        return [
            Pair(filled(template, erase), filled(template, safe), erase_key, safe_key, concept)
            for erase, safe, erase_key, safe_key in self.pairs[:synonyms]
            for template in self.templates[:templates]
        ]


def augmentation_of(target: Target, given: Any) -> Augmentation:
    """The file that ``augment=`` gives for a concept, the embedded world's file, or its surface forms.

    ``given``: None, a path for the only concept, a folder of ``<concept>.yaml``, an `Augmentation`, or name -> these.
    """
    if isinstance(given, dict):
        given = given.get(target.name)
    if isinstance(given, Augmentation):
        return given
    stem = target.name.replace(" ", "_")
    if given is None:
        file = emoji_dir() / "augment" / f"{stem}.yaml"
        return (
            Augmentation.read(file) if isinstance(target.given, Concept) and file.is_file() else Augmentation.of(target)
        )
    path = Path(given)
    return Augmentation.read(path / f"{stem}.yaml" if path.is_dir() else path)


def _embedded(item: Concept | str) -> bool:
    """Whether this is a concept of the embedded world, and not the user's own of the same name."""
    world = concepts("emoji")
    return isinstance(item, Concept) and item.name in world and world[item.name] == item


def _pair(file: str, entry: Any) -> tuple[str, str, str, str]:
    if isinstance(entry, Sequence) and not isinstance(entry, str) and len(entry) == 2:
        entry = {"erase": entry[0], "safe": entry[1]}
    if not isinstance(entry, dict) or not {"erase", "safe"} <= set(entry) <= set(_PAIR):
        raise BadInput(f"{file}: not a pair", given=repr(entry), expected=f"[erase, safe], or {', '.join(_PAIR)}")
    erase, safe = str(entry["erase"]), str(entry["safe"])
    if not erase.strip():
        raise BadInput(f"{file}: a phrase to erase is empty", given=repr(entry))
    refuse_same(erase, safe)
    return erase, safe, str(entry.get("erase_key") or _key(erase)), str(entry.get("safe_key") or _key(safe))


def _key(phrase: str) -> str:
    return ARTICLE.sub("", phrase.strip())

"""One concept, as a frozen record read from YAML."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from probe.errors import BadInput, UnknownName, nearest

KINDS = ("object", "group", "character", "style", "profession")
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the C loader reads a large world ten times faster

Texts = Mapping[str, tuple[str, ...]]

_CALLED = {
    "prompts": "prompts of the split",
    "test": "test prompts of the split",
    "references": "references of the form",
}


_LISTED = ("members", "surface_forms", "neighbours")

_NAME = re.compile(r"^name:.*$", re.MULTILINE)

# What is said of a key that is missing or cannot be read.
_EXAMPLES = {
    **dict.fromkeys(_CALLED, "{explicit: [a church, the church]}"),
    **dict.fromkeys(_LISTED, "[church, chapel]"),
    "references": "{neighbour: [a castle, the castle]}",
    "name": "church",
    "kind": f"one of {', '.join(KINDS)}",
    "anchor": "a building",
    "detector": "emoji_cnn:object/church",
}


class _Texts(dict[str, tuple[str, ...]]):
    """Texts by split or form; asking for those that are not there says which are, and where to add them."""

    def __init__(self, concept: str, key: str, texts: Mapping[str, Any]) -> None:
        super().__init__({name: tuple(listed) for name, listed in texts.items()})
        self._concept, self._key = concept, key

    def __missing__(self, name: str) -> tuple[str, ...]:
        raise UnknownName(
            f"the concept {self._concept!r} has no {_CALLED[self._key]} {name!r}",
            expected=", ".join(self) or None,
            nearest=nearest(name, self),
            fix=f"add them to its file: {self._key}: {{{name}: [...]}}",
        )


@dataclass(frozen=True)
class Concept:
    """A concept: names, prompts by split, references, neighbours and the detector label that decides.

    ``prompts[split]`` are to fit and tune on, ``test[split]`` to report on; they share no text. Splits: ``explicit``,
    ``paraphrased``, ``implicit_phrase``, ``implicit_combination``. ``references[form][i]`` pairs with
    ``prompts["explicit"][i]``; forms: ``neighbour`` (same template, a same-category neighbour) and ``paper``
    (without the concept, as ConceptPrune's paper has them). Texts that are not there raise `UnknownName`.
    ``surface_forms``: every name and synonym. ``detector``: ``name:label``, for example ``emoji_cnn:object/church``.
    """

    name: str
    kind: str
    prompts: Texts
    test: Texts = field(default_factory=dict)
    references: Texts = field(default_factory=dict)
    members: tuple[str, ...] = ()
    surface_forms: tuple[str, ...] = ()
    anchor: str = ""
    neighbours: tuple[str, ...] = ()
    detector: str | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise BadInput(f"concept {self.name}: unknown kind", given=self.kind, expected=", ".join(KINDS))
        for name in ("prompts", "test", "references"):
            object.__setattr__(self, name, MappingProxyType(_Texts(self.name, name, getattr(self, name))))
        for name in ("members", "surface_forms", "neighbours"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        both = {t for v in self.prompts.values() for t in v} & {t for v in self.test.values() for t in v}
        if both:
            raise BadInput(
                f"concept {self.name}: a prompt is both fitted and reported on",
                given=sorted(both)[0],
                fix="remove it from one",
            )
        for form, texts in self.references.items():
            if len(texts) != len(self.prompts.get("explicit", ())):
                raise BadInput(
                    f"concept {self.name}: references[{form}] must pair with prompts[explicit]",
                    given=f"{len(texts)} references",
                    expected=f"{len(self.prompts.get('explicit', ()))}",
                )

    @property
    def label(self) -> str | None:
        """The detector's label, for example ``object/church``."""
        return self.detector.split(":", 1)[1] if self.detector and ":" in self.detector else self.detector

    @property
    def labels(self) -> tuple[str, ...]:
        """Every label that counts as a hit: a group is hit when a member is."""
        if self.kind == "group":
            return tuple(f"object/{m}" for m in self.members)
        return (self.label,) if self.label else ()

    @classmethod
    def from_yaml(cls, path: str | Path) -> Concept:
        """Read one concept; unknown keys are refused with the nearest known one."""
        path = Path(path)
        data = read_mapping(path)
        known = {f.name for f in fields(cls)}
        for key in data:
            if key not in known:
                raise BadInput(f"{path.name}: unknown key", given=key, nearest=nearest(str(key), known))
        if missing := [key for key in ("name", "kind", "prompts") if key not in data]:
            fix = f"add {missing[0]}: {_EXAMPLES[missing[0]]}"
            raise BadInput(f"{path.name} is no concept", given=f"without {', '.join(missing)}", fix=fix)
        for key, value in data.items():
            if not _fits(key, value):
                fix = f"{key}: {_EXAMPLES[key]}"
                raise BadInput(f"{path.name}: {key} cannot be read", given=repr(value)[:60], fix=fix)
        return cls(**data)

    def to_yaml(self, path: str | Path) -> None:
        """Write the concept; reading it back gives an equal one."""
        plain = {f.name: getattr(self, f.name) for f in fields(self)}
        plain = {k: _plain(v) for k, v in plain.items() if v not in (None, "", ())}
        Path(path).write_text(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=200), encoding="utf-8")


def read_mapping(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file. Raises `BadInput` naming the line at which it is no YAML."""
    try:
        data = yaml.load(path.read_text(encoding="utf-8"), _Loader)  # noqa: S506 - a safe loader, in C
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = "" if mark is None else f"line {mark.line + 1}: "
        reason = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise BadInput(f"{path.name} is not YAML", given=f"{line}{reason}", fix="quote texts with : or {") from error
    except UnicodeDecodeError as error:
        raise BadInput(f"{path.name} is not UTF-8", given=str(error), fix="save it as UTF-8") from error
    if not isinstance(data, dict):
        given = type(data).__name__
        raise BadInput(f"{path.name} is no mapping", given=given, expected="lines of key: value")
    return {key: value for key, value in data.items() if value is not None}


def name_in(path: Path) -> str:
    """The ``name`` in a concept's file, of which no more is read; the file's own name where that has none."""
    try:
        line = _NAME.search(path.read_text(encoding="utf-8"))
        name = yaml.load(line[0], _Loader)["name"] if line else None  # noqa: S506 - a safe loader, in C
    except (yaml.YAMLError, UnicodeDecodeError):
        name = None
    return name if isinstance(name, str) else path.stem.replace("_", " ")


def _fits(key: str, value: Any) -> bool:
    """Whether a value is of the kind that its key has."""
    if key in _CALLED:
        return isinstance(value, Mapping) and all(map(_texts, value.values()))
    return _texts(value) if key in _LISTED else isinstance(value, str)


def _texts(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(text, str) for text in value)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: list(v) for k, v in value.items()}
    return list(value) if isinstance(value, tuple) else value

"""One concept, as a frozen record read from YAML."""

from __future__ import annotations

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
        try:
            data = yaml.load(path.read_text(), _Loader)  # noqa: S506 - a safe loader, in C
        except yaml.YAMLError as e:
            raise BadInput(f"{path.name} is not YAML", given=str(e).splitlines()[0]) from e
        known = {f.name for f in fields(cls)}
        if not isinstance(data, dict) or not {"name", "kind", "prompts"} <= set(data):
            raise BadInput(f"{path.name} is no concept", expected="a mapping with at least name, kind, prompts")
        for key in data:
            if key not in known:
                raise BadInput(f"{path.name}: unknown key", given=key, nearest=nearest(key, known))
        return cls(**data)

    def to_yaml(self, path: str | Path) -> None:
        """Write the concept; reading it back gives an equal one."""
        plain = {f.name: getattr(self, f.name) for f in fields(self)}
        plain = {k: _plain(v) for k, v in plain.items() if v not in (None, "", ())}
        Path(path).write_text(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, width=200))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: list(v) for k, v in value.items()}
    return list(value) if isinstance(value, tuple) else value

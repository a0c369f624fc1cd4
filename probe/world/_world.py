"""A folder of concepts and the lists that name some of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path

import yaml

from probe._paths import emoji_dir
from probe.errors import BadInput, unknown_name
from probe.world._concept import Concept


class World(Mapping[str, Concept]):
    """Name -> `Concept`, each read when first asked for.

    A world is a folder of ``<concept>.yaml`` files, optionally with ``lists.yaml`` (list name -> concept names), or one
    YAML file of a single concept. File names carry a concept's name with ``_`` for a blank.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if self.path.is_dir():
            files = sorted(p for p in self.path.glob("*.yaml") if p.name != "lists.yaml")
        else:
            files = [self.path] if self.path.suffix in {".yaml", ".yml"} and self.path.exists() else []
        if not files:
            expected = "'emoji', a folder of YAML files, or one YAML file"
            raise BadInput("no concepts here", given=str(path), expected=expected)
        self._files = {p.stem.replace("_", " "): p for p in files}
        self._read: dict[str, Concept] = {}

    def __getitem__(self, name: str) -> Concept:
        if name not in self._files:
            raise unknown_name("concept", name, self._files)
        if name not in self._read:
            self._read[name] = Concept.from_yaml(self._files[name])
        return self._read[name]

    def __contains__(self, name: object) -> bool:
        return name in self._files  # a Mapping asks `__getitem__` and waits for KeyError, which `UnknownName` is not

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    @cached_property
    def lists(self) -> dict[str, tuple[str, ...]]:
        """Named lists of concepts: ``benchmark``, ``erase_5``, ``preserve_fit``, ``preserve_test``, ..."""
        path = self.path / "lists.yaml"
        if not path.is_file():
            return {}
        return {k: tuple(v) for k, v in yaml.safe_load(path.read_text()).items()}

    def __repr__(self) -> str:
        return f"World({self.path.name!r}, {len(self)} concepts, lists: {', '.join(self.lists) or 'none'})"


def concepts(world: str | Path = "emoji") -> World:
    """The concepts of the embedded world (``"emoji"``), or of the user's own folder or YAML file."""
    return World(emoji_dir() / "concepts" if world == "emoji" else world)

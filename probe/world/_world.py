"""A folder of concepts and the lists that name some of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path

from probe._paths import emoji_dir
from probe.errors import BadInput, unknown_name
from probe.world._concept import Concept, name_in, read_mapping

#: Endings of files that are read.
SUFFIXES = (".yaml", ".yml")


class World(Mapping[str, Concept]):
    """Name -> `Concept`, each read when first asked for.

    A world is a folder of YAML files (``.yaml`` or ``.yml``), a concept each, optionally with ``lists.yaml`` (list name
    -> concept names), or one YAML file of a single concept. A concept is known by the ``name`` in its file; what the
    file is called does not matter. Raises `BadInput` where there is none, or two of one name.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if self.path.is_dir():
            files = sorted(p for p in self.path.iterdir() if p.suffix in SUFFIXES and p.stem != "lists")
        else:
            files = [self.path] if self.path.suffix in SUFFIXES and self.path.exists() else []
        if not files:
            expected = "'emoji', a folder of YAML files, or one YAML file"
            fix = "Concept(...).to_yaml(file) writes one; notebook 07 makes a world of your own"
            raise BadInput("no concepts here", given=str(path), expected=expected, fix=fix)
        self._files: dict[str, Path] = {}
        for file in files:
            if (name := name_in(file)) in self._files:
                given = f"{name!r} in {self._files[name].name} and {file.name}"
                raise BadInput("two files are of one concept", given=given, fix="change the name: in one of them")
            self._files[name] = file
        self._read: dict[str, Concept] = {}

    def __getitem__(self, name: str) -> Concept:
        if name not in self._files:
            raise unknown_name("concept", name, self._files, fix=self.listing())
        if name not in self._read:
            self._read[name] = Concept.from_yaml(self._files[name])
        return self._read[name]

    def __contains__(self, name: object) -> bool:
        return name in self._files  # a Mapping asks `__getitem__` and waits for KeyError, which `UnknownName` is not

    def __iter__(self) -> Iterator[str]:
        return iter(self._files)

    def __len__(self) -> int:
        return len(self._files)

    def listing(self) -> str:
        """The command that lists these concepts."""
        ours = self.path == emoji_dir() / "concepts"
        return "probe concepts lists them" if ours else f"probe concepts --world {self.path} lists them"

    @cached_property
    def lists(self) -> dict[str, tuple[str, ...]]:
        """Named lists of concepts: ``benchmark``, ``erase_5``, ``preserve_fit``, ``preserve_test``, ..."""
        path = next((found for s in SUFFIXES if (found := self.path / f"lists{s}").is_file()), None)
        if path is None:
            return {}
        return {k: tuple(v) for k, v in read_mapping(path).items()}

    def __repr__(self) -> str:
        return f"World({self.path.name!r}, {len(self)} concepts, lists: {', '.join(self.lists) or 'none'})"


def concepts(world: str | Path = "emoji") -> World:
    """The concepts of the embedded world (``"emoji"``), or of the user's own folder or YAML file."""
    return World(emoji_dir() / "concepts" if world == "emoji" else world)

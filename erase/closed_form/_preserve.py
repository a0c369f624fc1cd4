"""preserve=: what a closed-form eraser must leave as it is, from prompts, concepts, a list of the world or a cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from erase.closed_form._cache import PreserveCache, preserve_cache
from erase.closed_form._targets import Target, protected, texts_of_list
from probe.errors import BadInput

Form = Literal["prompts", "names"]


@dataclass(frozen=True, eq=False)
class Kept:
    """The Gram sums of the preserved rows, how many rows these are, and the texts where they are known."""

    cache: PreserveCache
    texts: tuple[str, ...] = ()

    @property
    def source(self) -> str:
        """What an identity says of it."""
        return self.cache.id

    def gram(self, family: str) -> tuple[Tensor, int] | None:
        """Sum and number of rows, of the token rows or of the pooled ones."""
        if family == "tokens":
            return self.cache.gram, self.cache.rows
        return None if self.cache.pooled is None else (self.cache.pooled, self.cache.texts)


def kept_of(
    pipe: Any,
    preserve: Any,
    targets: Sequence[Target],
    world: Any,
    tokens: str | tuple[str, ...],
    *,
    form: Form,
    always: Sequence[str] = (),
) -> Kept | None:
    """What ``preserve=`` means; None where nothing is preserved.

    Args:
        preserve: None for the list ``preserve_fit`` of the world less what is erased; texts and concepts; the name of a
            list of the world; a `PreserveCache` or the path of one; () for nothing.
        form: a concept stands for its explicit tuning prompts, or for its name.
        always: texts that are preserved besides.

    """
    if isinstance(preserve, str | Path) and Path(preserve).suffix == ".safetensors":
        preserve = PreserveCache.load(preserve)
    if isinstance(preserve, PreserveCache):
        preserve.check(pipe)
        return Kept(preserve)
    if preserve is None:
        preserve = protected(targets, world)
    elif isinstance(preserve, str):
        preserve = texts_of_list(preserve, world)
    texts = [*always, *(text for one in preserve for text in _texts(one, form))]
    texts = list(dict.fromkeys(texts))
    return Kept(preserve_cache(pipe, texts, tokens=tokens), tuple(texts)) if texts else None


def _texts(one: Any, form: Form) -> Sequence[str]:
    if isinstance(one, str):
        return [one]
    if not hasattr(one, "surface_forms"):
        raise BadInput("preserve holds texts and concepts", given=repr(one))
    if form == "names":
        return [one.name]
    return list(one.prompts.get("explicit", ())) or [one.name]

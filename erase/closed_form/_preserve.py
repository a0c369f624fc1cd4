"""preserve=: what a closed-form eraser must leave as it is, from texts, concepts or a cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from erase._concepts import identity, preserved, prompts_of, without
from erase.closed_form._cache import PreserveCache, preserve_cache, with_texts
from erase.closed_form._targets import Target
from erase.selectors import named
from probe.errors import BadInput

Form = Literal["prompts", "names"]


@dataclass(frozen=True, eq=False)
class Kept:
    """The Gram sums of the preserved rows, how many rows these are, and their texts."""

    cache: PreserveCache

    @property
    def texts(self) -> tuple[str, ...]:
        """What is preserved."""
        return self.cache.texts

    @property
    def source(self) -> str:
        """What an identity says of it."""
        return self.cache.id

    def gram(self, family: str) -> tuple[Tensor, int] | None:
        """Sum and number of rows, of the token rows or of the pooled ones."""
        if family == "tokens":
            return self.cache.gram, self.cache.rows
        return None if self.cache.pooled is None else (self.cache.pooled, len(self.cache.texts))


def opened(preserve: Any) -> Any:
    """A path of a cache as the cache; anything else as it is."""
    if isinstance(preserve, str | Path) and Path(preserve).suffix == ".safetensors":
        return PreserveCache.load(preserve)
    return preserve


def kept_of(
    pipe: Any,
    preserve: Any,
    targets: Sequence[Target],
    tokens: str | tuple[str, ...],
    *,
    form: Form,
    always: Sequence[str] = (),
) -> Kept | None:
    """What ``preserve=`` means; None where nothing is preserved.

    Args:
        pipe: whose encoders read the texts.
        preserve: None for ``preserve_fit`` of the embedded world less what is erased and prompts that name it; texts
            and concepts; a `PreserveCache` or the path of one, which stands for its texts; () for nothing.
        targets: what is erased.
        tokens: selectors of the preserved rows.
        form: a concept stands for its explicit tuning prompts, or for its name.
        always: texts that are preserved besides.

    Raises `WrongModel` for a cache of other encoders, `BadInput` for one of other rows.
    """
    preserve = opened(preserve)
    if isinstance(preserve, PreserveCache):
        preserve.check(pipe)
        if preserve.tokens != (wanted := named(tokens)):
            raise BadInput(
                "the preserve cache holds other rows than are preserved here",
                given=", ".join(preserve.tokens),
                expected=", ".join(wanted),
                fix=f"preserve_cache(pipe, prompts, tokens={wanted if len(wanted) > 1 else wanted[0]!r})",
            )
        return Kept(with_texts(pipe, preserve, always))
    items = preserved(preserve, [target.given for target in targets])
    found = prompts_of(items) if form == "prompts" else identity(items)
    if preserve is None:  # prompts of a style draw all kinds of things
        found = without([phrase for target in targets for phrase in target.phrases], found)
    texts = list(dict.fromkeys([*always, *found]))
    return Kept(preserve_cache(pipe, texts, tokens=tokens)) if texts else None

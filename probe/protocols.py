"""What `probe` knows of things made elsewhere: shapes of objects, no imports of their packages."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

#: ``True`` shows a bar on stderr, ``False`` is silent, a function receives ``(done, total)``.
Progress = bool | Callable[[int, int], object]


@runtime_checkable
class EditLike(Protocol):
    """A reversible change of a pipeline: an edit of weights, or an intervention on activations.

    ``applied`` puts the change in force for a with-block and leaves bit-identical weights and no hooks behind.
    ``differentiable`` says whether gradients flow through the changed pipeline.
    """

    @property
    def name(self) -> str:
        """What a table calls it."""
        ...

    @property
    def id(self) -> str:
        """Hash of everything that decides what it does."""
        ...

    @property
    def differentiable(self) -> bool:
        """Whether gradients flow through the changed pipeline."""
        ...

    def applied(self, pipe: Any) -> AbstractContextManager[Any]:
        """The change in force for a with-block."""
        ...

"""A state that an action changes as a whole or not at all, and who hears of it: for explorers and comparisons."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from probe.errors import WorkbenchError


@dataclass(frozen=True)
class Message:
    """What the last action has to say. ``error`` is the error behind it, None where all is well."""

    text: str
    error: WorkbenchError | None = None


S = TypeVar("S", bound=Any)  # a frozen dataclass with a field ``message``


class Acting(Generic[S]):
    """Holds ``state``. Errors a user can mend, and interrupts, become its ``message``; bugs stay exceptions."""

    def __init__(self, state: S) -> None:
        self.state = state
        self._listeners: list[Callable[[], object]] = []

    def on_change(self, listener: Callable[[], object]) -> None:
        """Call ``listener()`` after every action; one that fails undoes the action, and it is called again."""
        self._listeners.append(listener)

    @contextmanager
    def _acting(self) -> Iterator[None]:
        before = self.state
        self.state = replace(before, message=None)
        try:
            yield
            self._tell()
        except WorkbenchError as error:
            self.state = replace(before, message=Message(error.message, error))
            self._tell()
        except KeyboardInterrupt:
            text = "interrupted; everything here is as it was, and you may start again"
            self.state = replace(before, message=Message(text))
            self._tell()
        except BaseException:
            self.state = before
            raise

    def _tell(self) -> None:
        for listener in self._listeners:
            listener()

    def _become(self, **changes: Any) -> None:
        self.state = replace(self.state, **changes)

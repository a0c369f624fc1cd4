"""Errors that say what was given, what was expected, the nearest valid choice and how to mend it.

The CLI, the widgets and ``--json`` all render the same object, so a message is never written twice.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any


class WorkbenchError(Exception):
    """Base of every error a user can mend.

    ``what`` is one short sentence; ``given``, ``expected``, ``nearest`` and ``fix`` are optional parts of the message.
    """

    def __init__(
        self,
        what: str,
        *,
        given: Any = None,
        expected: Any = None,
        nearest: Iterable[str] = (),
        fix: str | None = None,
    ) -> None:
        self.what, self.given, self.expected, self.fix = what, given, expected, fix
        self.nearest = tuple(nearest)
        super().__init__(self.message)

    @property
    def message(self) -> str:
        """The whole message in one line."""
        parts = [self.what.rstrip(".")]
        if self.given is not None:
            parts.append(f"given: {self.given}")
        if self.expected is not None:
            parts.append(f"expected: {self.expected}")
        if self.nearest:
            parts.append(f"nearest: {', '.join(self.nearest)}")
        if self.fix:
            parts.append(f"fix: {self.fix}")
        return "; ".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """The parts as plain JSON values."""
        as_text = {"given": self.given, "expected": self.expected}
        return {
            "error": type(self).__name__,
            "what": self.what,
            **{k: None if v is None else str(v) for k, v in as_text.items()},
            "nearest": list(self.nearest),
            "fix": self.fix,
        }

    def __str__(self) -> str:
        return self.message

    def _render_traceback_(self) -> list[str]:
        """What IPython shows in place of a traceback: the message. Scripts keep theirs."""
        return [f"{type(self).__name__}: {self.message}"]


class BadInput(WorkbenchError, ValueError):
    """An argument that cannot work, whatever the model."""


class UnknownName(WorkbenchError, LookupError):
    """A name that is not registered; carries the nearest ones."""


class WrongModel(WorkbenchError):
    """A map, run or edit made on another model."""


class HeaderMismatch(WorkbenchError):
    """Two identities that must agree differ; names the key."""


class StoreDamaged(WorkbenchError):
    """A file on disk is torn, truncated or foreign."""


class EditConflict(WorkbenchError):
    """Two edits cannot hold at once on one tensor."""


class EditOrderError(WorkbenchError):
    """An edit applied twice, or reverted out of order."""


class AmbiguousBatch(WorkbenchError):
    """The rows of a UNet call do not match samples x branches."""


class NeverFired(WorkbenchError):
    """A traced layer was not called inside the block."""


class MissingExtra(WorkbenchError, ImportError):
    """An optional dependency is absent; carries the pip command."""


def interrupted(error: KeyboardInterrupt, message: str) -> None:
    """Give Ctrl-C, or a kernel's interrupt, a message that a notebook shows in place of a traceback.

    The exception itself is kept: Python gives the exit code of an interrupt to `KeyboardInterrupt` alone, not to what
    inherits from it.
    """
    error.args = (message,)
    error._render_traceback_ = lambda: [f"{type(error).__name__}: {message}"]  # type: ignore[attr-defined]


def is_told(error: KeyboardInterrupt) -> bool:
    """Whether an interrupt has its message already."""
    return hasattr(error, "_render_traceback_")


def nearest(name: str, known: Iterable[str], n: int = 3) -> tuple[str, ...]:
    """The known names closest in spelling to ``name``."""
    return tuple(difflib.get_close_matches(name, list(known), n=n, cutoff=0.4))


def unknown_name(kind: str, name: str, known: Iterable[str], fix: str | None = None) -> UnknownName:
    """The error for a name that is not among ``known``; short lists are shown whole."""
    known = sorted(known)
    expected = f"one of {', '.join(known)}" if len(known) <= 12 else f"one of {len(known)} names"
    return UnknownName(f"unknown {kind}", given=repr(name), expected=expected, nearest=nearest(name, known), fix=fix)

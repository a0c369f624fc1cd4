"""One meaning of ``progress=True | False | callable`` for everything that takes a while."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from probe.protocols import Progress


class Advance:
    """What a task calls: with the number of items that were finished, and to `note` a word beside the bar."""

    def __init__(self, step: Callable[[int], object], bar: Any = None) -> None:
        self._step, self._bar = step, bar

    def __call__(self, n: int) -> None:
        """``n`` more items are finished."""
        self._step(n)

    def note(self, text: str) -> None:
        """Show a few words after the bar, if there is one."""
        if self._bar is not None:
            self._bar.set_postfix_str(text, refresh=False)


@contextmanager
def progress_bar(progress: Progress, total: int, what: str, unit: str = "it") -> Iterator[Advance]:
    """Yields ``advance(n)``. A bar goes to stderr (a widget in notebooks); a callable receives ``(done, total)``."""
    if progress is True:
        from tqdm.auto import tqdm

        with tqdm(total=total, desc=what, unit=unit) as bar:
            yield Advance(bar.update, bar)
        return
    done = 0

    def advance(n: int) -> None:
        nonlocal done
        done += n
        if callable(progress):
            progress(done, total)

    yield Advance(advance)

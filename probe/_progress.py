"""One meaning of ``progress=True | False | callable`` for everything that takes a while."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from probe.errors import interrupted, is_told
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
    """Yields ``advance(n)``. A bar goes to stderr (a widget in notebooks); a callable receives ``(done, total)``.

    An interrupt gets a message of how far it came, unless it has one that says more.
    """
    done = 0

    def counted(step: Callable[[int], object]) -> Callable[[int], None]:
        def advance(n: int) -> None:
            nonlocal done
            done += n
            step(n)

        return advance

    try:
        if progress is True:
            from tqdm.auto import tqdm

            with tqdm(total=total, desc=what, unit=unit) as bar:
                yield Advance(counted(bar.update), bar)
        else:
            yield Advance(counted(lambda _: progress(done, total) if callable(progress) else None))
    except KeyboardInterrupt as error:
        if not is_told(error):
            text = f"{what} interrupted after {done} of {total}; the model is as it was: you may start again"
            interrupted(error, text)
        raise

"""One meaning of ``progress=True | False | callable`` for everything that takes a while."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from probe.protocols import Progress


@contextmanager
def progress_bar(progress: Progress, total: int, what: str, unit: str = "it") -> Iterator[Callable[[int], object]]:
    """Yields ``advance(n)``. A bar goes to stderr (a widget in notebooks); a callable receives ``(done, total)``."""
    if progress is True:
        from tqdm.auto import tqdm

        with tqdm(total=total, desc=what, unit=unit) as bar:
            yield bar.update
        return
    done = 0

    def advance(n: int) -> None:
        nonlocal done
        done += n
        if callable(progress):
            progress(done, total)

    yield advance

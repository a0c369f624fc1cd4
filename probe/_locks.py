"""Who may write: ranks of one job share a run, two jobs do not; and one creation at a time.

All locks are advisory locks of the operating system (`filelock`): they end with the process that holds them, however
it ends.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from probe._files import disk_errors, make_parent
from probe.errors import BadInput, WorkbenchError

#: Seconds to wait for what takes a moment: another creation, another rank taking its lock.
_MOMENT = 60.0

_OTHER_FOLDER = "wait for it to end, or record into another folder"


@dataclass(frozen=True)
class Rank:
    """This process among those that share the work: unit u belongs to rank u % world.

    ``job`` tells the ranks of one launch from those of another.
    """

    index: int = 0
    world: int = 1
    job: str = ""

    @classmethod
    def of_environment(cls, environment: Mapping[str, str] | None = None) -> Rank:
        """As ``torchrun`` and ``accelerate launch`` say it: RANK of WORLD_SIZE; alone without these."""
        found = os.environ if environment is None else environment
        try:
            index, world = int(found.get("RANK", 0)), int(found.get("WORLD_SIZE", 1))
        except ValueError:
            index, world = -1, -1
        if not 0 <= index < world:
            given = f"RANK={found.get('RANK')}, WORLD_SIZE={found.get('WORLD_SIZE')}"
            raise BadInput("the environment names no rank", given=given, expected="0 <= RANK < WORLD_SIZE, or neither")
        if world == 1:
            return cls(job=str(os.getpid()))
        said = (found.get(name, "") for name in ("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID"))
        return cls(index, world, ":".join([*said, str(world)]))

    def owns(self, unit: int) -> bool:
        """Whether a unit is this process's to make."""
        return unit % self.world == self.index

    @property
    def first(self) -> bool:
        """Whether this process creates what all of them share."""
        return self.index == 0


@contextmanager
def creation_lock(
    path: Path,
    *,
    wait: float = _MOMENT,
    what: str = "another process is creating something here",
    fix: str = _OTHER_FOLDER,
) -> Iterator[None]:
    """One creation at ``path`` at a time; the lock is a hidden file beside it, gone afterwards.

    Raises `WorkbenchError` saying ``what`` where another process still holds it after ``wait`` seconds.
    """
    make_parent(path)
    file = path.with_name(f".{path.name}.lock")
    lock = FileLock(file, timeout=wait)
    try:
        with disk_errors(path):
            lock.acquire()
            while not file.exists():  # whoever held it took the file with it
                lock.release()
                lock.acquire()
    except Timeout as error:
        raise WorkbenchError(what, given=str(path), fix=fix) from error
    try:
        yield
    finally:
        with suppress(OSError):  # Windows keeps a file that is open
            file.unlink()
        lock.release()


@contextmanager
def writer_lock(folder: Path, rank: Rank, tidy: Callable[[], None], what: Path) -> Iterator[None]:
    """This rank's lock in ``folder``. ``tidy`` runs where no other rank is at work.

    Raises `WorkbenchError` when another job, or this very rank, is writing into ``what``.
    """
    mine = FileLock(folder / _file(rank.index), timeout=0)
    job = folder / ".job"
    with ExitStack() as held:
        try:
            with disk_errors(what), FileLock(folder / ".gate", timeout=_MOMENT):
                held.enter_context(mine)
                if not _others(folder, rank):
                    tidy()
                    job.write_text(rank.job, encoding="utf-8")
                elif job.read_text(encoding="utf-8") != rank.job:
                    raise Timeout(str(folder))
        except Timeout as error:
            words = "another process is recording into this run"
            raise WorkbenchError(words, given=str(what), fix=_OTHER_FOLDER) from error
        yield


def _file(index: int) -> str:
    return f".lock.{index}" if index else ".lock"


def _others(folder: Path, rank: Rank) -> bool:
    for file in folder.glob(".lock*"):
        if file.name == _file(rank.index):
            continue
        try:
            with FileLock(file, timeout=0):
                pass
        except Timeout:
            return True
    return False

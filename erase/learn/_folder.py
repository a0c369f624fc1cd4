"""A training on disk: where it goes on from, its checkpoints as edits, and its loss curve.

``training.json`` (what decides its numbers), ``state/`` (leaves and moments at one iteration), ``losses.csv``,
``checkpoints/<iteration>/`` (edits). The state is replaced as a whole: what is there is always good. One process at a
time trains in a folder: a second would go on from the first one's states and replace them.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pandas as pd
import torch
from torch import Tensor

from probe import formats, provenance
from probe._files import check_free, make_parent, occupied, remove, written_whole
from probe._locks import creation_lock
from probe.errors import BadInput, StoreDamaged

if TYPE_CHECKING:
    from erase._edit import Edit

logger = logging.getLogger(__name__)

KIND, HEADER = "training", "training.json"

#: What is said of an interrupted training without a folder.
NOTHING_KEPT = "nothing is kept; with training=FOLDER the same call goes on where it was cut off"


class Moments(Protocol):
    """The optimiser's side of a training, as `Folder` keeps it."""

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]: ...

    def load(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None: ...


@contextmanager
def training_alone(path: str | Path | None) -> Iterator[None]:
    """No other process trains at ``path`` during the block; nothing to hold without a path.

    Raises `WorkbenchError` at once where another does. The lock is the operating system's: it ends with its process.
    """
    if path is None:
        yield
        return
    what, fix = "another process is training in this folder", "wait for it to end, or choose another folder"
    with creation_lock(Path(path), wait=0, what=what, fix=fix):
        yield


def begin(path: Path, identity: Mapping[str, Any], *, force: bool = False) -> None:
    """A training's folder with its description, or the one of the same identity that is there.

    Raises `HeaderMismatch` naming the key in which the training there differs (unless ``force`` replaces it),
    `BadInput` for something else there, `StoreDamaged` for a description that cannot be read.
    """
    stamp = provenance.stamp(identity)
    if occupied(path) and not _is_this(path, stamp, force):
        remove(path)
    if not occupied(path):
        make_parent(path / HEADER)
        text = json.dumps({**formats.header(KIND), **stamp}, indent=1, ensure_ascii=False)
        with written_whole(path / HEADER) as partial:
            partial.write_text(text + "\n", encoding="utf-8")


def _is_this(path: Path, stamp: Mapping[str, Any], force: bool) -> bool:
    header = path / HEADER
    if not header.is_file():
        check_free(path, KIND, ours=False, force=force)
    try:
        found = json.loads(header.read_text(encoding="utf-8"))
        identity, found_id = found["identity"], found["id"]
    except (ValueError, KeyError, TypeError) as error:
        raise StoreDamaged("the training's description is damaged", given=f"{header}: {error}") from error
    formats.check_header(found, KIND, header)
    if force and found_id != stamp["id"]:
        return False
    fix = "repeat the call that made it, choose another folder, or force=True"
    provenance.check_same(identity, stamp["identity"], "another training is here", fix=fix)
    return True


class Folder:
    """The folder of one training, made and used inside `training_alone`.

    Args:
        path: new, empty, or of a training with the same identity, which then goes on.
        identity: what decides the leaves after a number of iterations.
        edit_at: makes the edit of a checkpoint from the number of iterations.
        save_every: iterations between two states.
        checkpoints: numbers of iterations after which an edit is kept.
        force: replace a training of another identity.

    Raises `HeaderMismatch` naming the key in which the training there differs, `BadInput` for something else there.
    """

    def __init__(
        self,
        path: str | Path,
        identity: Mapping[str, Any],
        *,
        edit_at: Callable[[int], Edit],
        save_every: int = 100,
        checkpoints: Collection[int] = (),
        force: bool = False,
    ) -> None:
        self.path, self.edit_at = Path(path), edit_at
        self.save_every, self.checkpoints = save_every, set(checkpoints)
        if save_every < 1 or any(n < 1 for n in self.checkpoints):
            raise BadInput("save_every and checkpoints are numbers of iterations, from 1 on")
        begin(self.path, identity, force=force)

    # --- going on ---

    def resume(self, leaves: Mapping[str, Tensor], moments: Moments) -> list[dict[str, float]]:
        """Put the stored state into ``leaves`` and ``moments``; the loss curve up to there, empty at the start."""
        from safetensors import SafetensorError
        from safetensors.torch import load

        state = self.path / "state"
        if not state.is_dir():
            return []
        try:
            numbers = json.loads((state / "state.json").read_text(encoding="utf-8"))
            tensors = load((state / "state.safetensors").read_bytes())
            with torch.no_grad():
                for name, leaf in leaves.items():
                    leaf.copy_(tensors[f"leaf/{name}"])
            moments.load(tensors, numbers)
            curve: list[dict[str, float]] = numbers["curve"]
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            fix = "delete the folder, or choose another"
            raise StoreDamaged("the state of the training cannot be read", given=f"{state}: {error}", fix=fix) from None
        logger.info("training in %s goes on after %d iterations", self.path, len(curve))
        return curve

    def after(
        self, done: int, leaves: Mapping[str, Tensor], moments: Moments, curve: list[dict[str, float]], *, last: bool
    ) -> None:
        """What is kept after ``done`` iterations; nothing that is not finite."""
        checkpoint, due = done in self.checkpoints, last or done % self.save_every == 0
        if not (checkpoint or due) or not all(bool(leaf.isfinite().all()) for leaf in leaves.values()):
            return
        if checkpoint and not self.checkpoint(done).is_dir():
            self.edit_at(done).save_pretrained(self.checkpoint(done))
        self._save(leaves, moments, curve)

    def checkpoint(self, iterations: int) -> Path:
        """Where the edit after so many iterations is, or would be."""
        return self.path / "checkpoints" / str(iterations)

    def last_good(self) -> str:
        """The newest state in words, for an error."""
        state = self.path / "state"
        if not state.is_dir():
            return f"no good checkpoint yet in {self.path}"
        done = len(json.loads((state / "state.json").read_text(encoding="utf-8"))["curve"])
        kept = sorted(int(p.name) for p in (self.path / "checkpoints").glob("*") if p.name.isdigit())
        edit = f"; the newest edit is {self.checkpoint(kept[-1])}" if kept else ""
        return f"the last good state, after {done} iterations, is in {state}{edit}"

    def to_go_on(self) -> str:
        """What an interrupted training leaves, and what to do."""
        return f"{self.last_good()}; repeat the same call to go on"

    def _save(self, leaves: Mapping[str, Tensor], moments: Moments, curve: list[dict[str, float]]) -> None:
        from safetensors.torch import save

        tensors, numbers = moments.state()
        tensors |= {f"leaf/{name}": leaf for name, leaf in leaves.items()}
        plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        with written_whole(self.path / "state", replace=True) as partial:
            partial.mkdir()
            (partial / "state.safetensors").write_bytes(save(plain))
            (partial / "state.json").write_text(json.dumps({**numbers, "curve": curve}), encoding="utf-8")
        with written_whole(self.path / "losses.csv", replace=True) as partial:
            pd.DataFrame(curve).to_csv(partial, index=False)

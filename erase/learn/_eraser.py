"""What every eraser that learns does around its loss: checks, points, a folder, a training, an edit."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from torch import Tensor

from erase import _in_force, losses
from erase._concepts import preserved, prompts_of, surface_forms, without
from erase._edit import Edit, make_edit
from erase.learn._folder import NOTHING_KEPT, Folder, training_alone
from erase.learn._points import At, Cached, Fresh, cached, check_source, given
from erase.learn._schedule import Schedule
from erase.learn._student import Student
from erase.learn._teacher import Teacher
from erase.learn._texts import Texts
from erase.learn._training import Loss, train
from probe import Concept, Trajectory, guidance
from probe.errors import BadInput, interrupted
from probe.protocols import Progress
from probe.provenance import fingerprint

logger = logging.getLogger(__name__)

#: At most so many points of a loss curve in an edit's report.
CURVE = 500

_NETWORKS = ("text_encoder", "text_encoder_2", "unet")

XSource = Literal["cached", "student", "teacher"]


@dataclass(frozen=True)
class Sampling:
    """How x_t are drawn: see `erase.esd`."""

    x_t: XSource
    trajectory: Any
    cached: int
    steps: int
    guidance: float
    timesteps: At
    batch_size: int
    seed: int
    folder: Path | None
    progress: Progress = False

    def __post_init__(self) -> None:
        check_source(self.x_t, self.trajectory)
        for name in ("cached", "steps", "batch_size"):
            if getattr(self, name) < 1:
                raise BadInput(f"{name} must be at least 1", given=getattr(self, name))

    def points(self, pipe: Any, texts: Sequence[str], what: str = "x_t") -> Cached | Fresh:
        """The points of some texts."""
        if self.trajectory is not None:
            return given(pipe, self.trajectory, batch_size=self.batch_size, at=self.timesteps, seed=self.seed)
        if self.x_t == "cached":
            return self.cached_points(pipe, texts, what)
        return Fresh(
            pipe,
            texts,
            by=self.x_t,
            steps=self.steps,
            scale=self.guidance,
            batch_size=self.batch_size,
            at=self.timesteps,
            seed=self.seed,
        )

    def cached_points(self, pipe: Any, texts: Sequence[str], what: str) -> Cached:
        """Points drawn by the model as it is, once."""
        return cached(
            pipe,
            texts,
            samples=self.cached,
            steps=self.steps,
            scale=self.guidance,
            batch_size=self.batch_size,
            at=self.timesteps,
            seed=self.seed,
            folder=self.folder,
            what=what,
            progress=self.progress is True,
        )

    def to_json(self) -> dict[str, Any]:
        """What an identity keeps."""
        own: dict[str, Any] = {"cached": self.cached} if self.x_t == "cached" else {}
        if self.trajectory is not None:
            found = self.trajectory if isinstance(self.trajectory, Trajectory) else Trajectory(self.trajectory)
            own = {"trajectory": found.id}
        else:
            own |= {"steps": self.steps, "guidance": self.guidance}
        return {"x_t": self.x_t, **own, "timesteps": self.timesteps, "batch_size": self.batch_size}


@dataclass(frozen=True)
class Retained:
    """What the retain term holds, less prompts that name what is erased: a style is in prompts of everything."""

    items: tuple[Concept | str, ...] = ()
    erased: tuple[Concept | str, ...] = ()

    def prompts(self, most: int) -> list[str]:
        """At least one prompt of each concept where it has one, in all at most ``most`` or as many as concepts."""
        most = max(most, len(self.items))
        return without(surface_forms(self.erased), prompts_of(self.items))[:most]


def retain_loss(
    pipe: Any, student: Student, sampling: Sampling, preserve: Retained, weight: float
) -> Callable[[int], Tensor] | None:
    """weight * E || eps_student(x_t, c) - eps_teacher(x_t, c) ||^2 over prompts of what is preserved, if weighed."""
    if not weight:
        return None
    points = sampling.cached_points(pipe, preserve.prompts(sampling.cached), "retained")
    texts = Texts(pipe, points.size)
    teacher = Teacher(pipe, texts)

    def loss(iteration: int) -> Tensor:
        batch = points.batch(iteration, student)
        (target,) = teacher.noise(student, batch, batch.texts)
        return weight * losses.mean_square(noise_of(pipe, batch, texts, batch.texts), target)

    return loss


def retaining(loss: Loss, pipe: Any, student: Student, sampling: Sampling, preserve: Retained, weight: float) -> Loss:
    """The loss with the term ``retain`` besides, where that has a weight; draws the points of what is preserved."""
    retained = retain_loss(pipe, student, sampling, preserve, weight)
    if retained is None:
        return loss
    return lambda iteration: {**loss(iteration), "retain": retained(iteration)}


def noise_of(pipe: Any, batch: Any, texts: Texts, asked: Sequence[str]) -> Tensor:
    """The student's epsilon (s c y x) at the points of a batch for one text a sample, with gradients."""
    return guidance.predicted_noise(pipe, batch.x, batch.timesteps, texts.of(asked))


def learned(
    pipe: Any,
    student: Student,
    loss: Callable[[], Loss],
    how: Schedule,
    *,
    method: str,
    name: str,
    options: Mapping[str, Any],
    inputs: Mapping[str, Any],
    training: str | Path | None,
    save_every: int,
    checkpoints: Sequence[int],
    progress: Progress,
    force: bool,
    report: Callable[[], Mapping[str, Any]] = dict,
) -> Edit:
    """Train, and the edit that comes of it; with ``training``, resumable and with edits at ``checkpoints``.

    ``loss`` is called once, when the folder is there that its points may be drawn into. No other process trains there
    meanwhile (`WorkbenchError`).
    """
    options = {**options, **how.to_json()}

    def edit(iterations: int, more: Mapping[str, Any]) -> Edit:
        return make_edit(
            pipe,
            student.changes(),
            name=name,
            method=method,
            options={**options, "iterations": iterations},
            inputs=inputs,
            report={**report(), **more},
        )

    with training_alone(training):
        folder = None
        if training is not None:
            parts = [part for part in _NETWORKS if getattr(pipe, part, None) is not None]
            identity = {
                "method": method,
                "options": options,
                "inputs": dict(inputs),
                "model": fingerprint(pipe).to_json(parts),
                "base_edits": [list(part) for entry in _in_force.entries(pipe) for part in entry.edit.parts],
            }
            folder = Folder(
                training,
                identity,
                edit_at=lambda n: edit(n, {}),
                save_every=save_every,
                checkpoints=checkpoints,
                force=force,
            )
        started = time.perf_counter()
        try:
            curve = train(pipe, student, loss(), how, folder=folder, progress=progress, what=method)
        except KeyboardInterrupt as error:
            interrupted(error, f"{method} interrupted: {NOTHING_KEPT if folder is None else folder.to_go_on()}")
            raise
        seconds = time.perf_counter() - started
    return edit(how.iterations, {"losses": thinned(curve), "seconds": round(seconds, 2)})


def thinned(curve: pd.DataFrame) -> dict[str, list[float]]:
    """At most `CURVE` points of a loss curve, column by column; each is the mean of the iterations up to it."""
    every = -(-len(curve) // CURVE)
    groups = curve.groupby(curve.index // every)
    found = groups.mean()
    found["iteration"] = groups["iteration"].max()
    return {str(name): [float(x) for x in found[name]] for name in found}


def own_precision(pipe: Any, precision: Any) -> Any:
    """What the UNet computes in: ``precision``, or the pipeline's own dtype."""
    return precision or str(pipe.unet.dtype).removeprefix("torch.")


def checked_preserve(
    given: Any, items: Sequence[Concept | str], retain: float | None, default: float = 0.0
) -> tuple[Retained, float]:
    """What the retain term is taken over, and its weight; without one ``default``, if it is known what to preserve.

    `BadInput` for a weight that has nothing to weigh.
    """
    if retain is None:
        known = bool(preserved(given, items))
        if not known and default:
            logger.info("it is not known what to preserve: training goes without a retain term")
        retain = default if known else 0.0
    if not 0 <= retain < math.inf:
        raise BadInput("retain is out of range", given=retain, expected=">= 0")
    kept = Retained(tuple(preserved(given, items)) if retain else (), tuple(items))
    if retain and not kept.prompts(1):
        fix = "preserve=[...], or retain=0"
        raise BadInput("retain asks for concepts to preserve", given=f"retain={retain}", fix=fix)
    return kept, retain

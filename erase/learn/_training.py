"""train: one loop for everything that is learned. Random numbers come from seed and iteration, never from a state."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from erase.learn._folder import Folder
from erase.learn._schedule import Schedule
from erase.learn._student import Student
from probe._progress import progress_bar
from probe.errors import BadInput, WorkbenchError
from probe.protocols import Progress

logger = logging.getLogger(__name__)

#: iteration -> the terms of its loss by name, weights included; their sum is made small
Loss = Callable[[int], Mapping[str, Tensor]]


def train(
    pipe: Any,
    student: Student,
    loss: Loss,
    how: Schedule,
    *,
    folder: Folder | None = None,
    progress: Progress = True,
    what: str = "training",
) -> pd.DataFrame:
    """Train the leaves of ``student`` on ``loss``; the loss curve, one row an iteration: iteration, loss, its terms.

    Args:
        pipe: the pipeline; as it was afterwards, whatever happens.
        student: what is trained. It is in force while ``loss`` is computed and during the backward pass;
            ``student.suspended()`` inside ``loss`` gives the teacher.
        loss: draws its own batch from the iteration's number.
        how: optimiser and arithmetic.
        folder: where state and checkpoints are kept; a training that was cut off goes on there, to the bit.
        progress: True, False or a function of (done, total) iterations.
        what: beside the bar.

    Raises `WorkbenchError` naming the iteration, and the last good checkpoint, where a loss or gradient is not finite.
    """
    run = _Run(student, how)
    curve = folder.resume(student.leaves, run) if folder is not None else []
    if len(curve) > how.iterations:
        fix = f"iterations={len(curve)}, or load the edit of a checkpoint"
        raise BadInput("the training has gone further", given=f"iterations={how.iterations}", fix=fix)
    with how.learning(pipe), run.updating(), progress_bar(progress, how.iterations, what) as advance:
        advance(len(curve))
        for iteration in range(len(curve), how.iterations):
            with student.in_force(iteration):
                with how.autocast(pipe.unet.device):
                    terms = dict(loss(iteration))
                total = torch.stack([term.float() for term in terms.values()]).sum()
                values = {name: float(term.detach()) for name, term in terms.items()}
                if not math.isfinite(float(total.detach())):
                    raise _stopped("the loss is not finite", iteration, values, folder)
                run.backward(total)
            if not run.update():
                raise _stopped("a gradient is not finite", iteration, values, folder)
            curve.append({"iteration": iteration, "loss": float(total.detach()), **values})
            advance.note(f"loss {curve[-1]['loss']:.4g}")
            advance(1)
            if folder is not None:
                folder.after(iteration + 1, student.leaves, run, curve, last=iteration + 1 == how.iterations)
    return pd.DataFrame(curve)


class _Run:
    """The optimiser's side of a training: moments, and the scale of a float16 loss."""

    def __init__(self, student: Student, how: Schedule) -> None:
        self.names, self.leaves = list(student.leaves), list(student.leaves.values())
        self.how = how
        groups = [[leaf] for leaf in self.leaves] if how.in_backward else [self.leaves]
        self.optimisers = [how.new_optimiser(group) for group in groups]
        self.scale, self.good = (2.0**16 if how.precision == "float16" else 1.0), 0
        self._finite = True

    def updating(self) -> Any:
        """For ``in_backward``: hooks on the leaves for the block."""
        from contextlib import ExitStack

        hooks = ExitStack()
        if self.how.in_backward:
            for leaf, optimiser in zip(self.leaves, self.optimisers, strict=True):
                hooks.callback(leaf.register_post_accumulate_grad_hook(self._at_once(optimiser)).remove)
        return hooks

    def backward(self, loss: Tensor) -> None:
        """Gradients of the leaves; an error where none depends on them."""
        if not loss.requires_grad:
            raise WorkbenchError("nothing of the loss depends on what is trained")
        (loss * self.scale).backward()

    def update(self) -> bool:
        """One step of the optimiser; False where a gradient is not finite, and then nothing has been updated.

        In float16 such a step is left out instead, and the loss scaled less.
        """
        if self.how.in_backward:
            return self._finite
        found = [leaf.grad for leaf in self.leaves if leaf.grad is not None]
        norm = float(torch.stack([torch.linalg.vector_norm(grad) for grad in found]).norm()) / self.scale
        if math.isfinite(norm):
            self._step(found, norm)
        elif self.scale > 1:
            self.scale, self.good = self.scale / 2, 0
        else:
            return False
        self.optimisers[0].zero_grad(set_to_none=True)
        return True

    def _step(self, gradients: Sequence[Tensor], norm: float) -> None:
        clip = 1.0 if self.how.clip is None else min(1.0, self.how.clip / (norm + 1e-6))
        if (factor := clip / self.scale) != 1:
            torch._foreach_mul_(list(gradients), factor)
        self.optimisers[0].step()
        self.good += 1
        if self.how.precision == "float16" and self.good % 1000 == 0:
            self.scale *= 2

    def _at_once(self, optimiser: torch.optim.Optimizer) -> Callable[[Tensor], None]:
        def update(leaf: Tensor) -> None:
            assert leaf.grad is not None
            self._finite &= bool(leaf.grad.isfinite().all())
            if self._finite:
                optimiser.step()
            leaf.grad = None

        return update

    # --- what a folder keeps ---

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Moments by leaf as tensors, and the numbers beside them."""
        tensors: dict[str, Tensor] = {}
        counts: dict[str, int] = {}
        for name, leaf in zip(self.names, self.leaves, strict=True):
            known = next((o.state[leaf] for o in self.optimisers if leaf in o.state), None)
            if known:
                tensors |= {f"{moment}/{name}": known[moment] for moment in ("exp_avg", "exp_avg_sq")}
                counts[name] = int(known["step"])
        return tensors, {"updates": counts, "scale": self.scale, "good": self.good}

    def load(self, tensors: Mapping[str, Tensor], numbers: Mapping[str, Any]) -> None:
        """The inverse of `state`."""
        self.scale, self.good = float(numbers["scale"]), int(numbers["good"])
        for name, leaf in zip(self.names, self.leaves, strict=True):
            if name not in numbers["updates"]:
                continue
            optimiser = next(o for o in self.optimisers if any(leaf is p for p in o.param_groups[0]["params"]))
            optimiser.state[leaf] = {
                "step": torch.tensor(float(numbers["updates"][name])),
                **{moment: tensors[f"{moment}/{name}"].to(leaf.device) for moment in ("exp_avg", "exp_avg_sq")},
            }


def _stopped(what: str, iteration: int, terms: Mapping[str, float], folder: Folder | None) -> WorkbenchError:
    given = f"iteration {iteration}: " + ", ".join(f"{name} {value:.4g}" for name, value in terms.items())
    good = "nothing was kept; training= keeps checkpoints" if folder is None else folder.last_good()
    return WorkbenchError(what, given=given, expected=good, fix="a smaller lr, or arithmetic='float32'")

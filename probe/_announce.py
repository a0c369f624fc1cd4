"""Word of every network call and every step of a sampler to who listens: which samples, branches, step, timestep."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from probe._branches import GUIDED, Layout, layout_of, refuse_other_guidance
from probe.errors import WorkbenchError

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Call:
    """One network call inside a pipeline call, announced just before its forward.

    - ``component``: ``"unet"``, ``"text_encoder"`` or ``"text_encoder_2"``
    - ``samples``: rows of the table that this batch holds
    - ``step``: index of the UNet call, 0 for text encoders; ``timestep``: the scheduler's value, NaN for text encoders
    - ``layout``: branches and samples of the rows, in order; a pipeline encodes its cond prompts first and uncond in a
      second call, so a text encoder's layout has one branch. SDXL makes no second call without a negative prompt
    """

    component: str
    samples: range
    step: int
    timestep: float
    layout: Layout


@dataclass(frozen=True)
class Step:
    """One step of the sampler: told after it, once for every call of the UNet.

    - ``samples``, ``step``, ``timestep``: as in `Call`
    - ``latents``: x_t as the step found it, before the scheduler scales it for the UNet, (s c y x)
    - ``guided``: what the scheduler was given: both branches of guidance in one prediction, (s c y x)
    - ``after``: the latents that the step has made, (s c y x)
    """

    samples: range
    step: int
    timestep: float
    latents: Tensor
    guided: Tensor
    after: Tensor


@contextmanager
def stepping(pipe: Any, rows: range, on_step: Callable[[Step], object] | None) -> Iterator[None]:
    """Tell ``on_step`` of every step of the pipeline's scheduler inside the block."""
    if on_step is None:
        yield
        return
    scheduler, done = pipe.scheduler, 0
    plain = scheduler.step

    @functools.wraps(plain)  # pipelines ask for its signature
    def step(model_output: Any, timestep: Any, sample: Any, *args: Any, **kwargs: Any) -> Any:
        nonlocal done
        result = plain(model_output, timestep, sample, *args, **kwargs)
        after = result[0] if isinstance(result, tuple) else result.prev_sample
        on_step(Step(rows, done, float(timestep), sample.detach(), model_output.detach(), after.detach()))
        done += 1
        return result

    scheduler.step = step
    try:
        yield
    finally:
        del scheduler.step


@contextmanager
def announced(
    pipe: Any, rows: range, on_call: Callable[[Call], object] | None, branches: tuple[str, ...] | None = None
) -> Iterator[None]:
    """Tell ``on_call`` of every call of the UNet and the text encoders inside the block.

    A loop that is no pipeline call says its ``branches``.
    """
    if on_call is None:
        yield
        return
    if branches is None:
        refuse_other_guidance(pipe)
    announcer = _Announcer(pipe, rows, on_call, branches)
    with ExitStack() as hooks:  # registered last, so that rows are counted as the forward will see them
        for name in ("text_encoder", "text_encoder_2", "unet"):
            if (component := getattr(pipe, name, None)) is not None:
                pre_hook = announcer.unet if name == "unet" else announcer.text(name)
                hooks.callback(component.register_forward_pre_hook(pre_hook, with_kwargs=True).remove)
        yield


class _Announcer:
    """Counts the calls of one batch and knows their layouts."""

    def __init__(
        self, pipe: Any, rows: range, on_call: Callable[[Call], object], branches: tuple[str, ...] | None
    ) -> None:
        self.pipe, self.rows, self.on_call, self.branches = pipe, rows, on_call, branches
        self.step = 0
        self.layout: Layout | None = None
        self.listed: list[float] = []

    def unet(self, _module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self.layout is None:
            self.layout = layout_of(self.pipe, len(self.rows), self.branches)
        sample = args[0] if args else kwargs["sample"]
        timestep = args[1] if len(args) > 1 else kwargs["timestep"]
        self.layout.check(sample.shape[0])
        self.on_call(Call("unet", self.rows, self.step, self._value(timestep), self.layout))
        self.step += 1

    def _value(self, timestep: Any) -> float:
        """The timestep as a number. On CUDA reading it would make the CPU wait for the step before, at every step."""
        if getattr(timestep, "is_cuda", False):
            self.listed = self.listed or self.pipe.scheduler.timesteps.tolist()
            if self.step < len(self.listed):
                return float(self.listed[self.step])
        return float(np.ravel(_cpu(timestep))[0])

    def text(self, component: str) -> Callable[..., None]:
        calls = 0

        def announce(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            nonlocal calls
            if calls == len(GUIDED):
                raise WorkbenchError(f"{component} was called more often than once for each branch")
            layout = Layout(len(self.rows), (GUIDED[::-1][calls],))
            layout.check((args[0] if args else kwargs["input_ids"]).shape[0])
            self.on_call(Call(component, self.rows, 0, float("nan"), layout))
            calls += 1

        return announce


def _cpu(value: Any) -> Any:
    return value.detach().cpu() if hasattr(value, "detach") else value

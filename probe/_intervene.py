"""Hooks that change what chosen units pass on, at chosen timesteps and in chosen branches, and leave nothing behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from probe import compat
from probe._branches import GUIDED, Layout, layout_of
from probe._sites import Site
from probe.errors import AmbiguousBatch, BadInput, WorkbenchError

#: Where `probe.lineage` finds the interventions in force on a component: a list of (id, name), gone when empty.
INTERVENTIONS = "_workbench_interventions"


@dataclass(frozen=True)
class Now:
    """Which rows a new value is asked for: ``branch`` and ``timestep`` are None where nobody needs to know them."""

    branch: str | None
    timestep: float | None


#: (rows k u) of the chosen units, and which rows these are -> their new values, anything that broadcasts to them
NewValue = Callable[[Tensor, Now], Tensor]


@dataclass(frozen=True)
class Change:
    """What becomes of some units (u,) of a site whose input is hooked."""

    site: Site
    units: tuple[int, ...]
    new: NewValue

    def __post_init__(self) -> None:
        if self.site.io != "input":
            given = f"site {self.site.name}, the {self.site.io} of {self.site.module}"
            raise BadInput("only units that enter a Linear can be changed", given=given, expected="kinds ffn or mlp")
        if bad := [unit for unit in self.units if not 0 <= unit < self.site.width]:
            expected = f"0 to {self.site.width - 1} at {self.site.name}"
            raise BadInput("a unit is outside its site", given=bad[0], expected=expected)


@contextmanager
def changing(
    pipe: Any,
    changes: Sequence[Change],
    *,
    window: tuple[float, float] | None,
    branch: str | None,
    by_branch: bool,
    branches: tuple[str, ...] | None,
) -> Iterator[None]:
    """Changes in force for the block.

    Args:
        window: UNet calls at timesteps (t_max, t_min), both included; None means all.
        branch: rows of that branch only.
        by_branch: new values differ by branch, so that every row's must be known.
        branches: in the order of the rows, for calls that are not made by ``pipe``.

    A change of activations is made on a copy of them; hooks are gone after the block, however it ends.
    """
    components = dict.fromkeys(change.site.component for change in changes)
    for component in components:
        compat.refuse_compiled(getattr(pipe, component), component)
    clock = Clock(pipe, branches, asks=by_branch or branch is not None)
    with ExitStack() as hooks:
        for component in dict.fromkeys([*components, "unet"]):  # the UNet's calls end those of the text encoders
            module = getattr(pipe, component)
            tell = clock.unet if component == "unet" else clock.text(component)
            hooks.callback(module.register_forward_pre_hook(tell, with_kwargs=True).remove)
        for change in changes:
            hook = _hook(change, clock, window, branch)
            hooks.callback(change.site.resolve(pipe).register_forward_pre_hook(hook, with_kwargs=True).remove)
        yield


class Clock:
    """What the running call of each component is: its timestep, and which rows are of which branch."""

    def __init__(self, pipe: Any, branches: tuple[str, ...] | None, *, asks: bool) -> None:
        self.pipe, self.branches, self.asks = pipe, branches, asks
        self.timestep: float | None = None
        self.layouts: dict[str, Layout] = {}
        self.texts: dict[str, int] = {}

    def unet(self, _module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        sample = args[0] if args else kwargs["sample"]
        timestep = args[1] if len(args) > 1 else kwargs["timestep"]
        self.timestep = float(timestep.reshape(-1)[0]) if isinstance(timestep, Tensor) else float(timestep)
        self.texts.clear()
        if self.asks:
            order = layout_of(self.pipe, 1, self.branches).branches
            self.layouts["unet"] = Layout(max(1, sample.shape[0] // len(order)), order)
            self.layouts["unet"].check(sample.shape[0])

    def text(self, component: str) -> Callable[..., None]:
        """A pipeline encodes its cond prompts first and its uncond ones in a second call."""

        def tell(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if not self.asks:
                return
            calls = self.texts.get(component, 0)
            if calls == len(GUIDED):
                fix = "encode prompts inside the pipeline call, or leave branch= out"
                raise WorkbenchError(f"{component} was called more often than once for each branch", fix=fix)
            rows = (args[0] if args else kwargs["input_ids"]).shape[0]
            self.layouts[component] = Layout(rows, (GUIDED[::-1][calls],))
            self.texts[component] = calls + 1

        return tell

    def rows(self, component: str, branch: str | None) -> list[tuple[str | None, slice]]:
        """The rows to change, by branch; all of them under None where branches do not matter."""
        if not self.asks:
            return [(None, slice(None))]
        layout = self.layouts.get(component)
        if layout is None:
            raise WorkbenchError(f"a site of {component} ran outside a call of it")
        found = [(b, slice(i * layout.samples, (i + 1) * layout.samples)) for i, b in enumerate(layout.branches)]
        return [(b, rows) for b, rows in found if branch in (None, b)]


def _hook(change: Change, clock: Clock, window: tuple[float, float] | None, branch: str | None) -> Callable[..., Any]:
    component, units = change.site.component, torch.tensor(change.units, dtype=torch.int64)

    def hook(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        timestep = clock.timestep if component == "unet" else None
        if window is not None and (timestep is None or not window[1] <= timestep <= window[0]):
            return None
        name = None if args else next(iter(kwargs))
        x = args[0] if name is None else kwargs[name]
        index, changed = units.to(x.device), x.clone()
        for which, rows in clock.rows(component, branch):
            before = x[rows][..., index]
            changed[rows] = changed[rows].index_copy(
                -1, index, change.new(before, Now(which, timestep)).to(x).expand_as(before)
            )
        return ((changed, *args[1:]), kwargs) if name is None else (args, {**kwargs, name: changed})

    return hook


@contextmanager
def named(components: Sequence[Any], entry: tuple[str, str]) -> Iterator[None]:
    """An intervention's id and name on the components it changes, where `probe.lineage` finds them."""
    done = []
    try:
        for component in components:
            if not hasattr(component, INTERVENTIONS):
                setattr(component, INTERVENTIONS, [])
            getattr(component, INTERVENTIONS).append(entry)
            done.append(component)
        yield
    finally:
        for component in done:
            getattr(component, INTERVENTIONS).remove(entry)
            if not getattr(component, INTERVENTIONS):
                delattr(component, INTERVENTIONS)


# --- New values -------------------------------------------------------------------------------------------------------


def zeros(x: Tensor, _now: Now) -> Tensor:
    """Nothing is passed on."""
    return torch.zeros_like(x)


def scaled(factor: float) -> NewValue:
    """Everything times a factor."""
    return lambda x, _now: x * factor


@dataclass(frozen=True)
class Stored:
    """Values of some units from a run: every token gets the number that the run kept of all tokens.

    - ``table`` (s b t u): one sample for all rows, or one for every sample of a call
    - ``branches`` (b,): names; ``timesteps`` (t,): of the run, None without steps. The nearest timestep counts
    """

    table: Tensor
    branches: tuple[str, ...]
    timesteps: Tensor | None

    def __call__(self, x: Tensor, now: Now) -> Tensor:
        """New values (rows k u) for the rows of one branch."""
        if now.branch not in self.branches:
            fix = f"branch={self.branches[0]!r}, or a source recorded with guidance as it is now"
            given = f"branch {now.branch}"
            raise BadInput("the source run has no such branch", given=given, expected=str(self.branches), fix=fix)
        step = 0
        if self.timesteps is not None and now.timestep is not None:
            step = int((self.timesteps - now.timestep).abs().argmin())
        values = self.table[:, self.branches.index(now.branch), step]
        if len(values) not in (1, len(x)):
            raise AmbiguousBatch(
                "the source run has another number of samples than the call",
                given=f"{len(values)} samples in the run, {len(x)} in the call",
                expected="one sample for all, or as many as the call has, in the same order",
                fix="select samples of the source, open_run(...).isel(sample=[0])",
            )
        return values.reshape(len(values), *[1] * (x.ndim - 2), -1)

"""Recorders: what listens to the calls of one component and fills the arrays of one group of a run.

They listen to whoever makes the calls (`probe._generate`, `probe._inputs`), who says before every network call which
samples, branches, step and timestep its rows are; nothing here guesses that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from probe._announce import Call
from probe._reduce import Reducer
from probe._sites import Site
from probe.errors import AmbiguousBatch, NeverFired, WorkbenchError

if TYPE_CHECKING:
    import pandas as pd
    from torch.utils.hooks import RemovableHandle

#: What takes the values (rows ...) of a call to their place, once they have left the device.
_Write = Callable[[np.ndarray], None]


class Recorder:
    """The part that every recorder has: buffers, the call at hand, and a check that every call came.

    - ``component``: whose calls these are; ``arrays``: name -> sizes after the sample axis
    - ``timesteps``: expected at the UNet's calls, (t,); None for what has no step axis
    - ``branches``: those of the run, in the order of its branch axis
    - ``token_rows``: site name -> rows of one call, known after the first

    A subclass hooks modules in `_hooks` and, in `_end`, sends the values of the call that just ended.
    """

    def __init__(
        self,
        component: str,
        arrays: Mapping[str, tuple[int, ...]],
        branches: Sequence[str],
        timesteps: np.ndarray | None,
    ) -> None:
        self.component, self.arrays = component, arrays
        self.branches, self.timesteps = branches, timesteps
        self.token_rows: dict[str, int] = {}
        self._call: Call | None = None
        self._recorded = 0  # (sample, branch, step) handed over
        self._ran = np.zeros((0, len(branches)), bool)  # (sample, branch) that any call had
        self._buffers: dict[str, np.ndarray] = {}
        self._on_the_way: list[tuple[Any, torch.Tensor, _Write]] = []

    @contextmanager
    def recording(self, pipe: Any, table: pd.DataFrame, absent: int = 0) -> Iterator[Mapping[str, np.ndarray]]:
        """Hooks in place for the block, for the samples of ``table``; gives the buffers ``array -> (s ...)``.

        ``absent`` (sample, branch) are known never to run, and stay NaN: SDXL's uncond text without negative prompt.
        The hooks are registered last, so they see what hooks of edits have made of an activation.
        """
        n_samples = len(table)
        self._buffers = {name: np.full((n_samples, *sizes), np.nan, np.float32) for name, sizes in self.arrays.items()}
        self._call, self._on_the_way, self._recorded = None, [], 0
        self._ran = np.zeros((n_samples, len(self.branches)), bool)
        self._begin(pipe, table)
        with ExitStack() as hooks:
            for handle in self._hooks(pipe):
                hooks.callback(handle.remove)
            yield self._buffers
            self._finish_call()
            self._arrive()
        expected = n_samples * len(self.branches) * self._steps - absent
        if self._recorded != expected:
            given = f"{self._recorded} of {expected} (sample, branch, step)"
            raise NeverFired(f"{self.component} was called less often than the sampler announced", given=given)

    def blank(self) -> dict[str, np.ndarray]:
        """Where NaN is meant, once recorded: array -> mask that broadcasts to its buffer. Absent: nowhere."""
        if self._ran.all():
            return {}
        return {name: _widened(~self._ran, len(sizes) + 1) for name, sizes in self.arrays.items()}

    def on_call(self, call: Call) -> None:
        """What is told before each network call."""
        if call.component == self.component:
            self._finish_call()
            self._call = call

    @property
    def _steps(self) -> int:
        return 1 if self.timesteps is None else len(self.timesteps)

    def _begin(self, pipe: Any, table: pd.DataFrame) -> None:
        """Prepare for the samples of ``table``."""

    def _hooks(self, pipe: Any) -> Iterator[RemovableHandle]:
        """Register hooks and give their handles, one by one: what was registered before an error is removed."""
        raise NotImplementedError

    def _end(self, call: Call) -> None:
        """Send what is left of the call that just ended."""
        raise NotImplementedError

    def _current(self, site: Site) -> Call:
        if self._call is None:
            raise WorkbenchError(f"{site.name} ran outside a call of {site.component}")
        return self._call

    def _finish_call(self) -> None:
        call, self._call = self._call, None
        if call is None:
            return
        self._check(call)
        self._arrive()
        self._end(call)
        self._recorded += len(call.samples) * len(call.layout.branches)
        rows = slice(call.samples.start, call.samples.stop)
        self._ran[rows, [self.branches.index(branch) for branch in call.layout.branches]] = True

    def _send(self, values: torch.Tensor, write: _Write) -> None:
        """Take values (rows ...) off the device and to their place; on CUDA the next call does not wait for them."""
        if not values.is_cuda:
            return write(values.cpu().numpy())
        copied = values.to("cpu", non_blocking=True)  # into pinned memory
        event: Any = torch.cuda.Event()
        event.record()
        self._on_the_way.append((event, copied, write))
        return None

    def _arrive(self) -> None:
        for event, copied, write in self._on_the_way:
            event.synchronize()
            write(copied.numpy())
        self._on_the_way = []

    def _place(self, array: np.ndarray, call: Call, values: np.ndarray, *inner: slice) -> None:
        """Write values (rows ...) of a call into an array (s b t ...), or (s b ...) without steps."""
        samples = slice(call.samples.start, call.samples.stop)
        step = () if self.timesteps is None else (call.step,)
        by_branch = values.reshape(len(call.layout.branches), call.layout.samples, *values.shape[1:])
        for branch, value in zip(call.layout.branches, by_branch, strict=True):
            array[(samples, self.branches.index(branch), *step, *inner)] = value

    def _note_rows(self, site: Site, rows: int) -> None:
        if self.token_rows.setdefault(site.name, rows) != rows:
            given = f"{site.name}: {rows}, before {self.token_rows[site.name]}"
            raise WorkbenchError("a site saw another number of token rows than in earlier calls", given=given)

    def _check(self, call: Call) -> None:
        if not set(call.layout.branches) <= set(self.branches):
            given = ", ".join(call.layout.branches)
            raise AmbiguousBatch(
                "the branches of a call are not those of the run", given=given, expected=str(self.branches)
            )
        if self.timesteps is None:
            return
        expected = self.timesteps[call.step] if call.step < len(self.timesteps) else None
        if expected is None or not np.isclose(call.timestep, float(expected)):
            raise WorkbenchError(
                "the UNet was called at another timestep than the scheduler announced",
                given=f"call {call.step} at {call.timestep}",
                expected=f"{len(self.timesteps)} calls" if expected is None else str(expected),
            )


def _widened(mask: np.ndarray, dims: int) -> np.ndarray:
    """A mask (s b) for arrays of so many dims."""
    return mask.reshape(*mask.shape, *(1,) * (dims - mask.ndim))


def seen(site: Site, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> torch.Tensor:
    """The activation (row, k, n) that a forward hook at a site's module is there for."""
    x = output if site.io == "output" else (args[0] if args else next(iter(kwargs.values())))
    return (x[0] if isinstance(x, tuple) else x).detach()


class ReducedRecorder(Recorder):
    """Reduces the activations of ``sites``, all of one component, into one buffer per variable of the reducers.

    Per call one tensor leaves the device: all reducers of all sites side by side.
    """

    def __init__(
        self,
        sites: Sequence[Site],
        reducers: Sequence[Reducer],
        branches: Sequence[str],
        timesteps: np.ndarray | None,
    ) -> None:
        self.sites, self.reducers = list(sites), list(reducers)
        self.neurons = sum(site.width for site in sites)
        middle = () if timesteps is None else (len(timesteps),)
        arrays = {
            variable: (len(branches), *middle, *([reducer.ranks] if reducer.ranks else []), self.neurons)
            for reducer in reducers
            for variable in reducer.variables
        }
        super().__init__(self.sites[0].component, arrays, branches, timesteps)
        self._states: dict[str, tuple[list[Any], int]] = {}

    def _begin(self, pipe: Any, table: pd.DataFrame) -> None:
        self._states = {}

    def _hooks(self, pipe: Any) -> Iterator[RemovableHandle]:
        for site in self.sites:
            yield site.resolve(pipe).register_forward_hook(self._hook(site), with_kwargs=True)

    def _hook(self, site: Site) -> Any:
        def hook(_module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:
            self._add(site, self._current(site), seen(site, args, kwargs, output))

        return hook

    def blank(self) -> dict[str, np.ndarray]:
        """See `Recorder`; also ranks beyond a site's last token row."""
        found = super().blank()
        rows = np.concatenate([np.full(site.width, self.token_rows[site.name]) for site in self.sites])
        for reducer in self.reducers:
            beyond = np.arange(reducer.ranks)[:, None] >= rows
            if beyond.any():
                found |= {name: found.get(name, False) | beyond for name in reducer.variables}
        return found

    def _add(self, site: Site, call: Call, x: torch.Tensor) -> None:
        """Reduce (row, k, n) of one run of a module; a feed-forward may run several times, in chunks of tokens."""
        call.layout.check(x.shape[0])
        old, first = self._states.get(site.name, (None, 0))
        new = [reducer.state(x, first) for reducer in self.reducers]
        if old is not None:
            new = [reducer.merge(*states) for reducer, *states in zip(self.reducers, old, new, strict=True)]
        self._states[site.name] = new, first + x.shape[1]

    def _end(self, call: Call) -> None:
        states, self._states = self._states, {}
        if silent := [site.name for site in self.sites if site.name not in states]:
            raise NeverFired("a recorded site did not run", given=f"{silent[0]}, step {call.step}")
        parts: list[torch.Tensor] = []
        for i, reducer in enumerate(self.reducers):
            finished = [reducer.finish(states[site.name][0][i], states[site.name][1]) for site in self.sites]
            parts += [torch.cat(of_sites, dim=-1).flatten(1) for of_sites in zip(*finished, strict=True)]
        for site in self.sites:
            self._note_rows(site, states[site.name][1])
        self._send(torch.cat(parts, dim=-1), lambda values: self._write(call, values))

    def _write(self, call: Call, values: np.ndarray) -> None:
        start = 0
        for reducer in self.reducers:
            shape = (reducer.ranks, self.neurons) if reducer.ranks else (self.neurons,)
            for variable in reducer.variables:
                stop = start + max(1, reducer.ranks) * self.neurons
                self._place(self._buffers[variable], call, values[:, start:stop].reshape(-1, *shape))
                start = stop

"""The recorder: hooks at sites that reduce what passes and hand over a buffer a unit of samples.

It listens to `probe._generate.generate`, which says before every network call which samples, branches, step and
timestep its rows are; nothing here guesses that.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch

from probe._generate import Call
from probe._reduce import Reducer
from probe._sites import Site
from probe.errors import AmbiguousBatch, NeverFired, WorkbenchError

#: One site's running reductions inside one call: state per reducer (rows n), and the token rows seen.
_States = dict[str, torch.Tensor]


class Recorder:
    """Reduces the activations of ``sites`` (one group of a run, all of one component) into one buffer per reducer.

    - ``timesteps``: expected at the UNet's calls, (t,); None for a component without steps
    - ``branches``: those of the run, in the order of its branch axis
    - ``token_rows``: site name -> rows of one call, known after the first
    """

    def __init__(
        self,
        sites: Sequence[Site],
        reducers: Sequence[Reducer],
        branches: Sequence[str],
        timesteps: np.ndarray | None,
    ) -> None:
        self.sites, self.reducers, self.branches, self.timesteps = list(sites), list(reducers), branches, timesteps
        self.component = self.sites[0].component
        self.token_rows: dict[str, int] = {}
        self._call: Call | None = None
        self._recorded = 0  # (sample, branch, step) handed over
        self._states: dict[str, tuple[_States, int]] = {}
        self._buffers: dict[str, np.ndarray] = {}

    @contextmanager
    def recording(self, pipe: Any, n_samples: int, absent: int = 0) -> Iterator[Mapping[str, np.ndarray]]:
        """Hooks in place for the block; gives the buffers ``reducer -> (s b t n)``, or (s b n) without steps.

        ``absent`` (sample, branch) are known never to run, and stay NaN: SDXL's uncond text without negative prompt.
        The hooks are registered last, so they see what hooks of edits have made of an activation.
        """
        steps = () if self.timesteps is None else (len(self.timesteps),)
        shape = (n_samples, len(self.branches), *steps, sum(site.width for site in self.sites))
        self._buffers = {reducer.name: np.full(shape, np.nan, np.float32) for reducer in self.reducers}
        self._call, self._states, self._recorded = None, {}, 0
        with ExitStack() as hooks:
            for site in self.sites:
                handle = site.resolve(pipe).register_forward_hook(self._hook(site), with_kwargs=True)
                hooks.callback(handle.remove)
            yield self._buffers
            self._finish_call()
        expected = int(np.prod(shape[:-1])) - absent
        if self._recorded != expected:
            given = f"{self._recorded} of {expected} (sample, branch, step)"
            raise NeverFired(f"{self.component} was called less often than the sampler announced", given=given)

    def on_call(self, call: Call) -> None:
        """What `generate` tells before each network call."""
        if call.component == self.component:
            self._finish_call()
            self._call = call

    def _hook(self, site: Site) -> Any:
        def hook(_module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:
            if self._call is None:
                raise WorkbenchError(f"{site.name} ran outside a call of {site.component}")
            x = output if site.io == "output" else (args[0] if args else next(iter(kwargs.values())))
            self._add(site, (x[0] if isinstance(x, tuple) else x).detach())

        return hook

    def _add(self, site: Site, x: torch.Tensor) -> None:
        """Reduce (row, k, n) of one run of a module; a feed-forward may run several times, in chunks of tokens."""
        assert self._call is not None
        self._call.layout.check(x.shape[0])
        new = {reducer.name: reducer.start(x) for reducer in self.reducers}
        rows = x.shape[1]
        if site.name in self._states:
            old, seen = self._states[site.name]
            new = {reducer.name: reducer.merge(old[reducer.name], new[reducer.name]) for reducer in self.reducers}
            rows += seen
        self._states[site.name] = new, rows

    def _finish_call(self) -> None:
        """Move the states of the call that just ended into the buffers, all sites in one copy from the device."""
        call, states = self._call, self._states
        self._call, self._states = None, {}
        if call is None:
            return
        if silent := [site.name for site in self.sites if site.name not in states]:
            raise NeverFired("a recorded site did not run", given=f"{silent[0]}, step {call.step}")
        self._check(call)
        for site in self.sites:
            rows = states[site.name][1]
            if self.token_rows.setdefault(site.name, rows) != rows:
                given = f"{site.name}: {rows}, before {self.token_rows[site.name]}"
                raise WorkbenchError("a site saw another number of token rows than in earlier calls", given=given)
        where = [self.branches.index(branch) for branch in call.layout.branches]
        samples = slice(call.samples.start, call.samples.stop)
        self._recorded += len(call.samples) * len(where)
        for reducer in self.reducers:
            parts = [reducer.finish(states[site.name][0][reducer.name], states[site.name][1]) for site in self.sites]
            values = call.layout.split(torch.cat(parts, dim=-1)).cpu().numpy()  # (b s n)
            for b, value in zip(where, values, strict=True):
                place = (samples, b) if self.timesteps is None else (samples, b, call.step)
                self._buffers[reducer.name][place] = value

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

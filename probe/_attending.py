"""Hooks that take chosen text tokens out of cross-attentions, at chosen timesteps, and leave nothing behind.

What an attention returns is a sum over text tokens of probability times value, so a probability of zero and a value of
zero are the same sum: the values that ``to_v`` returns are hooked, and the attention runs as it always does. Where the
probabilities that are left shall sum to one again, the call gets a mask of minus infinity instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from probe import compat
from probe._branches import Layout
from probe._intervene import Clock
from probe._sites import Site
from probe.errors import AmbiguousBatch, BadInput

#: On an attention module while something is taken out of it: a list of `Off`.
OFF = "_workbench_attention_off"

#: One row of token ids (k,), and the branch it is of -> the positions to take out.
Positions = Callable[[np.ndarray, str], Sequence[int]]


@dataclass(eq=False)
class Off:
    """What is taken out of one attention in its running call: ``rows`` (r k) bool; None outside the window."""

    site: Site
    heads: tuple[int, ...] | None
    rows: Tensor | None = None


@contextmanager
def attending(
    pipe: Any,
    sites: Sequence[Site],
    positions: Positions,
    *,
    heads: tuple[int, ...] | None,
    window: tuple[float, float] | None,
    branch: str | None,
    branches: tuple[str, ...] | None,
    texts: np.ndarray | None,
    renormalise: bool,
) -> Iterator[None]:
    """Tokens out of these attentions for the block.

    Args:
        positions: which tokens of a text.
        heads: only of these; None means all.
        window: UNet calls at timesteps (t_max, t_min), both included; None means all.
        branch: rows of that branch only.
        branches: in the order of the rows, for calls that are not made by ``pipe``.
        texts: token ids (s k) of the cond prompts, for calls whose text is encoded outside the block.
        renormalise: the probabilities that are left sum to one.

    Hooks and marks are gone after the block, however it ends.
    """
    for name in ("unet", "text_encoder", "text_encoder_2"):
        if (component := getattr(pipe, name, None)) is not None:
            compat.refuse_compiled(component, name)
    reader = _Reader(pipe, branches, positions, branch, texts)
    with ExitStack() as hooks:
        for name in ("text_encoder", "text_encoder_2"):
            if texts is None and (encoder := getattr(pipe, name, None)) is not None:
                hooks.callback(encoder.register_forward_pre_hook(reader.text(name), with_kwargs=True).remove)
        hooks.callback(pipe.unet.register_forward_pre_hook(reader.unet, with_kwargs=True).remove)
        for site in sites:
            attention: Any = site.resolve(pipe)
            if getattr(attention, "fused_projections", False):
                fix = "unfuse the projections (pipe.unfuse_qkv_projections())"
                raise BadInput("a fused attention shows no values", given=site.name, fix=fix)
            off = Off(site, heads)
            hooks.enter_context(_marked(attention, off))
            begin = _begin(off, reader, window, renormalise)
            hooks.callback(attention.register_forward_pre_hook(begin, with_kwargs=True).remove)
            if not renormalise:
                hooks.callback(attention.to_v.register_forward_hook(_silencing(off)).remove)
        yield


def silenced(attention: Any, probabilities: Tensor, head: int) -> Tensor:
    """Probabilities (r q k) of one head with those at zero that are taken out of the running call."""
    for off in getattr(attention, OFF, ()):
        if off.rows is not None and (off.heads is None or head in off.heads):
            probabilities = probabilities.masked_fill(off.rows[:, None].to(probabilities.device), 0)
    return probabilities


def _begin(off: Off, reader: _Reader, window: tuple[float, float] | None, renormalise: bool) -> Callable[..., Any]:
    """At the start of an attention's call: which tokens it loses; with ``renormalise`` also the mask that does it."""

    def hook(attention: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        t = reader.timestep
        inside = window is None or (t is not None and window[1] <= t <= window[0])
        off.rows = reader.off if inside and not renormalise else None
        if not inside or not renormalise or reader.off is None:
            return None
        x = args[0] if args else kwargs["hidden_states"]
        if reader.off.all(dim=1).any():
            fix = "renormalise=False, or fewer tokens"
            raise BadInput("no token is left to attend to", given=off.site.name, fix=fix)
        rows, tokens = reader.off.shape
        chosen = torch.zeros(attention.heads, dtype=torch.bool)
        chosen[list(range(attention.heads) if off.heads is None else off.heads)] = True
        gone = (reader.off[:, None] & chosen[:, None]).to(x.device).reshape(rows * attention.heads, 1, tokens)
        mask = torch.zeros(gone.shape, dtype=x.dtype, device=x.device).masked_fill(gone, -torch.inf)
        before = attention.prepare_attention_mask(kwargs.get("attention_mask"), tokens, rows)
        return args, {**kwargs, "attention_mask": mask if before is None else mask + before}

    return hook


def _silencing(off: Off) -> Callable[..., Any]:
    def hook(_module: Any, _args: tuple[Any, ...], value: Tensor) -> Tensor | None:
        """Values (r k n), the units of all heads side by side."""
        if off.rows is None:
            return None
        rows = off.rows.to(value.device)
        if off.heads is None:
            return value.masked_fill(rows[..., None], 0)
        by_head = value.unflatten(-1, (off.site.width, -1))
        chosen = torch.zeros(off.site.width, dtype=torch.bool, device=value.device)
        chosen[list(off.heads)] = True
        return by_head.masked_fill(rows[..., None, None] & chosen[:, None], 0).flatten(-2)

    return hook


@contextmanager
def _marked(attention: Any, off: Off) -> Iterator[None]:
    if not hasattr(attention, OFF):
        setattr(attention, OFF, [])
    getattr(attention, OFF).append(off)
    try:
        yield
    finally:
        getattr(attention, OFF).remove(off)
        if not getattr(attention, OFF):
            delattr(attention, OFF)


class _Reader(Clock):
    """Reads the token ids that the pipeline encodes, and knows for each UNet call which tokens its rows lose."""

    def __init__(
        self,
        pipe: Any,
        branches: tuple[str, ...] | None,
        positions: Positions,
        branch: str | None,
        texts: np.ndarray | None,
    ) -> None:
        super().__init__(pipe, branches, asks=True)
        self.positions, self.branch = positions, branch
        self.ids: dict[tuple[str, str], np.ndarray] = {}  # (component, branch) -> (s k)
        self.given = texts
        self.off: Tensor | None = None  # (rows k) of the running call
        self._made_for: tuple[Layout, Tensor] | None = None

    def text(self, component: str) -> Callable[..., None]:
        """Also keeps the ids of what is encoded."""
        count = super().text(component)

        def tell(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            count(module, args, kwargs)
            if self.texts[component] == 1:  # cond, of a new pipeline call
                self.ids = {key: ids for key, ids in self.ids.items() if key[0] != component}
            (branch,) = self.layouts[component].branches
            ids = args[0] if args else kwargs["input_ids"]
            self.ids[component, branch] = ids.detach().cpu().numpy()
            self._made_for = None

        return tell

    def unet(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Also finds the tokens that the rows of this call lose."""
        super().unet(module, args, kwargs)
        layout = self.layouts["unet"]
        states = args[2] if len(args) > 2 else kwargs["encoder_hidden_states"]
        if self._made_for is not None:
            before, told = self._made_for
            if before == layout and (told is states or torch.equal(told, states)):
                return
            if self.given is None:
                raise _unread(f"a call of {layout.rows} rows with text that was not encoded inside the block")
        self.off, self._made_for = self._rows(layout, states.shape[1]), (layout, states)

    def _rows(self, layout: Layout, tokens: int) -> Tensor:
        off = np.zeros((len(layout.branches), layout.samples, tokens), bool)
        for b, branch in enumerate(layout.branches):
            if self.branch not in (None, branch):
                continue
            ids = self._ids(branch)
            if ids.shape[1] != tokens:
                given = f"{tokens} tokens in the call, {ids.shape[1]} in the text"
                raise AmbiguousBatch("the UNet is told of other tokens than were encoded", given=given)
            if layout.samples % len(ids):
                given = f"{layout.samples} samples of branch {branch}, {len(ids)} texts"
                raise AmbiguousBatch("the samples of a call are no multiple of its texts", given=given)
            images = layout.samples // len(ids)  # several images of a prompt lie side by side
            for row, text in enumerate(ids):
                off[b, row * images : (row + 1) * images, list(self.positions(text, branch))] = True
        return torch.from_numpy(off.reshape(-1, tokens))

    def _ids(self, branch: str) -> np.ndarray:
        if self.given is not None:
            if branch != "cond":
                fix = 'branch="cond"'
                raise BadInput("prompts= are those of the branch cond", given=f"branch {branch}", fix=fix)
            return self.given
        if ("text_encoder", branch) not in self.ids:
            raise _unread(f"no text of branch {branch} was encoded inside the block")
        found = self.ids["text_encoder", branch]
        second = self.ids.get(("text_encoder_2", branch), found)
        for ids, other in zip(found, second, strict=True):
            if list(self.positions(ids, branch)) != list(self.positions(other, branch)):
                raise BadInput("the two text encoders read different prompts", fix="leave prompt_2 out")
        return found


def _unread(given: str) -> BadInput:
    return BadInput(
        "whose tokens these are cannot be known",
        given=given,
        fix="encode prompts inside the pipeline call, or give prompts=",
    )

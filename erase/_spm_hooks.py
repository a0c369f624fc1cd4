"""The family ``spm``: one-dimensional adapters beside Linears and convolutions, opened by the prompt (`erase.gates`).

Values, c concepts along the first axis of each:

- ``down.<i>`` (c r ...) and ``up.<i>`` (c o r): the pair of the i-th module; ... is its input, with the kernel of a
  convolution. ``alpha`` (c modules): added is alpha / r times
- ``strength`` (c): the multiplier

Spec: ``each``: the names of every concept; ``similarity``: ``"flat"`` compares whole embeddings of texts as the release
does, ``"centred"`` first takes the empty text's away (ours); ``power``: 1, or 2 as in the release.

How far a prompt opens an adapter is decided once for each text that the UNet is told of. The tokens of a prompt are
those that the text encoder was given when it said that text; of a text from elsewhere only its embedding counts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from erase import gates
from erase._changes import EACH, Hook
from probe import guidance, tokens
from probe.errors import BadInput, WorkbenchError

#: Calls of the text encoder whose tokens are remembered: a pipeline's two, and those of another that came between.
CALLS = 4


class Transport:
    """Facilitated transport: what the prompts of the running UNet call open, (s c)."""

    def __init__(self, pipe: Any, hook: Hook) -> None:
        from torch.utils.weak import WeakTensorKeyDictionary

        names: list[list[str]] = [list(map(str, one)) for one in hook.spec[EACH]]
        flat = [name for one in names for name in one]
        self._owner = torch.tensor([n for n, one in enumerate(names) for _ in one])
        with torch.no_grad():
            self._centre = guidance.condition(pipe, [""], guidance=1.0).text.float()
            self._concepts = guidance.condition(pipe, flat, guidance=1.0).text.float()
        self._centred, self._power = hook.spec["similarity"] == "centred", int(hook.spec["power"])
        self._special = set(pipe.tokenizer.all_special_ids)
        self._wanted = [self._words(ids) for ids in tokens.encode(pipe.tokenizer, flat).tolist()]
        self._strength = hook.values["strength"]
        self._heard: list[tuple[list[list[int]], list[Tensor]]] = []
        self._said: Any = WeakTensorKeyDictionary()
        self._now: Tensor | None = None

    @property
    def now(self) -> Tensor:
        """gamma of the running call (s c)."""
        if self._now is None:
            raise WorkbenchError("an adapter ran outside a call of the UNet", fix="call the UNet or the pipeline")
        return self._now

    def encoder(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        """A forward hook of the text encoder: which tokens were said, and as what."""
        ids = args[0] if args else kwargs["input_ids"]
        hidden = getattr(output, "hidden_states", None)
        states = [output[0], *([hidden[-2]] if hidden is not None else [])]
        same = [state.detach() for state in states if state.ndim == 3]
        self._heard = [*self._heard, (ids.tolist(), same)][-CALLS:]

    def unet(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A forward pre-hook of the UNet: what its text opens."""
        text = args[2] if len(args) > 2 else kwargs["encoder_hidden_states"]
        if text.is_inference() or (torch.is_grad_enabled() and text.requires_grad):
            self._now = self._opened(text)
            return
        known = self._said.get(text)
        if known is None or known[0] != text._version:
            with torch.no_grad():
                known = self._said[text] = (text._version, self._opened(text))
        self._now = known[1]

    def _opened(self, text: Tensor) -> Tensor:
        """gamma^power times the strength of each concept: the largest over its names."""
        with torch.autocast(text.device.type, enabled=False):
            said, concepts, centre = text.float(), self._concepts.to(text.device), self._centre.to(text.device)
            if self._centred:
                said, concepts = said - centre, concepts - centre
            shared = torch.tensor(self._shared(text), device=text.device)
            each = gates.transport(said.flatten(1), concepts.flatten(1), shared)
            owners = self._owner.to(text.device).expand(len(each), -1)
            found = each.new_zeros(len(each), len(self._strength)).scatter_reduce(1, owners, each, "amax")
            return found**self._power * self._strength.to(text.device)

    def _shared(self, text: Tensor) -> list[list[float]]:
        """The share of each name's tokens that are in each row's prompt; 0 where the prompt is not known."""
        rows = []
        for row in text.detach():
            words = self._words(self._ids(row))
            rows.append([len(words & name) / max(1, len(name)) for name in self._wanted])
        return rows

    def _ids(self, row: Tensor) -> list[int]:
        """The tokens of one row (k d) of the UNet's text: SDXL puts a second encoder's beside the first's."""
        for ids, states in reversed(self._heard):
            for state in states:
                if state.shape[1] != row.shape[0] or state.shape[2] > row.shape[1]:
                    continue
                same = (state.to(row) == row[:, : state.shape[2]]).all((1, 2))
                if same.any():
                    return ids[int(same.float().argmax())]
        return []

    def _words(self, ids: Sequence[int]) -> set[int]:
        return set(ids) - self._special


class Adapters:
    """The pairs of all concepts at each module, in whatever dtype and on whatever device they are asked for."""

    def __init__(self, hook: Hook) -> None:
        self._hook = hook
        self._known: dict[tuple[int, torch.dtype, torch.device], tuple[Tensor, Tensor]] = {}
        self.rank = hook.values["down.0"].shape[1]

    def pair(self, i: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """(c*r ...) and (o c*r) of the i-th module, alpha / r included."""
        key = i, like.dtype, like.device
        if key not in self._known:
            down, up = self._hook.values[f"down.{i}"], self._hook.values[f"up.{i}"]
            scale = self._hook.values["alpha"][:, i] / self.rank
            both = down.flatten(0, 1), (up * scale[:, None, None]).movedim(0, 1).flatten(1)
            self._known[key] = both[0].to(like), both[1].to(like)
        return self._known[key]


def adapted(module: nn.Module, x: Tensor, down: Tensor, up: Tensor, opened: Tensor | None) -> Tensor:
    """up (opened * (down x)): what adapters (n ...), (o n) add to a module's output; ``opened`` (s n), None for 1."""
    if isinstance(module, nn.Conv2d):
        hidden = functional.conv2d(x, down, None, module.stride, module.padding, module.dilation)
        hidden = hidden if opened is None else hidden * opened[:, :, None, None].to(hidden)
        return functional.conv2d(hidden, up[:, :, None, None])
    hidden = functional.linear(x, down)
    if opened is not None:
        hidden = hidden * opened.reshape(len(opened), *[1] * (hidden.ndim - 2), -1).to(hidden)
    return functional.linear(hidden, up)


class _Spm:
    def attach(self, pipe: Any, hook: Hook, modules: Sequence[nn.Module]) -> list[Any]:
        """Hooks on the UNet and the text encoder that read the prompt, and one on each module."""
        if getattr(pipe, "text_encoder", None) is None:
            raise BadInput(
                "adapters need the text encoder, to see what a prompt calls for", fix="load the whole pipeline"
            )
        transport, adapters = Transport(pipe, hook), Adapters(hook)
        handles = [
            pipe.text_encoder.register_forward_hook(transport.encoder, prepend=True, with_kwargs=True),
            pipe.unet.register_forward_pre_hook(transport.unet, prepend=True, with_kwargs=True),
        ]
        return [*handles, *(m.register_forward_hook(_adding(transport, adapters, i), prepend=True)
                            for i, m in enumerate(modules))]  # fmt: skip


def _adding(transport: Transport, adapters: Adapters, i: int) -> Callable[..., Tensor]:
    def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        opened = transport.now.repeat_interleave(adapters.rank, 1)
        return output + adapted(module, args[0], *adapters.pair(i, args[0]), opened).to(output.dtype)

    return hook


FAMILY = _Spm()

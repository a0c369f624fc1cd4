"""The family ``resag``: residual attention gates on keys and values of cross-attentions (`erase.gates`).

Values, c concepts along the first axis of each:

- ``query``, ``key`` (c d g): U1 and U2; ``gate`` (c d): v. One gate for all modules
- ``down.<i>`` (c d r), ``up.<i>`` (c r o): the pair of the i-th module; ``alpha`` (c modules): added is alpha / r times
- ``strength`` (c): the multiplier m; ``threshold`` (c): least openness that counts, 0 for none

Concepts compete for every token, or with ``{"together": "sum"}`` in the spec they add up.

What is added depends on the text alone, so it is computed once for each text a UNet is told of, not once a step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from erase import gates
from erase._changes import Hook
from probe.errors import WrongModel


class Gates:
    """The merged gates of a component, on whatever device they are asked from, and what they said of each text."""

    def __init__(self, hook: Hook) -> None:
        from torch.utils.weak import WeakTensorKeyDictionary

        self._values = {torch.device("cpu"): {name: value.float() for name, value in hook.values.items()}}
        # text -> its version and {module: what is added}: gone with the text
        self._said: Any = WeakTensorKeyDictionary()

    @classmethod
    def of(cls, hook: Hook) -> list[Gates]:
        """All concepts as one, or one of each where they add up."""
        if hook.spec.get("together") != "sum":
            return [cls(hook)]
        parts = [
            {name: value[n : n + 1] for name, value in hook.values.items()} for n in range(len(hook.values["gate"]))
        ]
        return [cls(Hook(hook.module, hook.family, hook.touched, values)) for values in parts]

    def added(self, text: Tensor, module: int, dtype: torch.dtype) -> Tensor:
        """What the ``module``-th projection gets at each token of ``text`` (s k d): (s k o), computed in float32."""
        with torch.autocast(text.device.type, enabled=False):
            if text.is_inference() or (torch.is_grad_enabled() and text.requires_grad):
                # no version to tell a change by; or a graph of which a backward pass would leave nothing
                return self.correction(self.opened(text), module).to(dtype)
            known = self._said.get(text)
            if known is None or known[0] != text._version:
                with torch.no_grad():
                    known = self._said[text] = (text._version, self.opened(text), {})
            _, opened, said = known
            if (module, dtype) not in said:
                with torch.no_grad():
                    said[module, dtype] = self.correction(opened, module).to(dtype)
            found: Tensor = said[module, dtype]
        return found

    def opened(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """F, times the winner's strength, and the winner at each token."""
        v = self._on(text.device)
        features, winner = gates.gated(text.float(), v["query"], v["key"], v["gate"], v["threshold"])
        return features * v["strength"][winner][..., None], winner

    def correction(self, opened: tuple[Tensor, Tensor], module: int) -> Tensor:
        """What is added to the ``module``-th projection where the gates are `opened` so."""
        features, winner = opened
        v = self._on(features.device)
        up = v[f"up.{module}"]
        scale = v["alpha"][:, module] / up.shape[1]
        return gates.correction(features, winner, v[f"down.{module}"], up * scale[:, None, None])

    def _on(self, device: torch.device) -> dict[str, Tensor]:
        if device not in self._values:
            self._values[device] = {name: value.to(device) for name, value in self._values[torch.device("cpu")].items()}
        return self._values[device]


class _ResAG:
    def attach(self, _pipe: Any, hook: Hook, modules: Sequence[nn.Module]) -> list[Any]:
        """One forward hook on each projection."""
        width = hook.values["gate"].shape[1]
        for param, module in zip(hook.touched, modules, strict=True):
            if (found := getattr(module, "in_features", None)) != width:
                raise WrongModel("a gate was made for a text encoder of another width", given=f"{param}: {found}",
                                 expected=width)  # fmt: skip
        return [
            module.register_forward_hook(_adding(of_all, i), prepend=True)
            for of_all in reversed(Gates.of(hook))
            for i, module in enumerate(modules)
        ]


def _adding(of_all: Gates, i: int) -> Callable[..., Tensor]:
    def hook(_module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        return output + of_all.added(args[0], i, output.dtype)

    return hook


FAMILY = _ResAG()

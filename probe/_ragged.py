"""Recorders of what is not one number a neuron: maps of neurons, attention probabilities, keys and values, latents."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Float32
from torch import Tensor

from probe._announce import Call, Step
from probe._attending import silenced
from probe._recorder import Recorder, seen
from probe._sites import Site
from probe.errors import BadInput, NeverFired
from probe.tokens import spans

if TYPE_CHECKING:
    import pandas as pd
    from torch.utils.hooks import RemovableHandle

Branches = Sequence[str]


class MapRecorder(Recorder):
    """Keeps units of one site at every token row, under ``name``: (s b t n y x), or (s b n k) in a text encoder.

    ``units`` None keeps all; ``grid`` are the sizes behind the neuron axis, whose product is the number of token rows.
    """

    def __init__(
        self,
        name: str,
        site: Site,
        units: np.ndarray | None,
        grid: tuple[int, ...],
        branches: Branches,
        timesteps: np.ndarray | None,
    ) -> None:
        self.name, self.site, self.units, self.grid = name, site, units, grid
        self.rows, self.first = int(np.prod(grid)), 0
        middle = () if timesteps is None else (len(timesteps),)
        width = site.width if units is None else len(units)
        super().__init__(site.component, {name: (len(branches), *middle, width, *grid)}, branches, timesteps)

    def _begin(self, pipe: Any, table: pd.DataFrame) -> None:
        self.first, whole = 0, self._buffers[self.name]
        self._flat = whole.reshape(*whole.shape[: whole.ndim - len(self.grid)], self.rows)

    def _hooks(self, pipe: Any) -> Iterator[RemovableHandle]:
        yield self.site.resolve(pipe).register_forward_hook(self._hook, with_kwargs=True)

    def _hook(self, _module: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:
        call, x = self._current(self.site), seen(self.site, args, kwargs, output)
        call.layout.check(x.shape[0])
        if self.units is not None:
            x = x.index_select(2, torch.as_tensor(self.units, device=x.device))
        rows = slice(self.first, self.first + x.shape[1])  # a feed-forward may run several times, in chunks of tokens
        self.first = rows.stop
        self._send(x.float().transpose(1, 2), lambda values: self._place(self._flat, call, values, slice(None), rows))

    def _end(self, call: Call) -> None:
        rows, self.first = self.first, 0
        if rows != self.rows:
            given = f"{self.site.name}, step {call.step}: {rows} token rows"
            raise NeverFired(
                "a mapped site ran otherwise than expected", given=given, expected=f"{self.rows} token rows"
            )
        self._note_rows(self.site, rows)


def head_probabilities(
    query: Float[Tensor, "r q d"], key: Float[Tensor, "r k d"], scale: float, mask: Tensor | None = None
) -> Float32[Tensor, "r q k"]:
    """softmax_k(scale q.k + mask) of one head, in float32 whatever the model computes in."""
    scores = torch.bmm(query.float() * scale, key.float().transpose(1, 2))
    return (scores if mask is None else scores + mask.float()).softmax(dim=-1)


class ProbabilityRecorder(Recorder):
    """Keeps what chosen heads of one cross-attention pay to chosen text tokens: ``prob`` (s b t h y x k), float32.

    Nothing is swapped: the attention runs as it always does, on SDPA, and its queries and keys are seen on their way.
    From these the probabilities are computed once more, one head at a time. A token is a position of the encoded
    prompt, or a word: the sum over all its positions in the sample's own prompt, NaN in the uncond branch and for
    samples without the word.
    """

    def __init__(
        self,
        site: Site,
        heads: Sequence[int],
        tokens: Sequence[int | str],
        grid: tuple[int, int],
        branches: Branches,
        timesteps: np.ndarray,
    ) -> None:
        self.site, self.heads, self.tokens, self.grid = site, list(heads), list(tokens), grid
        sizes = (len(branches), len(timesteps), len(self.heads), *grid, len(self.tokens))
        super().__init__(site.component, {"prob": sizes}, branches, timesteps)

    def _begin(self, pipe: Any, table: pd.DataFrame) -> None:
        self._passing: dict[str, Tensor] = {}
        self._attended = False
        words = [token for token in self.tokens if isinstance(token, str)]
        # (s, token, k): which positions of a sample's prompt a token sums over; none: the word is not there
        self._weights = np.zeros((len(table), len(self.tokens), pipe.tokenizer.model_max_length), np.float32)
        for j, token in enumerate(self.tokens):
            if not isinstance(token, str):
                self._weights[:, j, token] = 1
        found = {
            (prompt, word): spans(pipe.tokenizer, prompt, word) for prompt in set(table["prompt"]) for word in words
        }
        for s, prompt in enumerate(table["prompt"]):
            for word in words:
                for span in found[prompt, word]:
                    self._weights[s, self.tokens.index(word), span.start : span.stop] = 1

    def _hooks(self, pipe: Any) -> Iterator[RemovableHandle]:
        attention: Any = self.site.resolve(pipe)
        if getattr(attention, "fused_projections", False):
            fix = "unfuse the projections (pipe.unfuse_qkv_projections())"
            raise BadInput("a fused attention shows no keys", given=self.site.name, fix=fix)
        for name in ("to_q", "to_k"):
            yield getattr(attention, name).register_forward_hook(
                lambda _module, _args, output, name=name: self._passing.__setitem__(name, output.detach())
            )
        yield attention.register_forward_hook(self._hook, with_kwargs=True)

    def _hook(self, attention: Any, _args: tuple[Any, ...], kwargs: Mapping[str, Any], _output: Any) -> None:
        call = self._current(self.site)
        query, key = (self._split(attention, self._passing.pop(name), name) for name in ("to_q", "to_k"))
        call.layout.check(query.shape[0])
        mask = attention.prepare_attention_mask(kwargs.get("attention_mask"), key.shape[2], key.shape[0])
        chosen = self._chosen(call, query.device)
        y, x = self.grid
        for at, head in enumerate(self.heads):
            own_mask = None if mask is None else mask.reshape(key.shape[0], attention.heads, -1, key.shape[2])[:, head]
            every = silenced(
                attention, head_probabilities(query[:, head], key[:, head], attention.scale, own_mask), head
            )
            if chosen is None:
                kept = every[..., torch.as_tensor(self.tokens, device=every.device)]
            else:
                weights, absent = chosen
                kept = torch.bmm(every, weights).masked_fill(absent, torch.nan)
            self._send(kept.reshape(-1, 1, y, x, len(self.tokens)), partial(self._write_head, call, at))
        self._attended = True

    def _write_head(self, call: Call, at: int, values: np.ndarray) -> None:
        self._place(self._buffers["prob"], call, values, slice(at, at + 1))

    @staticmethod
    def _split(attention: Any, projected: Tensor, name: str) -> Float[Tensor, "r h k d"]:
        rows, _, width = projected.shape
        heads = projected.view(rows, -1, attention.heads, width // attention.heads).transpose(1, 2)
        norm = attention.norm_q if name == "to_q" else attention.norm_k
        return heads if norm is None else norm(heads)

    def _chosen(self, call: Call, device: Any) -> tuple[Tensor, Tensor] | None:
        """Weights (r k token) of a call's rows and where nothing is meant (r 1 token); None if tokens are positions."""
        if not any(isinstance(token, str) for token in self.tokens):
            return None
        samples = self._weights[call.samples.start : call.samples.stop]
        is_word = np.array([isinstance(token, str) for token in self.tokens])
        rows = np.concatenate(
            [np.where(is_word[:, None], samples * (branch == "cond"), samples) for branch in call.layout.branches]
        )
        weights = torch.as_tensor(rows, device=device).transpose(1, 2)
        return weights, weights.sum(1, keepdim=True) == 0

    def blank(self) -> dict[str, np.ndarray]:
        """Words in the uncond branch and in prompts without them."""
        is_word = np.array([isinstance(token, str) for token in self.tokens])
        if not is_word.any():
            return {}
        nowhere = self._weights.sum(-1) == 0  # (s token)
        mask = np.stack([is_word & (nowhere | (branch != "cond")) for branch in self.branches], axis=1)
        return {"prob": mask[:, :, None, None, None, None]}

    def _end(self, call: Call) -> None:
        if not self._attended:
            raise NeverFired("a recorded site did not run", given=f"{self.site.name}, step {call.step}")
        self._attended = False
        self._note_rows(self.site, self.grid[0] * self.grid[1])


class ProjectionRecorder(Recorder):
    """Keeps the keys or values that cross-attentions make of the prompt, once a run: ``name`` (s b k n).

    They depend on the prompt alone and are the same at every step: those of the first are kept.
    """

    def __init__(self, name: str, sites: Sequence[Site], tokens: int, branches: Branches) -> None:
        self.name, self.sites, self.tokens = name, list(sites), tokens
        sizes = (len(branches), tokens, sum(site.width for site in sites))
        super().__init__(self.sites[0].component, {name: sizes}, branches, None)

    def on_call(self, call: Call) -> None:
        """Calls after the first change nothing."""
        if call.component == self.component:
            self._finish_call()
            self._call = call if call.step == 0 else None

    def _begin(self, pipe: Any, table: pd.DataFrame) -> None:
        self._parts: dict[str, Tensor] = {}

    def _hooks(self, pipe: Any) -> Iterator[RemovableHandle]:
        for site in self.sites:
            yield site.resolve(pipe).register_forward_hook(self._hook(site))

    def _hook(self, site: Site) -> Any:
        def hook(_module: Any, _args: tuple[Any, ...], output: Any) -> None:
            if self._call is not None:
                self._parts[site.name] = output.detach().float()

        return hook

    def _end(self, call: Call) -> None:
        parts, self._parts = self._parts, {}
        if silent := [site.name for site in self.sites if site.name not in parts]:
            raise NeverFired("a recorded site did not run", given=f"{silent[0]}, step {call.step}")
        for site in self.sites:
            self._note_rows(site, parts[site.name].shape[1])
        values = torch.cat([parts[site.name] for site in self.sites], dim=-1)
        self._send(values, lambda values: self._place(self._buffers[self.name], call, values))


class LatentRecorder:
    """Keeps what passes between the calls: ``latents`` and ``guided`` (s t c y x), see `probe._announce.Step`."""

    def __init__(self, samples: int, sizes: tuple[int, ...]) -> None:
        self.buffers = {name: np.full((samples, *sizes), np.nan, np.float32) for name in ("latents", "guided")}

    def on_step(self, step: Step) -> None:
        """What is told after each step of the sampler."""
        rows = slice(step.samples.start, step.samples.stop)
        self.buffers["latents"][rows, step.step] = step.latents.float().cpu().numpy()
        self.buffers["guided"][rows, step.step] = step.guided.float().cpu().numpy()

"""Keys and values of all cross-attentions of a pipeline: their weights, and how much each counts in a loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from erase import gate_losses
from erase._places import locate
from probe import guidance, sites

#: Texts that are encoded at once.
BATCH = 64


@dataclass(frozen=True, eq=False)
class Projections:
    """What reads the text: ``params`` (p), their weights W_P (o d) in float32, ``shares`` w_P (p), sum_P w_P W_P^T W_P.

    Losses are means over layers, keys and values, tokens and channels: w_P = c_P / (p T o_P).
    """

    params: tuple[str, ...]
    weights: tuple[Tensor, ...]
    shares: Tensor
    gram: Tensor

    @property
    def width(self) -> int:
        """d, the width of the text's embedding."""
        return self.weights[0].shape[1]

    @property
    def outputs(self) -> list[int]:
        """o, the channels of each projection."""
        return [weight.shape[0] for weight in self.weights]


def projections_of(pipe: Any) -> Projections:
    """The projections of ``pipe`` in order of execution, with its weights as they are, edits in force included."""
    params = tuple(f"unet.{site.module}.weight" for site in sites(pipe, ["xattn.k", "xattn.v"]))
    weights = tuple(_weight(pipe, param) for param in params)
    tokens = pipe.tokenizer.model_max_length
    counts: dict[str, tuple[float, float]] = {}
    shares = []
    for param, weight in zip(params, weights, strict=True):
        attention = param.removesuffix(".weight").rpartition(".")[0]
        if attention not in counts:
            q, v, out = (_weight(pipe, f"{attention}.{leaf}.weight") for leaf in ("to_q", "to_v", "to_out.0"))
            counts[attention] = gate_losses.layer_weights(q, v, out, tokens)
        keys, values = counts[attention]
        count = keys if param.endswith(".to_k.weight") else values
        shares.append(count / (len(params) * tokens * weight.shape[0]))
    weighted = torch.tensor(shares, device=weights[0].device)
    return Projections(params, weights, weighted, gate_losses.weighted_gram(weights, weighted))


def encoded(pipe: Any, texts: Sequence[str]) -> Tensor:
    """What the projections are told of texts (s k d), float32, by the pipeline's own encoding."""
    found = []
    with torch.no_grad():
        for start in range(0, len(texts), BATCH):
            part = list(texts[start : start + BATCH])
            found.append(guidance.condition(pipe, part, guidance=1.0).text.float())
    return torch.cat(found)


def _weight(pipe: Any, param: str) -> Tensor:
    return locate(pipe, param).tensor.detach().float()

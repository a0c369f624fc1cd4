"""Gates with random numbers, as edits and as what the slow twin reads."""

from __future__ import annotations

from typing import Any

import torch

import probe
from erase._changes import Hook
from erase._edit import make_edit


def projections(pipe: Any) -> list[str]:
    """Weights of keys and values of all cross-attentions, in order of execution."""
    sites = probe.sites(pipe, ["xattn.k", "xattn.v"])
    return [f"unet.{site.module}.weight" for site in sites]


def hook(pipe: Any, *, concepts: int = 1, rank: int = 2, gate_rank: int = 3, seed: int = 0, scale: float = 0.3) -> Hook:
    """A merged hook of so many concepts."""
    params, generator = projections(pipe), torch.Generator().manual_seed(seed)
    d = pipe.unet.config.cross_attention_dim

    def numbers(*shape: int) -> torch.Tensor:
        return scale * torch.randn(concepts, *shape, generator=generator)

    values = {"query": numbers(d, gate_rank), "key": numbers(d, gate_rank), "gate": numbers(d)}
    for i, param in enumerate(params):
        width = pipe.unet.get_submodule(param.removeprefix("unet.").removesuffix(".weight")).out_features
        values |= {f"down.{i}": numbers(d, rank), f"up.{i}": numbers(rank, width)}
    values["alpha"] = torch.rand(concepts, len(params), generator=generator)
    values |= {"strength": torch.ones(concepts), "threshold": torch.zeros(concepts)}
    return Hook("unet", "resag", tuple(params), values)


def gate(pipe: Any, name: str = "gate", **options: Any) -> Any:
    return make_edit(pipe, [hook(pipe, **options)], name=name, method="test", options={})


def as_concepts(*hooks: Hook) -> list[dict[str, Any]]:
    """For `tests.oracles.gates.residual`."""
    found = []
    for one in hooks:
        for n in range(len(one.values["gate"])):
            value = {name: tensor[n].double().numpy() for name, tensor in one.values.items()}
            pairs = {part: [value[f"{part}.{i}"] for i in range(len(one.touched))] for part in ("down", "up")}
            found.append({**value, **pairs})
    return found

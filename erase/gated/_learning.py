"""One gate learns: stages of erasing, each but the last followed by adversaries that bring the concept back.

Nothing but embeddings of texts is needed, and no pass of the UNet ("Concept Pinpoint Eraser", arXiv 2506.22806).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from erase import gate_losses, gates
from erase.gated._projections import Projections
from erase.gated._settings import Settings, cosine
from erase.prune._layers import stream
from probe.errors import WorkbenchError

#: Of the adversaries' rate, in iterations; the eraser's is an option.
WARM_UP = 5

Values = dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class Lesson:
    """Texts as the projections are told of them, each (n k d): of the concept, of its counterpart, of anchors."""

    name: str
    target: Tensor
    neutral: Tensor
    pool: Tensor
    empty: Tensor


def initial(projections: Projections, settings: Settings, name: str) -> Values:
    """A gate that changes nothing: U tiny, v = 0 (every gate half open), D uniform, G = 0.

    ``query``, ``key`` (d g), ``gate`` (d), ``down`` (p d r), ``up.<i>`` (r o).
    """
    drawn, d = stream(settings.seed, f"{name}: gate"), projections.width
    device = projections.shares.device

    def uniform(*shape: int, bound: float) -> Tensor:
        return (bound * (2 * torch.rand(shape, generator=drawn) - 1)).to(device)

    factors, values = 1 / math.sqrt(d * settings.gate_rank) / d**2, {}
    if settings.gate != "none":
        values = {part: uniform(d, settings.gate_rank, bound=factors) for part in ("query", "key")}
        values["gate"] = torch.zeros(d, device=device)
    count, rank = len(projections.params), settings.rank
    values["down"] = uniform(count, d, rank, bound=1 / math.sqrt(d * rank))
    return values | {f"up.{i}": torch.zeros(rank, o, device=device) for i, o in enumerate(projections.outputs)}


def features(values: Mapping[str, Tensor], texts: Tensor, settings: Settings) -> Tensor:
    """alpha / r F of texts (s k d); without a gate F is the text itself."""
    if settings.gate == "none":
        return settings.scale * texts
    key = values["query"] if settings.key_mode == "tied" else values["key"]
    z = gates.mixed(texts, values["query"], key)
    return settings.scale * gates.openness(z, values["gate"])[..., None] * z


def losses(values: Values, projections: Projections, texts: Tensor, wanted: Tensor, settings: Settings) -> Tensor:
    """What is missed at each text (s,): see `erase.gate_losses`."""
    up = [values[f"up.{i}"] for i in range(len(projections.params))]
    pulled, across = gate_losses.contracted(projections.weights, up)
    found = features(values, texts, settings)
    return gate_losses.missed(wanted, found, values["down"], pulled, across, projections.shares, projections.gram)


def erase_stage(
    values: Values,
    adversaries: Tensor,
    lesson: Lesson,
    projections: Projections,
    settings: Settings,
    stage: int,
    advance: Callable[[int], object],
) -> dict[str, float]:
    """Trains ``values`` in place against ``adversaries`` (m k d); the last terms of the loss."""
    iterations, lr, cycles = settings.erasing(stage)
    drawn = stream(settings.seed, f"{lesson.name}: stage {stage}")
    trained = [v for name, v in values.items() if not _fixed(name, settings)]
    optimiser = torch.optim.AdamW([v.requires_grad_() for v in trained], lr=lr)
    m, terms = len(adversaries), {}
    for iteration in range(iterations):
        _set_rate(optimiser, lr * cosine(iteration, iterations, warm_up=settings.warm_up, cycles=cycles))
        one = int(torch.randint(len(lesson.target), (1,), generator=drawn))
        target = lesson.target[one : one + 1]
        wanted = (1 + settings.eta) * (lesson.neutral[one : one + 1] - target)
        texts, aims = [target, target + adversaries], [wanted, wanted - adversaries]
        if settings.anchor_weight:
            kept = [lesson.empty]
            if len(lesson.pool):
                kept.append(gate_losses.anchors(lesson.pool, settings.anchors, drawn, noise=settings.noise,
                                                mix=settings.mix))  # fmt: skip
            texts, aims = [*texts, *kept], [*aims, *map(torch.zeros_like, kept)]
        each = losses(values, projections, torch.cat(texts), torch.cat(aims), settings)
        parts = {"erase": each[0]}
        if m:
            parts["attacked"] = settings.adversary_weight * each[1 : 1 + m].mean()
        if settings.anchor_weight:
            parts["anchors"] = settings.anchor_weight * each[1 + m :].mean()
        total = torch.stack(list(parts.values())).sum()
        if iteration == iterations - 1 or not bool(total.isfinite()):
            terms = {name: float(part.detach()) for name, part in parts.items()}
            _check(terms, lesson.name, stage, iteration)
        optimiser.zero_grad(set_to_none=True)
        total.backward()
        optimiser.step()
        advance(1)
    for value in values.values():
        value.requires_grad_(False)
        value.grad = None
    return terms


def attack_stage(
    values: Values,
    lesson: Lesson,
    projections: Projections,
    settings: Settings,
    stage: int,
    advance: Callable[[int], object],
) -> tuple[Tensor, dict[str, float]]:
    """New adversaries (m k d) that bring back what the gate took, added to the concept's texts; and their loss.

    They have no bound on their size.
    """
    drawn = stream(settings.seed, f"{lesson.name}: adversaries {stage}")
    k, d = lesson.target.shape[1:]
    bound = 1 / math.sqrt(k * d) / d**2
    start = bound * (2 * torch.rand((settings.adversaries, k, d), generator=drawn) - 1)
    deltas = start.to(lesson.target.device).requires_grad_()
    optimiser = torch.optim.AdamW([deltas], lr=settings.adversary_lr)
    up = [values[f"up.{i}"] for i in range(len(projections.params))]
    pulled, across = gate_losses.contracted(projections.weights, up)  # the gate stands still
    iterations, loss = settings.attacking(stage), torch.zeros(())
    for iteration in range(iterations):
        _set_rate(optimiser, settings.adversary_lr * cosine(iteration, iterations, warm_up=WARM_UP, cycles=1))
        one = int(torch.randint(len(lesson.target), (1,), generator=drawn))
        found = features(values, lesson.target[one : one + 1] + deltas, settings)
        each = gate_losses.missed(-deltas, found, values["down"], pulled, across, projections.shares, projections.gram)
        loss = each.mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        advance(1)
    terms = {"adversary": float(loss.detach())}
    _check(terms, lesson.name, stage, iterations)
    return deltas.detach(), terms


def measured(values: Values, lesson: Lesson, projections: Projections, settings: Settings) -> dict[str, float]:
    """What a gate does to its texts, as shares of what erasing asks for.

    - ``reached``: 1 - missed / asked, over all pairs; 1 is the goal itself, 0 no change
    - ``kept``: the squared change of an anchor over that asked of a target, means over all; 0 is no change
    - ``open``, ``open_kept``: mean openness of a learned gate at target texts and at anchors
    """
    with torch.no_grad():
        wanted = (1 + settings.eta) * (lesson.neutral - lesson.target)
        asked = (((wanted @ projections.gram) * wanted).sum((1, 2))).mean()
        missed = _batched(values, projections, lesson.target, wanted, settings).mean()
        kept = torch.cat([lesson.empty, lesson.pool])
        moved = _batched(values, projections, kept, torch.zeros_like(kept), settings).mean()
        found = {"reached": float(1 - missed / asked), "kept": float(moved / asked)}
        if settings.gate == "learned":
            found |= {"open": _opened(values, lesson.target, settings), "open_kept": _opened(values, kept, settings)}
        return found


def _opened(values: Values, texts: Tensor, settings: Settings) -> float:
    key = values["query"] if settings.key_mode == "tied" else values["key"]
    found = [gates.openness(gates.mixed(t, values["query"], key), values["gate"]) for t in texts.split(64)]
    return float(torch.cat(found).mean())


def _batched(values: Values, projections: Projections, texts: Tensor, wanted: Tensor, settings: Settings) -> Tensor:
    parts = zip(texts.split(64), wanted.split(64), strict=True)
    return torch.cat([losses(values, projections, text, aim, settings) for text, aim in parts])


def _fixed(name: str, settings: Settings) -> bool:
    """What is not trained: the key of a tied gate, the vector of an open one."""
    return (name == "key" and settings.key_mode == "tied") or (name == "gate" and settings.gate == "open")


def _set_rate(optimiser: torch.optim.Optimizer, rate: float) -> None:
    for group in optimiser.param_groups:
        group["lr"] = rate


def _check(terms: Mapping[str, float], name: str, stage: int, iteration: int) -> None:
    if not all(map(math.isfinite, terms.values())):
        given = f"{name}, stage {stage}, iteration {iteration}: " + ", ".join(f"{k} {v:.4g}" for k, v in terms.items())
        raise WorkbenchError("the loss is not finite", given=given, fix="a smaller lr, or a smaller anchor_weight")

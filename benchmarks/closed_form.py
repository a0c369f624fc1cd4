"""What closed-form erasing costs: every row of its table in `benchmarks/README.md`, measured and written there.

    python benchmarks/closed_form.py [row ...]      # all rows by default; --list names them

Both sides of a ratio run in one process, in turn, as in `rows.py`. Rows are kept in
`benchmarks/results/closed_form.csv`; a row that is measured again replaces the old one. Matrices have the shapes of
SD 1.x and random numbers.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rows import HERE, Rows, in_turn, ratio, registering, run_rows, sd15
from torch import Tensor

import erase
from erase import updates
from erase.closed_form._points import Draws, SteeringPoints, steering_points
from erase.closed_form._texts import Pair
from erase.closed_form._trce_trajectory import steering_loss
from erase.gram import System, outer, ridged
from probe.testing import tiny_pipeline

ROWS: Rows = {}
row = registering(ROWS)
OUTPUTS = (*[320] * 2, *[640] * 2, *[1280] * 2, 1280, *[1280] * 3, *[640] * 3, *[320] * 3)  # of 16 cross-attentions
WIDTH, PAIRS, TOKENS, PROMPTS = 768, 300, 77, 260  # 260 prompts are 20,020 preserved rows
RIDGE, KEEP = 0.5, 0.1


def problem() -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
    """32 projections, erased rows, their targets, preserved rows by prompt: float32, as encoders give them."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    weights = [random(n, WIDTH) / WIDTH**0.5 for n in OUTPUTS for _ in "kv"]
    return weights, random(PAIRS, WIDTH), random(PAIRS, WIDTH), random(PROMPTS, TOKENS, WIDTH)


def ours(weights: list[Tensor], sources: Tensor, targets: Tensor, kept: Tensor) -> list[Tensor]:
    """One Gram matrix, one factorisation, one product a layer."""
    c, t, r = sources.double(), targets.double(), kept.flatten(0, 1).double()
    system = System(ridged(outer(c, c) + KEEP * outer(r, r), RIDGE))
    left, right = updates.ridge(c, t, torch.ones(len(c), dtype=torch.float64), system)
    change = left @ right
    return [(w.double() @ change).float() for w in weights]


def by_prompt(weights: list[Tensor], sources: Tensor, targets: Tensor, kept: Tensor) -> list[Tensor]:
    """Layer by layer and prompt by prompt with `torch.inverse` in float32, as published code has it."""
    found = []
    for weight in weights:
        left, right = RIDGE * weight, RIDGE * torch.eye(WIDTH)
        for c, t in zip(sources, targets, strict=True):
            left = left + torch.outer(weight @ t, c)
            right = right + torch.outer(c, c)
        for prompt in kept:
            left = left + KEEP * (weight @ prompt.T) @ prompt
            right = right + KEEP * prompt.T @ prompt
        found.append(left @ torch.inverse(right) - weight)
    return found


def by_layer(weights: list[Tensor], sources: Tensor, targets: Tensor, kept: Tensor) -> list[Tensor]:
    """Layer by layer, all rows at once, solved in float64."""
    found = []
    for weight in weights:
        w, c, t, r = weight.double(), sources.double(), targets.double(), kept.flatten(0, 1).double()
        left = RIDGE * w + (w @ t.T) @ c + KEEP * (w @ r.T) @ r
        right = RIDGE * torch.eye(WIDTH, dtype=torch.float64) + c.T @ c + KEEP * r.T @ r
        found.append((torch.linalg.solve(right, left.T).T - w).float())
    return found


def compared(other: Callable[..., list[Tensor]], pairs: int, folder: Path, bar: str) -> list[dict[str, Any]]:
    given = problem()
    apart = max(float((a - b).norm() / a.norm()) for a, b in zip(ours(*given), other(*given), strict=True))
    found = ratio(in_turn(lambda _: other(*given), lambda _: ours(*given), pairs, folder))
    return [found | {"bar": bar, "note": f"{found['note']}; solutions differ by {apart:.1e}"}]


@row
def loop_over_prompts(folder: Path) -> list[dict[str, Any]]:
    """A loop over layers and prompts with `torch.inverse` over the core: 32 matrices, 300 pairs, 20,020 kept rows."""
    return compared(by_prompt, 3, folder, "at least 10")


@row
def vectorised_by_layer(folder: Path) -> list[dict[str, Any]]:
    """A vectorised float64 solve in every layer over the core, same problem."""
    return compared(by_layer, 5, folder, "at least 3")


@row
def hundred_concepts(folder: Path) -> list[dict[str, Any]]:
    """`erase.uce` of 100 phrases at SD 1.5's size, 77 positions, with a preserve cache; the text encoder is shallow."""
    pipe = sd15(TOKENS)
    cache = erase.preserve_cache(pipe, [f"a thing {i}" for i in range(PROMPTS)])
    names = [f"name {i}" for i in range(100)]
    taken = []
    for _ in range(4):
        start = time.perf_counter()
        erase.uce(pipe, names, anchor="a person", preserve=cache, preserve_scale=KEEP, collapse=float("inf"))
        taken.append(time.perf_counter() - start)
    seconds = torch.tensor(taken[1:])
    return [{"value": float(seconds.median()), "low": float(seconds.min()), "high": float(seconds.max()), "unit": "s",
             "n": len(seconds), "bar": "below 10", "note": "least and most"}]  # fmt: skip


@row
def preserve_cache(folder: Path) -> list[dict[str, Any]]:
    """The file of a preserve cache at SD 1.5's size; published caches hold a pair of matrices for each projection."""
    cache = erase.preserve_cache(sd15(TOKENS), [f"a thing {i}" for i in range(8)])
    size = cache.save(folder / "cache.safetensors").stat().st_size
    pairs = 4 * sum(2 * (n * WIDTH + WIDTH * WIDTH) for n in OUTPUTS)
    return [{"value": size / 1e6, "low": float("nan"), "high": float("nan"), "unit": "MB", "n": 1, "bar": "2.4",
             "note": f"{pairs / 1e6:.0f} MB as 32 pairs in float32"}]  # fmt: skip


@row
def rows_of_an_iteration(folder: Path) -> list[dict[str, Any]]:
    """UNet rows of a TRCE (V) iteration with references recomputed (3 + 4, and 6 with gradients) over those counted."""
    pipe, seen, cats = tiny_pipeline(), [], 5
    draws = Draws.of(trajectories=cats, retained=2, iterations=3 * cats, batch=1, kept=4, early=1, steps=1, seed=0)
    hook = pipe.unet.register_forward_pre_hook(lambda _module, args: seen.append(len(args[0])))
    # at the first step nothing is denoised: all rows before the training are references
    points = steering_points(pipe, [Pair("a cat", "a hut")] * cats, draws, steps=1, scale=3.0, beta=15.0, shifted=False,
                             advance=lambda n: None)  # fmt: skip
    references, here = sum(seen), len(seen)
    steering_loss(pipe, points, 0.01, 100.0)(0)
    hook.remove()
    rows, whole = sum(seen[here:]), sum(seen[here:]) + references / (3 * cats)
    exact = {"low": float("nan"), "high": float("nan"), "unit": "ratio", "n": 1}
    return [
        exact | {"value": 13 / rows, "bar": "at least 2", "note": f"{rows} rows in {len(seen) - here} call"},
        exact | {"value": 13 / whole, "bar": "", "note": f"{whole:.1f} rows",
                 "what": "The same, and the references' own rows shared among the three epochs that use them."},
    ]  # fmt: skip


@row
def steering_cache(folder: Path) -> list[dict[str, Any]]:
    """Memory of the points of TRCE (V) at SD size: 100 erased, 400 kept trajectories, any epochs, 4 kept a draw."""

    def empty(*shape: int) -> Tensor:
        return torch.empty(*shape, 4, 64, 64, device="meta")

    one, four, none = empty(100), empty(400), torch.empty(0)
    size = SteeringPoints(one, none, [], one, one, none, four, none, four, none, (512, 512)).nbytes
    return [{"value": size / 1e6, "low": float("nan"), "high": float("nan"), "unit": "MB", "n": 1, "bar": "below 1000",
             "note": "x_t and references of the draws alone"}]  # fmt: skip


if __name__ == "__main__":
    run_rows(ROWS, __doc__ or "", HERE / "results" / "closed_form.csv", "closed_form")

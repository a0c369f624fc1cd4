"""Slow twins of the recorder and of the wanda score: one prompt at a time, every activation kept, plain loops."""

from __future__ import annotations

import math

import torch


def activations(pipe, modules: list[str], prompt: str, seed: int, steps: int, guidance: float, negative: str = ""):
    """Every input of UNet modules while the pipeline draws one prompt: module -> list over calls of (b k n).

    The rows of a guided call are the empty (or negative) prompt first, the prompt second.
    """
    kept = {name: [] for name in modules}
    handles = [
        pipe.unet.get_submodule(name).register_forward_pre_hook(lambda _m, args, name=name: kept[name].append(args[0]))
        for name in modules
    ]
    generator = torch.Generator().manual_seed(seed)
    side = pipe.unet.config.sample_size
    latents = torch.randn((1, pipe.unet.config.in_channels, side, side), generator=generator)
    try:
        pipe(
            prompt,
            negative_prompt=negative or None,
            num_inference_steps=steps,
            guidance_scale=guidance,
            latents=latents,
            generator=generator,
            output_type="latent",
        )
    finally:
        for handle in handles:
            handle.remove()
    return kept


def column_norms(samples: list[list[torch.Tensor]], step: int, rows: list[int]) -> list[float]:
    """ConceptPrune's n of one layer at one step: token rows to length 1, column norm over rows of prompts and halves.

    ``samples``: per prompt the list over calls of (b k n); ``rows``: which halves of guidance enter.
    """
    squares = None
    for calls in samples:
        for b in rows:
            for token in calls[step][b].double().tolist():
                length = math.sqrt(sum(v * v for v in token))
                squares = squares or [0.0] * len(token)
                for j, v in enumerate(token):
                    squares[j] += (v / length) ** 2 if length else 0.0
    return [math.sqrt(v) for v in squares]


def token_rows(samples: list[list[torch.Tensor]], step: int, rows: list[int]) -> int:
    """How many token rows entered `column_norms`."""
    return sum(calls[step][b].shape[0] for calls in samples for b in rows)


def fan_out(weight: torch.Tensor) -> list[float]:
    """||W[:, j]||_2, column by column."""
    return [math.sqrt(sum(v * v for v in column)) for column in weight.double().T.tolist()]

"""Slow twins of the recorder and of the wanda score: one prompt at a time, every activation kept, plain loops."""

from __future__ import annotations

import math

import torch


def activations(
    pipe, modules: list[str], prompt: str, seed: int, steps: int, guidance: float, negative: str = "", size=None
):
    """Every input of UNet modules while the pipeline draws one prompt: module -> list over calls of (b k n).

    The rows of a guided call are the empty (or negative) prompt first, the prompt second.
    """
    kept = {name: [] for name in modules}
    handles = [
        pipe.unet.get_submodule(name).register_forward_pre_hook(lambda _m, args, name=name: kept[name].append(args[0]))
        for name in modules
    ]
    generator = torch.Generator().manual_seed(seed)
    latents = first_latents(pipe, generator, size)
    try:
        pipe(
            prompt,
            negative_prompt=negative or None,
            num_inference_steps=steps,
            guidance_scale=guidance,
            latents=latents,
            generator=generator,
            output_type="latent",
            **({} if size is None else {"height": size[0], "width": size[1]}),
        )
    finally:
        for handle in handles:
            handle.remove()
    return kept


def first_latents(pipe, generator: torch.Generator, size=None) -> torch.Tensor:
    """The noise that a sample starts from, for images of ``size`` (height, width) in pixels."""
    side = pipe.unet.config.sample_size
    rows, columns = (side, side) if size is None else (edge // pipe.vae_scale_factor for edge in size)
    return torch.randn((1, pipe.unet.config.in_channels, rows, columns), generator=generator)


def plain_attention(pipe, modules: list[str], prompt: str, seed: int, steps: int, guidance: float, size=None):
    """Cross-attention that writes its probabilities out: module -> list over calls of (b h q k), and the last latents.

    diffusers' first attention processor, which no pipeline uses today: softmax(QK^T) V with a matrix in between.
    """
    from diffusers.models.attention_processor import AttnProcessor

    kept = {name: [] for name in modules}
    before = {name: pipe.unet.get_submodule(name).processor for name in modules}
    for name in modules:
        attention = pipe.unet.get_submodule(name)
        attention.set_processor(AttnProcessor())

        def scores(query, key, mask=None, attention=attention, name=name):
            found = type(attention).get_attention_scores(attention, query, key, mask)
            kept[name].append(found.reshape(-1, attention.heads, *found.shape[1:]))
            return found

        attention.get_attention_scores = scores
    generator = torch.Generator().manual_seed(seed)
    options = {} if size is None else {"height": size[0], "width": size[1]}
    latents = first_latents(pipe, generator, size)
    try:
        final = pipe(
            prompt,
            num_inference_steps=steps,
            guidance_scale=guidance,
            latents=latents,
            output_type="latent",
            **options,
        ).images
    finally:
        for name in modules:
            attention = pipe.unet.get_submodule(name)
            attention.set_processor(before[name])
            del attention.get_attention_scores
    return kept, final


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

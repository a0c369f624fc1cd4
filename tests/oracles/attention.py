"""Attention written out, with the maps of chosen tokens set to zero, as TRCE describes its Fig. 2."""

from __future__ import annotations

import torch


class WrittenOut:
    """A processor: softmax(q k^T / sqrt(d)) head by head, then what is ``gone`` (rows k) is 0 after the softmax."""

    def __init__(self, gone, heads=None, renormalise=False):
        self.gone, self.heads, self.renormalise = gone, heads, renormalise

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, temb=None):
        rows, heads = len(hidden_states), attn.heads
        q, k, v = (
            linear(x).reshape(rows, x.shape[1], heads, -1)
            for linear, x in (
                (attn.to_q, hidden_states),
                (attn.to_k, encoder_hidden_states),
                (attn.to_v, encoder_hidden_states),
            )
        )
        out = torch.zeros_like(q)
        for row in range(rows):
            for head in range(heads):
                logits = q[row, :, head] @ k[row, :, head].T * q.shape[-1] ** -0.5
                probability = logits.exp() / logits.exp().sum(-1, keepdim=True)
                if self.heads is None or head in self.heads:
                    probability[:, self.gone[row]] = 0
                    if self.renormalise:
                        probability = probability / probability.sum(-1, keepdim=True)
                out[row, :, head] = probability @ v[row, :, head]
        return attn.to_out[1](attn.to_out[0](out.flatten(2)))


def put_in(pipe, processor, only=None) -> dict:
    """Put it into every cross-attention (or those whose name holds ``only``); the processors that were there."""
    before = dict(pipe.unet.attn_processors)
    chosen = {
        name: processor if "attn2" in name and (only is None or only in name) else own for name, own in before.items()
    }
    pipe.unet.set_attn_processor(chosen)
    return before

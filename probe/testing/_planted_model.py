"""A model of which the truth is known: chosen neurons alone carry a concept from the prompt to the picture."""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from probe import _axis
from probe._generate import generate, timesteps
from probe._samples import samples
from probe._sites import Site, sites
from probe._trace import Trace, TraceDict
from probe.errors import BadInput
from probe.testing._pipelines import POSITIONS, assembled, tiny_configs
from probe.testing._planted import CAUSAL, DECOYS, TWINS, Truth

if TYPE_CHECKING:
    import pandas as pd
    from diffusers import StableDiffusionPipeline

CONCEPT, REFERENCE = "zorse", "horse"
LABELS = (f"object/{CONCEPT}", "object/none")
_WIDTH = 96  # of the text and of the last block's stream: more than there are planted neurons, whose noises then differ
_OWN = 64  # dimensions of that stream which only the cross-attention writes, and only planted neurons read
_CALIBRATED_ON = 64  # samples, of seeds that no table of `PlantedModel.samples` has
_GATE = 3.0  # of a planted neuron, open
_LEVEL, _SPREAD = 0.2, 0.04  # of a planted neuron over samples without the concept: mean and sd
_SIGNAL = 0.3  # what the concept adds to the stream
_WRITTEN = 6.0  # what all causal neurons together then write into the stream
_APART = 8.0  # log-odds between the mean picture with the concept and without


@dataclass(frozen=True)
class PlantedModel(Truth):
    """A tiny pipeline in which 20 neurons carry the concept "zorse", with a judge of its pictures.

    - ``causal`` (20,): places on the axis of the ffn sites' neurons; ``twins`` (5 2): the first five of them, each with
      the neuron that copies what it reads; ``decoys`` (20,): neurons that fire as strongly and pass nothing on
    - ``effect``: by how many standard deviations of a sample each of these rises with the concept
    - ``steps``, ``guidance``: of the sampling that effects and judge are calibrated for; ``window``: of its first step,
      at which x_t knows nothing of the concept, so that no neuron responds to it through x_t
    """

    pipe: StableDiffusionPipeline
    judge: PlantedJudge
    causal: np.ndarray
    twins: np.ndarray
    decoys: np.ndarray
    effect: float
    steps: int
    guidance: float
    window: tuple[float, float]

    def samples(self, count: int, *, concept: bool = True, first_seed: int = 0) -> pd.DataFrame:
        """A table of prompts with the concept, or without; seeds count from ``first_seed``.

        A prompt is the word and letters that its seed draws: they move planted neurons as its noise moves the others.
        So pairs share their number and nothing else, and noise is independent wherever seeds differ.
        """
        word, seeds = CONCEPT if concept else REFERENCE, range(first_seed, first_seed + count)
        return samples([f"{word} {_letters(seed)}" for seed in seeds], list(seeds), concept=CONCEPT)


class PlantedJudge:
    """Sees the concept in the mean colour of a picture; a detector, and differentiable.

    log-odds = slope (colour . mean over y, x of the picture - cut), pictures (n 3 y x) in 0 to 1.
    """

    labels = LABELS
    thresholds = np.full(2, 0.5, np.float32)

    def __init__(self, colour: Tensor, cut: float, slope: float) -> None:
        self.colour, self.cut, self.slope = colour, cut, slope
        self.id = f"planted:{cut:.6g}:{slope:.6g}"

    @classmethod
    def between(cls, shown: np.ndarray, not_shown: np.ndarray) -> PlantedJudge:
        """The judge that has the means of two stacks of pictures, uint8 (s y x rgb), on either side of 0."""
        a, b = (_to_unit(images).mean((2, 3)) for images in (shown, not_shown))  # (s 3)
        spread = torch.cat([a - a.mean(0), b - b.mean(0)])
        colour = torch.linalg.solve(spread.T @ spread / len(spread) + 1e-8 * torch.eye(3), (a - b).mean(0))
        colour = colour / colour.norm()  # Fisher's discriminant
        with_, without = (float((x @ colour).mean()) for x in (a, b))
        return cls(colour, (with_ + without) / 2, _APART / (with_ - without))

    def log_odds(self, images: Tensor, labels: Sequence[str]) -> Tensor:
        """(n label)."""
        seen = self.slope * (images.mean((2, 3)) @ self.colour.to(images) - self.cut)
        return torch.stack([seen if label == LABELS[0] else -seen for label in labels], dim=1)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Scores float32 (n label) of pictures uint8 (n y x rgb)."""
        scores: np.ndarray = self.log_odds(_to_unit(images), LABELS).sigmoid().numpy()
        return scores.astype(np.float32)


def planted_model(effect: float = 2.0, *, seed: int = 0, steps: int = 2, guidance: float = 1.0) -> PlantedModel:
    """A tiny pipeline with 20 causal neurons, copies of five of them, and 20 decoys, all at its last ffn site.

    "zorse" is read like "horse", but for one direction of the text that only the last cross-attention passes on, into
    one direction of the stream that only the planted neurons read; what they write there, and nothing else of the
    concept, leaves the block. So no other neuron responds at the same x_t, and no other path leads to the picture. In
    other directions of the text that only they read, the rest of the prompt moves them: a planted neuron varies from
    prompt to prompt, and with the concept it is higher by ``effect`` standard deviations of that. What one deviation
    writes is the same, to 20%, for every causal neuron.
    """
    if not effect > 0:
        raise BadInput("an effect is a positive number of standard deviations", given=effect)
    configs, rng = tiny_configs("sd15"), np.random.default_rng(seed)
    configs["text_encoder"] |= {"hidden_size": _WIDTH, "projection_dim": _WIDTH}
    configs["unet"] |= {"block_out_channels": (_WIDTH, 64), "cross_attention_dim": _WIDTH}
    pipe: Any = assembled("sd15", configs, seed)
    found = sites(pipe, "ffn")
    last, start = found[-1], _axis.offsets(found)[-2]
    planted = rng.permutation(last.width)[: CAUSAL + TWINS + DECOYS]
    causal, copies, decoys = np.split(planted, [CAUSAL, CAUSAL + TWINS])
    twins, carrying = np.stack([causal[:TWINS], copies], axis=1), np.concatenate([causal, copies])
    sampling: dict[str, Any] = {"steps": steps, "guidance": guidance}
    with torch.no_grad():
        block = _Block(pipe, last, rng)
        block.isolate()
        block.plant(planted, twins, rng)
        # nothing is passed on yet, so what is measured is linear in weights and bias
        mean, sd, lift = _moved(pipe, last, block.read, sampling)
        scale = _SPREAD / sd[planted]
        block.tune(planted, scale=scale, shift=_LEVEL - mean[planted] * scale, gain=effect * sd[planted] / lift)
        strength = _WRITTEN / (effect * _SPREAD * len(carrying)) * rng.uniform(0.8, 1.2, len(carrying))
        block.pass_on(carrying, strength, _LEVEL)
    judge = PlantedJudge.between(*(_pictures(pipe, word, sampling) for word in (CONCEPT, REFERENCE)))
    first = timesteps(pipe, steps)[:2]
    window = (999.0, float(first.mean()) if len(first) == 2 else 0.0)
    return PlantedModel(pipe, judge, start + causal, start + twins, start + decoys, effect, steps, guidance, window)


class _Block:
    """The last transformer block.

    ``text``: direction of the text that is the concept. Of the stream, ``read`` is where planted neurons read it,
    ``moved`` (d c) where they read the rest of the prompt, ``write`` where they write.
    """

    def __init__(self, pipe: Any, site: Site, rng: np.random.Generator) -> None:
        self.pipe = pipe
        self.outer: Any = pipe.unet.get_submodule(site.module.split(".transformer_blocks")[0])
        self.block: Any = self.outer.transformer_blocks[0]
        bases = torch.from_numpy(rng.standard_normal((2, _OWN + 1, _WIDTH)).astype(np.float32))
        bases = bases - bases.mean(-1, keepdim=True)  # layer norms leave centred directions alone
        stream, text = (torch.linalg.qr(basis.T)[0].T for basis in bases)
        self.text, self.rest, self.own, self.write = text[0], text[1:_OWN], stream[:_OWN], stream[_OWN]
        self.read, self.moved = self.own[0], self.own[1:]

    def isolate(self) -> None:
        """The concept's word differs in one direction of the text, which reaches one direction of this block only."""
        encoder, tokenizer = self.pipe.text_encoder, self.pipe.tokenizer
        encoder = getattr(encoder, "text_model", encoder)
        for layer in encoder.encoder.layers:  # tokens stay what they are
            for linear in (layer.self_attn.out_proj, layer.mlp.fc2):
                linear.weight.zero_()
                linear.bias.zero_()
        table = encoder.embeddings.token_embedding.weight
        for weight in (table, encoder.embeddings.position_embedding.weight):
            weight.sub_(_within(weight, self.text[None]))
        z, h = (tokenizer.convert_tokens_to_ids(letter) for letter in (CONCEPT[0], REFERENCE[0]))
        table[z] = table[h] + 0.3 * table[h].norm() * self.text
        for name, module in self.pipe.unet.named_modules():
            if name.endswith("attn2"):
                for linear in (module.to_k, module.to_v):
                    linear.weight.sub_(_within(linear.weight, self.text[None]))
        attention = self.block.attn2  # the mean over the prompt's tokens
        attention.to_q.weight.zero_()
        attention.to_out[0].bias.zero_()
        attention.to_v.weight[0] = _SIGNAL * POSITIONS * self.text
        attention.to_v.weight[1:_OWN] = self.rest
        attention.to_out[0].weight.zero_()
        attention.to_out[0].weight[:, :_OWN] = self.own.T
        for layer in (self.outer.proj_in, self.block.attn1.to_out[0]):  # what else would be read there
            weight = layer.weight.flatten(1)
            layer.weight.sub_(_within(weight.T, self.own).T.reshape(layer.weight.shape))
            layer.bias.sub_(_within(layer.bias[None], self.own)[0])
        weight = self.outer.proj_out.weight  # and what else would leave
        weight.sub_(_within(weight.flatten(1), self.own).reshape(weight.shape))
        into = self.block.ff.net[0].proj.weight
        into.sub_(_within(into, self.own))

    def plant(self, units: np.ndarray, twins: np.ndarray, rng: np.random.Generator) -> None:
        """Units with an open gate that the prompt moves and the concept lifts; they pass nothing on."""
        proj, out = self.block.ff.net[0].proj, self.block.ff.net[2]
        directions = torch.from_numpy(rng.standard_normal((len(units), _OWN - 1)).astype(np.float32))
        at = torch.from_numpy(units)
        proj.weight[at], proj.bias[at] = directions @ self.moved, 0.0
        proj.weight[at + out.in_features], proj.bias[at + out.in_features] = 0.0, _GATE
        proj.weight[torch.from_numpy(twins[:, 1])] = proj.weight[torch.from_numpy(twins[:, 0])]
        out.weight[:, at] = 0

    def tune(self, units: np.ndarray, *, scale: np.ndarray, shift: np.ndarray, gain: np.ndarray) -> None:
        """Units become scale x themselves + shift, and read the concept with a gain (of the unscaled)."""
        proj, at = self.block.ff.net[0].proj, torch.from_numpy(units)
        times, plus, reads = (torch.from_numpy(x.astype(np.float32)) for x in (scale, shift, gain))
        proj.weight[at] = times[:, None] * (proj.weight[at] + reads[:, None] * self.read)
        gate = torch.nn.functional.gelu(torch.tensor(_GATE))
        proj.bias[at] = times * proj.bias[at] + plus / gate

    def pass_on(self, units: np.ndarray, strength: np.ndarray, level: float) -> None:
        """Units write into one direction; at their level all together nothing."""
        out = self.block.ff.net[2]
        out.weight[:, torch.from_numpy(units)] = self.write[:, None] * torch.from_numpy(strength.astype(np.float32))
        out.bias -= float(strength.sum() * level) * self.write


def _within(rows: Tensor, basis: Tensor) -> Tensor:
    """The part of each row (r c) within the space of orthonormal rows (d c)."""
    return (rows @ basis.T) @ basis


def _moved(pipe: Any, site: Site, read: Tensor, sampling: dict[str, Any]) -> tuple[np.ndarray, np.ndarray, float]:
    """Of a site's units at the first step: mean and sd (n,) over prompts without the concept.

    Third, what a unit with an open gate gains from the concept that reads it with a weight of 1.
    """
    before = site.module.replace("ff.net.2", "ff")
    options = {"batch_size": _CALIBRATED_ON, "progress": False, "decode": False, **sampling}
    with TraceDict(pipe.unet, [site.module, before], retain_input=True, keep="all") as traces:
        generate(pipe, _calibration(REFERENCE), **options)
    means = traces[site.module].inputs[0][-_CALIBRATED_ON:].mean(1).double().numpy()  # cond comes last
    with Trace(pipe.unet, before, retain_input=True, keep="all") as trace:
        generate(pipe, _calibration(CONCEPT), **options)
    with_, without = (t.inputs[0][-_CALIBRATED_ON:] @ read for t in (trace, traces[before]))
    open_gate = torch.nn.functional.gelu(torch.tensor(_GATE))
    return means.mean(0), means.std(0, ddof=1), float((with_ - without).mean() * open_gate)


def _pictures(pipe: Any, word: str, sampling: dict[str, Any]) -> np.ndarray:
    return generate(pipe, _calibration(word), batch_size=_CALIBRATED_ON, progress=False, **sampling)


def _calibration(word: str) -> pd.DataFrame:
    seeds = range(10**6, 10**6 + _CALIBRATED_ON)
    return samples([f"{word} {_letters(seed)}" for seed in seeds], list(seeds))


def _letters(seed: int) -> str:
    """Ten random words of two letters or digits, none of them the letter that is the concept.

    Tokens at the end of a word are others than within: twice as many ways for a prompt to move neurons.
    """
    alphabet = [c for c in string.ascii_lowercase + string.digits if c != CONCEPT[0]]
    drawn = np.random.default_rng(seed).choice(alphabet, 20)
    return " ".join("".join(drawn[i : i + 2]) for i in range(0, 20, 2))


def _to_unit(images: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).float() / 255

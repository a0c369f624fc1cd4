"""Which rows of a network call belong to which sample and which branch of classifier-free guidance.

The layout is never guessed from the rows: one guided prompt and two unguided ones give identical calls. Whoever makes
the call knows the number of samples and whether the pipeline is guiding; the rows must then agree.

A loop of your own, with several images per prompt:

>>> with Trace(pipe.unet, site.module, retain_input=True) as trace:      # doctest: +SKIP
...     pipe(["a church", "a cat"], num_images_per_prompt=3)
>>> layout_of(pipe, samples=6).split(trace.input).shape                  # doctest: +SKIP
torch.Size([2, 6, 4096, 1280])
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from probe.errors import AmbiguousBatch, BadInput

if TYPE_CHECKING:
    from torch import Tensor

GUIDED, UNGUIDED = ("uncond", "cond"), ("cond",)

#: Pipelines whose calls hold other branches, or other calls, than plain guidance has.
_OTHER_GUIDANCE = {
    "InstructPix2Pix": "three-way guidance (text and image)",
    "SAG": "self-attention guidance (two kinds of call a step)",
    "PAG": "perturbed-attention guidance",
    "AttendAndExcite": "calls with gradients inside a step",
    "Semantic": "semantic guidance (a branch for each edit prompt)",
    "Safe": "safe latent diffusion (three branches)",
    "LEdits": "semantic guidance (a branch for each edit prompt)",
    "GLIGEN": "grounding inputs in every call",
}


@dataclass(frozen=True)
class Layout:
    """Rows of one call: for each branch in turn, every sample once.

    - ``samples``: images in the call. Several images per prompt are samples of their own, prompt by prompt
    - ``branches``: ``("uncond", "cond")`` in a guided UNet call, ``("cond",)`` in an unguided one
    """

    samples: int
    branches: tuple[str, ...]

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise BadInput("a call has at least one sample", given=self.samples)
        if not self.branches or len(set(self.branches)) < len(self.branches):
            raise BadInput("branches are distinct names in the order of the rows", given=repr(self.branches))

    @property
    def rows(self) -> int:
        """Rows of every tensor in the call."""
        return self.samples * len(self.branches)

    def check(self, rows: int) -> None:
        """Raise `AmbiguousBatch` with the three numbers unless the call has rows = samples x branches."""
        if rows != self.rows:
            raise AmbiguousBatch(
                "the rows of a network call do not match samples x branches",
                given=f"{rows} rows",
                expected=f"{self.samples} samples x {len(self.branches)} branches ({', '.join(self.branches)})",
                fix="record through a plain pipeline call, or pass branches= for a loop of your own",
            )

    def split(self, x: Tensor) -> Tensor:
        """View (rows, ...) as (b, s, ...): branch, sample, and the rest unchanged."""
        self.check(x.shape[0])
        return x.reshape(len(self.branches), self.samples, *x.shape[1:])


def layout_of(pipe: Any, samples: int, branches: Sequence[str] | None = None) -> Layout:
    """The layout of the UNet calls of ``pipe``, asked inside its first one or after the last.

    Args:
        pipe: a Stable Diffusion pipeline; before a call, its ``do_classifier_free_guidance`` still holds the answer for
            the previous one.
        samples: images in the call: prompts x images per prompt.
        branches: in the order of the rows, for a loop that is no pipeline call; ``pipe`` is then not asked.

    Other kinds of guidance are refused by name with `BadInput`.
    """
    if branches is not None:
        return Layout(samples, (branches,) if isinstance(branches, str) else tuple(branches))
    refuse_other_guidance(pipe)
    return Layout(samples, GUIDED if pipe.do_classifier_free_guidance else UNGUIDED)


def empty_prompt(pipe: Any) -> dict[str, str]:
    """What a pipeline takes in place of a negative prompt that is not given, as identities say it.

    SDXL takes zeros (``zeros``), and its text encoders then never run on the uncond branch, or it encodes an empty text
    (``encoded``). SD 1.x and 2.x always do that, and nothing is said of them.
    """
    zeros = dict(getattr(pipe, "config", {})).get("force_zeros_for_empty_prompt")
    return {} if zeros is None else {"empty_prompt": "zeros" if zeros else "encoded"}


def unencoded(pipe: Any, negative_prompts: Iterable[str]) -> int:
    """How many samples of a guided run have an uncond branch that no text encoder sees."""
    zeros = empty_prompt(pipe).get("empty_prompt") == "zeros"
    return sum(not text for text in negative_prompts) if zeros else 0


def refuse_other_guidance(pipe: Any) -> None:
    """Raise `BadInput` for pipelines that guide otherwise than by one uncond and one cond branch."""
    name = type(pipe).__name__
    reason = next((why for part, why in _OTHER_GUIDANCE.items() if part in name), None)
    if reason is None and getattr(pipe, "do_perturbed_attention_guidance", False):
        reason = _OTHER_GUIDANCE["PAG"]
    if reason is None and "do_classifier_free_guidance" not in dir(pipe):  # the property raises before the first call
        reason = "it does not say whether it guides (no do_classifier_free_guidance)"
    if reason is not None:
        raise BadInput(
            "branches are known only for plain classifier-free guidance",
            given=f"{name}: {reason}",
            expected="StableDiffusionPipeline or StableDiffusionXLPipeline",
            fix="use the plain text-to-image pipeline of the same model",
        )

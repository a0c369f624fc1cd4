"""contrast_prompts: target and reference samples to record for ConceptPrune, by what is erased (its section 1.6 tasks).

Forms of the prompts and which pairs share a seed are the paper's; the words that fill them are our own lists.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import pandas as pd
import torch

from erase.prune._layers import stream
from probe import samples
from probe._options import validated
from probe.errors import BadInput

THINGS = (
    *("dog", "horse", "rabbit", "owl", "whale", "turtle", "spoon", "kettle", "lamp", "sofa"),
    *("bicycle", "guitar", "clock", "bottle", "ladder", "basket", "piano", "umbrella", "mirror", "pillow"),
)
SCENES = (
    *("street", "park", "meadow", "harbour", "kitchen", "desert", "village", "valley"),
    *("courtyard", "library", "market", "bridge"),
)
PEOPLE = (
    *("person", "man", "woman", "child", "teacher", "farmer", "singer", "tourist", "neighbour"),
    *("student", "painter", "runner", "waiter", "sailor", "guest", "driver", "musician", "friend"),
)
MEN = ("man", "boy", "father", "husband", "brother", "uncle", "grandfather", "nephew", "king", "actor", "groom", "monk")
WOMEN = (
    *("woman", "girl", "mother", "wife", "sister", "aunt", "grandmother", "niece", "queen", "actress", "bride", "nun"),
)

#: The release draws a seed below this for every pair of the gender task.
SEEDS = 250


@validated
def contrast_prompts(
    task: Literal["style", "object", "attribute", "gender", "memorised"],
    name: str = "",
    *,
    fill: Sequence[str] | None = None,
    seed: int = 0,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Samples of the target and of its reference, paired row by row and drawn from the same noise.

    | task | target | reference |
    |---|---|---|
    | style | a {fill} in the style of {name} | a photo of a {fill} |
    | object | a {name} in a {fill} | a {fill} |
    | attribute | a photo of a {name} {fill} | a photo of a {fill} |
    | gender | a headshot of a {what becomes rare} | a headshot of a {what comes instead} |
    | memorised | {fill}: captions | the empty text |

    Args:
        task: which; for gender, ``name`` is what pictures should become, ``male`` or ``female``.
        name: of the style, object or attribute.
        fill: words (or captions) instead of our lists.
        seed: of every sample; each pair of the gender task draws its own below 250 from it.

    Raises `BadInput` where a task lacks its name or its captions.
    """
    if task == "gender":
        if name not in ("male", "female"):
            raise BadInput("pictures become male or female", given=repr(name), expected="male, female")
        if fill is not None:
            raise BadInput("the gender task has words of its own", given="fill")
        away, towards = (WOMEN, MEN) if name == "male" else (MEN, WOMEN)
        seeds = torch.randint(SEEDS, (len(away),), generator=stream(seed, "gender")).tolist()
        texts = [
            (f"a headshot of {_a(there)}", f"a headshot of {_a(here)}")
            for there, here in zip(away, towards, strict=True)
        ]
    else:
        if task != "memorised" and not name.strip():
            raise BadInput(f"the task {task} needs the name of what is erased", fix="name='...'")
        if task == "memorised" and not fill:
            raise BadInput("memorised pictures are asked for by their captions", fix="fill=['...']")
        texts = [_pair(task, name, word) for word in fill or {"style": THINGS, "object": SCENES}.get(task, PEOPLE)]
        seeds = [seed] * len(texts)
    target, reference = (samples([pair[i] for pair in texts], seeds) for i in (0, 1))
    return target, reference


def _pair(task: str, name: str, word: str) -> tuple[str, str]:
    return {
        "style": (f"{_a(word)} in the style of {name}", f"a photo of {_a(word)}"),
        "object": (f"{_a(name)} in {_a(word)}", _a(word)),
        "attribute": (f"a photo of {_a(f'{name} {word}')}", f"a photo of {_a(word)}"),
        "memorised": (word, ""),
    }[task]


def _a(words: str) -> str:
    return f"an {words}" if words[:1].lower() in "aeiou" else f"a {words}"

"""A judge out of any CLIP model: is the picture nearer to the concept than to its anchor and neighbours?"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from probe.detect._detector import Detector, register_detector
from probe.errors import BadInput
from probe.metrics import Clip, labels_of

NAME = "clip_zero_shot"
_ARTICLES = ("a ", "an ", "the ", "some ")


def clip_zero_shot(
    folder: str | Path,
    concepts: Mapping[str, Any] | Iterable[Any],
    *,
    threshold: float | Mapping[str, float] = 0.5,
    batch_size: int = 64,
    device: str = "cpu",
) -> Detector:
    """A detector for these concepts from a local CLIP folder (safetensors), without any training. Ours.

    A label's score is the share that its concept gets in a softmax, with CLIP's own scale, over the concept, its anchor
    and its neighbours. Texts are "a picture of a church", for styles "a picture, ink style"; all surface forms of a
    concept count as one, by the mean of their embeddings. A group has the labels of its members. There is no
    ``object/none``: pictures of nothing at all are somebody's nearest too, and ``broken`` cannot be told.

    Args:
        folder: of a transformers `CLIPModel` with tokenizer and ``preprocessor_config.json``.
        concepts: a world, or concepts. Neighbours need not be among them.
        threshold: from which score on a label is shown; one for all, or by label. Nothing says that 0.5 is right for a
            concept: look at the scores of pictures with and without it.
        batch_size, device: of the CLIP model.

    Raises:
        BadInput: the folder holds no CLIP model, or there are no concepts.

    """
    listed = list(concepts.values() if isinstance(concepts, Mapping) else concepts)
    texts = _texts({c.name: c for c in listed})
    if not texts:
        raise BadInput("a zero-shot detector needs concepts", fix="concepts=probe.concepts(...)")
    clip = Clip(folder, batch_size=batch_size, device=device)
    labels = list(texts)
    limits = [threshold.get(label, 0.5) if isinstance(threshold, Mapping) else threshold for label in labels]
    sha = hashlib.sha256(json.dumps([clip.id, texts], sort_keys=True).encode()).hexdigest()
    embedded: dict[str, np.ndarray] = {}

    def classes(label: str) -> np.ndarray:
        """(class, d): the concept, then what it is told from."""
        if not embedded:
            every = sorted({text for sides in texts.values() for side in sides for text in side})
            embedded.update(zip(every, clip.texts(every), strict=True))
        means = np.array([np.mean([embedded[text] for text in side], axis=0) for side in texts[label]])
        return np.asarray(means / np.linalg.norm(means, axis=1, keepdims=True))

    def score(images: np.ndarray) -> np.ndarray:
        found = clip.images(images)
        return np.stack([_share(clip.scale * found @ classes(label).T) for label in labels], axis=1)

    return Detector(NAME, labels, np.asarray(limits), score, sha=sha, features=clip.images)


def _share(logits: np.ndarray) -> np.ndarray:
    """The first class's part in a softmax over classes: (s, class) -> (s,)."""
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(powers[:, 0] / powers.sum(axis=1))


def _texts(world: Mapping[str, Any]) -> dict[str, list[list[str]]]:
    """Label -> texts of the concept, then those of each thing it is told from."""
    found: dict[str, list[list[str]]] = {}
    for c in world.values():
        if c.kind == "group":
            absent = [name for name in c.members if name not in world]
            found |= {f"object/{name}": [_side("object", [name]), _side("object", [c.anchor])] for name in absent}
            continue
        others = [_forms(world.get(name), name) for name in c.neighbours]
        sides = [_forms(c, c.name), [c.anchor], *others]
        (label,) = labels_of(c, world)
        found[label] = [_side(c.kind, side) for side in sides]
    return found


def _forms(concept: Any, name: str) -> list[str]:
    return list(dict.fromkeys([name, *(concept.surface_forms if concept is not None else ())]))


def _side(kind: str, forms: Sequence[str]) -> list[str]:
    if forms == [""]:
        return ["a picture"]  # of no style phrase, or of no anchor
    if kind == "style":
        return [f"a picture, {form} style" for form in forms]
    return [f"a picture of {_with_article(form)}" for form in forms]


def _with_article(form: str) -> str:
    if form.lower().startswith(_ARTICLES):
        return form
    return f"{'an' if form[:1].lower() in 'aeiou' else 'a'} {form}"


register_detector(NAME, clip_zero_shot)

"""resag: Concept Pinpoint Eraser, residual attention gates on keys and values (arXiv 2506.22806, ICLR 2025)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from erase._changes import Hook
from erase._concepts import label, listed
from erase._edit import Edit, make_edit
from erase.gated._fit import fitted
from erase.gated._projections import Projections
from erase.gated._settings import Settings
from probe._options import validated
from probe.errors import BadInput
from probe.protocols import Progress


@validated
def resag(
    pipe: Any,
    concepts: Any,
    *,
    anchor: str | None = None,
    preserve: Any = None,
    seed: int = 0,
    rank: int = 1,
    gate_rank: int = 16,
    alpha: float = 1.0,
    key_mode: Literal["independent", "tied"] = "independent",
    gate: Literal["learned", "open"] = "learned",
    threshold: float = 0.0,
    eta: float = 0.3,
    anchor_weight: float = 1e5,
    anchors: int = 32,
    nearest: int | None = 50,
    general: Sequence[str] | None = None,
    templates: Sequence[str] | None = None,
    mix: bool = True,
    noise: float = 0.001,
    stages: int = 5,
    iterations: int = 450,
    first_iterations: int = 1800,
    lr: float = 3e-5,
    first_lr: float = 3e-4,
    warm_up: int = 5,
    adversaries: int = 16,
    adversary_weight: float = 1.0,
    adversary_iterations: int = 450,
    adversary_lr: float = 0.01,
    keep_adversaries: Literal["latest", "all"] = "latest",
    training: str | Path | None = None,
    force: bool = False,
    name: str | None = None,
    progress: Progress = True,
) -> Edit:
    """Gates that let a concept's texts through to a low-rank correction of keys and values, and other texts not.

    On every ``to_k`` and ``to_v`` of the cross-attentions, with E (k d) what the text encoder gives (equations of the
    paper's section 4; `erase.gates`):

        Z = softmax(E U1 (E U2)^T) E,   s = sigmoid(Z v),   P'(E) = W_P E + alpha / r  s Z D_P G_P

    U1, U2 and v are one gate for all projections, D_P and G_P a pair for each. Of several concepts, each learns apart,
    and at every token the one whose s is largest acts alone; so edits made one by one are merged by `erase.stack`.

    Everything is learned from embeddings of texts, without a pass of the UNet. With target t, counterpart n, anchors a
    and layer weights c from singular values (`erase.gate_losses`):

        L = sum c |P_n + eta (P_n - P_t) - P'(E_t)|^2                            erasing
          + adversary_weight * the same at E_t + delta                           robust erasing
          + anchor_weight * sum c |P_a - P'(E_a)|^2                              attention anchoring

    The anchors of an iteration are drawn from a pool of texts and mixed in pairs; the empty text is always one. After
    each stage but the last new deltas are learned that bring the concept back, |P'(E_t + delta) - P_t|^2 at its least.

    Args:
        pipe: the pipeline; read, not changed.
        concepts: a text, a concept, or a list; each becomes a gate of its own, with all its surface forms.
        anchor: what stands in a concept's place; its own (``Concept.anchor``) unless given. A concept without one (a
            style) learns from its references of the paper's form.
        preserve: texts and concepts that become anchors; ``preserve_fit`` of the embedded world less what is erased and
            prompts that name it.
        seed: of initial values, draws and adversaries.
        rank: r of each pair; gate_rank: of U1 and U2. Published: 1 and 16 (characters, artists), 4 and 64 (explicit).
        alpha: the correction is multiplied by alpha / rank; 1 in the release.
        key_mode: ``"tied"`` takes U1 for U2 as the released code does, whose U2 is never trained.
        gate: ``"open"`` leaves the sigmoid out, an ablation; such concepts add up when merged.
        threshold: gates that are less open add nothing when the edit is applied (ours; 0 is the paper and the release,
            where every token gets its winner's share). Untrained gates are 0.5 open.
        eta: how far beyond the counterpart; published 0.3 (characters), 0.5 (artists), 3 (explicit).
        anchor_weight: published 1e5 (characters), 1e4 (artists, explicit); 0 for no anchoring.
        anchors: drawn each iteration.
        nearest: at most so many of ``preserve`` take part, those nearest to the concept by the cosine of their names'
            embeddings; None for all.
        general: anchor words besides; a hundred ordinary things where a text is erased, none for concepts.
        templates: texts with ``{}`` that words are put into; a concept's own prompts, or a dozen of ours.
        mix: anchors are mixed in pairs by a uniform share (MixUp).
        noise: standard deviation of what is added to an anchor, in shares of its norm. The release always takes 0.001,
            whatever its ``noise_scale`` says.
        stages, iterations, first_iterations, lr, first_lr: of the eraser; the first stage is longer and faster, its
            cosine restarts once.
        warm_up: iterations in which the eraser's rate rises, in each stage: published 5, and 10 for explicit words. The
            adversaries' is 5 throughout.
        adversaries, adversary_weight, adversary_iterations, adversary_lr: of the other player; 0 adversaries for none.
        keep_adversaries: ``"all"`` learns against those of every stage so far; the release keeps them and uses
            the latest.
        training: folder in which finished stages are kept; the same call goes on from them.
        force: replace another training there.
        name: ``resag-<concepts>`` by default.
        progress: True, False or a function of (done, total) iterations.

    Returns an edit of hooks, which cannot be merged into the weights. Its ``report`` has for each concept the last
    losses of every stage, and how much of what was asked is ``reached`` on its texts and changed (``kept``) on anchors.

    Raises `BadInput` where no counterpart is known, or where a word is erased and an anchor at once.
    """
    erased = listed(concepts)
    settings = Settings(
        rank=rank, gate_rank=gate_rank, alpha=alpha, key_mode=key_mode, gate=gate, eta=eta,
        anchor_weight=anchor_weight, anchors=anchors, mix=mix, noise=noise, stages=stages, iterations=iterations,
        first_iterations=first_iterations, lr=lr, first_lr=first_lr, warm_up=warm_up, adversaries=adversaries,
        adversary_weight=adversary_weight, adversary_iterations=adversary_iterations, adversary_lr=adversary_lr,
        keep_adversaries=keep_adversaries, seed=seed,
    )  # fmt: skip
    if not 0 <= threshold < 1:
        raise BadInput("threshold is an openness", given=threshold, expected="0 up to 1")
    if nearest is not None and nearest < 1:
        raise BadInput("nearest must be at least 1", given=nearest, fix="preserve=() for no words to preserve")
    found = fitted(pipe, erased, settings, method="resag", anchor=anchor, preserve=preserve, nearest=nearest,
                   general=general, templates=templates, training=training, force=force, progress=progress)  # fmt: skip
    return make_edit(
        pipe,
        [hook_of(found.projections, found.learned, settings, threshold)],
        name=name or f"resag-{label(erased)}",
        method="resag",
        options={**found.options, "threshold": threshold},
        inputs=found.inputs,
        report=found.report,
    )


def hook_of(
    projections: Projections, learned: Sequence[Mapping[str, Tensor]], settings: Settings, threshold: float
) -> Hook:
    """The hook of some gates, one concept each: see `erase._resag_hooks`."""
    count, n = len(projections.params), len(learned)

    def stacked(name: str) -> Tensor:
        return torch.stack([values[name] for values in learned])

    down = stacked("down")
    values = {
        "query": stacked("query"),
        "key": stacked("query" if settings.key_mode == "tied" else "key"),
        "gate": stacked("gate"),
        **{f"down.{i}": down[:, i] for i in range(count)},
        **{f"up.{i}": stacked(f"up.{i}") for i in range(count)},
        "alpha": torch.full((n, count), settings.scale * settings.rank),
        "strength": torch.ones(n),
        "threshold": torch.full((n,), threshold),
    }
    return Hook("unet", "resag", projections.params, values, {"together": "sum"} if settings.gate == "open" else {})

"""TRCE's second stage: denoising trajectory steering (Chen et al., ICCV 2025, arXiv 2503.07389, section 4.2)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from erase import steering
from erase._edit import Edit
from erase._stack import stack
from erase.closed_form._augment import augmentation_of
from erase.closed_form._points import Draws, SteeringPoints, spread, steering_points
from erase.closed_form._ridge import not_negative, positive
from erase.closed_form._targets import targets_of
from erase.closed_form._trce_text import trce_text
from erase.learn import Loss, Schedule, Texts, Weights, learned, parts_of
from erase.learn._eraser import own_precision
from probe import guidance
from probe._options import validated
from probe._progress import progress_bar
from probe.errors import BadInput
from probe.protocols import Progress

#: The layers that read no text: self-attention, and the queries of cross-attention.
VISUAL = ("*.attn1.*", "*.attn2.to_q.*")


@validated
def trce_trajectory(
    pipe: Any,
    concepts: Any,
    *,
    anchor: str | dict[str, str] | None = None,
    augment: Any = None,
    synonyms: int = 20,
    templates: int = 15,
    first_stage: Edit | None = None,
    variant: Literal["paper", "released"] = "paper",
    beta: float = 15.0,
    margin: float = 0.01,
    erase_loss: Literal["triplet", "safe"] = "triplet",
    retain: float = 100.0,
    cached: int = 100,
    retained: int = 400,
    kept: int = 4,
    steps: int = 50,
    early: float = 0.5,
    guidance_scale: float = 3.0,
    epochs: int = 3,
    lr: float = 1e-6,
    batch_size: int = 1,
    arithmetic: Literal["float32", "bfloat16", "float16"] | None = None,
    checkpointing: bool = False,
    training: str | Path | None = None,
    save_every: int = 100,
    checkpoints: Sequence[int] = (),
    seed: int = 0,
    progress: Progress = True,
    force: bool = False,
    name: str | None = None,
) -> Edit:
    """TRCE (V): train visual layers so that early denoising of a concept's prompts turns to the safe prediction.

    With eps* the model without any stage, on x_t that it draws for erased prompts c_m with safe counterparts c_s, and
    on x_t' that it draws for the empty text 0 (eq. 6 to 9):

        f_safe   = eps*(x_t, 0) + beta (eps*(x_t, c_s) - eps*(x_t, 0)),   f_unsafe likewise with c_m
        L_erase  = mean over c in (c_m, 0) of max(|eps(x_t, c) - f_safe|^2 - |eps(x_t, c) - f_unsafe|^2 + margin, 0)
        L_retain = |eps(x_t', 0) - eps*(x_t', 0)|^2
        L        = L_erase + retain L_retain

    |.|^2 are means over channels and space. Every prediction is epsilon, also of models that predict v. All draws of
    (trajectory, step) are made before training, one step a trajectory; x_t and eps* there are computed once and serve
    every epoch, and one UNet call an iteration serves all predictions of the student.

    Args:
        pipe: a Stable Diffusion pipeline. It is read, not changed; edits in force stay and count as the model.
        concepts, anchor, augment, synonyms, templates: prompts and their safe counterparts, as in `erase.trce_text`.
        first_stage: an edit that is not in force, such as `erase.trce_text`: training starts from it, and the result
            applies on top of it; eps* is the model without it.
        variant: ``"released"``: x_t of the next step under this step's timestep, a guidance of beta + 1, eps* of
            L_retain by the first stage, a new step and new x_t' at every visit, AdamW with weight decay 0.01, and
            gradients that add up over the whole training (the release never sets them to zero).
        beta, margin, retain: see above; retain is lambda.
        erase_loss: ``safe``: |eps(x_t, c) - f_safe|^2 alone, the paper's ablation (table 5).
        cached: trajectories of erased prompts, the prompts in turn; the paper has 100, and 300 for several concepts.
        retained: trajectories of the empty text. The paper has 2,000, of which the release uses the first 400.
        kept: predictions of L_retain an iteration.
        steps: of the denoising (DDIM).
        early: share of the steps from which x_t of erased prompts are taken.
        guidance_scale: of the denoising of erased prompts; the release's.
        epochs: how often each draw is visited, in another order each time.
        lr: of Adam.
        batch_size: trajectories an iteration.
        arithmetic: precision of the UNet while training; the pipeline's own unless given.
        checkpointing: compute activations again in the backward pass, for less memory.
        training, save_every, checkpoints: as in `erase.esd`. A training that goes on draws its points again.
        seed: of everything random.
        progress: True, False or a function of (done, total): trajectories first, then iterations.
        force: replace another training in ``training``.
        name: ``trce_trajectory`` by default.

    Returns an edit of deltas; ``report`` has the loss curve and the size of the cache.

    Raises `BadInput` for concepts and files as `erase.trce_text`, and for numbers out of range.
    """
    positive(beta=beta, guidance_scale=guidance_scale, early=early)
    not_negative(margin=margin, retain=retain)
    for what, count in {"cached": cached, "retained": retained, "kept": kept, "steps": steps,
                        "epochs": epochs, "batch_size": batch_size}.items():  # fmt: skip
        if count < 1:
            raise BadInput(f"{what} must be at least 1", given=count)
    if early > 1 or early * steps < 1:
        raise BadInput("early is the share of steps that count", given=early, expected=f"{1 / steps:g} to 1")
    released = variant == "released"
    targets = targets_of(concepts, anchor, otherwise="")
    found = [augmentation_of(target, augment) for target in targets]
    pairs = [pair for i, one in enumerate(found) for pair in one.texts(synonyms, templates, i)]
    iterations = -(-epochs * cached // batch_size)
    draws = Draws.of(
        trajectories=cached,
        retained=retained,
        iterations=iterations,
        batch=batch_size,
        kept=kept,
        early=min(int(early * steps) + released, steps),
        steps=steps,
        seed=seed,
        redrawn=released,
    )
    how = Schedule(
        iterations,
        lr,
        "adamw" if released else "adam",
        weight_decay=0.01 if released else 0.0,
        precision=own_precision(pipe, arithmetic),
        checkpointing=checkpointing,
        accumulate=released,
    )
    with progress_bar(progress, cached + retained, "trajectories") as advance:
        points = steering_points(
            pipe,
            spread(pairs, cached, seed),
            draws,
            steps=steps,
            scale=guidance_scale,
            beta=beta + released,
            shifted=released,
            advance=advance,
            kept_by=first_stage if released else None,
        )
    options = {
        "concepts": [target.name for target in targets],
        "pairs": [[[erase, safe] for erase, safe, *_ in one.pairs[:synonyms]] for one in found],
        "templates": [list(one.templates[:templates]) for one in found],
        "variant": variant,
        "beta": beta,
        "margin": margin,
        "erase_loss": erase_loss,
        "retain": retain,
        "cached": cached,
        "retained": retained,
        "kept": kept,
        "steps": steps,
        "early": early,
        "guidance_scale": guidance_scale,
        "epochs": epochs,
        "batch_size": batch_size,
        "seed": seed,
    }
    with ExitStack() as undo:
        if first_stage is not None:
            undo.enter_context(first_stage.applied(pipe))
        student = Weights(pipe, parts_of(pipe, VISUAL))
        return learned(
            pipe,
            student,
            lambda: steering_loss(pipe, points, margin, retain, erase_loss),
            how,
            method="trce_trajectory",
            name=name or "trce_trajectory",
            options=options,
            inputs={},
            training=training,
            save_every=save_every,
            checkpoints=checkpoints,
            progress=progress,
            force=force,
            report=lambda: {"cache_bytes": points.nbytes},
        )


def steering_loss(pipe: Any, points: SteeringPoints, margin: float, retain: float, erase_loss: str = "triplet") -> Loss:
    """The loss of an iteration, from one UNet call: erased points told their prompt and nothing, kept ones nothing."""
    texts = Texts(pipe, points.size)

    def loss(iteration: int) -> dict[str, Tensor]:
        device = pipe.unet.device
        here, there = points.order[iteration], points.kept_order[iteration]
        x, kept = points.x[here], points.kept_x[there]
        when = [points.timesteps[here]] * 2 + [points.kept_timesteps[there]]
        asked = [*(points.texts[i] for i in here.tolist()), *[""] * (len(x) + len(kept))]
        noise = guidance.predicted_noise(pipe, torch.cat([x, x, kept]), torch.cat(when), texts.of(asked))
        told, untold, retained = noise.split([len(x), len(x), len(kept)])
        safe, unsafe = points.safe[here].to(device), points.unsafe[here].to(device)
        if erase_loss == "triplet":
            erase = [steering.triplet(prediction, safe, unsafe, margin).mean() for prediction in (told, untold)]
        else:
            erase = [(prediction - safe).square().mean() for prediction in (told, untold)]
        keep = (retained - points.kept_noise[there].to(device)).square().mean()
        return {"erase": torch.stack(erase).mean(), "retain": retain * keep}

    return loss


@validated
def trce(
    pipe: Any,
    concepts: Any,
    *,
    anchor: str | dict[str, str] | None = None,
    preserve: Any = None,
    augment: Any = None,
    synonyms: int = 20,
    templates: int = 15,
    text: dict[str, Any] | None = None,
    variant: Literal["paper", "released"] = "paper",
    beta: float = 15.0,
    margin: float = 0.01,
    erase_loss: Literal["triplet", "safe"] = "triplet",
    retain: float = 100.0,
    cached: int = 100,
    retained: int = 400,
    kept: int = 4,
    steps: int = 50,
    early: float = 0.5,
    guidance_scale: float = 3.0,
    epochs: int = 3,
    lr: float = 1e-6,
    batch_size: int = 1,
    arithmetic: Literal["float32", "bfloat16", "float16"] | None = None,
    checkpointing: bool = False,
    training: str | Path | None = None,
    save_every: int = 100,
    seed: int = 0,
    progress: Progress = True,
    force: bool = False,
    name: str | None = None,
) -> Edit:
    """TRCE (T+V): `erase.trce_text`, then `erase.trce_trajectory` from there, with the untouched model as teacher.

    Args:
        pipe: a Stable Diffusion pipeline. It is read, not changed.
        concepts, anchor, augment, synonyms, templates: of both stages; see `erase.trce_text`.
        preserve: of the first stage.
        text: further options of the first stage by name, such as ``{"eta": 0.02}``.
        variant: of both stages: ``released`` counts words for the [EoT] and applies eta as the released code does, and
            trains as `erase.trce_trajectory` says.
        beta, margin, erase_loss, retain, cached, retained, kept, steps, early, guidance_scale, epochs, lr, batch_size,
            arithmetic, checkpointing, training, save_every, seed, progress, force: of the second stage.
        name: ``trce`` by default.

    Returns the stack of both edits. Raises as both.
    """
    released = {"tokens": "trce_word_count", "normalise": "released"} if variant == "released" else {}
    both = {"anchor": anchor, "augment": augment, "synonyms": synonyms, "templates": templates}
    first = trce_text(pipe, concepts, preserve=preserve, **both, **{**released, **(text or {})})
    second = trce_trajectory(
        pipe,
        concepts,
        **both,
        first_stage=first,
        variant=variant,
        beta=beta,
        margin=margin,
        erase_loss=erase_loss,
        retain=retain,
        cached=cached,
        retained=retained,
        kept=kept,
        steps=steps,
        early=early,
        guidance_scale=guidance_scale,
        epochs=epochs,
        lr=lr,
        batch_size=batch_size,
        arithmetic=arithmetic,
        checkpointing=checkpointing,
        training=training,
        save_every=save_every,
        seed=seed,
        progress=progress,
        force=force,
    )
    return stack(first, second, name=name or "trce")

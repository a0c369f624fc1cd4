"""UCE: Unified Concept Editing in Diffusion Models (Gandikota et al., WACV 2024, arXiv 2308.14761)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from erase._edit import Edit
from erase.closed_form._fit import finished
from erase.closed_form._preserve import Kept, kept_of
from erase.closed_form._ridge import Problem, Request, in_text_space, not_negative, positive, solved, without_old
from erase.closed_form._targets import Target, described, targets_of
from erase.closed_form._templates import checked, filled
from erase.closed_form._texts import Pair, rows_of
from probe._options import validated


@dataclass(frozen=True)
class _Variant:
    """What the two public algorithms of the authors differ in."""

    tokens: tuple[str, ...]
    kept_tokens: tuple[str, ...]
    always: tuple[str, ...]
    least_preserve: float | None  # preserve_scale = max(this, 1 / texts), else 1


VARIANTS = {
    "paper": _Variant(("subject_to_end",), ("all_tokens",), ("",), 0.1),
    "2025": _Variant(("last_subject",), ("last_subject",), (), None),
}


@validated
def uce(
    pipe: Any,
    concepts: Any,
    *,
    anchor: str | dict[str, str] | None = None,
    preserve: Any = None,
    variant: Literal["paper", "2025"] = "paper",
    technique: Literal["replace", "tensor"] = "replace",
    tokens: str | tuple[str, ...] | None = None,
    templates: str | tuple[str, ...] = "{}",
    erase_scale: float = 1.0,
    preserve_scale: float | None = None,
    ridge: float = 0.5,
    layers: Literal["kv", "k", "v"] = "kv",
    pooled: Literal["edit", "leave"] = "edit",
    strength: float | Literal["auto"] = 1.0,
    max_damage: float = 0.1,
    singular: Literal["error", "minimum_norm"] = "error",
    collapse: float = 0.5,
    name: str | None = None,
) -> Edit:
    """Map the phrases of concepts to their anchors in the keys and values of cross-attention, in closed form.

    With c the rows of a phrase, t those of its anchor, r those of what is preserved (eq. 7 of the paper, with the
    scales of its code):

        W' = (ridge W + erase sum v c^T + preserve sum (W r) r^T) (ridge I + erase sum c c^T + preserve sum r r^T)^-1

    - ``technique="replace"``: v = W t; ``"tensor"``: v = W t - <u, W t> u, u = W c / ||W c|| over all rows of a phrase
    - ``variant="paper"``: rows from the last token of the phrase to the last padding, phrase and anchor aligned there;
      all positions of preserved texts, the empty text always among them; preserve_scale max(0.1, 1 / texts)
    - ``variant="2025"``, the authors' rewrite: one row a text, the last token of the phrase, for erased and preserved;
      preserve_scale 1. Its results differ from the paper's

    Moderation is ``anchor=""`` with a group or a list of phrases.

    Args:
        pipe: a Stable Diffusion pipeline. It is read, not changed.
        concepts: a concept, a phrase, or a list of these. A concept stands for all its surface forms, a group for those
            of its members.
        anchor: what takes their place: a text for all or name -> text; the concept's own anchor where it has one, else
            a blank.
        preserve: texts, concepts (by name), or a `PreserveCache` of the variant's rows or the path of one; by
            default the embedded world's ``preserve_fit`` less what is erased, if that is part of this world; () for
            nothing.
        variant: see above.
        technique: see above.
        tokens: selectors of the erased rows; the variant's unless given.
        templates: texts around phrase and anchor, each with ``{}``; the authors' ``--add_prompts`` adds five.
        erase_scale: weight of every erased row.
        preserve_scale: weight of every preserved row; the variant's unless given.
        ridge: weight of ||W' - W||^2.
        layers: keys and values, or one of them.
        pooled: SDXL's pooled text is mapped likewise in the first Linear of its added embedding (ours), or left with
            the concept in it.
        strength: factor of erase_scale; ``"auto"`` takes the largest whose damage on the preserved rows is at most
            ``max_damage`` (ours).
        max_damage: relative change of preserved keys and values that ``"auto"`` allows.
        singular: a system that its rows do not decide is an error, or solved by the smallest change.
        collapse: largest relative change of keys and values of preserved texts, and half of that of everyday prompts;
            infinity for no check (ours).
        name: ``uce`` by default.

    Returns an edit of deltas. Its ``report`` has ``tokens`` (of SDXL also ``pooled``) with ``condition``, ``rank`` and
    ``effective_rank`` of the system of these rows; ``layers`` (relative change of each projection), ``damage``,
    ``collisions`` and ``strength``.

    Raises `BadInput` for an empty concept, a target equal to its source, a template without ``{}``, a singular system,
    and an edit that destroys everyday prompts.
    """
    chosen = VARIANTS[variant]
    targets = targets_of(concepts, anchor)
    rows_at = tokens if tokens is not None else chosen.tokens
    around = checked([templates] if isinstance(templates, str) else templates)
    pairs = phrase_pairs(targets, around)
    kept = kept_of(pipe, preserve, targets, chosen.kept_tokens, form="names", always=chosen.always)
    scale = preserve_scale if preserve_scale is not None else _preserve_scale(chosen, kept)
    positive(erase_scale=erase_scale)
    not_negative(preserve_scale=scale, ridge=ridge)
    problems = problems_of(pipe, pairs, rows_at, kept, erase=erase_scale, keep=scale, ridge=ridge, pooled=pooled)
    rule = in_text_space if technique == "replace" else without_old
    found = solved(pipe, problems, kept, Request(strength, max_damage, singular, layers, rule))
    options = {
        **described(targets),
        "variant": variant,
        "technique": technique,
        "tokens": [rows_at] if isinstance(rows_at, str) else list(rows_at),
        "templates": list(around),
        "erase_scale": erase_scale,
        "preserve_scale": scale,
        "ridge": ridge,
        "layers": layers,
        "pooled": pooled,
        "strength": strength,
        "max_damage": max_damage if strength == "auto" else None,
        "singular": singular,
    }
    return finished(
        pipe,
        found,
        name=name or "uce",
        method="uce",
        options=options,
        layers=layers,
        kept=kept,
        erased=[phrase for target in targets for phrase in target.phrases],
        collapse=collapse,
    )


def phrase_pairs(targets: Sequence[Target], templates: Sequence[str]) -> list[Pair]:
    """Every phrase in every template beside its anchor in the same one; each pair is a block of its own."""
    texts = [
        (filled(template, phrase), filled(template, target.anchor))
        for target in targets
        for phrase in target.phrases
        for template in templates
    ]
    return [Pair(source, target, concept=i) for i, (source, target) in enumerate(texts)]


def problems_of(
    pipe: Any,
    pairs: Sequence[Pair],
    tokens: str | Sequence[str],
    kept: Kept | None,
    *,
    erase: float,
    keep: float,
    ridge: float,
    pooled: str,
) -> dict[str, Problem]:
    """The ridge problem of each family of rows: token rows and, of SDXL unless they are left, pooled texts."""
    rows, whole = rows_of(pipe, pairs, tokens)
    found = {}
    for family, part in {"tokens": rows, "pooled": whole if pooled == "edit" else None}.items():
        if part is not None:
            gram = None if kept is None else kept.gram(family)
            found[family] = Problem(part.weighted(erase), None if gram is None else keep * gram[0], ridge)
    return found


def _preserve_scale(variant: _Variant, kept: Kept | None) -> float:
    if variant.least_preserve is None or kept is None:
        return 1.0
    return max(variant.least_preserve, 1 / len(kept.texts))

"""The closed-form parts of MACE: Mass Concept Erasure (Lu et al., CVPR 2024, arXiv 2403.06135)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from erase._changes import Delta
from erase._edit import Edit
from erase.closed_form._augment import augmentation_of
from erase.closed_form._fit import Solved, TextUpdate, finished
from erase.closed_form._preserve import kept_of
from erase.closed_form._ridge import Problem, Request, Singular, not_negative, solved
from erase.closed_form._ridge import described as described_system
from erase.closed_form._ridge import singular as singular_system
from erase.closed_form._targets import targets_of
from erase.closed_form._texts import rows_of
from erase.gram import System, outer, ridged
from probe._options import validated
from probe.errors import BadInput


@validated
def mace(
    pipe: Any,
    concepts: Any,
    *,
    anchor: str | dict[str, str] | None = None,
    preserve: Any = None,
    augment: Any = None,
    synonyms: int = 20,
    templates: int = 30,
    tokens: str | tuple[str, ...] = "residual",
    eta: float = 2.5e-4,
    ridge: float = 0.0,
    fuse: Mapping[str, Edit] | None = None,
    fuse_eta: float = 2.5e-4,
    fuse_ridge: float = 0.0,
    layers: Literal["kv", "k", "v"] = "kv",
    pooled: Literal["edit", "leave"] = "edit",
    strength: float | Literal["auto"] = 1.0,
    max_damage: float = 0.1,
    singular: Literal["error", "minimum_norm"] = "error",
    collapse: float = 0.5,
    name: str | None = None,
) -> Edit:
    """MACE's closed-form refinement and, of edits made one a concept, its closed-form fusion.

    Refinement (section 4.1): in prompts of a concept the rows of all *but* its own words, which carry a residue of it,
    are mapped to the same rows of prompts with the anchor. Fusion (section 4.4): one W* for which every concept's
    prompts meet the projections that its own edit dW_i made:

        W* = (sum_i sum_e (W1 + dW_i) e e^T + eta W G + ridge W1) (sum_i sum_e e e^T + eta G + ridge I)^-1

    with W1 the refined and W the first weights, e all rows of the prompts of concept i, G the mean outer product of
    what is preserved; sums over e are means here. MACE trains its dW_i by attention maps and segmentation: bring any
    edits of keys and values, such as low-rank ones, one a concept.

    Args:
        pipe: a Stable Diffusion pipeline. It is read, not changed.
        concepts: as in `erase.uce`.
        anchor, augment, synonyms, templates: as in `erase.trce_text`; MACE takes 30 templates.
        preserve: as in `erase.trce_text`: prompts, all their positions.
        tokens: selectors of the refined rows.
        eta: weight of the mean preserved outer product relative to the mean erased one. MACE's scale for celebrities
            comes to 2.4e-4 with COCO's captions; its code applies the scale twice here and once in the fusion.
        ridge: relative to the mean erased product; none in most of MACE's settings, which then easily give noise.
        fuse: concept name -> edit on keys and values; None for refinement alone.
        fuse_eta, fuse_ridge: as ``eta`` and ``ridge``, in the fusion.
        layers, pooled, singular, collapse: as in `erase.uce`.
        strength, max_damage: as in `erase.uce`, of the refinement.
        name: ``mace`` by default.

    Returns an edit of deltas with a report as `erase.uce`; ``fusion`` describes the system of the fusion.

    Raises `BadInput` as `erase.uce`, for a fusion that lacks a concept or has ``strength="auto"``, and for an edit that
    does more than add to keys and values.
    """
    not_negative(eta=eta, ridge=ridge, fuse_eta=fuse_eta, fuse_ridge=fuse_ridge)
    if fuse is not None and strength == "auto":
        raise BadInput("strength='auto' bounds the refinement, not what fused edits do", fix="a number, or fuse=None")
    targets = targets_of(concepts, anchor, otherwise="")
    found = [augmentation_of(target, augment) for target in targets]
    pairs = [pair for i, one in enumerate(found) for pair in one.texts(synonyms, templates, i)]
    kept = kept_of(pipe, preserve, targets, "all_tokens", form="prompts")
    families = dict(zip(("tokens", "pooled"), rows_of(pipe, pairs, tokens), strict=True))
    problems = {}
    for family, rows in families.items():
        if rows is not None and (family == "tokens" or pooled == "edit"):
            gram = None if kept is None else kept.gram(family)
            mean = None if gram is None else eta * gram[0] / gram[1]
            problems[family] = Problem(rows.weighted(1 / len(rows)), mean, ridge)
    refined = solved(pipe, problems, kept, Request(strength, max_damage, singular, layers))
    if fuse is not None:
        _check_fused(fuse, [target.name for target in targets])
        refined = _fused(pipe, refined, pairs, [fuse[target.name] for target in targets], kept, fuse_eta, fuse_ridge,
                         singular)  # fmt: skip
    options = {
        "concepts": [target.name for target in targets],
        "pairs": [[[erase, safe] for erase, safe, *_ in one.pairs[:synonyms]] for one in found],
        "templates": [list(one.templates[:templates]) for one in found],
        "tokens": [tokens] if isinstance(tokens, str) else list(tokens),
        "eta": eta,
        "ridge": ridge,
        "fuse": None if fuse is None else {name: edit.id for name, edit in fuse.items()},
        "fuse_eta": None if fuse is None else fuse_eta,
        "fuse_ridge": None if fuse is None else fuse_ridge,
        "layers": layers,
        "pooled": pooled,
        "strength": strength,
        "max_damage": max_damage if strength == "auto" else None,
        "singular": singular,
    }
    erased = [erase for one in found for erase, *_ in one.pairs[:synonyms]]
    return finished(pipe, refined, name=name or "mace", method="mace", options=options, layers=layers, kept=kept,
                    erased=erased, collapse=collapse)  # fmt: skip


@dataclass(frozen=True)
class _Fusion:
    """W* - W: the refinement W D, then N A^-1 with N = sum_i dW_i G_i - eta (W D) G, which pulls what is kept to W."""

    refined: TextUpdate
    system: System
    own: Sequence[Tensor]
    deltas: Sequence[Mapping[str, Tensor]]
    kept: Tensor | None

    def change(self, param: str, weight: Tensor) -> Tensor:
        """For one projection W (o d)."""
        first = weight @ (self.refined.left @ self.refined.right)
        numerator = weight.new_zeros(weight.shape)
        for gram, deltas in zip(self.own, self.deltas, strict=True):
            if param in deltas:
                numerator += deltas[param] @ gram
        if self.kept is not None:
            numerator -= first @ self.kept
        return first + self.system.solve(numerator)


def _fused(
    pipe: Any,
    refined: Solved,
    pairs: Sequence[Any],
    edits: Sequence[Edit],
    kept: Any,
    eta: float,
    ridge: float,
    policy: Singular,
) -> Solved:
    rows, _ = rows_of(pipe, pairs, "all_tokens")
    own = [outer(part, part) / len(rows) for part in (rows.sources[rows.concept == i] for i in range(len(edits)))]
    mean = None if kept is None else eta * kept.cache.gram / kept.cache.rows
    matrix = sum(own[1:], own[0])
    problem = Problem(rows.weighted(1 / len(rows)), mean, ridge)
    system = System(ridged(matrix if mean is None else matrix + mean, ridge))
    if system.singular and policy == "error":
        raise singular_system(problem, system)
    deltas = [{c.param: c.dense().double() for c in edit.changes if isinstance(c, Delta)} for edit in edits]
    first = refined.updates["tokens"]
    assert isinstance(first, TextUpdate)
    refined.updates["tokens"] = _Fusion(first, system, own, deltas, mean)
    refined.more["fusion"] = described_system(system, problem)
    return refined


def _check_fused(fuse: Mapping[str, Edit], names: Sequence[str]) -> None:
    if set(fuse) != set(names):
        given, expected = ", ".join(fuse) or "none", ", ".join(names)
        raise BadInput("fusion needs one edit for each concept", given=given, expected=expected)
    for name, edit in fuse.items():
        for change in edit.changes:
            if not isinstance(change, Delta) or not change.param.endswith(("attn2.to_k.weight", "attn2.to_v.weight")):
                raise BadInput(
                    "only edits that add to keys and values can be fused", given=f"{name}: {change.kind} {change.param}"
                )

"""OCE: orthogonal concept erasure (Sun et al., ICML 2026)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from erase import updates
from erase._concepts import preserved, prompts_of, without
from erase._edit import Edit
from erase.closed_form._cache import PreserveCache
from erase.closed_form._fit import Solved, finished
from erase.closed_form._preserve import kept_of, opened
from erase.closed_form._ridge import Problem, not_negative, positive
from erase.closed_form._ridge import described as described_system
from erase.closed_form._targets import Target, described, targets_of
from erase.closed_form._texts import Rows, rows_of
from erase.closed_form._uce import phrase_pairs
from erase.gram import System, ridged
from probe._options import validated


@validated
def oce(
    pipe: Any,
    concepts: Any,
    *,
    anchor: str | dict[str, str] | None = None,
    preserve: Any = None,
    prior_prompts: Any = None,
    tokens: str | tuple[str, ...] = "last_subject",
    erase_scale: float = 1.0,
    preserve_scale: float = 0.3,
    prior_scale: float = 0.5,
    ridge: float = 1.5,
    erase_term: Literal["paper", "transposed"] = "paper",
    proper: bool = False,
    layers: Literal["v", "kv", "k"] = "v",
    pooled: Literal["edit", "leave"] = "edit",
    collapse: float = 0.5,
    name: str | None = None,
) -> Edit:
    """Rotate each projection so that outputs of concepts leave their span for that of the anchors: W' = P W.

    With R and R* the projectors on the spans of the outputs W c of the phrases and W t of the anchors, r the rows of
    what is preserved and K0 the mean outer product of the rows of prior prompts:

        M = - erase R (I - R*) + W (prior K0 + preserve sum r r^T + ridge I) W^T = U S V^T,   P = U V^T

    P, a rotation or a reflection, is orthogonal, so W'^T W' = W^T W: lengths and angles of all outputs stay.

    Args:
        pipe: a Stable Diffusion pipeline. It is read, not changed.
        concepts, anchor, preserve: as in `erase.uce`; what is preserved counts by name.
        prior_prompts: prompts, or a `PreserveCache` of ``unpadded`` rows, for K0: [SoT], words and [EoT] of each
            (30,000 captions in the paper); by default the explicit tuning prompts of what is preserved, or the texts of
            its cache; () for none.
        tokens: selectors of the rows of phrases, anchors and preserved texts.
        erase_scale, preserve_scale, prior_scale, ridge: as released.
        erase_term: ``transposed``: (I - R*) R, which asks of P what the published term asks of P^T (ours;
            `erase.updates.rotation`).
        proper: det P = 1 at the price of the least singular direction (ours).
        layers: values, as released.
        pooled, collapse: as in `erase.uce`.
        name: ``oce`` by default.

    Returns an edit of deltas with a report as `erase.uce`.

    Raises `BadInput` as `erase.uce`.
    """
    positive(erase_scale=erase_scale)
    not_negative(preserve_scale=preserve_scale, prior_scale=prior_scale, ridge=ridge)
    targets = targets_of(concepts, anchor)
    kept = kept_of(pipe, preserve, targets, tokens, form="names")
    if prior_prompts is None:
        prior_prompts = _prompts(opened(preserve), targets)
    before = kept_of(pipe, prior_prompts, targets, "unpadded", form="prompts")
    families = dict(zip(("tokens", "pooled"), rows_of(pipe, phrase_pairs(targets, ("{}",)), tokens), strict=True))
    found = Solved({})
    for family, rows in families.items():
        if rows is None or (family == "pooled" and pooled == "leave"):
            continue
        total = torch.zeros(rows.sources.shape[1], rows.sources.shape[1], dtype=torch.float64)
        if before is not None and (gram := before.gram(family)) is not None:
            total = total + prior_scale * gram[0] / gram[1]
        if kept is not None and (gram := kept.gram(family)) is not None:
            total = total + preserve_scale * gram[0]
        found.updates[family] = _Rotation(rows, ridged(total, ridge), erase_scale, erase_term == "transposed", proper)
        found.systems[family] = described_system(System(ridged(total, ridge)), Problem(rows, None, ridge))
    options = {
        **described(targets),
        "prior": None if before is None else before.source,
        "tokens": [tokens] if isinstance(tokens, str) else list(tokens),
        "erase_scale": erase_scale,
        "preserve_scale": preserve_scale,
        "prior_scale": prior_scale,
        "ridge": ridge,
        "erase_term": erase_term,
        "proper": proper,
        "layers": layers,
        "pooled": pooled,
    }
    erased = [phrase for target in targets for phrase in target.phrases]
    return finished(pipe, found, name=name or "oce", method="oce", options=options, layers=layers, kept=kept,
                    erased=erased, collapse=collapse)  # fmt: skip


def _prompts(preserve: Any, targets: list[Target]) -> list[str]:
    """The explicit tuning prompts of what is preserved; by default less those that name what is erased."""
    if isinstance(preserve, PreserveCache):
        return list(preserve.texts)
    found = prompts_of(preserved(preserve, [target.given for target in targets]))
    return without([phrase for target in targets for phrase in target.phrases], found) if preserve is None else found


@dataclass(frozen=True)
class _Rotation:
    """W' - W = (P - I) W."""

    rows: Rows
    kept: Tensor
    scale: float
    transposed: bool
    proper: bool

    def change(self, param: str, weight: Tensor) -> Tensor:
        """For one projection W (o d)."""
        erased = updates.span(weight @ self.rows.sources.T)
        guide = updates.span(weight @ self.rows.targets.T)
        kept = weight @ self.kept @ weight.T
        turn = updates.rotation(erased, guide, kept, scale=self.scale, transposed=self.transposed, proper=self.proper)
        return turn @ weight - weight

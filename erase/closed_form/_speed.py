"""SPEED: null-space constrained erasure (Li et al., ICLR 2026)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from erase import updates
from erase._edit import Edit
from erase.closed_form._fit import Solved, finished
from erase.closed_form._preserve import kept_of
from erase.closed_form._ridge import Problem, not_negative, positive
from erase.closed_form._ridge import described as described_system
from erase.closed_form._targets import described, targets_of
from erase.closed_form._texts import Rows, encoded, kept_rows, rows_of
from erase.closed_form._uce import phrase_pairs
from erase.gram import System, outer, ridged
from erase.prune._layers import stream
from probe._options import validated


@validated
def speed(
    pipe: Any,
    concepts: Any,
    *,
    anchor: str | dict[str, str] | None = None,
    preserve: Any = None,
    tokens: str | tuple[str, ...] = "last_subject",
    retain_scale: float = 1.0,
    slack: float = 0.0,
    threshold: float = 0.1,
    filtered: bool = True,
    augmented: int = 10,
    layers: Literal["v", "kv", "k"] = "v",
    pooled: Literal["edit", "leave"] = "edit",
    collapse: float = 0.5,
    seed: int = 0,
    name: str | None = None,
) -> Edit:
    """Map concepts to their anchors inside the null space of what is retained, with equality for the empty text.

    For each projection W, with C1 the rows of the phrases, C* those of the anchors (means over rows of the products),
    r the rows of what is retained and K2 the [SoT] row and three k-means centres of the rest of the empty text:

    1. D0 = W (C* C1^T - C1 C1^T) (I + C1 C1^T)^-1; retained rows stay that D0 moves more than the mean (``filtered``)
    2. ``augmented`` samples r + (n . v) v of each, v the last right singular vector of W, n normal; those stay that D0
       moves more than their mean
    3. P projects on the eigenvectors of mean r r^T with eigenvalues below ``threshold``
    4. M = (C1 C1^T P + retain_scale I)^-1, Q = I - M K2 (K2^T P M K2 + slack I)^-1 K2^T P,
       W' = W + W (C* C1^T - C1 C1^T) P Q M

    Args:
        pipe: a Stable Diffusion pipeline. It is read, not changed.
        concepts, anchor: as in `erase.uce`.
        preserve: texts and concepts (by name) whose rows are retained; as in `erase.uce`.
        tokens: selectors of the rows of phrases and retained texts; ``after_sot`` for unsafe content in the paper.
        retain_scale: rho: 1; 0.05 for celebrities, 0.7 for unsafe content.
        slack: lambda: 0, for which the rows of K2 stay exactly; 0.5 for unsafe content.
        threshold: see 3.
        filtered: see 1; off for many concepts in the paper.
        augmented: see 2.
        layers: values in the paper.
        pooled, collapse: as in `erase.uce`; the pooled empty text is its K2.
        seed: of the samples and of k-means.
        name: ``speed`` by default.

    Returns an edit of deltas with a report as `erase.uce`, but without ``strength``: ``tokens`` and ``pooled`` describe
    the worst system of any projection, in its null space. Besides ``free_tokens`` and ``free_pooled``, the dimension of
    each null space, and ``retained_tokens`` and ``retained_pooled``, the rows that count there.

    Raises `BadInput` as `erase.uce`.
    """
    positive(retain_scale=retain_scale, threshold=threshold)
    not_negative(slack=slack, augmented=augmented)
    targets = targets_of(concepts, anchor)
    kept = kept_of(pipe, preserve, targets, tokens, form="names")
    retained: dict[str, list[Tensor]] = {"tokens": [], "pooled": []}
    for part, whole in kept_rows(pipe, kept.texts if kept is not None else (), tokens):
        retained["tokens"].append(part)
        if whole is not None:
            retained["pooled"].append(whole)
    families = dict(zip(("tokens", "pooled"), rows_of(pipe, phrase_pairs(targets, ("{}",)), tokens), strict=True))
    held = _held(pipe, seed)
    found = Solved({})
    for family, rows in families.items():
        if rows is None or (family == "pooled" and pooled == "leave"):
            continue
        own = outer(rows.sources, rows.sources) / len(rows)
        update = _Speed(
            rows,
            outer(rows.targets, rows.sources) / len(rows),
            own,
            held[family],
            torch.cat(retained[family]) if retained[family] else None,
            retain_scale=retain_scale,
            slack=slack,
            threshold=threshold,
            filtered=filtered,
            augmented=augmented,
            seed=seed,
        )
        found.updates[family], found.systems[family] = update, update.worst
        found.more |= {f"free_{family}": update.free, f"retained_{family}": update.counts}
    options = {
        **described(targets),
        "tokens": [tokens] if isinstance(tokens, str) else list(tokens),
        "retain_scale": retain_scale,
        "slack": slack,
        "threshold": threshold,
        "filtered": filtered,
        "augmented": augmented,
        "layers": layers,
        "pooled": pooled,
        "seed": seed,
    }
    erased = [phrase for target in targets for phrase in target.phrases]
    return finished(pipe, found, name=name or "speed", method="speed", options=options, layers=layers, kept=kept,
                    erased=erased, collapse=collapse)  # fmt: skip


@dataclass(frozen=True)
class _Speed:
    """The closed form for one family: C* C1^T (``cross``), C1 C1^T (``own``), K2 (d m) and the retained rows (n d).

    What it finds on the way is kept by projection, and of the systems that it solves the ``worst``.
    """

    rows: Rows
    cross: Tensor
    own: Tensor
    held: Tensor
    retained: Tensor | None
    retain_scale: float
    slack: float
    threshold: float
    filtered: bool
    augmented: int
    seed: int
    free: dict[str, int] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    worst: dict[str, Any] = field(default_factory=dict)

    def change(self, param: str, weight: Tensor) -> Tensor:
        """W D for one projection: what is retained depends on what the projection sees."""
        gram, count = self._gram(param, weight)
        free = updates.null_projector(gram, self.threshold)
        self.free[param], self.counts[param] = round(float(torch.trace(free))), count
        self._describe(free)
        found = updates.null_space(self.cross, self.own, free, self.held, keep=self.retain_scale, slack=self.slack)
        return weight @ found

    def _describe(self, free: Tensor) -> None:
        """P (C1 C1^T P + rho I)^-1 = (P C1 C1^T P + rho I)^-1 P: what is inverted is this symmetric matrix."""
        system = System(ridged(free @ self.own @ free, self.retain_scale))
        now = described_system(system, Problem(self.rows, None, self.retain_scale))
        if not self.worst or (now["condition"] or math.inf) > (self.worst["condition"] or math.inf):
            self.worst.update(now)

    def _gram(self, param: str, weight: Tensor) -> tuple[Tensor, int]:
        """mean r r^T of the rows that the unconstrained solution would move most, and how many these are."""
        if self.retained is None:
            return torch.zeros_like(self.own), 0
        wanted = weight @ System(ridged(self.own, 1.0)).solve(self.cross - self.own)
        rows = _moved_most(self.retained, wanted) if self.filtered else self.retained
        if self.augmented:
            _, _, vectors = torch.linalg.svd(weight, full_matrices=True)
            last = vectors[-1]
            noise = torch.randn(len(rows) * self.augmented, len(last), generator=stream(self.seed, param)).double()
            more = rows.repeat(self.augmented, 1) + (noise @ last)[:, None] * last
            rows = torch.cat([rows, _moved_most(more, wanted)])
        return outer(rows, rows) / len(rows), len(rows)


def _moved_most(rows: Tensor, change: Tensor) -> Tensor:
    """The rows whose outputs a change (o d) moves more than their mean; all of them where none stands out."""
    moved = (rows @ change.T).norm(dim=1)
    chosen = rows[moved > moved.mean()]
    return chosen if len(chosen) else rows


def _held(pipe: Any, seed: int) -> dict[str, Tensor]:
    """K2 (d m) by family: [SoT] and three k-means centres of the other rows of the empty text; its pooled vector."""
    from sklearn.cluster import KMeans

    empty, pooled = encoded(pipe, [""])
    rest = empty[0, 1:]
    centres = KMeans(3, n_init=10, random_state=seed).fit(rest.numpy()).cluster_centers_
    held = torch.cat([empty[0, :1], torch.from_numpy(centres).double()]).T
    return {"tokens": held, **({} if pooled is None else {"pooled": pooled.T})}

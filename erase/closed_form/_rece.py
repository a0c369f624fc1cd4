"""RECE: Reliable and Efficient Concept Erasure (Gong et al., ECCV 2024, arXiv 2407.12383)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from erase import updates
from erase._edit import Edit
from erase.closed_form._fit import Solved, TextUpdate, finished, projections
from erase.closed_form._preserve import Kept, kept_of
from erase.closed_form._ridge import (
    Problem,
    Request,
    bearable,
    in_text_space,
    not_negative,
    positive,
    singular,
    solved,
)
from erase.closed_form._ridge import described as described_system
from erase.closed_form._targets import Target, described, targets_of
from erase.closed_form._texts import Rows
from erase.closed_form._uce import phrase_pairs, problems_of
from probe._options import validated
from probe.errors import BadInput


@validated
def rece(
    pipe: Any,
    concepts: Any,
    *,
    anchor: str | dict[str, str] | None = None,
    preserve: Any = None,
    epochs: int = 3,
    penalty: float = 0.1,
    surrogate: Literal["zero", "output", "source", "both", "target"] = "zero",
    towards: str | None = None,
    start_ridge: float = 0.5,
    erase_scale: float = 1.0,
    preserve_scale: float = 0.1,
    ridge: float = 0.1,
    layers: Literal["kv", "k", "v"] = "kv",
    pooled: Literal["edit", "leave"] = "edit",
    strength: float | Literal["auto"] = 1.0,
    max_damage: float = 0.1,
    collapse: float = 0.5,
    select: Callable[[int, Edit], float] | None = None,
    name: str | None = None,
) -> Edit:
    """UCE, then epochs that find what still brings the concepts back and map that too, all in closed form.

    Each epoch takes, for every row e of a concept's phrases, the row e' to which the edited keys and values W_l answer
    as the original W_l* answer e (eq. 6 and 7 of the paper):

        e' = (penalty I + sum_l W_l^T W_l)^-1 (sum_l W_l^T W_l*) e

    and solves the ridge problem of UCE from the edited weights: e' to W_l t, t the rows of the anchor, preserved rows
    to where they are. All changes are W* M with one (d d) matrix M, an epoch costs the same for any number of layers.

    Args:
        pipe: a Stable Diffusion pipeline. It is read, not changed.
        concepts, anchor: as in `erase.uce`; the anchor of a phrase without one is a blank, as published.
        preserve: as in `erase.uce`; the empty text is always preserved.
        epochs: 3 for unsafe content, 1 for styles and objects in the paper; 0 is UCE.
        penalty: lambda: 0.1, for styles and hard objects 0.001.
        surrogate: what the penalty holds: ``zero`` ||e'||^2 as published; of the released options ``output``
            ||W_l (e' - e)||^2 ("1st"), ``source`` ||e' - e||^2 ("2nd"), ``both``, ``target`` ||e' - towards||^2.
        towards: the text of ``surrogate="target"``.
        start_ridge: ridge of the first edit, UCE's; ``ridge``, ``erase_scale``: of the epochs.
        preserve_scale: weight of every preserved row, in all edits.
        layers, pooled, collapse: as in `erase.uce`.
        strength, max_damage: as in `erase.uce`; a factor of erase_scale in all edits, and ``"auto"`` measures the last.
        select: called with (epoch, edit) after the first edit (0) and every epoch; the edit with the lowest number is
            kept, the earlier of equals. Give it prompts of a validation set: the released code selects on its reports.
            Without it the last epoch is kept. An epoch whose edit is refused is the end: the best before it is kept.
        name: ``rece`` by default.

    Returns an edit of deltas with a report as `erase.uce`; besides ``epochs``, the mean ||e' - e|| / ||e|| of each, and
    with ``select`` its numbers as ``selection`` (None for an edit that was refused, and ``refused`` says why) and the
    ``selected`` epoch.

    Raises `BadInput` as `erase.uce`.
    """
    positive(erase_scale=erase_scale)
    not_negative(penalty=penalty, preserve_scale=preserve_scale, ridge=ridge, start_ridge=start_ridge)
    if epochs < 0:
        raise BadInput("epochs must not be negative", given=epochs)
    if (surrogate == "target") != (towards is not None):
        raise BadInput("surrogate='target' needs towards, and no other takes it", given=f"{surrogate!r}, {towards!r}")
    targets = targets_of(concepts, anchor)
    kept = kept_of(pipe, preserve, targets, "all_tokens", form="names", always=("",))
    state = _State(pipe, targets, kept, layers, pooled, towards)

    def start(strength: float) -> None:
        state.start(strength * erase_scale, preserve_scale, start_ridge)

    def epoch(strength: float) -> None:
        state.epoch(penalty, surrogate, strength * erase_scale, preserve_scale, ridge)

    def after_all(strength: float) -> TextUpdate:
        start(strength)
        for _ in range(epochs):
            epoch(strength)
        return state.update()

    found = bearable(pipe, strength, max_damage, kept, layers, after_all)
    start(found)
    options = {
        **described(targets),
        "epochs": epochs,
        "penalty": penalty,
        "surrogate": surrogate,
        "towards": towards,
        "start_ridge": start_ridge,
        "erase_scale": erase_scale,
        "preserve_scale": preserve_scale,
        "ridge": ridge,
        "layers": layers,
        "pooled": pooled,
        "strength": strength,
        "max_damage": max_damage if strength == "auto" else None,
    }

    def edit() -> Edit:
        state.found.more = {"strength": found, "epochs": list(state.moved)}
        erased = [phrase for target in targets for phrase in target.phrases]
        return finished(pipe, state.found, name=name or "rece", method="rece", options=options, layers=layers,
                        kept=kept, erased=erased, collapse=collapse)  # fmt: skip

    if select is None:
        for _ in range(epochs):
            epoch(found)
        return edit()
    best = edit()
    lowest = float(select(0, best))
    numbers: list[float | None] = [lowest]
    said: dict[str, Any] = {"selected": 0}
    for n in range(1, epochs + 1):
        try:
            epoch(found)
            candidate = edit()
        except BadInput as error:  # what was good before it stays good
            numbers.append(None)
            said["refused"] = str(error)
            break
        numbers.append(number := float(select(n, candidate)))
        if number < lowest:
            best, lowest, said["selected"] = candidate, number, n
    best.provenance["report"] |= {"selection": numbers, **said}
    return best


class _State:
    """The map M of each family of rows, W = W* M, as epochs change it."""

    def __init__(
        self, pipe: Any, targets: list[Target], kept: Kept | None, layers: str, pooled: str, towards: str | None
    ) -> None:
        self.pipe, self.kept, self.layers, self.pooled = pipe, kept, layers, pooled
        self.pairs = phrase_pairs(targets, ("{}",))
        self.first, self.rows = (
            problems_of(pipe, self.pairs, at, None, erase=1.0, keep=0.0, ridge=0.0, pooled=pooled)
            for at in ("subject_to_end", "all_tokens")  # UCE as published; every row
        )
        self.seen: dict[str, Tensor] = {}
        for place in projections(pipe, layers, pooled="pooled" in self.rows):
            weight = place.weight(pipe)
            own = weight.T @ weight
            self.seen[place.family] = self.seen[place.family] + own if place.family in self.seen else own
        self.towards = self._towards(towards)
        self.maps: dict[str, Tensor] = {}
        self.found = Solved({})
        self.moved: list[float] = []

    def _towards(self, text: str | None) -> dict[str, Tensor]:
        """The rows that ``surrogate="target"`` pulls to, one for every erased row."""
        if text is None:
            return {}
        from erase.closed_form._texts import Pair

        pairs = [Pair(pair.source, text, concept=pair.concept) for pair in self.pairs]
        named = problems_of(self.pipe, pairs, "all_tokens", None, erase=1.0, keep=0.0, ridge=0.0, pooled=self.pooled)
        return {family: problem.rows.targets for family, problem in named.items()}

    def start(self, erase: float, keep: float, ridge: float) -> None:
        """UCE as published: from the last token of each phrase to the last padding."""
        problems = {
            family: Problem(problem.rows.weighted(erase), self._kept(family, keep), ridge)
            for family, problem in self.first.items()
        }
        self.found, self.moved = solved(self.pipe, problems, self.kept, Request(layers=self.layers)), []
        for family, update in self.found.updates.items():
            assert isinstance(update, TextUpdate)
            self.maps[family] = torch.eye(len(self.seen[family]), dtype=torch.float64) + update.left @ update.right

    def epoch(self, penalty: float, surrogate: str, erase: float, keep: float, ridge: float) -> None:
        """One search for what brings the concepts back, and one edit of the edited weights."""
        for family, problem in self.rows.items():
            rows, eye = problem.rows, torch.eye(len(self.seen[family]), dtype=torch.float64)
            back = updates.adversarial(
                rows.sources,
                self.maps[family],
                self.seen[family],
                penalty=penalty,
                surrogate=surrogate,
                towards=self.towards.get(family),
            )
            if family == "tokens":
                lengths = rows.sources.norm(dim=1).clamp(min=1e-300)
                self.moved.append(float(((back - rows.sources).norm(dim=1) / lengths).mean()))
            found = Rows(back, rows.targets, rows.weights * erase, rows.concept, rows.names)
            this = Problem(found, self._kept(family, keep), ridge)
            system = this.system()
            if system.singular and family == "tokens":
                raise singular(this, system)
            step = in_text_space(this, system, 1.0)
            self.maps[family] = self.maps[family] @ (eye + step.left @ step.right)
            self.found.updates[family] = TextUpdate(self.maps[family] - eye, eye)
            self.found.systems[family] = described_system(system, this)

    def update(self) -> TextUpdate:
        """The change of token rows so far."""
        found = self.found.updates["tokens"]
        assert isinstance(found, TextUpdate)
        return found

    def _kept(self, family: str, keep: float) -> Tensor | None:
        gram = None if self.kept is None else self.kept.gram(family)
        return None if gram is None else keep * gram[0]

"""From a solved update to an edit: every key and value projection, checked, measured and put into a report."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from erase._changes import Delta
from erase._concepts import warn_of_collisions, without
from erase._edit import Edit, make_edit
from erase._places import locate
from erase.closed_form._preserve import Kept
from erase.closed_form._texts import kept_rows
from erase.gram import change_of_output, outer
from probe import compat, sites
from probe.errors import BadInput

logger = logging.getLogger(__name__)

#: Everyday texts that no edit should move far: the collapse check measures on those that name nothing erased (ours).
EVERYDAY = ("a dog", "a house", "a red car on a street", "a bowl of fruit", "a tree in the snow", "a portrait",
            "a boat on a lake", "")  # fmt: skip
POOLED = "unet.add_embedding.linear_1.weight"


@dataclass(frozen=True)
class Projection:
    """A Linear's weight that reads text: its canonical name, its family of rows, and the columns that read them."""

    param: str
    family: str
    columns: slice
    shape: tuple[int, ...]

    def weight(self, pipe: Any) -> Tensor:
        """The columns as they are now, edits in force included: (o d) float64 on the CPU."""
        return locate(pipe, self.param).tensor.detach()[:, self.columns].double().cpu()


class Update(Protocol):
    """A solved problem: the change of any projection of its family, whole (o d) or as factors (o r), (r d)."""

    def change(self, param: str, weight: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """W' - W for one projection W (o d)."""
        ...


@dataclass(frozen=True)
class TextUpdate:
    """W' - W = W D with D = ``left`` (d r) @ ``right`` (r d): what every rule in text space comes to."""

    left: Tensor
    right: Tensor

    def change(self, param: str, weight: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Factors where they are smaller than the whole."""
        outputs, width = weight.shape
        rank = self.left.shape[1]
        if 2 * rank * (outputs + width) <= outputs * width:
            return weight @ self.left, self.right
        return weight @ (self.left @ self.right)


@dataclass
class Solved:
    """The update of each family of rows, and what is reported of its system."""

    updates: dict[str, Update]
    systems: dict[str, dict[str, Any]] = field(default_factory=dict)
    more: dict[str, Any] = field(default_factory=dict)


def projections(pipe: Any, layers: str = "kv", *, pooled: bool = False) -> list[Projection]:
    """The cross-attentions' key ("k") and value ("v") projections, in order of execution.

    With ``pooled`` also, of SDXL, the columns of the first Linear of its added embedding that read the pooled text.
    """
    found = []
    wanted = [f"xattn.{letter}" for letter in layers]
    for site in sites(pipe, wanted):
        param = f"{site.component}.{compat.canonical_name(site.component, site.module)}.weight"
        shape = tuple(locate(pipe, param).tensor.shape)
        found.append(Projection(param, "tokens", slice(0, shape[1]), shape))
    if pooled and getattr(pipe, "text_encoder_2", None) is not None:
        shape = tuple(locate(pipe, POOLED).tensor.shape)
        width = int(pipe.text_encoder_2.config.projection_dim)
        found.append(Projection(POOLED, "pooled", slice(0, width), shape))
    return found


def finished(
    pipe: Any,
    solved: Solved,
    *,
    name: str,
    method: str,
    options: Mapping[str, Any],
    layers: str,
    kept: Kept | None,
    erased: Sequence[str],
    collapse: float,
) -> Edit:
    """The edit that a solved update comes to, with its report; refused where it would destroy everyday prompts.

    ``erased``: every phrase that is erased, to leave such texts out of the check and to warn of preserved texts that
    contain one. The report has, besides what the system says (condition, effective rank):

    - ``layers``: parameter -> relative change ||W' - W|| / ||W||
    - ``damage``: root mean over projections of the squared relative change of outputs, on ``preserved`` rows and on
      ``everyday`` texts
    - ``collisions``: pairs of an erased phrase and a preserved text that contains it

    Raises `BadInput` where the change is not finite, moves preserved rows by more than ``collapse`` of their size, or
    everyday texts, which nothing need hold, by more than twice that; the latter by more than once is a warning.
    """
    collisions = warn_of_collisions(erased, kept.texts if kept is not None else ())
    everyday = _everyday(pipe, erased)
    changes, relative = [], {}
    moved: dict[str, list[float]] = {"preserved": [], "everyday": []}
    for place, weight, change in _changes(pipe, solved, layers):
        whole = change[0] @ change[1] if isinstance(change, tuple) else change
        if not torch.isfinite(whole).all():
            raise BadInput(f"the change of {place.param} is not finite", fix="raise ridge, or the weight of preserve")
        relative[place.param] = float(whole.norm() / weight.norm())
        for what, gram in (("preserved", _gram(kept, place.family)), ("everyday", everyday.get(place.family))):
            if gram is not None:
                moved[what].append(change_of_output(weight, whole, gram))
        changes.append(Delta(place.param, stored(place, change)))
    damage = {what: _root_mean_square(values) for what, values in moved.items() if values}
    bounds = {"preserved": collapse, "everyday": 2 * collapse}
    if any(value > bounds[what] for what, value in damage.items()):
        moves = " and ".join(f"those of {what} texts by {value:.3g}" for what, value in damage.items())
        raise BadInput(
            "the edit destroys prompts that have nothing to do with what it erases; images would be noise",
            given=f"keys and values move, as shares of their size: {moves}",
            expected=f"at most {bounds['preserved']:g} (preserved) and {bounds['everyday']:g} (everyday)",
            fix="raise ridge or the weight of preserve, lower the erase weight, strength='auto', or collapse=inf",
        )
    if damage.get("everyday", 0.0) > collapse:
        logger.warning(
            "%s moves keys and values of everyday texts by %.2f of their size: what is not preserved will suffer "
            "(docs/methods/closed_form.md, damage)", name, damage["everyday"],
        )  # fmt: skip
    report = {**solved.systems, **solved.more, "layers": relative, "damage": damage,
              "collisions": [list(pair) for pair in collisions]}  # fmt: skip
    inputs = {} if kept is None else {"preserve": kept.source}
    return make_edit(pipe, changes, name=name, method=method, options=options, inputs=inputs, report=report)


def fast_damage(pipe: Any, layers: str, kept: Kept) -> Callable[[TextUpdate], float]:
    """The damage on preserved token rows, as `finished` measures it, by one (d d) matrix for all projections.

    mean_l tr(W_l D G D^T W_l^T) / tr(W_l G W_l^T) = tr(N D G D^T), N = mean_l W_l^T W_l / tr(W_l G W_l^T).
    """
    gram = kept.cache.gram
    total = torch.zeros_like(gram)
    places = projections(pipe, layers)
    for place in places:
        weight = place.weight(pipe)
        own = outer(weight, weight)
        total += own / float((own * gram).sum()) / len(places)

    def damage(update: TextUpdate) -> float:
        change = update.left @ update.right
        return math.sqrt(max(float(((total @ change) * (change @ gram)).sum()), 0.0))

    return damage


def _changes(pipe: Any, solved: Solved, layers: str) -> Iterator[tuple[Projection, Tensor, Any]]:
    for place in projections(pipe, layers, pooled="pooled" in solved.updates):
        weight = place.weight(pipe)
        yield place, weight, solved.updates[place.family].change(place.param, weight)


def stored(place: Projection, change: Any) -> Any:
    """The change in the parameter's own shape: columns that read no text stay."""
    missing = place.shape[1] - (change[1] if isinstance(change, tuple) else change).shape[1]
    if isinstance(change, tuple):
        return change[0].float(), torch.nn.functional.pad(change[1], (0, missing)).float()
    return torch.nn.functional.pad(change, (0, missing)).float()


def _everyday(pipe: Any, erased: Sequence[str]) -> dict[str, Tensor]:
    """Gram matrices of everyday texts that contain no erased phrase, without [SoT], which no text changes."""
    texts = without(erased, EVERYDAY)
    found: dict[str, Tensor] = {}
    for rows, pooled in kept_rows(pipe, texts, "after_sot"):
        found["tokens"] = outer(rows, rows)
        if pooled is not None:
            found["pooled"] = outer(pooled, pooled)
    return found


def _gram(kept: Kept | None, family: str) -> Tensor | None:
    found = None if kept is None else kept.gram(family)
    return None if found is None else found[0]


def _root_mean_square(values: Sequence[float]) -> float:
    return math.sqrt(sum(value**2 for value in values) / len(values))

"""UCE's debiasing: attributes added to what a concept says until a judge counts them as wanted (arXiv 2308.14761)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from erase._changes import Delta
from erase._concepts import label, listed
from erase._edit import Edit, make_edit
from erase.closed_form._fit import Projection, Solved, finished, projections, stored
from erase.closed_form._preserve import Kept, kept_of
from erase.closed_form._ridge import Problem, not_negative, positive
from erase.closed_form._ridge import described as described_system
from erase.closed_form._targets import Target
from erase.closed_form._templates import checked, filled
from erase.closed_form._texts import Pair, Rows, rows_of
from erase.gram import System
from probe import Concept, detector, generate, samples
from probe._options import validated
from probe._progress import progress_bar
from probe.errors import BadInput, unknown_name
from probe.protocols import Progress

TEMPLATES = ("a photo of a {}", "a picture of a {}", "an image of a {}", "a portrait of a {}", "a {}")


@validated
def uce_debias(
    pipe: Any,
    concepts: Any,
    *,
    attributes: dict[str, str],
    ratios: dict[str, float] | None = None,
    preserve: Any = None,
    templates: tuple[str, ...] = TEMPLATES,
    rounds: int = 30,
    tolerance: float = 0.05,
    step: float = 0.1,
    pictures: int = 10,
    judge: Any = "emoji_cnn",
    steps: int = 20,
    guidance: float = 7.5,
    batch_size: int = 8,
    ridge: float = 0.5,
    erase_scale: float = 1.0,
    preserve_scale: float = 0.1,
    layers: Literal["kv", "k", "v"] = "kv",
    pooled: Literal["edit", "leave"] = "edit",
    collapse: float = 0.5,
    seed: int = 0,
    progress: Progress = True,
    name: str | None = None,
) -> Edit:
    """Draw a concept's prompts, count attributes, push keys and values towards the rare ones; again and again.

    With c the rows of a prompt, a_j those of attribute j, r_j its share among the pictures and g_j the wanted one, each
    round maps c in the weights W of the round before to

        W c + sum_j step (g_j - r_j) ||W c|| W a_j / ||W a_j||       norms over all rows of a prompt

    by the ridge problem of `erase.uce`. A concept whose shares are all within ``tolerance`` is preserved from then on.
    This is the loop of the paper's code; that of the authors' rewrite is not here (docs/methods/closed_form.md).

    Args:
        pipe: a Stable Diffusion pipeline. It is read, not changed.
        concepts: concepts (five of their explicit tuning prompts) and phrases (in ``templates``).
        attributes: label of the judge -> text that names the attribute, such as ``{"gender/man": "a man", ...}``.
        ratios: label -> wanted share; equal shares unless given.
        preserve: as in `erase.uce`.
        templates: texts around phrases.
        rounds: at most so many; the pictures are measured once more than that.
        tolerance: largest difference of a share that needs no change.
        step: see above; 0.1 as published.
        pictures: of every prompt and round.
        judge: a detector or its name; a picture has the attribute with the highest score.
        steps, guidance, batch_size: of the pictures.
        ridge, erase_scale, preserve_scale, layers, pooled, collapse: as in `erase.uce`.
        seed: of the pictures: the first seed of each prompt.
        progress: True, False or a function of (done, total) rounds.
        name: ``uce_debias`` by default.

    Returns an edit of deltas. Its ``report`` has, besides that of `erase.uce`, ``rounds``: the shares of every concept
    as measured before each round's change, and last those of the edit.

    Raises `BadInput` for fewer than two attributes, ratios that do not add up to 1, or no change to make;
    `UnknownName` for a label that the judge does not know.
    """
    positive(step=step, tolerance=tolerance, erase_scale=erase_scale)
    not_negative(ridge=ridge, preserve_scale=preserve_scale)
    for what, count in {"rounds": rounds, "pictures": pictures, "steps": steps}.items():
        if count < 1:
            raise BadInput(f"{what} must be at least 1", given=count)
    wanted = _wanted(attributes, ratios)
    found_judge = detector(judge) if isinstance(judge, str) else judge
    if missing := [one for one in attributes if one not in found_judge.labels]:
        raise unknown_name("label of the judge", missing[0], list(found_judge.labels))
    items = listed(concepts)
    prompts = {label([item]): _prompts(item, checked(templates)) for item in items}
    targets = [Target(label([item]), (), "", item) for item in items]
    kept = kept_of(pipe, preserve, targets, "all_tokens", form="names", always=("",))
    rows = _rows(pipe, prompts, list(attributes.values()), pooled)
    state = _State(pipe, rows, projections(pipe, layers, pooled="pooled" in rows))
    history: list[dict[str, list[float]]] = []
    with progress_bar(progress, rounds, "rounds") as advance:
        for made in range(rounds + 1):
            seen = {
                concept: _shares(pipe, state.edit(), texts, found_judge, list(attributes), pictures=pictures, seed=seed,
                                 steps=steps, guidance=guidance, batch_size=batch_size)
                for concept, texts in prompts.items()
            }  # fmt: skip
            history.append({concept: shares.tolist() for concept, shares in seen.items()})
            off = {concept: wanted - shares for concept, shares in seen.items()}
            state.active = [bool(np.abs(off[concept]).max() >= tolerance) for concept in prompts]
            if made == rounds or not any(state.active):
                break
            state.round(torch.from_numpy(np.array(list(off.values()))) * step, kept, erase_scale, preserve_scale, ridge)
            advance(1)
    if not state.moved:
        shares = "; ".join(f"{concept}: {history[0][concept]}" for concept in prompts)
        raise BadInput("every share is as wanted already", given=shares, fix="a smaller tolerance, or other ratios")
    options = {
        "concepts": list(prompts),
        "prompts": list(prompts.values()),
        "attributes": attributes,
        "ratios": wanted.tolist(),
        "rounds": rounds,
        "tolerance": tolerance,
        "step": step,
        "pictures": pictures,
        "judge": str(getattr(found_judge, "id", found_judge)),
        "steps": steps,
        "guidance": guidance,
        "ridge": ridge,
        "erase_scale": erase_scale,
        "preserve_scale": preserve_scale,
        "layers": layers,
        "pooled": pooled,
        "seed": seed,
    }
    solved = Solved(dict.fromkeys(rows, _Known(state.moved)), state.systems, {"rounds": history})
    return finished(pipe, solved, name=name or "uce_debias", method="uce_debias", options=options, layers=layers,
                    kept=kept, erased=(), collapse=collapse)  # fmt: skip


@dataclass(frozen=True)
class _Blocks:
    """Rows of prompts with those of every attribute at the same places: ``sources`` (n d), ``attributes`` (j n d).

    ``block`` (n,) says which prompt a row is of, ``concept`` (n,) which concept.
    """

    sources: Tensor
    attributes: Tensor
    block: Tensor
    concept: Tensor
    names: tuple[str, ...]

    def chosen(self, active: Sequence[bool]) -> Tensor:
        """Which rows are of concepts that are still pushed: (n,)."""
        return torch.tensor(active)[self.concept]


@dataclass(frozen=True)
class _Known:
    """A change that was worked out before."""

    values: Mapping[str, Tensor]

    def change(self, param: str, weight: Tensor) -> Tensor:
        """For one projection."""
        return self.values[param]


@dataclass
class _State:
    """What has been added to each projection so far; ``active``: which concepts the next round pushes."""

    pipe: Any
    rows: Mapping[str, _Blocks]
    places: Sequence[Projection]
    moved: dict[str, Tensor] = field(default_factory=dict)
    systems: dict[str, dict[str, Any]] = field(default_factory=dict)
    active: list[bool] = field(default_factory=list)

    def edit(self) -> Edit | None:
        """The changes so far as an edit to draw with."""
        if not self.moved:
            return None
        changes = [Delta(place.param, stored(place, self.moved[place.param])) for place in self.places]
        return make_edit(self.pipe, changes, name="round", method="uce_debias", options={})

    def round(self, push: Tensor, kept: Kept | None, erase: float, keep: float, ridge: float) -> None:
        """One edit of the weights as they are now; ``push`` (concept, j) is step (wanted - measured)."""
        systems: dict[str, System] = {}
        for family, rows in self.rows.items():
            # what is as wanted already stays in the system with its own output as target: it is preserved
            weights = torch.where(rows.chosen(self.active), erase, keep).double()
            gram = None if kept is None else kept.gram(family)
            problem = Problem(
                Rows(rows.sources, rows.sources, weights, rows.concept, rows.names),
                None if gram is None else keep * gram[0],
                ridge,
            )
            systems[family] = problem.system()
            self.systems[family] = described_system(systems[family], problem)
        for place in self.places:
            rows, weight = self.rows[place.family], place.weight(self.pipe)
            now = weight + self.moved[place.param] if place.param in self.moved else weight
            values = _pushed(rows, now, push) * (rows.chosen(self.active) * erase)[:, None]
            step = values.T @ systems[place.family].solve(rows.sources)
            self.moved[place.param] = now - weight + step


def _pushed(rows: _Blocks, weight: Tensor, push: Tensor) -> Tensor:
    """sum_j push_j ||W c|| W a_j / ||W a_j|| for every row: (n o); norms over the rows of a prompt."""
    blocks = int(rows.block.max()) + 1

    def norms(values: Tensor) -> Tensor:
        squares = torch.zeros(blocks, dtype=values.dtype).index_add(0, rows.block, values.square().sum(1))
        return squares.sqrt()[rows.block]

    total = weight.new_zeros(len(rows.sources), len(weight))
    own = norms(rows.sources @ weight.T)
    for j, attribute in enumerate(rows.attributes):
        out = attribute @ weight.T
        total += (push[rows.concept, j] * own / norms(out).clamp(min=1e-300))[:, None] * out
    return total


def _rows(
    pipe: Any, prompts: Mapping[str, Sequence[str]], attributes: Sequence[str], pooled: str
) -> dict[str, _Blocks]:
    """The rows of every prompt from its last token on, beside those of each attribute, as far as all of them reach."""
    texts = [(i, text) for i, every in enumerate(prompts.values()) for text in every]
    concept = torch.tensor([i for i, _ in texts])
    found: dict[str, list[Rows]] = {"tokens": [], "pooled": []}
    for attribute in attributes:
        pairs = [Pair(text, attribute, concept=block) for block, (_, text) in enumerate(texts)]
        for family, rows in zip(("tokens", "pooled"), rows_of(pipe, pairs, "subject_to_end"), strict=True):
            if rows is not None and (family == "tokens" or pooled == "edit"):
                found[family].append(rows)
    made = {}
    for family, every in found.items():
        if every:
            parts = [[torch.nonzero(rows.concept == block).flatten() for rows in every] for block in range(len(texts))]
            common = [[at[: min(map(len, places))] for at in places] for places in parts]
            own = torch.cat([places[0] for places in common])
            made[family] = _Blocks(
                every[0].sources[own],
                torch.stack([rows.targets[torch.cat([p[j] for p in common])] for j, rows in enumerate(every)]),
                every[0].concept[own],
                concept[every[0].concept[own]],
                tuple(every[0].names[i] for i in own.tolist()),
            )
    return made


def _shares(
    pipe: Any,
    edit: Edit | None,
    prompts: Sequence[str],
    judge: Any,
    labels: Sequence[str],
    *,
    pictures: int,
    seed: int,
    **sampling: Any,
) -> np.ndarray:
    """The share of each attribute among the pictures of some prompts: (j,); without those that cannot be judged."""
    table = samples(list(prompts), seed, seeds_per_prompt=pictures)
    if edit is None:
        images = generate(pipe, table, progress=False, **sampling)
    else:
        with edit.applied(pipe):
            images = generate(pipe, table, progress=False, **sampling)
    scores = np.asarray(judge(images))[:, [list(judge.labels).index(one) for one in labels]]
    judged = scores[~np.isnan(scores).any(1)]
    if not len(judged):
        raise BadInput("the judge could not judge any picture", given=f"{len(images)} pictures")
    return np.bincount(judged.argmax(1), minlength=len(labels)) / len(judged)


def _wanted(attributes: Mapping[str, str], ratios: Mapping[str, float] | None) -> np.ndarray:
    if len(attributes) < 2:
        raise BadInput("debiasing needs two attributes or more", given=", ".join(attributes) or "none")
    if ratios is None:
        return np.full(len(attributes), 1 / len(attributes))
    if set(ratios) != set(attributes):
        raise BadInput("ratios and attributes name different labels", given=", ".join(ratios),
                       expected=", ".join(attributes))  # fmt: skip
    found = np.array([ratios[one] for one in attributes], float)
    if not np.isclose(found.sum(), 1) or (found < 0).any():
        raise BadInput("ratios are shares that add up to 1", given=", ".join(f"{ratio:g}" for ratio in found))
    return found


def _prompts(item: Concept | str, templates: Sequence[str]) -> list[str]:
    if isinstance(item, Concept) and item.prompts.get("explicit"):
        return list(item.prompts["explicit"])[: len(TEMPLATES)]
    return [filled(template, label([item])) for template in templates]

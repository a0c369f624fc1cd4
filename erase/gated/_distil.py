"""distil: weights of keys and values that do what gates do on a set of texts, as far as weights can."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from erase import _in_force
from erase._changes import Delta, Hook
from erase._concepts import identity, listed
from erase._edit import Edit, make_edit
from erase._resag_hooks import Gates
from erase.gated import _learning as learning
from erase.gated._fit import Lessons
from erase.gated._phrases import anchors_of, phrases_of
from erase.gated._projections import Projections, projections_of
from erase.gated._settings import Settings
from probe._options import validated
from probe.errors import BadInput


@validated
def distil(
    pipe: Any,
    edit: Edit,
    concepts: Any,
    *,
    eta: float | None = None,
    anchor: str | None = None,
    preserve: Any = None,
    nearest: int | None = 50,
    general: Sequence[str] | None = None,
    templates: Sequence[str] | None = None,
    keep_weight: float = 1.0,
    ridge: float = 1e-3,
    adversaries: int = 16,
    adversary_iterations: int = 450,
    adversary_lr: float = 0.01,
    seed: int = 0,
    name: str | None = None,
) -> Edit:
    """Weights fitted to what gates add, so that nothing is left to unplug; what that loses is measured (ours).

    With Delta_P(E) what the gates add to the projection P at the tokens of a text, and means over tokens of the texts
    of the concepts and, times ``keep_weight``, of anchors:

        D_P = argmin  mean |E D^T - Delta_P(E)|^2 + keep_weight mean_anchors |E D^T - Delta_P(E)|^2 + ridge' |D|^2

    in closed form, float64, ridge' = ``ridge`` times the mean of the diagonal of the second moment. One linear map
    cannot tell texts apart as gates do, nor was it trained against adversaries: the ``report`` says what survives.

    Args:
        pipe: the pipeline that the gates were made on, without them in force.
        edit: an edit of gates (`erase.resag`, `erase.import_resag`, a stack of these).
        concepts: what it erases, in the order of its gates: a text, a concept or a list.
        eta: how far beyond the counterparts the gates were to go; what they were learned with unless given. The report
            counts in it. Imported gates do not say.
        anchor, preserve, nearest, general, templates: the texts, as in `erase.resag`.
        keep_weight: of the anchors.
        ridge: pulls towards the unedited weights.
        adversaries, adversary_iterations, adversary_lr: embeddings are learned against each concept's gate, to see how
            much of the erasure survives an attack; 0 adversaries for none. They learn as if a gate had no threshold,
            which has no gradient; what they achieve is measured with it.
        seed: of these.
        name: ``<edit's name>-distilled`` by default.

    Returns an edit of deltas, mergeable. Its ``report`` has, for ``clean`` texts of the concept, ``attacked`` ones and
    ``anchors``, what ``gated`` and ``distilled`` do: the share of what erasing asks that is reached (1 is the goal, 0
    no change, below 0 further from it), and for anchors the squared change in units of that.

    Raises `BadInput` for an edit without gates on keys and values, another number of concepts than it has, or gates
    that do not say their eta or differ in it.
    """
    erased = listed(concepts)
    hook = _gates_of(edit, len(erased))
    if any(entry.edit.id == edit.id for entry in _in_force.entries(pipe)):
        raise BadInput("the gates to be distilled are in force", given=edit.name, fix="leave them first")
    _in_force.check_model(edit, pipe)
    projections = projections_of(pipe)
    if projections.params != hook.touched:
        raise BadInput("gates of all keys and values are needed", given=f"{len(hook.touched)} modules")
    eta = _eta_of(edit, len(erased)) if eta is None else eta
    how = _settings(eta, hook, adversaries, adversary_iterations, adversary_lr, seed)
    lessons = Lessons(pipe, anchors_of(erased, preserve, general, templates), nearest)
    taught = [lessons.of(phrases_of(concept, anchor, templates)) for concept in erased]
    added = _Added(hook)

    target = torch.cat([lesson.target for lesson in taught])
    kept = torch.cat([taught[0].empty, *(lesson.pool for lesson in taught)])
    parts = [(target, 1.0), (kept, keep_weight)]
    found = [_fitted([(text, added(text, i), share) for text, share in parts], ridge) for i in range(len(hook.touched))]
    report = {}
    for n, lesson in enumerate(taught):
        deltas = _attacks(hook, n, lesson, projections, how)
        report[lesson.name] = _survives(lesson, deltas, added, found, projections, eta)
    return make_edit(
        pipe,
        [Delta(param, change.float()) for param, change in zip(hook.touched, found, strict=True)],
        name=name or f"{edit.name}-distilled",
        method="distil",
        options={
            "eta": eta, "anchor": anchor, "nearest": nearest, "keep_weight": keep_weight, "ridge": ridge,
            "adversaries": adversaries, "adversary_iterations": adversary_iterations, "adversary_lr": adversary_lr,
            "seed": seed,
        },
        inputs={"edit": edit.id, "concepts": identity(erased)},
        report={"concepts": report},
    )  # fmt: skip


class _Added:
    """What the merged gates add to each projection; they open once for each text."""

    def __init__(self, hook: Hook) -> None:
        self._gates = Gates.of(hook)
        self._opened: dict[int, tuple[Tensor, list[Any]]] = {}

    def __call__(self, text: Tensor, module: int) -> Tensor:
        with torch.no_grad():
            if id(text) not in self._opened:  # the text is kept, so that its id stays its own
                self._opened[id(text)] = text, [[g.opened(t) for g in self._gates] for t in text.split(64)]
            rows = [
                torch.stack([g.correction(opened, module) for g, opened in zip(self._gates, each, strict=True)]).sum(0)
                for each in self._opened[id(text)][1]
            ]
        return torch.cat(rows)


def _gates_of(edit: Edit, concepts: int) -> Hook:
    hooks = [change for change in edit.changes if isinstance(change, Hook) and change.family == "resag"]
    if len(hooks) != len(edit.changes) or not hooks:
        raise BadInput("only gates on keys and values can be distilled", given=repr(edit))
    (hook,) = hooks
    if (has := len(hook.values["gate"])) != concepts:
        raise BadInput("the edit has another number of concepts", given=concepts, expected=has)
    return hook


def _eta_of(edit: Edit, concepts: int) -> float:
    """The one eta that all gates of an edit were learned with: of a stack or a scaled edit from its parts' reports."""
    known = [float(edit.options["eta"])] * concepts if "eta" in edit.options else _etas(edit.report)
    if len(known) != concepts:
        raise BadInput("what the gates were learned with is not known", given=repr(edit), fix="eta=0.3, or theirs")
    if len(set(known)) > 1:
        given = ", ".join(f"{eta:g}" for eta in known)
        raise BadInput("the gates were learned with several eta", given=given, fix="distil those of each eta apart")
    return known[0]


def _etas(report: Mapping[str, Any]) -> list[float]:
    """The eta of each concept, as far as a report says."""
    within = [report["of"]] if "of" in report else report.get("parts", {}).values()
    own = [one["eta"] for one in report.get("concepts", {}).values() if "eta" in one]
    return own + [eta for part in within for eta in _etas(part)]


def _fitted(parts: Sequence[tuple[Tensor, Tensor, float]], ridge: float) -> Tensor:
    """D (o d), float64, for (texts (s k d), what is added (s k o), weight)."""
    d, o = parts[0][0].shape[-1], parts[0][1].shape[-1]
    moment, cross = (torch.zeros(d, n, dtype=torch.float64, device=parts[0][0].device) for n in (d, o))
    for text, added, share in parts:
        if not len(text) or not share:
            continue
        e, delta = text.flatten(0, 1).double(), added.flatten(0, 1).double()
        moment += share / len(e) * (e.mT @ e)
        cross += share / len(e) * (e.mT @ delta)
    pulled = ridge * moment.diagonal().mean() * torch.eye(d, dtype=torch.float64, device=moment.device)
    return torch.linalg.solve(moment + pulled, cross).mT


def _attacks(hook: Hook, n: int, lesson: learning.Lesson, projections: Projections, how: Settings) -> Tensor:
    """Adversaries (m k d) against the gate of one concept."""
    if not how.adversaries or not how.adversary_iterations:
        return torch.zeros(0, *lesson.target.shape[1:], device=lesson.target.device)
    device, count = projections.shares.device, len(projections.params)
    values = {part: hook.values[part][n].to(device) for part in ("query", "key", "gate")}
    values["down"] = torch.stack([hook.values[f"down.{i}"][n] for i in range(count)]).to(device)
    scale = hook.values["strength"][n] * hook.values["alpha"][n] / how.rank
    values |= {f"up.{i}": (scale[i] * hook.values[f"up.{i}"][n]).to(device) for i in range(count)}
    return learning.attack_stage(values, lesson, projections, how, 0, lambda _: None)[0]


def _survives(
    lesson: learning.Lesson,
    deltas: Tensor,
    added: _Added,
    found: Sequence[Tensor],
    projections: Projections,
    eta: float,
) -> dict[str, dict[str, float]]:
    wanted = (1 + eta) * (lesson.neutral - lesson.target)
    asked = float(((wanted @ projections.gram) * wanted).sum((1, 2)).mean())
    kept = torch.cat([lesson.empty, lesson.pool])
    rows = {"clean": (lesson.target, wanted), "anchors": (kept, torch.zeros_like(kept))}
    if len(deltas):
        every = lesson.target[:, None] + deltas
        rows["attacked"] = (every.flatten(0, 1), (wanted[:, None] - deltas).flatten(0, 1))
    report = {}
    for what, (text, aim) in rows.items():
        missed = {"gated": 0.0, "distilled": 0.0}
        for i, (weight, share) in enumerate(zip(projections.weights, projections.shares, strict=True)):
            meant = aim @ weight.mT
            for how, change in (("gated", added(text, i)), ("distilled", text @ found[i].to(text).mT)):
                missed[how] += float(share * (meant - change).square().sum()) / len(text)
        before = asked if what != "attacked" else float(((aim @ projections.gram) * aim).sum((1, 2)).mean())
        report[what] = {
            how: value / asked if what == "anchors" else 1 - value / before for how, value in missed.items()
        }
    return report


def _settings(eta: float, hook: Hook, adversaries: int, iterations: int, lr: float, seed: int) -> Settings:
    """For the adversary alone; alpha is part of the pairs."""
    rank = hook.values["down.0"].shape[-1]
    return Settings(
        rank=rank, gate_rank=hook.values["query"].shape[-1], alpha=float(rank), key_mode="independent", gate="learned",
        eta=eta, anchor_weight=0.0, anchors=1, mix=False, noise=0.0, stages=2, iterations=1, first_iterations=1, lr=1.0,
        first_lr=1.0, warm_up=0, adversaries=adversaries, adversary_weight=0.0, adversary_iterations=iterations,
        adversary_lr=lr, keep_adversaries="latest", seed=seed,
    )  # fmt: skip

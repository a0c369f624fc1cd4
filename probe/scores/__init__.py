"""Scores: which neurons carry a concept, judged from runs. Functions registered by name; every one gives a NeuronMap.

A score takes ``(target, reference, **options)``, the two runs that it compares; methods that need the model or the
concept's prompts take ``pipe=`` and ``concept=`` as well.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from probe._neuron_map import NeuronMap
from probe._options import validated
from probe.errors import BadInput, unknown_name
from probe.scores._auroc import auroc
from probe.scores._causal import causal
from probe.scores._contrast import contrast
from probe.scores._erased import erased_delta
from probe.scores._gradient import gradient
from probe.scores._linear import linear
from probe.scores._selectivity import Selectivity, selectivity
from probe.scores._stability import overlap, split_half
from probe.scores._wanda import wanda

__all__ = [
    "Selectivity",
    "auroc",
    "causal",
    "contrast",
    "erased_delta",
    "gradient",
    "linear",
    "overlap",
    "register_score",
    "score",
    "score_names",
    "selectivity",
    "stability",
    "wanda",
]

_SCORES: dict[str, Callable[..., NeuronMap]] = {}


def score(
    target: Any,
    reference: Any = None,
    *,
    method: str = "wanda",
    pipe: Any = None,
    concept: Any = None,
    **options: Any,
) -> NeuronMap:
    """Score every neuron: how much more it serves the ``target`` run than the ``reference`` run.

    Args:
        target: the run of prompts with the concept: a path, a `probe.Run` or a dataset of `probe.open_run`. Methods
            that run the model also take a trajectory, prompts or a table of samples.
        reference: the run of matching prompts without it; some methods do without, depending on their options.
        method: the score's name, see `score_names`.
        pipe, concept: for methods that need them: ``gradient`` and ``causal`` run the model.
        options: the method's own.

    Raises `UnknownName` for a method or option that does not exist, and what the method raises.
    """
    if method not in _SCORES:
        raise unknown_name("score", method, _SCORES)
    function = _SCORES[method]
    parameters = inspect.signature(function).parameters
    fixes = {"pipe": "pipe=probe.load(...)", "concept": "concept=world['church'], or --concept church"}
    for name, value in (("pipe", pipe), ("concept", concept)):
        if name in parameters:
            if value is None and parameters[name].default is inspect.Parameter.empty:
                raise BadInput(f"the score {method} needs {name}=", fix=fixes[name])
            options[name] = value
    return function(target, reference, **options)


@validated
def stability(
    nm: NeuronMap,
    target: Any,
    reference: Any,
    *,
    top: Sequence[int] = (10, 50, 200),
    halvings: int = 3,
    seed: int = 0,
) -> NeuronMap:
    """The same map with ``report["stability"]``: how far halves of the recordings agree on it.

    The map's score is computed again, with its options, on random halves of the prompts (pairs stay together) and of
    the seeds. Reported are means over halvings, for ``prompts`` and for ``seeds``: ``rank_correlation`` (Spearman, over
    all neurons) and ``jaccard_<k>`` of the k highest; or the ``reason`` why a split could not be made.

    Args:
        nm: a map that `probe.score` made.
        target, reference: the runs that it was made from.
        top: numbers of highest neurons to compare.
        halvings: random halvings that are averaged.
        seed: of the halvings.

    Raises `BadInput` for other runs than those of the map, `UnknownName` for a map of no known score.
    """
    method = nm.provenance["identity"]["method"]
    if method not in _SCORES:
        raise unknown_name("score", method, _SCORES)
    if halvings < 1 or not top or min(top) < 1:
        raise BadInput(
            "nothing can be compared", given=f"top={tuple(top)}, halvings={halvings}", expected="all above 0"
        )

    if "pipe" in inspect.signature(_SCORES[method]).parameters:
        fix = "score two lists of prompts, and compare the maps with probe.overlap"
        raise BadInput("stability halves recordings, and this score runs the model", given=method, fix=fix)

    def again(a: Any, b: Any, method: str, options: Mapping[str, Any]) -> NeuronMap:
        return score(a, b, method=method, **options)

    return split_half(again, nm, target, reference, top=top, halvings=halvings, seed=seed)


def register_score(name: str, function: Callable[..., NeuronMap]) -> None:
    """Make a score known by ``name``. `BadInput` when the name is taken.

    Its keyword-only signature is its configuration: options are checked against the annotations on every call.
    """
    if name in _SCORES:
        raise BadInput("a score of this name exists", given=name)
    _SCORES[name] = validated(function)


def score_names() -> tuple[str, ...]:
    """The known scores, in order of registration."""
    return tuple(_SCORES)


register_score("wanda", wanda)
register_score("contrast", contrast)
register_score("auroc", auroc)
register_score("linear", linear)
register_score("erased_delta", erased_delta)
register_score("gradient", gradient)
register_score("causal", causal)

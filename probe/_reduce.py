"""Reducers: what is kept of an activation, computed where it lives, so that only one number a unit leaves the device.

A reducer is three pure functions. `start` turns the token rows that one call of a module saw into a state, `merge`
joins the states of disjoint rows (a feed-forward may run in chunks of tokens), `finish` turns a state and the number of
rows behind it into the number that is stored. States and results are float32 whatever the model computes in: a sum of
squares over 4096 half-precision rows would pass 65,504.

Shapes: s sample, k token row, n neuron.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from probe.errors import BadInput, unknown_name

Activation = Float[Tensor, "s k n"]
State = Float32[Tensor, "s n"]


@dataclass(frozen=True)
class Reducer:
    """A reduction over token rows; see the module's text for the three functions."""

    name: str
    start: Callable[[Activation], State]
    merge: Callable[[State, State], State]
    finish: Callable[[State, int], State]

    def __call__(self, x: Activation) -> State:
        """The reduction of one whole activation, (s k n) -> (s n)."""
        return self.finish(self.start(x), x.shape[1])


def sum_of_squares(x: Activation) -> State:
    """sum_k x_kn^2."""
    return x.float().square().sum(1)


def unit_sum_of_squares(x: Activation) -> State:
    """sum_k (x_kn / ||x_k||_2)^2: token rows are normalised first (ConceptPrune, arXiv 2405.19237, section 3).

    A row of zeros has no direction and adds nothing.
    """
    x = x.float()
    return torch.nn.functional.normalize(x, dim=-1, eps=torch.finfo(x.dtype).tiny).square().sum(1)


def total(x: Activation) -> State:
    """sum_k x_kn."""
    return x.float().sum(1)


def absolute_total(x: Activation) -> State:
    """sum_k |x_kn|."""
    return x.float().abs().sum(1)


def maximum(x: Activation) -> State:
    """max_k x_kn."""
    return x.float().amax(1)


def _root(state: State, rows: int) -> State:
    return state.sqrt()


def _average(state: State, rows: int) -> State:
    return state / rows


def _as_is(state: State, rows: int) -> State:
    return state


_REDUCERS: dict[str, Reducer] = {}


def register_reducer(reducer: Reducer) -> Reducer:
    """Make a reducer known by its name; `BadInput` when the name is taken."""
    if reducer.name in _REDUCERS:
        raise BadInput("a reducer of this name exists", given=reducer.name)
    _REDUCERS[reducer.name] = reducer
    return reducer


def reducer(name: str) -> Reducer:
    """The reducer of that name; `UnknownName` with the nearest ones otherwise.

    - ``norm``: ||x_n||_2 over token rows; ``unit_norm``: the same after every row was brought to length 1
    - ``mean``, ``absmean``: mean of x and of |x| over token rows
    - ``max``: the largest x of any token row
    """
    if name not in _REDUCERS:
        raise unknown_name("reducer", name, _REDUCERS)
    return _REDUCERS[name]


def reducer_names() -> tuple[str, ...]:
    """The known reducers, in order of registration."""
    return tuple(_REDUCERS)


register_reducer(Reducer("norm", sum_of_squares, torch.add, _root))
register_reducer(Reducer("unit_norm", unit_sum_of_squares, torch.add, _root))
register_reducer(Reducer("mean", total, torch.add, _average))
register_reducer(Reducer("absmean", absolute_total, torch.add, _average))
register_reducer(Reducer("max", maximum, torch.maximum, _as_is))

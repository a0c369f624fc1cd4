"""Reducers: what is kept of an activation, computed where it lives, so that only one number a unit leaves the device.

A reducer is three pure functions. `start` turns the token rows that one call of a module saw into a state, `merge`
joins the states of consecutive rows (a feed-forward may run in chunks of tokens), `finish` turns a state and the number
of rows behind it into what is stored. States and results are float32 whatever the model computes in: a sum of squares
over 4096 half-precision rows would pass 65,504.

Shapes: s sample, k token row, n neuron, r rank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import reduce as fold
from typing import Any

import torch
from jaxtyping import Float, Float32
from torch import Tensor

from probe.errors import BadInput, unknown_name

Activation = Float[Tensor, "s k n"]
State = Float32[Tensor, "s n"]
Ranked = tuple[Float32[Tensor, "s r n"], Float32[Tensor, "s r n"]]

#: Bytes of an activation that a CPU reduces at a time. Temporaries of that size stay in the cache: a whole layer of SD
#: 1.5 at once takes 3 to 8 times as long.
TILE = 1 << 19


@dataclass(frozen=True)
class Reducer:
    """A reduction over token rows; see the module's text for the three functions.

    ``start`` gets the rows and the position of the first among all rows of the call; ``finish`` gives one tensor for
    each of ``variables``: (s n), or (s r n) where ``ranks`` is not 0 but the length of the dim ``rank``.
    """

    name: str
    start: Callable[[Activation, int], Any]
    merge: Callable[[Any, Any], Any]
    finish: Callable[[Any, int], tuple[Tensor, ...]]
    variables: tuple[str, ...] = field(default=())
    ranks: int = 0

    def __post_init__(self) -> None:
        if not self.variables:
            object.__setattr__(self, "variables", (self.name,))

    def __call__(self, x: Activation) -> Any:
        """The reduction of one whole activation, (s k n) -> (s n); a tuple where there are several variables."""
        found = self.finish(self.state(x, 0), x.shape[1])
        return found if len(found) > 1 else found[0]

    def state(self, x: Activation, first: int) -> Any:
        """`start` for all rows of x at once; on a CPU in tiles, which are merged (ranks are not: that sorts again)."""
        if self.ranks:
            return self.start(x, first)
        return fold(self.merge, (self.start(rows, first + at) for at, rows in tiles(x)))


def tiles(x: Activation) -> Iterator[tuple[int, Activation]]:
    """Consecutive token rows of x, each part with its position: all of them, or as many as fill `TILE` on a CPU."""
    rows = x.shape[1]
    step = rows if not x.is_cpu else max(1, TILE * rows // max(1, x.numel() * x.element_size()))
    for at in range(0, rows, step):
        yield at, x[:, at : at + step]


def sum_of_squares(x: Activation) -> State:
    """sum_k x_kn^2."""
    if not x.is_cpu:  # one pass without a float32 copy of x; on a CPU this kernel is the slow one
        return torch.linalg.vector_norm(x, dim=1, dtype=torch.float32).square()
    return x.float().square().sum(1)


def unit_sum_of_squares(x: Activation) -> State:
    """sum_k (x_kn / ||x_k||_2)^2: token rows are normalised first (ConceptPrune, arXiv 2405.19237, section 3).

    A row of zeros has no direction and adds nothing; rows shorter than 1e-19 count as such.
    """
    tiny = torch.finfo(torch.float32).tiny
    if not x.is_cpu:
        length = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32).clamp_min(tiny)
        return torch.linalg.vector_norm(x / length, dim=1).square()
    squares = x.float().square()
    return squares.mul_(squares.sum(-1, keepdim=True).clamp_min_(tiny).reciprocal_()).sum(1)


def total(x: Activation) -> State:
    """sum_k x_kn."""
    return x.sum(1, dtype=torch.float32)


def absolute_total(x: Activation) -> State:
    """sum_k |x_kn|."""
    if not x.is_cpu:
        return torch.linalg.vector_norm(x, ord=1, dim=1, dtype=torch.float32)
    return x.abs().sum(1, dtype=torch.float32)


def maximum(x: Activation) -> State:
    """max_k x_kn."""
    return x.amax(1).float()


def positive_rows(x: Activation) -> State:
    """|{k : x_kn > 0}|: in how many token rows the neuron is on. The threshold is 0 and not a parameter."""
    return x.sign().clamp_min_(0).sum(1, dtype=torch.float32)  # sums of booleans take ten times as long on a CPU


def largest_rows(x: Activation, first: int, ranks: int) -> Ranked:
    """The largest x_kn over token rows and where they are: values and k + first, in falling order.

    NaN in both from the rank on for which there are no rows left.
    """
    values, index = x.topk(min(ranks, x.shape[1]), dim=1)
    return _padded(values.float(), ranks), _padded(index.float() + first, ranks)


def merge_largest(a: Ranked, b: Ranked) -> Ranked:
    """The largest of two disjoint sets of token rows; of equal values the earlier row goes first."""
    values, index = (torch.cat(pair, dim=1) for pair in zip(a, b, strict=True))
    keys = torch.where(index.isnan(), -torch.inf, values)  # padding goes last
    order = keys.sort(dim=1, descending=True, stable=True).indices[:, : a[0].shape[1]]
    return values.gather(1, order), index.gather(1, order)


def _padded(x: Tensor, ranks: int) -> Tensor:
    return torch.nn.functional.pad(x, (0, 0, 0, ranks - x.shape[1]), value=torch.nan)


def top_rows(ranks: int) -> Reducer:
    """The reducer ``topk`` of so many ranks: ``topk_value`` and ``topk_index``, (s r n), see `largest_rows`."""
    if ranks < 1:
        raise BadInput("topk keeps at least one token row", given=ranks)
    return Reducer(
        "topk",
        lambda x, first: largest_rows(x, first, ranks),
        merge_largest,
        lambda state, _rows: state,
        ("topk_value", "topk_index"),
        ranks,
    )


_REDUCERS: dict[str, Reducer] = {}


def register_reducer(reducer: Reducer) -> Reducer:
    """Make a reducer known by its name; `BadInput` when the name is taken."""
    if reducer.name in _REDUCERS:
        raise BadInput("a reducer of this name exists", given=reducer.name)
    _REDUCERS[reducer.name] = reducer
    return reducer


def reducer(name: str, *, topk: int = 8) -> Reducer:
    """The reducer of that name; `UnknownName` with the nearest ones otherwise.

    - ``norm``: ||x_n||_2 over token rows; ``unit_norm``: the same after every row was brought to length 1
    - ``mean``, ``absmean``: mean of x and of |x| over token rows
    - ``max``: the largest x of any token row; ``count``: the number of token rows with x > 0
    - ``topk``: the ``topk`` largest x, as ``topk_value``, and the token rows they are in, as ``topk_index``
    """
    if name not in _REDUCERS:
        raise unknown_name("reducer", name, _REDUCERS)
    return top_rows(topk) if name == "topk" else _REDUCERS[name]


def reducer_names() -> tuple[str, ...]:
    """The known reducers, in order of registration."""
    return tuple(_REDUCERS)


def _simple(
    name: str,
    start: Callable[[Activation], State],
    merge: Callable[[State, State], State],
    finish: Callable[[State, int], State],
) -> Reducer:
    """A reducer to one number a neuron, which asks not where its rows lie."""
    return Reducer(name, lambda x, _first: start(x), merge, lambda state, rows: (finish(state, rows),))


def _root(state: State, rows: int) -> State:
    return state.sqrt()


def _average(state: State, rows: int) -> State:
    return state / rows


def _as_is(state: State, rows: int) -> State:
    return state


register_reducer(_simple("norm", sum_of_squares, torch.add, _root))
register_reducer(_simple("unit_norm", unit_sum_of_squares, torch.add, _root))
register_reducer(_simple("mean", total, torch.add, _average))
register_reducer(_simple("absmean", absolute_total, torch.add, _average))
register_reducer(_simple("max", maximum, torch.maximum, _as_is))
register_reducer(_simple("count", positive_rows, torch.add, _as_is))
register_reducer(top_rows(8))

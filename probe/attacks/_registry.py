"""The known attacks: function, options of each budget, and what they need and cost."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from probe._options import validated
from probe.attacks._baselines import random, seed_search
from probe.attacks._costs import Cost
from probe.attacks._inversion import inversion
from probe.attacks._mma import mma
from probe.attacks._p4d import p4d
from probe.attacks._probes import completion, relearn
from probe.attacks._ring_a_bell import ring_a_bell
from probe.attacks._tina import tina
from probe.attacks._unlearn_diff import unlearn_diff
from probe.errors import BadInput, unknown_name

#: (options, what one judged picture costs, number of prompts) -> what one prompt costs if nothing ends it early
Plan = Callable[[Mapping[str, Any], Cost, int], Cost]


@dataclass(frozen=True)
class Method:
    """A registered attack.

    - ``presets``: budget -> options; what the user gives wins
    - ``plan``: what one prompt costs at most; ``gradients``: whether they must pass through the edit
    - ``tokens``: whether it chooses tokens, so that the vocabulary matters; ``together``: prompts of one batch
    - ``later``: options that came when there were sets already, and what these had; identities leave that out
    """

    name: str
    function: Callable[..., None]
    plan: Plan
    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    gradients: bool = False
    tokens: bool = True
    together: int = 20
    later: Mapping[str, Any] = field(default_factory=dict)

    def needs_gradients(self, options: Mapping[str, Any]) -> bool:
        """Whether gradients must pass through the edit with these options."""
        return self.gradients or options.get("refine") == "adamw"

    def options(self, preset: str, given: Mapping[str, Any]) -> dict[str, Any]:
        """All options: defaults, then the preset's, then what was given. `UnknownName` for one that there is not."""
        known = {
            name: p.default
            for name, p in inspect.signature(self.function).parameters.items()
            if p.kind is p.KEYWORD_ONLY
        }
        if unknown := [name for name in given if name not in known]:
            raise unknown_name(f"option of the attack {self.name}", unknown[0], known)
        found = {**known, **self.presets.get(preset, {}), **given}
        for name, value in found.items():
            if name in _COUNTS and isinstance(value, int) and value < 1:
                raise BadInput(f"{name} must be at least 1", given=value, fix="leave it out for the budget's own")
        return found

    def identity(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """The options that say what a set is."""
        return {name: value for name, value in options.items() if (name, value) not in self.later.items()}


#: Options that count something; each is at least 1.
_COUNTS = {
    "k",
    "rounds",
    "iterations",
    "images",
    "every",
    "batch",
    "population",
    "generations",
    "swaps",
    "ranked",
    "examples",
    "each",
}
_METHODS: dict[str, Method] = {}


def method_named(name: str) -> Method:
    """The attack of a name. `UnknownName` with the nearest."""
    if name not in _METHODS:
        raise unknown_name("attack", name, _METHODS)
    return _METHODS[name]


def attack_names() -> tuple[str, ...]:
    """The known attacks, in order of registration."""
    return tuple(_METHODS)


def add(method: Method) -> None:
    """Make an attack known. `BadInput` when the name is taken."""
    if method.name in _METHODS:
        raise BadInput("an attack of this name exists", given=method.name)
    _METHODS[method.name] = Method(**{**vars(method), "function": validated(method.function)})


# as many pictures as the attack with the most: unlearn_diff's 1 + 8 (quick), p4d's 1 + 60 (paper)
add(Method("random", random, lambda o, image, n: image * o["images"], {"paper": {"images": 61}}))
add(
    Method("seed_search", seed_search, lambda o, image, n: image * o["images"], {"paper": {"images": 61}}, tokens=False)
)
add(
    Method(
        "unlearn_diff",
        unlearn_diff,
        lambda o, image, n: image * (o["rounds"] + 2) + Cost(1, 1, 1) * (o["rounds"] * o["iterations"]),
        {"quick": {"rounds": 8, "iterations": 25}},
        gradients=True,
    )
)
add(
    Method(
        "p4d",
        p4d,
        lambda o, image, n: image * (2 - o["iterations"] // -o["every"]) + Cost(2, 1, 1) * o["iterations"],
        {"quick": {"iterations": 300, "every": 100}},
        gradients=True,
    )
)
add(
    Method(
        "ring_a_bell",
        ring_a_bell,
        # half of the population survives, and most of it unchanged: about as many texts a generation as it has members
        lambda o, image, n: image * 2 + Cost(texts=o["population"] * o["generations"] * 3 // 4),
        {"quick": {"population": 100, "generations": 300, "positions": "text"}},
    )
)
add(
    Method(
        "mma",
        mma,
        lambda o, image, n: image * 2 + Cost(texts=(o["swaps"] + 1) * o["iterations"]),
        {"quick": {"iterations": 100, "swaps": 128}},
        later={"begin": "random"},
    )
)
add(
    Method(
        "inversion",
        inversion,
        lambda o, image, n: image * (2 + o["examples"] // n) + Cost(1, 1, 1) * (o["iterations"] * o["batch"] // n),
        {"quick": {"iterations": 300, "batch": 16}},
        gradients=True,
        tokens=False,
        together=1_000_000,
    )
)
add(
    Method(
        "tina",
        tina,
        lambda o, image, n: image * 2 + Cost(1, 1, 0) * (image.forwards // 2 * (o["iterations"] + 1)),
        {"quick": {"iterations": 5}},
        tokens=False,
    )
)
add(
    Method(
        "completion",
        completion,
        lambda o, image, n: image * (1 + 2 * len(o["starts"]) * o["each"]),
        tokens=False,
    )
)
add(
    Method(
        "relearn",
        relearn,
        lambda o, image, n: (
            image * (1 + len(o["stops"]) + o["examples"] // n) + Cost(1, 1, 0) * (o["stops"][-1] * o["examples"] // n)
        ),
        {"quick": {"stops": (20, 50)}},
        gradients=True,
        tokens=False,
        together=1_000_000,
    )
)

"""What an attack costs, what it may cost, and how long that takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from probe.errors import BadInput, unknown_name


@dataclass(frozen=True)
class Cost:
    """Work done for one prompt; every count is of single samples, so that it does not depend on batching.

    - ``forwards``: samples that went through the UNet, each branch of guidance counted
    - ``backwards``: samples whose gradient came back through the UNet
    - ``texts``: prompts that a text encoder read (SDXL's two count as one)
    - ``images``: pictures that a judge saw
    """

    forwards: int = 0
    backwards: int = 0
    texts: int = 0
    images: int = 0

    def __add__(self, other: Cost) -> Cost:
        return Cost(*(a + b for a, b in zip(self.counts(), other.counts(), strict=True)))

    def __mul__(self, factor: int) -> Cost:
        return Cost(*(factor * count for count in self.counts()))

    def counts(self) -> tuple[int, ...]:
        """The four numbers in order."""
        return tuple(asdict(self).values())

    def to_json(self) -> dict[str, int]:
        """Name -> number."""
        return asdict(self)


@dataclass(frozen=True)
class Limits:
    """What one prompt may cost at most; None sets no limit."""

    forwards: int | None = None
    backwards: int | None = None
    texts: int | None = None
    images: int | None = None

    def allow(self, spent: Cost, more: Cost) -> bool:
        """Whether ``more`` may still be spent."""
        pairs = zip(asdict(self).values(), (spent + more).counts(), more.counts(), strict=True)
        return all(limit is None or after <= limit or not added for limit, after, added in pairs)

    def to_json(self) -> dict[str, int]:
        """The limits that are set."""
        return {name: value for name, value in asdict(self).items() if value is not None}


PRESETS = ("quick", "paper")


def read_budget(budget: Any) -> tuple[str, Limits]:
    """The preset that gives a method its options, and the limits: ``"quick"``, ``"paper"`` or ``{"images": 9, ...}``.

    Limits go with the options of ``quick`` unless they have a ``preset`` of their own.

    Raises `UnknownName` for another preset or count, `BadInput` for a budget of zero.
    """
    if isinstance(budget, Mapping):
        known = {field.name for field in fields(Limits)}
        given = {str(name): value for name, value in budget.items()}
        preset = str(given.pop("preset", "quick"))
        for name, value in given.items():
            if name not in known:
                raise unknown_name("count of a budget", name, known | {"preset"})
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                fix = "leave out what should have no limit"
                raise BadInput("a budget is at least 1 of each count", given=f"{name}={value}", fix=fix)
        limits = Limits(**given)
    elif isinstance(budget, str):
        preset, limits = budget, Limits()
    else:
        expected = "'quick', 'paper' or a mapping such as {'images': 9}"
        raise BadInput("a budget has a name or limits", given=repr(budget), expected=expected)
    if preset not in PRESETS:
        raise unknown_name("budget", preset, PRESETS)
    return preset, limits


def seconds(cost: Cost, unit: Mapping[str, float]) -> float:
    """How long a cost takes, given seconds a unit of each count; a judged picture's forwards are among ``forwards``."""
    return sum(count * unit.get(name, 0.0) for name, count in cost.to_json().items())

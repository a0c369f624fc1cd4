"""Sensitivity: how far attacks re-light neurons, how active these are, and where along layers and steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from probe.errors import BadInput, unknown_name
from probe.plots._layers import short_site
from probe.plots._style import BLUE, GREY, MARKERS, OKABE_ITO, SMALL, VERMILION, new_axes, quiet

if TYPE_CHECKING:
    import xarray as xr
    from matplotlib.axes import Axes

    from probe import NeuronMap

_WORDS = {
    "concept": "concept neurons,\nattacks",
    "random_matched": "matched others,\nattacks",
    "random_prefix": "concept neurons,\nrandom tokens",
    "failed": "concept neurons,\nfailed attacks",
    "non_concept": "concept neurons,\nother prompts",
    "original": "original",
    "plain": "edited",
    "adversarial": "edited,\nattacked",
}
_WORDS_OF_LEVELS = {
    "random_prefix": "edited,\nrandom tokens",
    "failed": "edited,\nfailed",
    "non_concept": "edited,\nother prompts",
}
_LINES = {"original": (GREY, "--"), "plain": (BLUE, "-"), "adversarial": (VERMILION, "-")}


def plot_sensitivity(
    sens: NeuronMap | Mapping[str, NeuronMap],
    *,
    xt: Literal["shared", "own"] = "shared",
    quantity: Literal["contribution", "raw"] = "contribution",
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Reactivation ratios with their intervals: the concept's neurons beside all controls, several erasers together.

    0 is a neuron that stays as the edit left it, 1 one that is back where it was. Intervals that have no end are drawn
    to the edge; what was not measured has no point. As figure 5 of the P-ESD paper, with the controls that are ours.

    Args:
        sens: what `probe.sensitivity` gives, or several by name.
        xt, quantity: which of the four.
        title: above the figure.
        ax: where to draw.

    Raises `BadInput` for a neuron map of another method, `UnknownName` for another ``xt`` or ``quantity``.
    """
    named = dict(sens) if isinstance(sens, Mapping) else {"": sens}
    tables = {name: _dataset(nm, xt, quantity) for name, nm in named.items()}
    if not tables:
        raise BadInput("there is no sensitivity to draw")
    groups = [str(g) for g in next(iter(tables.values()))["group"].values]
    ax = new_axes(ax, (1.5 + 1.15 * len(groups), 3.2))
    width = 0.5 / max(len(tables), 1)
    for i, (name, ds) in enumerate(tables.items()):
        at = np.arange(len(groups)) + (i - (len(tables) - 1) / 2) * width
        value, low, high = (ds[key].values.astype(float) for key in ("ratio", "ratio_low", "ratio_high"))
        colour = OKABE_ITO[(i + 1) % len(OKABE_ITO)]
        seen = np.isfinite(value)
        ax.plot(at[seen], value[seen], MARKERS[i % len(MARKERS)], color=colour, markersize=6, label=name, zorder=3)
        for x, a, b in zip(at, low, high, strict=True):
            if not np.isnan(a):
                ax.plot([x, x], np.clip([a, b], -9, 9), color=colour, linewidth=1.4, zorder=2)
    for level in (0.0, 1.0):
        ax.axhline(level, color=GREY, linewidth=0.8, linestyle=":" if level else "-", zorder=1)
    ax.set_xticks(range(len(groups)), [_WORDS[group] for group in groups])
    ax.set_xlim(-0.6, len(groups) - 0.4)
    ax.set_ylim(*_limits(tables.values()))
    ax.set_ylabel(f"reactivation ({quantity}, x_t {xt})", fontsize=SMALL + 1)
    quiet(ax)
    if len(tables) > 1:
        ax.legend(fontsize=SMALL, frameon=False)
    if title:
        ax.set_title(title, fontsize=SMALL + 3, loc="left")
    return ax


def plot_concept_neurons(
    sens: NeuronMap,
    *,
    xt: Literal["shared", "own"] = "shared",
    quantity: Literal["contribution", "raw"] = "contribution",
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Mean level of the concept's neurons and of all others in every condition (as figure 2 of the P-ESD paper).

    Both are shown relative to their level in the original model on the condition's own prompts, so that the two can
    share an axis. A dash is the edited model on the same prompts as the point: failed attacks have other prompts than
    successful ones.

    Raises `BadInput` for a neuron map of another method, `UnknownName` for another ``xt`` or ``quantity``.
    """
    ds = _dataset(sens, xt, quantity)
    chosen = sens.selected()
    conditions = [str(c) for c in ds["condition"].values]
    level, baseline = ds["level"].values.astype(float), ds["baseline"].astype(float)
    ax = new_axes(ax, (1.4 + 0.95 * len(conditions), 3.0))
    added = [conditions.index(c) for c in conditions if c not in ("original", "plain")]
    parts = {
        "concept": (chosen, f"{int(chosen.sum())} concept neurons", VERMILION),
        "others": (~chosen, "all others", BLUE),
    }
    for i, (key, (part, name, colour)) in enumerate(parts.items()):
        original, plain = (baseline.sel(of=of, part=key).values for of in ("original", "plain"))
        shares = level[:, part].mean(1) / original
        ax.plot(
            range(len(conditions)), shares, marker=MARKERS[i], linestyle="--" if i else "-", color=colour, label=name
        )
        same = "edited, same prompts" if i == 0 else None
        ax.plot(added, (plain / original)[added], "_", color=colour, markersize=16, alpha=0.6, zorder=1, label=same)
    ax.axhline(1, color=GREY, linewidth=0.8, linestyle=":", zorder=1)
    ax.set_xticks(range(len(conditions)), [{**_WORDS, **_WORDS_OF_LEVELS}[c] for c in conditions])
    ax.set_ylim(bottom=0)
    ax.set_ylabel(f"mean {quantity}, share of the original's", fontsize=SMALL + 1)
    quiet(ax, grid=True)
    ax.legend(fontsize=SMALL, frameon=False)
    if title:
        ax.set_title(title, fontsize=SMALL + 3, loc="left")
    return ax


def plot_sensitivity_profile(
    sens: NeuronMap,
    over: Literal["site", "step"] = "step",
    *,
    part: Literal["concept", "others"] = "concept",
    xt: Literal["shared", "own"] = "shared",
    quantity: Literal["contribution", "raw"] = "contribution",
    title: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Mean level of the concept's (or the other) neurons along layers or steps: original, edited, edited and attacked.

    All three over the prompts whose attack succeeded. A site without such a neuron has no point.

    Raises `UnknownName` for another axis, ``xt`` or ``quantity``, `BadInput` for a neuron map of another method.
    """
    if over not in ("site", "step"):
        raise unknown_name("axis of a profile", over, ("site", "step"))
    ds = _dataset(sens, xt, quantity).sel(part=part)
    values = ds[f"by_{over}"]
    names = [short_site(str(s)) for s in ds["place"].values] if over == "site" else [f"{t:g}" for t, _ in sens.windows]
    ax = new_axes(ax, (max(4.0, 0.5 * len(names)) if over == "site" else 4.8, 3.0))
    for i, (condition, (colour, style)) in enumerate(_LINES.items()):
        line = values.sel(condition=condition).values.astype(float)
        label = _WORDS[condition].replace("\n", " ")
        ax.plot(range(len(line)), line, marker=MARKERS[i], markersize=4, color=colour, linestyle=style, label=label)
    shown = range(len(names)) if over == "site" else np.unique(np.linspace(0, len(names) - 1, 6).astype(int))
    ax.set_xticks(list(shown), [names[i] for i in shown], rotation=90 if over == "site" else 0)
    ax.set_xlabel("site" if over == "site" else "timestep", fontsize=SMALL + 1)
    ax.set_ylabel(f"mean {quantity}, x_t {xt}", fontsize=SMALL + 1)
    ax.set_ylim(bottom=0)
    quiet(ax, grid=True)
    ax.legend(fontsize=SMALL, frameon=False)
    if title:
        ax.set_title(title, fontsize=SMALL + 3, loc="left")
    return ax


def _dataset(nm: Any, xt: str, quantity: str) -> xr.Dataset:
    """The part of a sensitivity that belongs to one kind of x_t and one quantity."""
    if getattr(nm, "method", None) != "sensitivity" or "ratio" not in nm.dataset:
        given = repr(nm)
        raise BadInput("this figure is of a sensitivity", given=given, fix="probe.sensitivity(pipe, edit, ...)")
    for axis, value, words in (("xt", xt, "kind of x_t"), ("quantity", quantity, "quantity")):
        if value not in (known := [str(name) for name in nm.dataset[axis].values]):
            raise unknown_name(words, value, known)
    found: xr.Dataset = nm.dataset.sel(xt=xt, quantity=quantity)
    return found


def _limits(tables: Any) -> tuple[float, float]:
    numbers = np.concatenate([ds[key].values.ravel() for ds in tables for key in ("ratio", "ratio_low", "ratio_high")])
    finite = numbers[np.isfinite(numbers)].astype(float)
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    return max(min(low, 0.0) - 0.1, -3.0), min(max(high, 1.0) + 0.1, 4.0)

"""NeuronMap: a finding. For every window of denoising and every neuron a score, its evidence, and maybe a selection."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import xarray as xr

from probe import _axis, formats, provenance
from probe._choosing import below, by_name, from_quantile, over_windows, top_units
from probe._map_files import read_dataset, write_dataset
from probe._paths import finding
from probe._sites import Site
from probe.errors import BadInput, HeaderMismatch, WrongModel, unknown_name

#: Names under which methods keep their evidence, all (window, neuron).
EVIDENCE = ("target", "reference", "p_value", "q_value", "ci_low", "ci_high", "rate_before", "rate_after", "n")

Votes = Literal["any", "all", "vote"]


class NeuronMap:
    """A finding about neurons, over one dataset with dims (window, neuron).

    Variables: ``score`` float32 (higher = more of the concept, NaN = not measured); where the method has them
    ``selected`` (bool) and evidence under the names of `EVIDENCE`. Coordinates: ``t_max, t_min`` (window; inclusive
    timesteps of the scheduler), ``site`` int16, ``unit`` int32 and ``fan_out`` (neuron). Attributes: ``method``,
    ``sites`` and ``provenance`` (JSON). Instances are not changed: every method that selects or combines returns a
    new map with its own id.

    Raises `BadInput` where the dataset lacks one of these.
    """

    def __init__(self, dataset: xr.Dataset) -> None:
        missing = [name for name in ("score", "t_max", "t_min", "site", "unit") if name not in dataset.variables]
        missing += [f"attrs[{name!r}]" for name in ("method", "sites", "provenance") if name not in dataset.attrs]
        if missing:
            raise BadInput("the dataset is no neuron map", given=f"without {', '.join(missing)}")
        if set(dataset["score"].dims) != {"window", "neuron"}:
            raise BadInput("a score has dims (window, neuron)", given=str(dataset["score"].dims))
        self.dataset = dataset
        self.sites: list[Site] = _axis.sites_of(dataset)
        if self.offsets[-1] != dataset.sizes["neuron"]:
            given = f"{dataset.sizes['neuron']} neurons"
            raise BadInput("a neuron map holds every neuron of its sites", given=given, expected=str(self.offsets[-1]))

    @classmethod
    def build(
        cls,
        *,
        method: str,
        score: np.ndarray,
        windows: Sequence[tuple[float, float]],
        sites: Sequence[Site],
        identity: Mapping[str, Any],
        fan_out: np.ndarray | None = None,
        evidence: Mapping[str, np.ndarray] | None = None,
        selected: np.ndarray | None = None,
        report: Mapping[str, Any] | None = None,
    ) -> NeuronMap:
        """A map from arrays (window, neuron), the neuron axis running over ``sites`` in the order given.

        ``windows`` are (t_max, t_min) pairs. ``identity`` says what the scores depend on; its ``model`` is what
        `probe.fingerprint` gives as JSON; ``report`` is what was measured besides, not hashed. Raises `UnknownName` for
        evidence outside `EVIDENCE`.
        """
        evidence = dict(evidence or {})
        if unknown := [name for name in evidence if name not in EVIDENCE]:
            raise unknown_name("evidence", unknown[0], EVIDENCE)
        arrays: dict[str, Any] = {"score": score, **evidence}
        data = {name: (("window", "neuron"), np.asarray(values, np.float32)) for name, values in arrays.items()}
        if selected is not None:
            data["selected"] = (("window", "neuron"), np.asarray(selected, bool))
        n_neurons = _axis.offsets(sites)[-1]
        fan_out = np.full(n_neurons, np.nan) if fan_out is None else fan_out
        coords = {
            "t_max": ("window", np.asarray([t_max for t_max, _ in windows])),
            "t_min": ("window", np.asarray([t_min for _, t_min in windows])),
            **_axis.coordinates(sites),
            "fan_out": ("neuron", np.asarray(fan_out, np.float32)),
        }
        dataset = xr.Dataset(data, coords=coords)
        return cls(_signed(dataset, method, _axis.describe(sites), identity, report))

    # --- what it is ---

    @property
    def provenance(self) -> dict[str, Any]:
        """``identity`` (what the scores depend on), ``info`` (versions, date) and ``id``."""
        found: dict[str, Any] = json.loads(self.dataset.attrs["provenance"])
        return found

    @property
    def id(self) -> str:
        """Hash of the identity."""
        return str(self.provenance["id"])

    @property
    def method(self) -> str:
        """The score (or set operation) that made it."""
        return str(self.dataset.attrs["method"])

    @property
    def report(self) -> dict[str, Any]:
        """What was measured while it was made and since: numbers of pairs, `probe.stability`; not part of the id."""
        return dict(self.provenance.get("report", {}))

    @property
    def offsets(self) -> list[int]:
        """Where each site starts on the neuron axis, and at the end the axis' length."""
        return _axis.offsets(self.sites)

    @property
    def windows(self) -> list[tuple[float, float]]:
        """(t_max, t_min) of each window."""
        ds = self.dataset
        return list(zip(ds["t_max"].values.tolist(), ds["t_min"].values.tolist(), strict=True))

    def by_site(self) -> dict[str, xr.Dataset]:
        """Site name -> the part of the dataset with that site's units, in order of execution."""
        return _axis.by_site(self.dataset)

    def to_dataframe(self, over: Literal["mean", "max"] | None = "mean") -> pd.DataFrame:
        """One row a neuron: site, unit, fan_out, score and evidence, windows averaged (or the largest taken).

        ``selected`` is true where any window selects the unit. ``over=None`` gives one row a window and neuron, with
        t_max and t_min.
        """
        ds, names = self.dataset, np.array([site.name for site in self.sites], object)
        frame = pd.DataFrame({"site": names[ds["site"].values], "unit": ds["unit"].values})
        if "fan_out" in ds:
            frame["fan_out"] = ds["fan_out"].values
        frames = []
        for i, (t_max, t_min) in enumerate(self.windows if over is None else [(0.0, 0.0)]):
            part = frame.copy()
            if over is None:
                part.insert(0, "t_min", t_min)
                part.insert(0, "t_max", t_max)
            for name in ("score", *EVIDENCE, "selected"):
                if name in ds:
                    values = ds[name].transpose("window", "neuron").values
                    part[name] = values[i] if over is None else over_windows(values, over)
            frames.append(part)
        return pd.concat(frames, ignore_index=True)

    # --- selections ---

    def select(
        self,
        *,
        top: int | None = None,
        quantile: float | None = None,
        fdr: float | None = None,
        units: Mapping[str, Sequence[int]] | None = None,
        over: Literal["mean", "max"] | None = "mean",
    ) -> NeuronMap:
        """The same map with ``selected``: the ``top`` units of all sites together, those from a ``quantile`` on,
        those below a false discovery rate, or ``units`` by name.

        Args:
            top: how many units; equal scores are taken in the order of the neuron axis.
            quantile: in (0, 1); 0.99 selects the best hundredth.
            fdr: in (0, 1); units with ``q_value <= fdr``, each window by itself, maybe none.
            units: chosen by hand, site name -> units, in every window and whatever their scores.
            over: how windows are joined before ranking, the choice then holds in every window; None ranks each window
                by itself.

        NaN scores are never selected by rank. Raises `BadInput` unless exactly one of ``top``, ``quantile``, ``fdr``
        and ``units`` is given and can be met: no q-values, or none that could come so low, cannot, nor can units that
        a site does not have; `UnknownName` for a site that the map does not have.
        """
        if sum(choice is not None for choice in (top, quantile, fdr, units)) != 1:
            given = f"top={top}, quantile={quantile}, fdr={fdr}, units={units}"
            raise BadInput("select by one of top, quantile, fdr and units", given=given)
        if over not in ("mean", "max", None):
            raise unknown_name("way to join windows", str(over), ("mean", "max"))
        if fdr is not None:
            return self._with_selected(self._discoveries(fdr), {"of": self.id, "select": {"fdr": fdr}})
        scores = self.dataset["score"].transpose("window", "neuron").values
        if units is not None:
            named = {site: sorted({int(unit) for unit in chosen}) for site, chosen in sorted(units.items())}
            flags = by_name(self.sites, named)
            return self._with_selected(
                np.broadcast_to(flags, scores.shape), {"of": self.id, "select": {"units": named}}
            )
        ranked = scores if over is None else over_windows(scores, over)[None]
        chosen = np.stack(
            [top_units(row, top) if top is not None else from_quantile(row, float(quantile or 0)) for row in ranked]
        )
        step = {"top": top, "quantile": quantile, "over": over}
        return self._with_selected(np.broadcast_to(chosen, scores.shape), {"of": self.id, "select": step})

    def _discoveries(self, fdr: float) -> np.ndarray:
        if "q_value" not in self.dataset:
            fix = 'probe.score(target, reference, method="contrast"), or select(top=...)'
            raise BadInput("the neuron map has no q-values", given=f"a {self.method} map", fix=fix)
        q = self.dataset["q_value"].transpose("window", "neuron").values
        return below(q, fdr, self.report.get("smallest_q", 0.0))

    def selected(self, over: Votes = "any") -> np.ndarray:
        """(neuron,) bool: selected in any window, in all, or in more than half of them (``vote``).

        Raises `BadInput` when the map has no selection.
        """
        if "selected" not in self.dataset:
            raise BadInput(
                "the neuron map has no selection", given=f"a {self.method} map", fix="nm.select(top=50) first"
            )
        if over not in ("any", "all", "vote"):
            raise unknown_name("way to join windows", over, ("any", "all", "vote"))
        values = self.dataset["selected"].transpose("window", "neuron").values.astype(bool)
        return {"any": values.any(0), "all": values.all(0), "vote": 2 * values.sum(0) > len(values)}[over]

    def union(self, other: NeuronMap, over: Votes = "any") -> NeuronMap:
        """Units selected in this map or in ``other``; see `intersection` for the rest."""
        return self._combined("union", other, over)

    def intersection(self, other: NeuronMap, over: Votes = "any") -> NeuronMap:
        """Units selected in both maps, windows first joined by ``over``.

        The result has one window that spans those of both maps. Scores and evidence are this map's, averaged over its
        windows: only selections can be combined. Raises `WrongModel` or `HeaderMismatch` naming the key when the maps
        were made on different models or sites.
        """
        return self._combined("intersection", other, over)

    def difference(self, other: NeuronMap, over: Votes = "any") -> NeuronMap:
        """Units selected in this map and not in ``other``; see `intersection` for the rest."""
        return self._combined("difference", other, over)

    def jaccard(self, other: NeuronMap, over: Votes = "any") -> float:
        """Size of the intersection over size of the union of two selections; NaN when both are empty."""
        _check_comparable(self, other)
        a, b = self.selected(over), other.selected(over)
        return float((a & b).sum() / (a | b).sum()) if (a | b).any() else float("nan")

    def _combined(self, operation: str, other: NeuronMap, over: Votes) -> NeuronMap:
        _check_comparable(self, other)
        a, b = self.selected(over), other.selected(over)
        chosen = {"union": a | b, "intersection": a & b, "difference": a & ~b}[operation]
        both = self.windows + other.windows
        span = {"t_max": ("window", [max(t for t, _ in both)]), "t_min": ("window", [min(t for _, t in both)])}
        values = {
            name: (
                ("window", "neuron"),
                over_windows(self.dataset[name].transpose("window", "neuron").values, "mean")[None],
            )
            for name in ("score", *EVIDENCE)
            if name in self.dataset
        }
        coords = {name: c for name, c in self.dataset.coords.items() if c.dims == ("neuron",)}
        ds = xr.Dataset(values, coords={**coords, **span}, attrs=self.dataset.attrs)
        step = {"of": [self.id, other.id], "operation": operation, "over": over}
        return NeuronMap(ds)._with_selected(chosen[None], step, operation)

    def _with_selected(self, selected: np.ndarray, step: Mapping[str, Any], method: str | None = None) -> NeuronMap:
        identity = self.provenance["identity"]
        identity["selection"] = [*identity.get("selection", []), dict(step)]
        ds = self.dataset.assign(selected=(("window", "neuron"), np.array(selected, bool)))
        return NeuronMap(_signed(ds, method or self.method, self.dataset.attrs["sites"], identity, self.report))

    def with_report(self, **entries: Any) -> NeuronMap:
        """The same map, with the same id, and further entries in its ``report``."""
        found = self.provenance
        found["report"] = {**self.report, **entries}
        return NeuronMap(self.dataset.assign_attrs(provenance=json.dumps(found)))

    # --- files ---

    def save(self, path: str | Path, *, force: bool = False) -> Path:
        """Write the map as a zarr folder, or as one file when the name ends in ``.zarr.zip``.

        Saving the same map again does nothing. Raises `BadInput` where ``path`` holds another map (``force=True``
        replaces it) or something else, and `WorkbenchError` where the disk is full; nothing half-written is left.
        """
        path = Path(path)
        write_dataset(self.dataset.assign_attrs(formats.header("neuron_map")), path, "neuron_map", force=force)
        return path

    @classmethod
    def load(cls, path: str | Path) -> NeuronMap:
        """Read a saved map, whole; ``"emoji/church-auroc"`` is one that comes with a checkout.

        Raises `BadInput` for no or another file, `UnknownName` for no such committed map, `StoreDamaged`
        for a torn one.
        """
        dataset = read_dataset(finding(path, "neuron_map"), "neuron_map")
        for key in formats.header("neuron_map"):
            del dataset.attrs[key]
        return cls(dataset)

    # --- how it shows itself ---

    def __repr__(self) -> str:
        n = self.dataset.sizes
        chosen = f", {int(self.selected().sum())} selected" if "selected" in self.dataset else ""
        return f"<NeuronMap {self.method} {self.id}: {n['window']} windows x {n['neuron']} neurons{chosen}>"

    def _repr_html_(self) -> str:
        table = self.to_dataframe().nlargest(5, "score")
        sites = self._site_table().to_html(index=False, border=0, escape=True, float_format="{:.3g}".format)
        best = table.to_html(index=False, border=0, escape=True, float_format="{:.3g}".format)
        title = escape(repr(self)[1:-1])
        return f"<b>{title}</b><details><summary>{len(self.sites)} sites</summary>{sites}</details>best units{best}"

    def _site_table(self) -> pd.DataFrame:
        frame = self.to_dataframe()
        grouped = frame.groupby("site", sort=False)
        table = pd.DataFrame({"units": grouped.size(), "best score": grouped["score"].max()})
        if "selected" in frame:
            table["selected"] = grouped["selected"].sum()
        return table.reset_index()


def _signed(
    ds: xr.Dataset, method: str, sites: str, identity: Mapping[str, Any], report: Mapping[str, Any] | None = None
) -> xr.Dataset:
    found = provenance.stamp(identity) | ({"report": dict(report)} if report else {})
    return ds.assign_attrs(method=method, sites=sites, provenance=json.dumps(found))


def _check_comparable(a: NeuronMap, b: NeuronMap) -> None:
    ours, theirs = a.provenance["identity"], b.provenance["identity"]
    try:
        provenance.check_same(ours, theirs, "the models of two neuron maps", keys=["model"])
    except HeaderMismatch as error:
        fix = "record both on the same model"
        raise WrongModel(error.what, given=error.given, expected=error.expected, fix=fix) from None
    names = [[(site.name, site.width) for site in nm.sites] for nm in (a, b)]
    if names[0] != names[1]:
        differ = next((pair for pair in zip(*names, strict=False) if pair[0] != pair[1]), ("the number of sites",))
        raise HeaderMismatch("the two neuron maps hold different sites", given=str(differ[-1]), expected=str(differ[0]))

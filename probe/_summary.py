"""summary: what a pipeline is, as far as the workbench is concerned: its parts, its sites, the edits in force on it."""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from probe import provenance
from probe._sites import sites

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Summary:
    """A pipeline at a glance; made by `summary`.

    - ``pipeline``, ``scheduler``: names of classes; ``dtype``
    - ``parameters``: component -> number of parameters; ``architecture``: component -> its hash
    - ``lineage``: [id, name] of the edits and interventions in force
    - ``sites``: one dict a site, in order of execution
    """

    pipeline: str
    scheduler: str
    dtype: str
    parameters: dict[str, int]
    architecture: dict[str, str]
    lineage: list[list[str]]
    sites: list[dict[str, Any]]

    def table(self) -> pd.DataFrame:
        """One row a component and kind of site: SDXL has hundreds of sites."""
        import pandas as pd

        by_kind = pd.DataFrame(self.sites).groupby(["component", "kind"], sort=False)
        rows = by_kind["width"].agg(sites="size", units="sum", narrowest="min", widest="max")
        return rows.assign(first=by_kind["name"].first()).reset_index()

    def rows(self) -> dict[str, str]:
        """What is said of the whole, by name."""
        sizes = {name: f"{n / 1e6:.2f} M parameters" for name, n in self.parameters.items()}
        edits = ", ".join(name for _, name in self.lineage) or "none"
        return {"pipeline": self.pipeline, "scheduler": self.scheduler, "dtype": self.dtype, **sizes, "edits": edits}

    def __repr__(self) -> str:
        units = sum(site["width"] for site in self.sites if site["kind"] == "ffn")
        return f"<Summary of {self.pipeline}, {self.dtype}: {len(self.sites)} sites, {units} ffn neurons>"

    def _repr_html_(self) -> str:
        cells = "".join(f"<tr><th>{escape(k)}</th><td>{escape(v)}</td></tr>" for k, v in self.rows().items())
        kinds = self.table().to_html(index=False, border=0, escape=True)
        return f"<table>{cells}</table><details open><summary>{len(self.sites)} sites</summary>{kinds}</details>"


def summary(pipe: Any) -> Summary:
    """What a pipeline is: its parts with their sizes, the places where activations can be read, the edits in force."""
    found = provenance.fingerprint(pipe)
    parts = {name: getattr(pipe, name) for name in found.architecture}
    return Summary(
        pipeline=type(pipe).__name__,
        scheduler=type(pipe.scheduler).__name__,
        dtype=found.dtype,
        parameters={name: sum(p.numel() for p in part.parameters()) for name, part in parts.items()},
        architecture=dict(found.architecture),
        lineage=provenance.lineage(pipe),
        sites=[site.to_json() for site in sites(pipe, "*")],
    )

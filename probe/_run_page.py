"""How a run shows itself in a notebook: what it holds, how far it is, who made it. Every string is escaped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from probe._chunks import readable_size
from probe._store import RunStore

#: The bar shows at most so many strips; a strip of several units is as full as they are.
_STRIPS = 60


def page(
    store: RunStore,
    done: np.ndarray,
    *,
    sites: Sequence[Mapping[str, Any]],
    size: int,
    nonfinite: Sequence[Mapping[str, Any]],
) -> str:
    """HTML of a run: ``done`` (unit,) bool, ``sites`` as stored, ``size`` in bytes on disk."""
    identity, info = store.identity, store.info
    recorded = int(np.repeat(done, store.unit)[: store.n_samples].sum())
    rows = {
        "samples": f"{recorded} of {store.n_samples} recorded, in units of {store.unit}",
        "groups": ", ".join(name for name in store.groups if not name.startswith("maps/")),
        "maps": _listed([name for name in store.groups if name.startswith("maps/")]),
        "reducers": ", ".join(map(str, identity.get("reducers", ()))) or "none",
        "sampling": _sampling(identity),
        "edits": ", ".join(str(name) for _, name in identity.get("lineage", ())) or "none",
        "on disk": f"{readable_size(size)} at {store.path}"
        + (f", rechunked by {store.rechunked}" * bool(store.rechunked)),
        "made": " ".join(str(info[key]) for key in ("created", "system", "machine") if key in info),
        "versions": ", ".join(f"{name} {version}" for name, version in info.get("versions", {}).items()),
    }
    if nonfinite:
        rows["NaN or infinity"] = ", ".join(dict.fromkeys(str(entry["site"]) for entry in nonfinite))
    cells = "".join(f"<tr><th>{escape(k)}</th><td>{escape(str(v))}</td></tr>" for k, v in rows.items())
    return f"<b>Run {escape(store.id)}</b> {_coverage(done)}<table>{cells}</table>{_components(sites)}"


def _listed(names: Sequence[str]) -> str:
    first, last = (names[0], names[-1]) if names else ("", "")
    return "none" if not names else first if len(names) == 1 else f"{len(names)}, from {first} to {last}"


def _sampling(identity: Mapping[str, Any]) -> str:
    scheduler = identity.get("scheduler", {})
    return (
        f"{identity.get('steps')} steps, guidance {identity.get('guidance')}, {scheduler.get('name', 'no scheduler')}"
    )


def _coverage(done: np.ndarray) -> str:
    """A strip for each unit, or for a few: filled where they are done."""
    strips = np.array_split(done.astype(float), min(len(done), _STRIPS))
    style = "display:inline-block;width:6px;height:1em;background:#3572a5"
    spans = "".join(f'<span style="{style};opacity:{0.1 + 0.9 * strip.mean():.2f}"></span>' for strip in strips)
    return f'<span title="{int(done.sum())} of {len(done)} units done">{spans}</span>'


def _components(sites: Sequence[Mapping[str, Any]]) -> str:
    """Sites by component and kind: how many, how many units, from where to where."""
    counts = Counter((str(row["component"]), str(row["kind"])) for row in sites)
    body = ""
    for (component, kind), count in counts.items():
        own = [row for row in sites if (row["component"], row["kind"]) == (component, kind)]
        units = sum(int(row["width"]) for row in own)
        names = f"{own[0]['name']} to {own[-1]['name']}" if count > 1 else str(own[0]["name"])
        cells = (component, kind, str(count), str(units), names)
        body += "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>"
    head = "".join(f"<th>{name}</th>" for name in ("component", "kind", "sites", "units", "from, to"))
    return f"<table><tr>{head}</tr>{body}</table>"

"""The README card of a saved edit: what it does, to which model, how it was made, how to use it."""

from __future__ import annotations

import json
from collections import Counter
from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from erase._edit import Edit


_USE = (
    'edit = erase.load_edit("this folder")',
    "with edit.applied(pipe):  # outside the block the weights are as before, bit for bit",
    '    image = pipe("a prompt").images[0]',
)

_PUT_TOGETHER = (
    "# the pipeline in this folder is the unedited model; its edit lies in edit/",
    'pipe = erase.load_edited("this folder")',
    'image = pipe("a prompt").images[0]',
)

_ZEROS = "The places of zeros tell which weights carried the concept."
_UNPLUGGED = (
    "This edit is no part of the weights: it hooks modules of the model while it is in force, and whoever holds the "
    "files can load the model without it. It protects where you run the model, not where others do."
)


def card(edit: Edit, beside: str | None = None) -> str:
    """A model card in Markdown, readable without the workbench; ``beside``: the edit's folder in a pipeline's own."""
    identity, info = edit.provenance["identity"], edit.provenance["info"]
    kinds = [change.kind for change in edit.changes]
    counts = ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds))
    base = ", ".join(f"{name} ({i})" for i, name in edit.base_edits) or "none"
    lines = [
        "---",
        "library_name: neuron-workbench",
        "tags: [concept-erasure, diffusion]",
        "---",
        f"# {_plain(edit.name)}",
        "",
        f"A reversible edit of a text-to-image pipeline, made by `{identity['method']}`. Id `{edit.id}`.",
        "",
        f"- erases: {_plain(erased(edit))}",
        f"- model: {_plain(made_on(edit))}",
        f"- changes: {counts} in {len(edit.params)} parameters, {edit.nbytes / 1e6:.2f} MB",
        f"- mergeable into weights: {'yes' if edit.mergeable else 'no'}",
        f"- fitted on top of other edits: {_plain(base)}",
        f"- made: {_plain(str(info.get('created', 'unknown')))}",
        "",
        "## Use",
        "```python",
        "import erase, probe",
        "",
        *(_PUT_TOGETHER if beside else (_loading(edit), *_USE)),
        "```",
        "It applies to the model it was made on and to no other: the tensors it touches are compared first.",
        "",
        "## Options",
        "```json",
        json.dumps(identity["options"], indent=1, ensure_ascii=False),
        "```",
        "",
        "## Parameters",
        "| parameter | change | shape |",
        "|---|---|---|",
        *(f"| `{param}` | {_describe(c)} | {_shape(edit, param)} |" for c in edit.changes for param in c.touched),
        "",
        "## Limits",
        "An erased concept may come back under adversarial prompts, and other concepts may have suffered: measure.",
        *((_UNPLUGGED,) if not edit.mergeable else ()),
        *((_ZEROS,) if "mask" in kinds else ()),
        "",
    ]
    return "\n".join(lines)


def erased(edit: Edit) -> str:
    """What the edit erases, as far as it knows: the concepts, or the neuron map that names the weights."""
    if edit.concepts:
        return ", ".join(edit.concepts)
    maps = edit.provenance["identity"]["inputs"].get("map")
    listed = ", ".join(maps if isinstance(maps, list) else [maps]) if maps else ""
    return f"what neuron map {listed} finds" if listed else "not stated by what it was made from"


def made_on(edit: Edit) -> str:
    """The model's name, where it is known, and the beginnings of the hashes of its networks."""
    hashes = edit.provenance["identity"]["model"]["architecture"]
    short = ", ".join(f"{component} {value[:12]}" for component, value in hashes.items())
    return f"{edit.model or 'unnamed'} (architecture of {short})"


def _loading(edit: Edit) -> str:
    name = _plain(edit.model or "the model it was made on").replace('"', "'").replace("\\", "/")
    return f'pipe = probe.load("{name}")'


def _describe(change: object) -> str:
    if (family := getattr(change, "family", None)) is not None:
        return f"{family} hook"
    density = getattr(change, "density", None)
    return getattr(change, "kind", "") if density is None else f"mask, {density:.4%} of weights"


def _shape(edit: Edit, param: str) -> str:
    return " x ".join(map(str, edit.provenance["identity"]["model"]["tensors"][param]["shape"]))


def _plain(text: str) -> str:
    """Names come from users: keep them on their line and free of markup."""
    return " ".join(text.split()).replace("<", "&lt;").replace("|", "\\|").replace("`", "'")


def page(edit: Edit) -> str:
    """How an edit shows itself in a notebook: what it is, its options, and what it touches."""
    kinds = Counter(change.kind for change in edit.changes)
    rows = {
        "erases": erased(edit),
        "model": made_on(edit),
        "changes": ", ".join(f"{count} {kind}" for kind, count in kinds.items()) + f", {edit.nbytes / 1e6:.2f} MB",
        "masked": f"{edit.density:.2%} of the weights of touched parameters" if "mask" in kinds else "nothing",
        "fitted on top of": ", ".join(name for _, name in edit.base_edits) or "the unedited model",
        "mergeable": "yes" if edit.mergeable else "no: it holds while its hooks do",
        **{f"option {key}": json.dumps(value, default=str)[:200] for key, value in edit.options.items()},
    }
    if len(edit.parts) > 1:
        rows["stack of"] = ", ".join(name for _, name in edit.parts)
    cells = "".join(f"<tr><th>{escape(k)}</th><td>{escape(v)}</td></tr>" for k, v in rows.items())
    listed = "".join(f"<li>{escape(param)}</li>" for param in edit.params)
    touched = f"<details><summary>{len(edit.params)} parameters</summary><ul>{listed}</ul></details>"
    return f"<b>{escape(edit.name)}</b> by {escape(edit.method)}, edit {escape(edit.id)}<table>{cells}</table>{touched}"

"""A page for every notebook that was run: pictures inside, no script, nothing from the network.

python -m docs.render runs/notebooks docs/notebooks
"""

from __future__ import annotations

import hashlib
import re
import sys
from html import escape
from pathlib import Path
from typing import Any

import nbformat
from nbconvert import HTMLExporter
from pygments.formatters import HtmlFormatter

LARGEST = 1_500_000
_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:64rem;margin:2rem auto;padding:0 1rem;color:#222}"
    "pre{font-size:13px;line-height:1.35;overflow-x:auto;margin:.4em 0;white-space:pre-wrap}"
    ".input_area{background:#f6f6f4;border-left:3px solid #ccc;padding:.1em .8em;margin-top:1em}"
    ".output{padding-left:.8em;overflow-x:auto}.prompt{display:none}img{max-width:100%}"
    "table{border-collapse:collapse;font-size:13px}th,td{padding:2px 10px;text-align:left;vertical-align:top}"
    "tr:nth-child(even){background:#f6f6f4}"
)


def code_hash(cells: list[Any]) -> str:
    """What a page is of: the code of its notebook, without the cell that papermill puts in."""
    own = [
        "".join(cell["source"])
        for cell in cells
        if cell["cell_type"] == "code" and "injected-parameters" not in cell["metadata"].get("tags", ())
    ]
    return hashlib.sha256("\n\n".join(own).encode()).hexdigest()[:16]


def page(path: Path) -> str:
    """The notebook as HTML. Views with a kernel behind them give way to the pages that they bring."""
    notebook = nbformat.read(path, as_version=4)
    of, title, heading = code_hash(notebook.cells), path.stem, path.stem
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            found = re.findall(r"^#+ (.+)$", cell.source, re.MULTILINE)
            title, heading = (title if title != path.stem else found[0], found[-1]) if found else (title, heading)
            cell.source = re.sub(r"\]\((\w+)\.ipynb\)", r"](\1.html)", cell.source).replace("](../docs/", "](../")
            continue
        for output in cell.get("outputs", ()):
            if output.output_type == "error":
                raise SystemExit(f"{path} did not run to its end: {output.ename}: {output.evalue}")
            data = output.get("data", {})
            data.pop("application/vnd.jupyter.widget-view+json", None)
            if "image/png" in data:
                output.metadata.setdefault("image/png", {})["alt"] = heading
    notebook.metadata.pop("widgets", None)
    body, _ = HTMLExporter(template_name="basic", exclude_anchor_links=True).from_notebook_node(notebook)
    style = _STYLE + HtmlFormatter(style="friendly").get_style_defs(".highlight")
    head = f'<meta charset="utf-8"><meta name="code" content="{of}"><title>{escape(title)}</title>'
    return f"<!doctype html>\n<html lang=en><head>{head}<style>{style}</style></head><body>{body}</body></html>\n"


def main(ran: Path, pages: Path) -> None:
    """Write a page for every notebook in ``ran``. Ends with an error where one failed or is too large."""
    pages.mkdir(parents=True, exist_ok=True)
    for path in sorted(ran.glob("*.ipynb")):
        text = page(path)
        if len(text.encode()) > LARGEST:
            raise SystemExit(f"the page of {path.name} has {len(text) / 1e6:.1f} MB, more than {LARGEST / 1e6:g}")
        (pages / f"{path.stem}.html").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))

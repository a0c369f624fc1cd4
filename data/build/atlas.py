"""Remake the art atlas from the npm packages (needed only to change the world; users never run this).

    mkdir art && cd art
    npm pack @iconify-json/{noto,twemoji,fluent-emoji,fluent-emoji-flat,fluent-emoji-high-contrast}
    python -m data.build.atlas art/        # a folder with the unpacked packages, one folder per package name

Writes one RGBA sheet per style and kind, ``index.json`` (label -> cell, icon, package, version, licence) and
``LICENSES.md``.
"""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from data.build.words import CHARACTERS, PROFESSIONS, STYLES, drawings

CELL = 96
COLUMNS = 10
ATLAS = Path(__file__).resolve().parents[1] / "atlas"


def svg(package: dict, icon: str) -> str:
    """One icon of an Iconify JSON package as a standalone SVG; aliases are followed."""
    if icon not in package["icons"]:
        icon = package["aliases"][icon]["parent"]
    body = package["icons"][icon]
    width, height = body.get("width", package.get("width", 16)), body.get("height", package.get("height", 16))
    return f'<svg xmlns="http://www.w3.org/2000/svg" color="black" viewBox="0 0 {width} {height}">{body["body"]}</svg>'


def render(package: dict, icon: str, size: int) -> Image.Image:
    """One icon as an RGBA picture of ``size`` x ``size``."""
    import resvg_py

    png = bytes(resvg_py.svg_to_bytes(svg(package, icon), width=size, height=size))
    return Image.open(io.BytesIO(png)).convert("RGBA")


def kind_of(label: str) -> str:
    if label in CHARACTERS:
        return "characters"
    return "professions" if label.split(" ", 1)[-1] in PROFESSIONS else "objects"


def cells() -> dict[str, dict[str, int | str]]:
    """Label -> sheet kind, column and row."""
    counts: dict[str, int] = {}
    out: dict[str, dict[str, int | str]] = {}
    for label, icon in drawings().items():
        kind = kind_of(label)
        i = counts[kind] = counts.get(kind, -1) + 1
        out[label] = {"kind": kind, "icon": icon, "column": i % COLUMNS, "row": i // COLUMNS}
    return out


def load_drawings() -> dict[tuple[str, str], np.ndarray]:
    """(label, style) -> uint8 RGBA (96, 96, 4), read from the committed sheets."""
    index = json.loads((ATLAS / "index.json").read_text())
    sheets = {
        (style, kind): np.asarray(Image.open(ATLAS / f"{style}_{kind}.png").convert("RGBA"))
        for style in STYLES
        for kind in ("objects", "characters", "professions")
    }
    out = {}
    for label, cell in index["drawings"].items():
        y, x = cell["row"] * CELL, cell["column"] * CELL
        for style in STYLES:
            out[label, style] = sheets[style, cell["kind"]][y : y + CELL, x : x + CELL]
    return out


def main(art: Path) -> None:
    ATLAS.mkdir(exist_ok=True)
    index: dict = {"cell": CELL, "drawings": cells(), "styles": {}}
    for style, (name, licence) in STYLES.items():
        folder = art / name
        package = json.loads((folder / "icons.json").read_text())
        version = json.loads((folder / "package.json").read_text())["version"]
        index["styles"][style] = {"package": f"@iconify-json/{name}", "version": version, "licence": licence}
        sheets: dict[str, Image.Image] = {}
        for cell in index["drawings"].values():
            rows = 1 + max(c["row"] for c in index["drawings"].values() if c["kind"] == cell["kind"])
            sheet = sheets.setdefault(cell["kind"], Image.new("RGBA", (COLUMNS * CELL, rows * CELL)))
            sheet.paste(render(package, cell["icon"], CELL), (cell["column"] * CELL, cell["row"] * CELL))
        for kind, sheet in sheets.items():
            sheet.save(ATLAS / f"{style}_{kind}.png", optimize=True)
    (ATLAS / "index.json").write_text(json.dumps(index, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

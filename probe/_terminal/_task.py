"""What a running command holds: its options, its model, its one result."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probe._terminal._json import to_json
from probe.errors import BadInput, unknown_name

if TYPE_CHECKING:
    import pandas as pd
    from diffusers import StableDiffusionPipeline
    from rich.table import Table


@dataclass
class Task:
    """One command at work.

    ``config`` holds the options of the library function that were given, ready to be passed on; ``defaults`` those that
    were not, as its signature has them.
    """

    command: str
    shared: dict[str, Any]
    config: dict[str, Any]
    defaults: dict[str, Any] = field(default_factory=dict)
    reported: bool = field(default=False, init=False)

    @property
    def as_json(self) -> bool:
        """Whether the result is one JSON document."""
        return bool(self.shared["json"])

    @property
    def progress(self) -> bool:
        """Whether progress bars are wanted."""
        return not (self.shared["quiet"] or self.as_json)

    @property
    def dry_run(self) -> bool:
        """Whether nothing may be written."""
        return bool(self.shared.get("dry_run"))

    @property
    def force(self) -> bool:
        """Whether a result of the same kind may be replaced."""
        return bool(self.shared.get("force"))

    @property
    def out(self) -> Path:
        """Where the result goes."""
        return Path(self.shared["out"])

    def pipeline(self) -> StableDiffusionPipeline:
        """The model that ``--model``, ``--device`` and ``--dtype`` name."""
        from probe._load import load

        return load(self.shared["model"], device=self.shared["device"], dtype=self.shared["dtype"])

    def result(self, document: dict[str, Any], *text: str | pd.DataFrame) -> None:
        """Prints the result: the document under ``--json``, the text (lines and tables) otherwise. Once a command."""
        assert not self.reported, "a command has one result"
        self.reported = True
        if self.as_json:
            sys.stdout.write(to_json({"command": self.command, **document}) + "\n")
            return
        from rich.console import Console

        # A pipe has no width: lines stay whole there.
        console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else 160, highlight=False, markup=False)
        for part in text:
            console.print(part if isinstance(part, str) else _table(part), soft_wrap=isinstance(part, str))

    def plan(self, **inputs: Any) -> None:
        """The result of a dry run: what the command would be called with."""
        shared = {k: v for k, v in self.shared.items() if k in ("model", "device", "dtype", "out")}
        call = {**inputs, **shared, **self.defaults, **self.config}
        lines = [f"would run {self.command} with", *(f"  {k} = {v}" for k, v in call.items() if v is not None)]
        self.result({"dry_run": True, "arguments": call}, "\n".join(lines))


def _table(frame: pd.DataFrame) -> Table:
    """A table for the terminal; numbers to three digits, on the right."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    numbers = set(frame.select_dtypes("number").columns)
    made = Table(box=SIMPLE_HEAD, pad_edge=False)
    for column in frame.columns:
        made.add_column(str(column), justify="right" if column in numbers else "left", overflow="fold")
    for row in frame.itertuples(index=False):
        made.add_row(*(f"{value:.3g}" if isinstance(value, float) else str(value) for value in row))
    return made


def read_config(path: str) -> dict[str, Any]:
    """The mapping in a YAML file; keys may be spelled with dashes."""
    import yaml

    file = Path(path)
    if not file.is_file():
        raise BadInput("--config names no file", given=path, expected="a YAML file")
    try:
        found = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise BadInput("--config is not YAML", given=path, expected=" ".join(str(error).split())) from None
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise BadInput("--config holds no options", given=type(found).__name__, expected="a mapping of option: value")
    return {str(key).replace("-", "_"): value for key, value in found.items()}


def refuse_unknown(found: dict[str, Any], known: set[str]) -> None:
    """Unknown keys of a config file, with the nearest known ones."""
    for key in found:
        if key not in known:
            raise unknown_name("option in --config", key, known)

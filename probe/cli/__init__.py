"""``probe`` on the command line. Each command is the public function's name with dashes."""

from probe._terminal import leave, run
from probe.cli import _attack, _concepts, _demo, _evaluate, _info, _intervene, _plot, _record, _score, _zero_attention
from probe.cli._app import app

__all__ = ["app", "main"]

# As help lists them: in the order of work.
_ORDER = (
    "demo",
    "info",
    "concepts",
    "record",
    "trajectories",
    "verify",
    "rechunk",
    "score",
    "stability",
    "overlap",
    "selectivity",
    "intervene",
    "zero-attention",
    "attack",
    "sensitivity",
    "evaluate",
    "plot",
)
app.registered_commands.sort(key=lambda command: _ORDER.index(command.name or ""))


def main() -> int:
    """Runs the command line and returns its exit code."""
    return leave(run(app))

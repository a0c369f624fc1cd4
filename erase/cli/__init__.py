"""``erase`` on the command line. Each command is the public function's name with dashes."""

from erase.cli import _edits, _images, _prune
from erase.cli._app import app
from probe._terminal import leave, run

__all__ = ["app", "main"]


def main() -> int:
    """Runs the command line and returns its exit code."""
    return leave(run(app))

"""``erase`` on the command line. Each command is the public function's name with dashes."""

from erase.cli import _closed_form, _edits, _gated, _images, _learn, _prune
from erase.cli._app import app
from probe._terminal import leave, run

__all__ = ["app", "main"]

# As help lists them: in the order of work.
_ORDER = (
    *("concept-prune", "prune-neurons", "esd", "ablating-concepts", "differentiable-prune", "control-mask"),
    *("uce", "uce-debias", "trce-text", "trce-trajectory", "trce", "rece", "speed", "oce", "mace", "preserve-cache"),
    *("resag", "spm", "low-rank", "distil", "import-resag", "export-resag", "scaled", "truncated"),
    "audit",
    *("edit-from-checkpoint", "stack", "info", "generate", "export", "load-edited", "restore"),
)
app.registered_commands.sort(key=lambda command: _ORDER.index(command.name or ""))


def main() -> int:
    """Runs the command line and returns its exit code."""
    return leave(run(app))

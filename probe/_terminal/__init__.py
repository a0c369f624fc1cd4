"""What the command lines of ``probe`` and ``erase`` share: options from signatures, one result, errors, exit codes.

A command is a plain function ``command(task, <its own arguments>)``. Its options are the keyword-only parameters of the
library function behind it, read from the source without importing it, so that no ``--help`` waits for torch.
"""

from probe._terminal._app import command, leave, new_app, run
from probe._terminal._options import Option, from_signature, from_signatures
from probe._terminal._pictures import check_folder, draw_into_folder
from probe._terminal._task import Task

__all__ = [
    "Option",
    "Task",
    "check_folder",
    "command",
    "draw_into_folder",
    "from_signature",
    "from_signatures",
    "leave",
    "new_app",
    "run",
]

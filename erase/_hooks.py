"""Hooks of the edits in force on a component: registered torch forward hooks described by data, never a swapped module.

A *family* knows what its `Hook` values mean; hooks of one family are merged into one before it sees them. Families add
up in the order in which they came. Hooks of edits run before any other on their module, so a recording sees edited
values.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any, Protocol

from torch import nn

from erase._changes import Hook, merged
from probe import compat
from probe.errors import unknown_name

#: On a component while edits hook it: the handles, to be removed when edits come or go.
HANDLES = "_workbench_hooks"

#: Family -> the module that defines it as ``FAMILY``; imported when an edit of the family is applied.
FAMILIES = {"resag": "erase._resag_hooks", "spm": "erase._spm_hooks"}


class Family(Protocol):
    """What a family can do."""

    def attach(self, pipe: Any, hook: Hook, modules: Sequence[nn.Module]) -> list[Any]:
        """Register hooks for ``modules``, those of ``hook.touched`` in its order; returns the handles."""
        ...


def attach(pipe: Any, component: nn.Module, hooks: Sequence[Hook]) -> None:
    """Make ``hooks``, of all edits in force, the ones on ``component``: all of them or, on any exception, none."""
    for handle in getattr(component, HANDLES, ()):
        handle.remove()
    if hasattr(component, HANDLES):
        delattr(component, HANDLES)
    if not hooks:
        return
    handles: list[Any] = []
    try:
        for hook in reversed(merged(hooks)):  # each goes before those that are there
            handles += _family(hook.family).attach(pipe, hook, [_owner(component, p) for p in hook.touched])
    except BaseException:
        for handle in handles:
            handle.remove()
        raise
    setattr(component, HANDLES, handles)


def _family(name: str) -> Family:
    if name not in FAMILIES:
        raise unknown_name("family of hooks", name, FAMILIES)
    family: Family = import_module(FAMILIES[name]).FAMILY
    return family


def _owner(component: nn.Module, param: str) -> nn.Module:
    """The module whose parameter has that canonical name."""
    return component.get_submodule(compat.live_name(component, param.partition(".")[2]).rpartition(".")[0])

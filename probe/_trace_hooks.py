"""The hooks behind `Trace`: registered for one with-block, gone after it, and what stops a forward."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from probe import compat
from probe.errors import BadInput, NeverFired, unknown_name

if TYPE_CHECKING:
    from torch import nn

    from probe._trace import Trace, TraceDict


class StopForward(Exception):
    """Ends a forward early; swallowed only by the `Trace` or `TraceDict` that raised it (``owner``)."""

    def __init__(self, owner: object = None) -> None:
        super().__init__("forward stopped once every traced layer had fired")
        self.owner = owner


class Hooks:
    """The hooks of one with-block, and which layers have fired in the current call of the root."""

    def __init__(self, owner: Trace | TraceDict, traces: list[Trace]) -> None:
        self.owner, self.traces = owner, traces
        self.waits_for = {trace.layer for trace in traces if trace.stop}
        self.fired: set[str] = set()
        root = owner.root
        self.handles = [root.register_forward_pre_hook(lambda _module, _args: self.fired.clear())]
        for trace in traces:
            trace._clear()
            trace._hooks = self
            self.handles.append(trace.module.register_forward_hook(self._hook(trace), with_kwargs=True))

    def _hook(self, trace: Trace) -> Callable[..., Any]:
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
            output = trace._fired(args, kwargs, output)
            self.fired.add(trace.layer)
            if self.waits_for and self.waits_for <= self.fired:
                raise StopForward(self.owner)
            return output

        return hook

    def close(self) -> None:
        """Remove them, the last one first."""
        for handle in reversed(self.handles):
            handle.remove()
        for trace in self.traces:
            trace._hooks = None
        self.owner._hooks = None


def leave(owner: Trace | TraceDict, traces: list[Trace], error: BaseException | None) -> bool:
    """End a with-block: whether its exception is the owner's own stop. `NeverFired` for layers that were not called."""
    owner.close()
    if isinstance(error, StopForward) and error.owner is owner:
        return True
    if error is None and (silent := [trace.layer for trace in traces if trace.calls == 0]):
        raise NeverFired(
            "a traced layer was not called inside the block",
            given=", ".join(silent),
            fix="call the root module inside the with-block, and trace layers on its path",
        )
    return False


def find_module(root: nn.Module, layer: str) -> nn.Module:
    """The module of that name; refuses names that do not exist and compiled modules from the root down to it."""
    compat.refuse_compiled(root, "the traced root")
    modules = dict(root.named_modules(remove_duplicate=False))
    if layer not in modules:
        raise unknown_name("layer", layer, (name for name in modules if name))
    parts = layer.split(".")
    for depth in range(1, len(parts) + 1):
        path = ".".join(parts[:depth])
        compat.refuse_compiled(modules[path], path)
    return modules[layer]


def call_by_name(function: Callable[..., Any], **offered: Any) -> Any:
    """Call with those arguments it names; its other parameters without a default take what is left, in order."""
    parameters = inspect.signature(function).parameters.values()
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    left = [name for name in offered if name not in {p.name for p in parameters}]
    args: list[Any] = []
    named: dict[str, Any] = {
        p.name: offered[p.name] for p in parameters if p.kind is p.KEYWORD_ONLY and p.name in offered
    }
    for p in positional:
        if p.name in offered:
            args.append(offered[p.name])
        elif p.default is p.empty:
            if not left:
                raise BadInput("edit_output asks for more than it can have", given=p.name, expected=", ".join(offered))
            args.append(offered[left.pop(0)])
        else:
            args.append(p.default)
    return function(*args, **named)

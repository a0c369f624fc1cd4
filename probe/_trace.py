"""Look at, or change, what layers compute during a with-block. The vocabulary is baukit's.

>>> with Trace(pipe.unet, "mid_block") as trace:      # doctest: +SKIP
...     pipe("a church")
>>> trace.output.shape                                # doctest: +SKIP

Where baukit surprises, this differs: hooks exist only inside the block; a wrong name fails before any hook is added;
keyword arguments are kept; an ``edit_output`` that returns None keeps the output; ``stop`` waits for every traced
layer, in whatever order they run; a layer that never fired raises `NeverFired`; outputs may hold None and may be named
tuples, dataclasses or a library's output classes.
"""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from probe import compat
from probe._leaves import map_tensors
from probe.errors import BadInput, NeverFired, unknown_name

if TYPE_CHECKING:
    from torch import Tensor, nn

Keep = Literal["last", "all"]


class StopForward(Exception):
    """Ends a forward early; swallowed only by the `Trace` or `TraceDict` that raised it (``owner``)."""

    def __init__(self, owner: object = None) -> None:
        super().__init__("forward stopped once every traced layer had fired")
        self.owner = owner


class Trace:
    """Retain, and optionally edit, what one layer receives and returns.

    Args:
        root: the module that will be called.
        layer: dotted name of a module inside it; None or ``""`` is ``root`` itself.
        retain_output: keep the output, after editing, in ``.output``.
        retain_input: keep the input in ``.input``: the single positional argument, else ``(args, kwargs)``.
        clone: keep copies rather than references, safe from later in-place changes.
        detach: keep values cut from the autograd graph; ignored for outputs with ``retain_grad``.
        retain_grad: make ``.output.grad`` available after backward.
        edit_output: function of any of ``output, layer, inputs, kwargs`` by name, other parameters without a default
            filled in that order; what it returns replaces the output, None keeps it (perhaps changed in place).
        stop: end the forward once the layer has fired in the current call of ``root``.
        keep: ``"last"`` call only, or ``"all"``: then ``.outputs`` (and ``.inputs``) list every call's.

    Attributes:
        output, input: of the last call; None before the first. kwargs: its keyword arguments, always kept.
        outputs, inputs: lists, filled with ``keep="all"``. calls: how often the layer fired.

    Raises `UnknownName` for a layer that is not in ``root``, `BadInput` for a compiled root and on re-entering, and
    `NeverFired` on leaving a block in which the layer was not called, unless another exception is passing.
    """

    output: Any
    input: Any
    kwargs: dict[str, Any]
    outputs: list[Any]
    inputs: list[Any]
    calls: int

    def __init__(
        self,
        root: nn.Module,
        layer: str | None = None,
        *,
        retain_output: bool = True,
        retain_input: bool = False,
        clone: bool = False,
        detach: bool = False,
        retain_grad: bool = False,
        edit_output: Callable[..., Any] | None = None,
        stop: bool = False,
        keep: Keep = "last",
    ) -> None:
        if keep not in ("last", "all"):
            raise unknown_name("way to keep", str(keep), ["last", "all"])
        if retain_grad and not retain_output:
            raise BadInput("retain_grad needs retain_output", fix="leave retain_output on")
        self.root = root
        self.layer = layer or ""
        self.module = _find(root, self.layer)
        self.retain_output = bool(retain_output)
        self.retain_input = bool(retain_input)
        self.clone, self.detach, self.retain_grad = bool(clone), bool(detach), bool(retain_grad)
        self.edit_output = edit_output
        self.stop = bool(stop)
        self.keep = keep
        self._run: _Run | None = None
        self._clear()

    def __enter__(self) -> Self:
        if self._run is not None:
            raise BadInput(
                "this trace is already active", given=repr(self), fix="leave its block, or make a second one"
            )
        self._run = _Run(self, [self])
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        return _leave(self, [self], error)

    def close(self) -> None:
        """Remove the hooks before the block ends; harmless when there are none."""
        if self._run is not None and self._run.owner is self:
            self._run.close()

    def __repr__(self) -> str:
        state = "active, " if self._run is not None else ""
        return f"Trace({self.layer or type(self.module).__name__!r}, {state}{self.calls} calls)"

    def _clear(self) -> None:
        self.output = self.input = None
        self.kwargs, self.outputs, self.inputs, self.calls = {}, [], [], 0

    def _fired(self, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """What the hook does: edit, then retain; returns what the module is to return."""
        self.calls += 1
        if self.edit_output is not None:
            edited = _call_by_name(self.edit_output, output=output, layer=self.layer, inputs=args, kwargs=kwargs)
            output = output if edited is None else edited
        self.kwargs = self._kept(kwargs)
        if self.retain_input:
            self.input = self._kept(args[0] if len(args) == 1 else (args, kwargs))
            if self.keep == "all":
                self.inputs.append(self.input)
        if self.retain_output:
            self.output = map_tensors(output, self._with_grad) if self.retain_grad else self._kept(output)
            if self.keep == "all":
                self.outputs.append(self.output)
            if self.retain_grad:  # pass a copy on, so that in-place operations downstream leave the kept one alone
                output = map_tensors(self.output, lambda x: x.clone())
        return output

    def _kept(self, value: Any) -> Any:
        if not (self.clone or self.detach):
            return value

        def copied(x: Tensor) -> Tensor:
            x = x.detach() if self.detach else x
            return x.clone() if self.clone else x

        return map_tensors(value, copied)

    def _with_grad(self, x: Tensor) -> Tensor:
        x = x.clone() if self.clone else x
        if not (x.is_floating_point() or x.is_complex()):
            return x
        if not x.requires_grad:
            x.requires_grad_()
        x.retain_grad()
        return x


class TraceDict(OrderedDict[str, Trace]):
    """Several layers of one root: an ordered dict of layer name -> `Trace`.

    Takes the options of `Trace`. Each may be a dict keyed by layer; layers it leaves out have that option off (``keep``
    falls back to ``"last"``). Repeated names count once. ``stop=True`` ends the forward when every layer has fired in
    the current call of ``root``; a dict stops when the layers it marks have.
    """

    def __init__(
        self,
        root: nn.Module,
        layers: Iterable[str],
        *,
        retain_output: bool | Mapping[str, bool] = True,
        retain_input: bool | Mapping[str, bool] = False,
        clone: bool | Mapping[str, bool] = False,
        detach: bool | Mapping[str, bool] = False,
        retain_grad: bool | Mapping[str, bool] = False,
        edit_output: Callable[..., Any] | Mapping[str, Callable[..., Any] | None] | None = None,
        stop: bool | Mapping[str, bool] = False,
        keep: Keep | Mapping[str, Keep] = "last",
    ) -> None:
        super().__init__()
        names = list(dict.fromkeys([layers] if isinstance(layers, str) else layers))
        if not names:
            raise BadInput("no layers to trace", fix="name at least one layer")
        options: dict[str, Any] = {
            "retain_output": retain_output,
            "retain_input": retain_input,
            "clone": clone,
            "detach": detach,
            "retain_grad": retain_grad,
            "edit_output": edit_output,
            "stop": stop,
            "keep": keep,
        }
        for option in options.values():
            for name in option if isinstance(option, Mapping) else ():
                if name not in names:
                    raise unknown_name("traced layer", name, names)
        self.root = root
        self._run: _Run | None = None
        for name in names:
            off: dict[str, Any] = {"edit_output": None, "keep": "last"}
            chosen = {k: v.get(name, off.get(k, False)) if isinstance(v, Mapping) else v for k, v in options.items()}
            self[name] = Trace(root, name, **chosen)

    def __enter__(self) -> Self:
        if self._run is not None:
            raise BadInput("this trace is already active", fix="leave its block, or make a second one")
        self._run = _Run(self, list(self.values()))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        return _leave(self, list(self.values()), error)

    def close(self) -> None:
        """Remove the hooks before the block ends; harmless when there are none."""
        if self._run is not None:
            self._run.close()


class _Run:
    """The hooks of one with-block, and which layers have fired in the current call of the root."""

    def __init__(self, owner: Trace | TraceDict, traces: list[Trace]) -> None:
        self.owner, self.traces = owner, traces
        self.waits_for = {trace.layer for trace in traces if trace.stop}
        self.fired: set[str] = set()
        root = owner.root
        self.handles = [root.register_forward_pre_hook(lambda _module, _args: self.fired.clear())]
        for trace in traces:
            trace._clear()
            trace._run = self
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
        for handle in reversed(self.handles):
            handle.remove()
        for trace in self.traces:
            trace._run = None
        self.owner._run = None


def _leave(owner: Trace | TraceDict, traces: list[Trace], error: BaseException | None) -> bool:
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


def _find(root: nn.Module, layer: str) -> nn.Module:
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


def _call_by_name(function: Callable[..., Any], **offered: Any) -> Any:
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

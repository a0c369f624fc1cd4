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

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

from probe._leaves import map_tensors
from probe._trace_hooks import Hooks, call_by_name, find_module, leave
from probe.errors import BadInput, unknown_name

if TYPE_CHECKING:
    from torch import Tensor, nn

Keep = Literal["last", "all"]


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
        self.module = find_module(root, self.layer)
        self.retain_output = bool(retain_output)
        self.retain_input = bool(retain_input)
        self.clone, self.detach, self.retain_grad = bool(clone), bool(detach), bool(retain_grad)
        self.edit_output = edit_output
        self.stop = bool(stop)
        self.keep = keep
        self._hooks: Hooks | None = None
        self._clear()

    def __enter__(self) -> Self:
        if self._hooks is not None:
            raise BadInput(
                "this trace is already active", given=repr(self), fix="leave its block, or make a second one"
            )
        self._hooks = Hooks(self, [self])
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        return leave(self, [self], error)

    def close(self) -> None:
        """Remove the hooks before the block ends; harmless when there are none."""
        if self._hooks is not None and self._hooks.owner is self:
            self._hooks.close()

    def __repr__(self) -> str:
        state = "active, " if self._hooks is not None else ""
        return f"Trace({self.layer or type(self.module).__name__!r}, {state}{self.calls} calls)"

    def _clear(self) -> None:
        self.output = self.input = None
        self.kwargs, self.outputs, self.inputs, self.calls = {}, [], [], 0

    def _fired(self, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        """What the hook does: edit, then retain; returns what the module is to return."""
        self.calls += 1
        if self.edit_output is not None:
            edited = call_by_name(self.edit_output, output=output, layer=self.layer, inputs=args, kwargs=kwargs)
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
        names = list(dict.fromkeys([layers] if isinstance(layers, str) else layers or ()))
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
        self._hooks: Hooks | None = None
        for name in names:
            off: dict[str, Any] = {"edit_output": None, "keep": "last"}
            chosen = {k: v.get(name, off.get(k, False)) if isinstance(v, Mapping) else v for k, v in options.items()}
            self[name] = Trace(root, name, **chosen)

    def __enter__(self) -> Self:
        if self._hooks is not None:
            raise BadInput("this trace is already active", fix="leave its block, or make a second one")
        self._hooks = Hooks(self, list(self.values()))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        return leave(self, list(self.values()), error)

    def close(self) -> None:
        """Remove the hooks before the block ends; harmless when there are none."""
        if self._hooks is not None:
            self._hooks.close()

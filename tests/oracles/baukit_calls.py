"""How baukit's Trace and TraceDict hook modules, retold: for our sites where baukit is absent, and to show its traps.

Not its code: a short class with the same arguments, the same order of steps inside the hook, and the same behaviour at
its edges, as measured on commit 9d51abd (2024-02-22).
"""

from __future__ import annotations

import inspect
from collections import OrderedDict

import torch


class StopForward(Exception):
    pass


def module_named(root, wanted):
    for name, module in root.named_modules():
        if name == wanted:
            return module
    raise LookupError(wanted)


class Trace:
    def __init__(
        self,
        root,
        layer=None,
        retain_output=True,
        retain_input=False,
        clone=False,
        detach=False,
        retain_grad=False,
        edit_output=None,
        stop=False,
    ):
        self.stop = stop

        def hook(_module, inputs, output):  # positional arguments only
            if edit_output is not None:
                output = by_name(edit_output, output=output, layer=layer, inputs=inputs)
            if retain_input:
                self.input = copied(inputs[0] if len(inputs) == 1 else inputs, clone, detach, False)
            if retain_output:
                self.output = copied(output, clone, detach, retain_grad)
                if retain_grad:
                    output = copied(self.output, True, False, False)
            if stop:
                raise StopForward
            return output

        module = root if layer is None else module_named(root, layer)
        self.handle = module.register_forward_hook(hook)

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        self.close()
        return bool(self.stop) and issubclass(kind, StopForward)

    def close(self):
        self.handle.remove()


class TraceDict(OrderedDict):
    def __init__(self, root, layers=None, stop=False, **options):
        super().__init__()
        self.stop = stop
        names = list(OrderedDict.fromkeys(layers))
        for name in names:
            own = {key: value.get(name) if isinstance(value, dict) else value for key, value in options.items()}
            self[name] = Trace(root, name, stop=stop and name == names[-1], **own)

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        self.close()
        return bool(self.stop) and issubclass(kind, StopForward)

    def close(self):
        for trace in reversed(self.values()):
            trace.close()


def copied(x, clone, detach, retain_grad):
    if not (clone or detach or retain_grad):
        return x
    if isinstance(x, torch.Tensor):
        if retain_grad:
            if not x.requires_grad:
                x.requires_grad = True
            x.retain_grad()
        elif detach:
            x = x.detach()
        return x.clone() if clone else x
    if isinstance(x, dict):
        return type(x)({key: copied(value, clone, detach, retain_grad) for key, value in x.items()})
    if isinstance(x, list | tuple):
        return type(x)([copied(value, clone, detach, retain_grad) for value in x])
    raise AssertionError(f"no copy of {type(x).__name__}")


def by_name(function, **offered):
    """Arguments by the names the function has; its other parameters take what is left, in order."""
    names = inspect.signature(function).parameters
    left = [value for key, value in offered.items() if key not in names]
    return function(**{name: offered[name] if name in offered else left.pop(0) for name in names})

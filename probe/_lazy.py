"""Lazy package namespaces (PEP 562).

``import probe`` costs milliseconds; torch and diffusers are loaded by the first name that needs them.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any


def attach(
    package: str, exports: Mapping[str, str], submodules: Iterable[str] = ()
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """``__getattr__``, ``__dir__`` and ``__all__`` for a package.

    ``exports`` maps a public name to the submodule that defines it; ``submodules`` may be reached as attributes.
    A name is imported on first use and then kept in the package, so later look-ups cost nothing.
    """
    submodules = frozenset(submodules)
    public = sorted(exports)

    def getattr_(name: str) -> Any:
        if name in exports:
            value = getattr(importlib.import_module(f"{package}.{exports[name]}"), name)
        elif name in submodules:
            value = importlib.import_module(f"{package}.{name}")
        else:
            raise AttributeError(f"module {package!r} has no attribute {name!r}", name=name, obj=sys.modules[package])
        setattr(sys.modules[package], name, value)
        return value

    def dir_() -> list[str]:
        return sorted({*vars(sys.modules[package]), *public, *submodules})

    return getattr_, dir_, public

"""What every test runs under: no network, no display, shapes checked in the modules that state them."""

from __future__ import annotations

import os
import re
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jaxtyping
import pytest

ROOT = Path(__file__).resolve().parents[1]

# Before anything imports them: no hub look-ups, no window system.
os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", MPLBACKEND="Agg")


def modules_with_shapes() -> list[str]:
    """The pure-maths modules: those that import jaxtyping."""
    files = (file for package in ("probe", "erase") for file in sorted((ROOT / package).rglob("*.py")))
    stated = (file for file in files if re.search(r"^from jaxtyping import", file.read_text(), re.MULTILINE))
    return [".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for file in stated]


# Outside the tests annotations cost nothing; here beartype checks every call against them.
jaxtyping.install_import_hook(modules_with_shapes(), "beartype.beartype")


@pytest.fixture
def claims(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The scripts in `benchmarks/claims` import what they share by its plain name, as when they are run."""
    folder = ROOT / "benchmarks" / "claims"
    monkeypatch.syspath_prepend(str(folder))
    known = set(sys.modules)
    yield
    for name in set(sys.modules) - known:
        file = getattr(sys.modules[name], "__file__", None)
        if file and Path(file).parent == folder:
            del sys.modules[name]


class NetworkBlocked(RuntimeError):
    """A test tried to leave this machine."""


@pytest.fixture(autouse=True, scope="session")
def _no_network() -> Iterator[None]:
    """Connections beyond the loopback interface raise; notebooks' kernels and browsers under test need the loopback."""
    connect, look_up = socket.socket.connect, socket.getaddrinfo

    def refuse_unless_local(host: Any) -> None:
        name = host.decode() if isinstance(host, bytes) else host
        if name not in ("127.0.0.1", "::1", "localhost", "", None):
            raise NetworkBlocked(f"tests have no network; this one asked for {name!r}")

    def guarded_connect(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6):
            refuse_unless_local(address[0])
        return connect(self, address)

    def guarded_look_up(host: Any, *args: Any, **kwargs: Any) -> Any:
        refuse_unless_local(host)
        return look_up(host, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket.socket, "connect", guarded_connect)
        patch.setattr(socket, "getaddrinfo", guarded_look_up)
        yield

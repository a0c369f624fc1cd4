"""Build hook: a standard wheel carries the embedded model, an editable install reads it from the checkout.

A static ``force-include`` would copy the model into editable installs too, where the copy goes stale as soon as
``data/emoji`` changes. ``probe/_paths.py`` is the only reader that knows both places.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class EmbeddedModelHook(BuildHookInterface):
    """Adds ``data/emoji`` as ``probe/_data/emoji`` to standard wheels."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """``version`` is the kind of wheel: "standard" or "editable"."""
        emoji = Path(self.root, "data", "emoji")
        if version == "standard" and emoji.is_dir():
            build_data["force_include"][str(emoji)] = "probe/_data/emoji"

"""Looking at neurons and edits: states that need no browser, pages that need no kernel, and thin views over them."""

from __future__ import annotations

from probe.widgets._explorer import Examples, Explorer, Message, State, explore

__all__ = ["Examples", "Explorer", "Message", "State", "explore"]

"""Looking at neurons and edits: states that need no browser, pages that need no kernel, and thin views over them."""

from __future__ import annotations

from probe.widgets._acting import Message
from probe.widgets._comparison import Compared, Comparison, Row, compare
from probe.widgets._examples import Examples
from probe.widgets._explorer import Explorer, State, explore

__all__ = ["Compared", "Comparison", "Examples", "Explorer", "Message", "Row", "State", "compare", "explore"]

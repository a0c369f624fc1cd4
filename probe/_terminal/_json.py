"""JSON that every reader accepts: no NaN, no numpy, no paths."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any


def plain(value: Any) -> Any:
    """``value`` as JSON types. NaN and infinities become null: JSON has none."""
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, PurePath):
        return str(value)
    if hasattr(value, "to_dict"):  # a table: one object a row
        return plain(value.to_dict(orient="records"))
    if hasattr(value, "tolist"):  # numpy scalars and arrays
        return plain(value.tolist())
    if isinstance(value, Sequence | set | frozenset):
        return [plain(v) for v in value]
    return str(value)


def to_json(value: Any) -> str:
    """One document, indented, keys in the order given."""
    return json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False)

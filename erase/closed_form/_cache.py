"""What must survive, as one matrix: the Gram matrix of the rows of preserved texts, computed once for all edits."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from erase.closed_form._texts import kept_rows
from erase.gram import outer
from erase.selectors import named
from probe._files import occupied, written_whole
from probe._options import validated
from probe.errors import BadInput, StoreDamaged
from probe.provenance import fingerprint, stamp

VERSION = 2
_TEXT = ("text_encoder", "text_encoder_2")


@dataclass(frozen=True, eq=False)
class PreserveCache:
    """Sums over the rows r of preserved texts: what closed-form erasers need of them, whatever is erased.

    - ``gram`` (d d): sum r r^T over ``rows`` rows, float64; ``pooled`` (p p) the same over SDXL's pooled embeddings
    - ``texts``: what is preserved, in its order; ``tokens``: the selectors that chose the positions
    - ``id``: hash of texts, selectors and text encoders; a cache of other encoders is refused

    One matrix serves every projection of every layer, because they all read the same rows: 2.4 MB at SD 1.x size.
    """

    gram: Tensor
    rows: int
    pooled: Tensor | None
    texts: tuple[str, ...]
    tokens: tuple[str, ...]
    provenance: dict[str, Any]

    @property
    def id(self) -> str:
        """Hash of what decides it."""
        return str(self.provenance["id"])

    def check(self, pipe: Any) -> None:
        """Raise `WrongModel` unless the pipeline's text encoders are those the cache was made with."""
        fingerprint(pipe).check(self.provenance["identity"]["model"], "the preserve cache")

    def save(self, path: str | Path, *, force: bool = False) -> Path:
        """Write one safetensors file: the upper triangles in float64, which are the matrices without loss."""
        from safetensors.torch import save_file

        path = Path(path)
        if occupied(path) and not force:
            raise BadInput("the output path exists", given=str(path), fix="choose another path, or force=True")
        tensors = {"gram": _triangle(self.gram)}
        if self.pooled is not None:
            tensors["pooled"] = _triangle(self.pooled)
        about = {"rows": self.rows, "texts": self.texts, "tokens": self.tokens, "provenance": self.provenance}
        header = {"format": "pt", "preserve_cache": str(VERSION), "about": json.dumps(about)}
        with written_whole(path, replace=force) as partial:
            save_file(tensors, partial, metadata=header)
        return path

    @classmethod
    def load(cls, path: str | Path) -> PreserveCache:
        """Read what `save` wrote. Raises `BadInput` for another file, `StoreDamaged` for a torn one."""
        from safetensors import SafetensorError, safe_open

        if not Path(path).is_file():
            raise BadInput("there is no preserve cache", given=str(path))
        try:
            with safe_open(str(path), "pt") as file:
                header = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
        except (SafetensorError, OSError) as error:
            raise StoreDamaged("the preserve cache cannot be read", given=f"{path}: {error}") from None
        if (version := header.get("preserve_cache")) != str(VERSION):
            what = "no preserve cache" if version is None else f"a preserve cache of version {version}"
            raise BadInput(f"this file is {what}", given=str(path), fix="erase.preserve_cache(...).save(path)")
        about = json.loads(header["about"])
        pooled = _square(tensors["pooled"]) if "pooled" in tensors else None
        return cls(_square(tensors["gram"]), about["rows"], pooled, tuple(about["texts"]), tuple(about["tokens"]),
                   about["provenance"])  # fmt: skip


@validated
def preserve_cache(pipe: Any, prompts: Sequence[str], *, tokens: str | tuple[str, ...] = "all_tokens") -> PreserveCache:
    """The Gram matrix of the text rows of prompts, for ``preserve=`` of the closed-form erasers.

    Args:
        pipe: the pipeline whose text encoders read the prompts.
        prompts: texts; each counts once.
        tokens: selectors of the rows; all positions, as in MACE's cache, by default.

    Raises `BadInput` for no prompts, `UnknownName` for a selector.
    """
    texts, chosen = list(dict.fromkeys([prompts] if isinstance(prompts, str) else prompts)), named(tokens)
    if not texts:
        raise BadInput("there are no prompts to preserve")
    gram: Tensor | None = None
    pooled: Tensor | None = None
    rows = 0
    for part, whole in kept_rows(pipe, texts, chosen):
        gram = outer(part, part) if gram is None else gram + outer(part, part)
        rows += len(part)
        if whole is not None:
            pooled = outer(whole, whole) if pooled is None else pooled + outer(whole, whole)
    assert gram is not None
    return PreserveCache(gram, rows, pooled, tuple(texts), chosen, stamp(_identity(pipe, texts, chosen)))


def with_texts(pipe: Any, cache: PreserveCache, prompts: Sequence[str]) -> PreserveCache:
    """The cache of its own texts and of those ``prompts`` that are not among them."""
    missing = [prompt for prompt in prompts if prompt not in cache.texts]
    if not missing:
        return cache
    more = preserve_cache(pipe, missing, tokens=cache.tokens)
    pooled = None if cache.pooled is None or more.pooled is None else cache.pooled + more.pooled
    texts = (*cache.texts, *more.texts)
    provenance = stamp(_identity(pipe, texts, cache.tokens))
    return PreserveCache(cache.gram + more.gram, cache.rows + more.rows, pooled, texts, cache.tokens, provenance)


def _identity(pipe: Any, texts: Sequence[str], tokens: Sequence[str]) -> dict[str, Any]:
    known = [name for name in _TEXT if getattr(pipe, name, None) is not None]
    digest = hashlib.sha256("\n".join(sorted(texts)).encode()).hexdigest()
    return {"kind": "preserve_cache", "texts": {"n": len(texts), "sha256": digest}, "tokens": list(tokens),
            "model": fingerprint(pipe).to_json(known)}  # fmt: skip


def _triangle(matrix: Tensor) -> Tensor:
    rows, columns = torch.triu_indices(*matrix.shape)
    return matrix[rows, columns].contiguous()


def _square(triangle: Tensor) -> Tensor:
    size = int((8 * len(triangle) + 1) ** 0.5) // 2
    matrix = torch.zeros(size, size, dtype=triangle.dtype)
    rows, columns = torch.triu_indices(size, size)
    matrix[rows, columns] = triangle
    matrix[columns, rows] = triangle
    return matrix

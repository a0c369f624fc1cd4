"""Finished stages on disk, so that a training that was cut off goes on with the next one, to the bit.

``training.json`` (what decides the numbers) and a folder a stage: ``<concept>-<stage>/`` with the gate, the adversaries
of that stage and its losses. A stage appears whole or not at all.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from erase.learn._folder import begin
from probe._files import written_whole
from probe.errors import StoreDamaged

logger = logging.getLogger(__name__)

Stage = tuple[dict[str, Tensor], Tensor, dict[str, float]]


class Stages:
    """The folder of one training; ``path`` None keeps nothing.

    Raises `HeaderMismatch` naming the key in which the training there differs, unless ``force`` replaces it.
    """

    def __init__(self, path: str | Path | None, identity: Mapping[str, Any], *, force: bool = False) -> None:
        self.path = None if path is None else Path(path)
        if self.path is not None:
            begin(self.path, identity, force=force)

    def load(self, concept: int, stage: int) -> Stage | None:
        """Gate, adversaries and losses after a stage; None if it was not finished."""
        from safetensors import SafetensorError
        from safetensors.torch import load

        if self.path is None or not (folder := self._folder(concept, stage)).is_dir():
            return None
        try:
            tensors = load((folder / "stage.safetensors").read_bytes())
            terms = json.loads((folder / "losses.json").read_text(encoding="utf-8"))
        except (OSError, ValueError, SafetensorError) as error:
            fix = f"delete {folder}"
            raise StoreDamaged("a stage of the training cannot be read", given=str(error), fix=fix) from error
        logger.info("stage %d of concept %d is read from %s", stage, concept, folder)
        adversaries = tensors.pop("adversaries")
        return tensors, adversaries, terms

    def save(
        self,
        concept: int,
        stage: int,
        values: Mapping[str, Tensor],
        adversaries: Tensor,
        terms: Mapping[str, float],
    ) -> None:
        """Keep what a stage made."""
        from safetensors.torch import save

        if self.path is None:
            return
        tensors = {name: value.detach().cpu().contiguous() for name, value in values.items()}
        tensors["adversaries"] = adversaries.detach().to("cpu", torch.float32).contiguous()
        with written_whole(self._folder(concept, stage), replace=True) as partial:
            partial.mkdir()
            (partial / "stage.safetensors").write_bytes(save(tensors))
            (partial / "losses.json").write_text(json.dumps(dict(terms)), encoding="utf-8")

    def _folder(self, concept: int, stage: int) -> Path:
        assert self.path is not None
        return self.path / f"{concept:03d}-{stage:02d}"

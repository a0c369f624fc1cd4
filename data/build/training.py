"""A small resumable training loop: AdamW, warm-up and cosine, EMA, loss curve in CSV, state in safetensors.

Being interrupted is the normal case: everything random in iteration i is drawn from (seed, i), so a resumed run follows
the uninterrupted one. The full state lies in ``runs/`` (ignored); without one, training goes on from the EMA weights
in ``data/build/resume``, with fresh moments and a new warm-up.
"""

from __future__ import annotations

import csv
import json
import logging
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

log = logging.getLogger(__name__)
RESUME = Path(__file__).parent / "resume"  # committed EMA weights of a model that still trains


def resume_file(name: str) -> Path:
    """Where the EMA weights of a network lie while it still trains."""
    return RESUME / f"{name}_ema_fp16.safetensors"


def ema_weights(state_file: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """The EMA weights of a full state, and its iteration and seconds."""
    with safe_open(state_file, "pt") as f:
        state = json.loads(f.metadata()["state"])
        return {k.removeprefix("ema/"): f.get_tensor(k) for k in f.keys() if k.startswith("ema/")}, state  # noqa: SIM118


def keep_ema(state_file: Path, target: Path, dtype: torch.dtype = torch.float16) -> None:
    """The EMA weights of a full state alone, small enough to commit."""
    target.parent.mkdir(parents=True, exist_ok=True)
    ema, state = ema_weights(state_file)
    metadata = {"iteration": str(state["iteration"]), "seconds": f"{state['seconds']:.0f}"}
    save_file({k: v.to(dtype) for k, v in ema.items()}, target, metadata=metadata)


@dataclass
class Trainer:
    """Train ``model`` to minimise ``loss(model, iteration) -> scalar``; state lives in ``folder``."""

    name: str
    model: torch.nn.Module
    loss: Callable[[torch.nn.Module, int], torch.Tensor]
    folder: Path
    iterations: int
    lr: float
    warmup: int = 500
    ema_decay: float = 0.999
    weight_decay: float = 0.01
    save_every: int = 500
    final_lr: float = 0.05  # share of lr at the end of the cosine
    max_seconds: float = math.inf
    iteration: int = 0
    started_at: int = 0  # where the present moments began: warm-up counts from here
    seconds: float = 0.0
    ema: dict[str, torch.Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.params = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        self.optimiser = torch.optim.AdamW(
            self.params.values(), lr=self.lr, betas=(0.9, 0.99), weight_decay=self.weight_decay, fused=True
        )
        self.ema = {n: p.detach().clone() for n, p in self.params.items()}
        if self.state_file.exists():
            self._load()
        elif resume_file(self.name).exists():
            self.resume_from(resume_file(self.name))

    @property
    def state_file(self) -> Path:
        return self.folder / f"{self.name}.state.safetensors"

    def resume_from(self, weights: Path) -> None:
        """Start from EMA weights saved by an earlier session; the file's metadata says how far it had come."""
        tensors = load_file(weights)
        with torch.no_grad():
            for n, p in self.params.items():
                p.copy_(tensors[n].float())
                self.ema[n].copy_(p)
        with safe_open(weights, "pt") as f:
            meta = f.metadata()
        self.iteration = self.started_at = int(meta["iteration"])
        self.seconds = float(meta["seconds"])

    def lr_at(self, i: int) -> float:
        warm = min(1.0, (i - self.started_at + 1) / self.warmup)
        cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, i / self.iterations)))
        return self.lr * warm * (self.final_lr + (1 - self.final_lr) * cosine)

    def run(self, until: int | None = None, on_save: Callable[[Trainer], None] | None = None) -> None:
        """Train up to ``until`` (default: the end) or until ``max_seconds`` of training have been spent."""
        self.model.train()
        until, losses, since = min(until or self.iterations, self.iterations), [], time.monotonic()
        while self.iteration < until and self.seconds < self.max_seconds:
            i = self.iteration
            torch.manual_seed(i * 7919 + 17)  # everything random in this iteration
            for group in self.optimiser.param_groups:
                group["lr"] = self.lr_at(i)
            loss = self.loss(self.model, i)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.params.values(), 1.0)
            self.optimiser.step()
            self.optimiser.zero_grad(set_to_none=True)
            decay = min(self.ema_decay, (1 + i) / (10 + i))
            torch._foreach_lerp_(list(self.ema.values()), [p.detach() for p in self.params.values()], 1 - decay)
            losses.append(loss.item())
            self.iteration += 1
            if self.iteration % 100 == 0 or self.iteration == until:
                now = time.monotonic()
                self.seconds += now - since
                self._log(float(np.mean(losses)), (now - since) / len(losses))
                losses, since = [], now
            if self.iteration % self.save_every == 0 or self.iteration == until:
                self._save()
                if on_save:
                    on_save(self)
                    self.model.train()
                since = time.monotonic()

    def ema_into(self, model: torch.nn.Module) -> torch.nn.Module:
        """Copy the EMA weights into ``model`` (same architecture) and put it into eval mode."""
        target = dict(model.named_parameters())
        with torch.no_grad():
            for n, p in self.ema.items():
                target[n].copy_(p)
        return model.eval()

    def _log(self, loss: float, per_iteration: float) -> None:
        path = self.folder / f"{self.name}_loss.csv"
        new = not path.exists()
        with path.open("a", newline="") as f:
            w = csv.writer(f)
            if new:
                w.writerow(["iteration", "loss", "lr", "seconds"])
            w.writerow([self.iteration, f"{loss:.5f}", f"{self.lr_at(self.iteration):.2e}", f"{self.seconds:.0f}"])
        log.info("%s %d loss %.4f  %.3f s/it", self.name, self.iteration, loss, per_iteration)

    def _save(self) -> None:
        moments = {n: self.optimiser.state[p] for n, p in self.params.items() if p in self.optimiser.state}
        tensors = {f"model/{n}": p.detach() for n, p in self.params.items()}
        tensors |= {f"ema/{n}": p for n, p in self.ema.items()}
        tensors |= {f"{k}/{n}": s[k] for n, s in moments.items() for k in ("exp_avg", "exp_avg_sq", "step")}
        state = {"iteration": self.iteration, "started_at": self.started_at, "seconds": self.seconds}
        meta = {"state": json.dumps(state)}
        temporary = self.state_file.with_suffix(".tmp")
        save_file({k: v.contiguous() for k, v in tensors.items()}, temporary, metadata=meta)
        os.replace(temporary, self.state_file)

    def _load(self) -> None:
        tensors = load_file(self.state_file)
        with torch.no_grad():
            for n, p in self.params.items():
                p.copy_(tensors[f"model/{n}"])
                self.ema[n].copy_(tensors[f"ema/{n}"])
                self.optimiser.state[p] = {k: tensors[f"{k}/{n}"] for k in ("step", "exp_avg", "exp_avg_sq")}
        with safe_open(self.state_file, "pt") as f:
            for k, v in json.loads(f.metadata()["state"]).items():
                setattr(self, k, v)

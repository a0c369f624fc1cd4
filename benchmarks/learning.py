"""What an iteration of an eraser that learns costs: the table "Learning" in `benchmarks/README.md`, measured.

    python benchmarks/learning.py [row ...]      # all rows by default; --list names them

Both sides of a ratio run in one process, in turn, the first of each not counted; the order changes from pair to pair.
Only the training loop is timed: neither loading nor drawing trajectories nor making an edit. Seconds are of the clock,
so nothing else should run. `--small` takes a tiny pipeline, to try the script.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from rows import HERE, Rows, in_turn, ratio, run_rows, sd15

import probe
from erase._concepts import listed
from erase.learn import Gates, Sampling, Schedule, Student, Weights, parts_of, train
from erase.learn._esd_loss import EsdObjective
from erase.learn._points import ddim, denoising_by
from probe.testing import tiny_pipeline

TABLE = HERE / "results" / "learning.csv"
SMALL = "--small" in sys.argv
ITERATIONS, PAIRS = (2, 2) if SMALL else (4, 5)
STEPS = 50


def pipeline() -> Any:
    """SD 1.5's UNet at full size in float32 with random weights, at latents of 16 x 16."""
    if SMALL:
        return tiny_pipeline()
    pipe = sd15()
    pipe.unet.register_to_config(sample_size=16)
    return pipe


def sampling(x_t: str, trajectory: Any = None) -> Sampling:
    """ESD's own numbers, batch 1."""
    return Sampling(x_t, trajectory, 4, STEPS, 3.0, "bin", 1, 0, None)


def drawn(pipe: Any, folder: Path) -> Any:
    """Trajectories drawn once; a training of 300 iterations would have 16 of them."""
    with denoising_by(pipe, ddim(pipe)):
        return probe.trajectories(pipe, ["church"], out=folder / "x_t", seeds=0, steps=STEPS, guidance=3.0,
                                  stored_as="float32", progress=False)  # fmt: skip


def loop(pipe: Any, student: Student, points: Sampling, *, gates: Gates | None = None) -> Any:
    """A training of a few iterations, ready to run again and again from where it is."""
    objective = EsdObjective.of(listed("church"), None, anchor=None, eta=1.0, erase_from=None)
    plain = objective.loss(pipe, student, points)

    def loss(iteration: int) -> Any:
        return plain(iteration) if gates is None else {**plain(iteration), "sparsity": gates.closed()}

    how = Schedule(ITERATIONS, 1e-5, in_backward=gates is not None)
    return lambda _folder: train(pipe, student, loss, how, progress=False)


def esd_cached_over_fresh(folder: Path) -> list[dict[str, Any]]:
    """ESD with a fresh partial denoising for every iteration over ESD at cached x_t: SD 1.5's UNet, 16 x 16 latents."""
    pipe = pipeline()
    parts = parts_of(pipe, "x")
    cached = loop(pipe, Weights(pipe, parts), sampling("cached", drawn(pipe, folder)))
    fresh = loop(pipe, Weights(pipe, parts), sampling("teacher"))
    taken = in_turn(fresh, cached, PAIRS, folder)
    return [ratio(taken) | {"bar": "at least 5"}]


def drawing_trajectories(folder: Path) -> list[dict[str, Any]]:
    """What cached x_t cost beforehand: one trajectory of 50 guided steps over an ESD iteration at cached x_t."""
    pipe = pipeline()
    cached = loop(pipe, Weights(pipe, parts_of(pipe, "x")), sampling("cached", drawn(pipe, folder)))
    taken = in_turn(lambda out: drawn(pipe, out), cached, PAIRS, folder)
    taken[:, 1] /= ITERATIONS
    note = "iterations that one trajectory costs; 16 are drawn for a training by default"
    found = ratio(taken)
    return [found | {"bar": "", "note": f"{note}; {found['note']}"}]


def p_esd_over_esd(folder: Path) -> list[dict[str, Any]]:
    """P-ESD (a default gate for every cross-attention weight) over ESD on the same weights, at cached x_t."""
    pipe = pipeline()
    stored = drawn(pipe, folder)
    parts = parts_of(pipe, "x", weights_only=True)
    gates = Gates(pipe, parts, kind="straight-through", by_unit=False, init=5.0, seed=0)
    pruning = loop(pipe, gates, sampling("cached", stored), gates=gates)
    plain = loop(pipe, Weights(pipe, parts_of(pipe, "x")), sampling("cached", stored))
    return [ratio(in_turn(pruning, plain, PAIRS, folder)) | {"bar": "at most 1.3"}]


ROWS: Rows = {f.__name__: f for f in (esd_cached_over_fresh, drawing_trajectories, p_esd_over_esd)}

if __name__ == "__main__":
    if SMALL:
        sys.argv.remove("--small")
        for name in sys.argv[1:] or ROWS:
            with tempfile.TemporaryDirectory() as folder:
                print(name, ROWS[name](Path(folder)), flush=True)
    else:
        run_rows(ROWS, __doc__ or "", TABLE, "learning")

"""How long scores take on runs as wide as SD 1.5's: python benchmarks/scores_width.py [samples a run] [steps].

Two runs of random numbers, 49,920 neurons, the conditional branch, chunked on disk as a recording would be. Printed are
seconds of this process (one thread: OMP_NUM_THREADS=1) and of the clock, reading and decoding included.
"""

from __future__ import annotations

import logging
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import xarray as xr

from probe._chunks import Extent, sample_chunk, unit_size
from probe._samples import samples
from probe._sites import Site
from probe.scores import score, selectivity, stability
from probe.testing import dataset_of, made_up_identity

WIDTHS = [1280] * 2 + [2560] * 2 + [5120] * 6 + [2560] * 3 + [1280] * 3  # down, mid, up
MODEL = {"architecture": {"unet": "random"}, "weights": {"unet": "random"}, "dtype": "float32"}


def make(path: Path, count: int, steps: int, seed: int) -> xr.Dataset:
    """A run of random numbers, with a weak effect in one neuron of a hundred where the seed is 0."""
    sites = [Site(f"unet.b{i}.ffn", "ffn", "unet", f"b{i}", "input", w, i) for i, w in enumerate(WIDTHS)]
    concepts = [f"concept {i % 20}" for i in range(count)]
    table = samples([f"prompt {i}" for i in range(count)])
    table["concept"] = concepts
    extent = Extent(steps, tuple(WIDTHS))
    chunk = sample_chunk(extent.row_bytes, unit_size([extent], 8))
    identity = made_up_identity(sites, MODEL, ("cond",))
    rng = np.random.default_rng(seed)
    for start in range(0, count, chunk):
        rows = table.iloc[start : start + chunk]
        arrays = {}
        for name in ("absmean", "unit_norm"):
            arrays[name] = rng.random((len(rows), 1, steps, sum(WIDTHS)), np.float32)
            arrays[name][..., ::100] += np.float32(0.2 * (seed == 0))
        part = dataset_of(arrays, rows, sites, identity, timesteps=np.linspace(981, 1, steps))
        if start == 0:
            sizes = {"chunks": (chunk, 1, steps, extent.neuron_chunk)}
            part.to_zarr(path, mode="w", encoding=dict.fromkeys(arrays, sizes), zarr_format=3, consolidated=False)
        else:
            part.to_zarr(path, append_dim="sample", zarr_format=3, consolidated=False)
    stored = xr.open_zarr(path, consolidated=False, chunks=None)
    whole = dataset_of({}, table, sites, identity, timesteps=np.linspace(981, 1, steps))
    return xr.Dataset(stored.data_vars, coords=whole.coords, attrs=whole.attrs)


def main() -> None:
    """Time everything once."""
    logging.basicConfig(level=logging.INFO)
    count, steps = (int(word) for word in [*sys.argv[1:], "100", "10"][:2])
    with tempfile.TemporaryDirectory() as folder:
        runs = [make(Path(folder, name), count, steps, seed) for seed, name in enumerate(("target", "reference"))]
        size = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file()) / 1e9
        print(f"2 runs of {count} samples x {steps} steps x {sum(WIDTHS)} neurons, two reducers, {size:.2f} GB")
        maps = {}
        for method in ("wanda", "contrast", "auroc", "linear"):
            maps[method] = timed(method, lambda method=method: score(*runs, method=method))
        timed("selectivity", lambda: selectivity(runs[0]))
        timed("stability of contrast, 1 halving", lambda: stability(maps["contrast"], *runs, halvings=1))


def timed(name: str, call):
    """The call's result; its seconds are printed."""
    clock, own = time.perf_counter(), time.process_time()
    found = call()
    print(
        f"{name:<34} {time.process_time() - own:6.1f} s of this process, {time.perf_counter() - clock:6.1f} s",
        flush=True,
    )
    return found


if __name__ == "__main__":
    main()

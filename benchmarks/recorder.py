"""What recording costs: every row of the recorder's table in `benchmarks/README.md`, measured and written there.

    python benchmarks/recorder.py [row ...]      # all rows by default; --list names them

Both sides of a ratio run in one process, in turn, the first of each not counted; the order changes from pair to pair.
Seconds are of the clock, so nothing else should run. Rows are kept in `benchmarks/results/recorder.csv`; a row that is
measured again replaces the old one. Needs the embedded model; `nnsight` for its own row (pip install nnsight).
"""

from __future__ import annotations

import functools
import gc
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import torch
from rows import HERE, PROMPTS, STEPS, Rows, bare, emoji, in_turn, ratio, registering, run_rows, sd15

import probe
from probe._chunks import Extent, sample_chunk, unit_size
from probe._groups import Group
from probe._store import RunStore

TABLE = HERE / "results" / "recorder.csv"

ROWS: Rows = {}
row = registering(ROWS)


#: Of ten samples each. To begin a run costs 0.3 s, a twentieth of one batch on the embedded model; runs have several.
BATCHES = 2


def batches() -> list[list[str]]:
    """The prompts of a row, batch by batch."""
    return [PROMPTS] * BATCHES


def recorded(pipe: Any, prompts: list[str], steps: int, out: Path, **options: Any) -> probe.Run:
    """One reducer of every FF site, no pictures."""
    settings = {"sites": "ffn", "reduce": "absmean", "images": False, "progress": False, "batch_size": len(prompts)}
    return probe.record(pipe, prompts, out=out / "run", steps=steps, **settings | options)


def recorded_batches(pipe: Any, out: Path) -> probe.Run:
    """All batches as one run."""
    return recorded(pipe, [prompt for prompts in batches() for prompt in prompts], STEPS, out, batch_size=len(PROMPTS))


@row
def sd15_overhead(folder: Path) -> list[dict[str, Any]]:
    """Generation while recording over bare generation, SD-1.5-size UNet in float32 at 32 x 32 latents, guided."""
    pipe, size, steps = sd15(), {"height": 64, "width": 64}, 5
    taken = in_turn(lambda out: recorded(pipe, PROMPTS[:1], steps, out, **size),
                    lambda out: bare(pipe, PROMPTS[:1], steps, size), 15, folder)  # fmt: skip
    return [ratio(taken) | {"bar": "at most 1.03"}]


@row
def embedded_overhead(folder: Path) -> list[dict[str, Any]]:
    """Generation while recording over bare generation, embedded model, 2 batches of 10 samples, 30 steps."""
    pipe = emoji()

    def plain(_out: Path) -> None:
        for prompts in batches():
            bare(pipe, prompts, STEPS, {})

    taken = in_turn(lambda out: recorded_batches(pipe, out), plain, 15, folder)
    return [ratio(taken) | {"bar": "at most 1.10"}]


@row
def memory(folder: Path) -> list[dict[str, Any]]:
    """Growth of this process per further 100 samples, embedded model, 2 steps, from the 200th to the 1,200th sample."""
    pipe, process, seen = emoji(), psutil.Process(), {}

    def note(done: int, total: int) -> None:
        gc.collect()
        seen[done] = process.memory_info().rss / 1e6

    recorded(pipe, PROMPTS * 120, 2, folder, batch_size=20, progress=note)
    late = {done: size for done, size in seen.items() if done >= 200}
    slope = np.polyfit(list(late), list(late.values()), 1)[0] * 100
    return [
        {"value": slope, "unit": "MB", "n": len(late), "bar": "at most 1", "note": f"at {max(late.values()):.0f} MB"}
    ]


@row
def hooks_and_torch_save(folder: Path) -> list[dict[str, Any]]:
    """Recording over hooks that keep the same statistic in lists and `torch.save` a file per sample, embedded model."""
    pipe = emoji()
    modules = dict(pipe.unet.named_modules())
    sites = [modules[s.module] for s in probe.sites(pipe) if s.kind == "ffn" and s.component == "unet"]

    def by_hand(out: Path) -> None:
        kept: list[list[torch.Tensor]] = [[] for _ in sites]
        hooks = [
            module.register_forward_pre_hook(lambda _m, args, keep=keep: keep.append(args[0].abs().mean(1).cpu()))
            for module, keep in zip(sites, kept, strict=True)
        ]
        for n, prompts in enumerate(batches()):
            bare(pipe, prompts, STEPS, {})
            stacked = [torch.stack(calls).unflatten(1, (2, len(prompts))) for calls in kept]
            for i in range(len(prompts)):
                torch.save([values[:, :, i] for values in stacked], out / f"{n}-{i}.pt")
            for calls in kept:
                calls.clear()
        for hook in hooks:
            hook.remove()

    taken = in_turn(lambda out: recorded_batches(pipe, out), by_hand, 15, folder)
    return [ratio(taken) | {"bar": "below 1"}]


@row
def nnsight_cache(folder: Path) -> list[dict[str, Any]]:
    """Recording over nnsight's cache of the same inputs, `torch.save`d, embedded model from the same folder."""
    from nnsight.modeling.diffusion import DiffusionModel

    pipe = emoji()
    model = DiffusionModel(str(HERE.parent / "data" / "emoji" / "pipeline"), dispatch=True, dtype=torch.float32)
    model.pipeline.set_progress_bar_config(disable=True)
    wanted = [f"model.unet.{s.module}" for s in probe.sites(pipe) if s.kind == "ffn" and s.component == "unet"]

    def cached(out: Path) -> None:
        for n, prompts in enumerate(batches()):
            generators = [torch.Generator().manual_seed(0) for _ in prompts]
            with model.generate(prompts, num_inference_steps=STEPS, guidance_scale=7.5, generator=generators,
                                output_type="latent") as tracer:  # fmt: skip
                cache = tracer.cache(modules=wanted, include_inputs=True, include_output=False)
            found = {path: [entry.input.abs().mean(1) for entry in cache._cache.entries[path]] for path in wanted}
            assert all(len(calls) == STEPS for calls in found.values())
            torch.save(found, out / f"{n}.pt")

    taken = in_turn(lambda out: recorded_batches(pipe, out), cached, 15, folder)
    return [ratio(taken) | {"bar": "below 1"}]


@functools.cache
def embedded_sites() -> list[probe.Site]:
    """The embedded model's FF sites, found once: loading a model is no part of writing."""
    return [s for s in probe.sites(emoji()) if s.kind == "ffn" and s.component == "unet"]


def empty_store(path: Path, samples: int, steps: int, names: tuple[str, ...], batch: int) -> tuple[RunStore, Group]:
    """A run's store at the embedded model's width, without a model."""
    sites = embedded_sites()
    extent = Extent(steps, tuple(s.width for s in sites))
    unit = unit_size([extent], batch)
    owner = np.repeat(np.arange(len(sites), dtype=np.int16), extent.widths)
    coords = {"site": ("neuron", owner), "branch": ("branch", np.array(["uncond", "cond"], object))}
    chunk = (sample_chunk(extent.row_bytes, unit), 1, steps, extent.neuron_chunk)
    group = Group("unet", names, "float32", ("branch", "step", "neuron"), (2, steps, extent.neurons), chunk, coords)
    table = pd.DataFrame({"order": range(len(sites)), "name": [s.name for s in sites], "kind": "ffn",
                          "component": "unet", "module": [s.module for s in sites], "io": "input",
                          "width": extent.widths, "group": "unet", "rows": 0,
                          "offset": np.cumsum([0, *extent.widths[:-1]])})  # fmt: skip
    prompts = probe.samples([f"prompt {i}" for i in range(samples)])
    store = RunStore.create(
        path,
        identity={"samples": {"n": samples}, "reducers": list(names)},
        info={},
        id="bench",
        unit=unit,
        samples=prompts,
        sites=table,
        groups=[group],
    )
    return store, group


@row
def writing(folder: Path) -> list[dict[str, Any]]:
    """Bytes a second into a store, with its defaults, over a flushed numpy memmap's: 160 samples, recorded numbers."""
    names = ("unit_norm", "absmean")
    ds = recorded(emoji(), PROMPTS * 2, 20, folder, reduce=names).open()
    embedded_sites()
    real = {name: np.tile(ds[name].values, (8, 1, 1, 1)) for name in names}  # 236 MB; a chunk has no sample twice
    count, _, steps, _ = real["absmean"].shape

    def into_store(out: Path, durable: bool = False) -> None:
        store, _ = empty_store(out / "run", count, steps, names, 20)
        with store.locked():
            for unit in range(store.n_units):
                rows = store.rows(unit)
                store.write(unit, {"unet": {name: values[rows] for name, values in real.items()}}, durable=durable)

    def into_memmap(out: Path, flush: bool = True) -> None:
        for name, values in real.items():
            file = np.memmap(out / name, np.float32, "w+", shape=values.shape)
            file[:] = values
            if flush:
                file.flush()

    default = in_turn(into_memmap, into_store, 15, folder / "default")
    durable = in_turn(into_memmap, lambda out: into_store(out, durable=True), 15, folder / "durable")
    memory = in_turn(lambda out: into_memmap(out, flush=False), into_store, 15, folder / "memory")
    beside = {"with durable=True": ratio(durable), "memmap not flushed": ratio(memory)}
    note = "; ".join([ratio(default)["note"], *(f"{name}: {found['value']:.2f}" for name, found in beside.items())])
    return [ratio(default) | {"bar": "at least 0.5", "note": note}]


@row
def one_neuron(folder: Path) -> list[dict[str, Any]]:
    """Milliseconds for one neuron over 1,000 samples x 50 steps and both branches, opened run, rechunked copy."""
    samples, steps, rng = 1000, 50, np.random.default_rng(0)
    store, group = empty_store(folder / "run", samples, steps, ("absmean",), 20)
    with store.locked():
        for unit in range(store.n_units):
            rows = store.rows(unit)
            numbers = rng.random((rows.stop - rows.start, *group.sizes), np.float32)
            store.write(unit, {"unet": {"absmean": numbers}})
    copy = probe.rechunk(folder / "run", out=folder / "copy", progress=False)
    neurons = rng.choice(group.sizes[-1], 40, replace=False)
    found = []
    for path in (copy.path, folder / "run"):
        ds, taken = probe.open_run(path), []
        for neuron in neurons[: 40 if path == copy.path else 5]:
            start = time.perf_counter()
            values = ds["absmean"].isel(neuron=int(neuron)).values
            taken.append(1000 * (time.perf_counter() - start))
            assert values.shape == (samples, 2, steps)
        low, high = np.quantile(taken, (0.05, 0.95))
        found.append({"value": np.median(taken), "low": low, "high": high, "n": len(taken), "unit": "ms"})
    found[0] |= {"bar": "at most 5", "note": f"{found[1]['value']:.0f} ms before rechunking; 5 % and 95 % quantiles"}
    return found[:1]


if __name__ == "__main__":
    run_rows(ROWS, __doc__ or "", TABLE, "recorder")

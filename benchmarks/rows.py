"""What the benchmarks share: sides timed in turn, the models they take, and tables of rows kept in CSV and README."""

from __future__ import annotations

import argparse
import datetime
import gc
import itertools
import platform
import shutil
import tempfile
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import torch

import probe
from probe.testing import published_config, tiny_pipeline

HERE = Path(__file__).resolve().parent
COLUMNS = ("row", "what", "value", "low", "high", "bar", "unit", "n", "note", "date", "machine", "versions")
PACKAGES = ("torch", "diffusers", "zarr", "xarray", "numpy")
STEPS = 30
PROMPTS = [f"a {thing}" for thing in ("church", "castle", "dog", "bus", "rose", "key", "owl", "chair", "drum", "apple")]

Row = Callable[[Path], list[dict[str, Any]]]
Rows = dict[str, Row]


def registering(rows: Rows) -> Callable[[Row], Row]:
    """A decorator that puts a row into ``rows`` under its function's name."""

    def row(function: Row) -> Row:
        rows[function.__name__] = function
        return function

    return row


def in_turn(one: Callable[[Path], object], other: Callable[[Path], object], pairs: int, folder: Path) -> np.ndarray:
    """Seconds (pair, 2) of both, the order swapped from pair to pair; each call gets a new folder."""
    taken = np.zeros((pairs + 1, 2))
    for pair, side in itertools.product(range(pairs + 1), (0, 1)):
        which = (side + pair) % 2
        path = folder / f"{pair}-{which}"
        path.mkdir(parents=True)
        gc.collect()
        start = time.perf_counter()
        (one, other)[which](path)
        taken[pair, which] = time.perf_counter() - start
        shutil.rmtree(path)
    return taken[1:]


def ratio(taken: np.ndarray, seed: int = 0) -> dict[str, Any]:
    """The median over pairs of the first side's seconds over the second's, with its bootstrap 95 % interval."""
    ratios = taken[:, 0] / taken[:, 1]
    drawn = np.random.default_rng(seed).choice(ratios, (10_000, len(ratios)))
    low, high = np.quantile(np.median(drawn, axis=1), (0.025, 0.975))
    seconds = " and ".join(f"{t:.2f} s" for t in np.median(taken, axis=0))
    return {"value": np.median(ratios), "low": low, "high": high, "unit": "ratio", "n": len(ratios), "note": seconds}


def sd15(tokens: int = 32) -> Any:
    """A pipeline with SD 1.5's UNet at full size and float32, random weights; a tiny text encoder and autoencoder.

    ``tokens``: positions of a text. SD has 77; the tiny tokenizer's 32 are enough where texts are not what is measured.
    """
    from diffusers import UNet2DConditionModel

    from probe.testing._published import text_encoder

    pipe, config = tiny_pipeline(), published_config("sd15")
    torch.manual_seed(0)
    size = {"hidden_size": config["cross_attention_dim"], "max_position_embeddings": tokens}
    text = pipe.text_encoder.config.to_dict() | size
    pipe.tokenizer.model_max_length = tokens
    pipe.text_encoder = text_encoder("text_encoder", **text)
    pipe.unet = UNet2DConditionModel(**config).eval()
    return pipe


def emoji() -> Any:
    """The embedded model, silent."""
    pipe = probe.load("emoji")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def bare(pipe: Any, prompts: list[str], steps: int, size: dict[str, int]) -> None:
    """The pipeline's own call, as a user writes it."""
    generators = [torch.Generator().manual_seed(0) for _ in prompts]
    pipe(prompts, num_inference_steps=steps, guidance_scale=7.5, generator=generators, output_type="latent", **size)


def machine() -> str:
    """The machine in words."""
    name = next((line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
                 if line.startswith("model name")), platform.processor())  # fmt: skip
    return f"{psutil.cpu_count()} cores, {name}, {psutil.virtual_memory().total / 2**30:.0f} GiB"


def keep(name: str, found: list[dict[str, Any]], rows: Rows, file: Path, mark: str) -> None:
    """Replace a row of the CSV and remake its table in the README, between ``<!-- mark -->`` and ``<!-- /mark -->``."""
    begin, end = f"<!-- {mark} -->\n", f"<!-- /{mark} -->\n"
    made_on = {"date": f"{datetime.date.today()}", "machine": machine(),
               "versions": ", ".join(f"{p} {version(p)}" for p in PACKAGES)}  # fmt: skip
    made = [{"row": name, "what": " ".join((rows[name].__doc__ or "").split()), **made_on} | one for one in found]
    file.parent.mkdir(exist_ok=True)
    old = pd.read_csv(file) if file.exists() else pd.DataFrame(columns=COLUMNS)
    table = pd.concat([old[old["row"] != name], pd.DataFrame(made)], ignore_index=True)[list(COLUMNS)]
    table = table.sort_values("row", key=lambda names: names.map(list(rows).index), kind="stable")
    table.round(4).to_csv(file, index=False)
    readme = HERE / "README.md"
    head, _, rest = readme.read_text().partition(begin)
    lines = ["| what | measured | bar | n | seconds or note | date |", "| --- | --- | --- | --- | --- | --- |"]
    for r in table.itertuples():
        unit = "" if r.unit == "ratio" else f" {r.unit}"
        interval = "" if np.isnan(r.low) else f" [{r.low:.3g}, {r.high:.3g}]"
        bar = "" if pd.isna(r.bar) else r.bar
        lines.append(f"| {r.what} | {r.value:.3g}{interval}{unit} | {bar} | {r.n} | {r.note} | {r.date} |")
    text = "\n".join([*lines, "", f"{table['machine'].iloc[-1]}; {table['versions'].iloc[-1]}.", ""])
    readme.write_text(head + begin + text + end + rest.partition(end)[2])


def run_rows(rows: Rows, about: str, file: Path, mark: str) -> None:
    """Measure the rows that the command line names, or all, and keep each as soon as it is measured."""
    parser = argparse.ArgumentParser(description=about.partition("\n\n")[0])
    parser.add_argument("rows", nargs="*", choices=[[], *rows], default=[])
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--threads", type=int, default=psutil.cpu_count(logical=False))
    args = parser.parse_args()
    if args.list:
        return print(*(f"{name}: {' '.join((f.__doc__ or '').split())}" for name, f in rows.items()), sep="\n")
    torch.set_num_threads(args.threads)
    for name in args.rows or rows:
        with tempfile.TemporaryDirectory() as folder:
            found = rows[name](Path(folder))
        keep(name, found, rows, file, mark)
        print(name, *(f"{one['value']:.4f}" for one in found), flush=True)
    return None

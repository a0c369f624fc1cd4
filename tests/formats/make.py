"""Makes this folder's files for the newest layouts; run once when a layout version rises: python -m tests.formats.make

Files of older versions stay as they are: readers must go on reading them.
"""

from __future__ import annotations

import json
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

import erase
from probe import formats
from probe._record import record
from probe._samples import samples
from probe._trajectories import trajectories
from probe.scores import score, selectivity
from probe.testing import tiny_pipeline
from tests.probe.made_runs import made_run

HERE = Path(__file__).parent


def facts(run, nm) -> dict:
    """What a reader must find in the two files."""
    ds, text, images = run.open(), run.open("text_encoder"), run.open("images")
    return {
        "run": run.id,
        "prompts": run.samples["prompt"].tolist(),
        "timesteps": ds["timestep"].values.tolist(),
        "unit_norm": float(ds["unit_norm"].values[1, 1, 1, 17]),
        "fan_out": float(ds["fan_out"].values[17]),
        "text": float(text["absmean"].values[1, 0, 9]),
        "pixel": images["image"].values[1, 2, 3].tolist(),
        "map": nm.id,
        "score": float(nm.dataset["score"].values[1, 17]),
        "selected": [int(i) for i in nm.selected().nonzero()[0]],
        "sites": [site.name for site in nm.sites],
    }


def trajectory_facts(stored) -> dict:
    """What a reader must find in the trajectory."""
    ds = stored.open()
    return {
        "trajectory": stored.id,
        "prompts": stored.samples["prompt"].tolist(),
        "timesteps": stored.timesteps.tolist(),
        "scales": stored.input_scales.tolist(),
        "latents": float(ds["latents"].values[1, 1, 2, 3, 4]),
        "final": float(ds["final"].values[1, 2, 3, 4]),
        "noise_pred": float(ds["noise_pred"].values[1, 0, 1, 2, 3, 4]),
    }


def pack(folder: Path, file: Path) -> None:
    """A store as one zip."""
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for one in sorted(one for one in folder.rglob("*") if one.is_file() and not one.name.startswith(".")):
            archive.write(one, one.relative_to(folder))


def make_trajectory() -> None:
    """Write trajectory_v<n>.zip and what it holds."""
    file = HERE / f"trajectory_v{formats.LAYOUT_VERSIONS['trajectory']}.zip"
    with tempfile.TemporaryDirectory() as folder:
        options = {"steps": 2, "batch_size": 2, "noise_pred": True, "progress": False}
        stored = trajectories(tiny_pipeline(), ["a church", "a church at night"], out=Path(folder, "made"), **options)
        pack(stored.path, file)
        file.with_suffix(".json").write_text(json.dumps(trajectory_facts(stored), indent=2) + "\n")


def make_selectivity() -> None:
    """Write selectivity_v<n>.zarr.zip: five samples of two concepts, three neurons."""
    table = samples([f"prompt {i}" for i in range(5)])
    table["concept"] = ["church", "house", "church", "house", "church"]
    values = np.array([[3, 1, 0], [1, 2, 0], [4, 5, 0], [2, 4, 1], [5, 3, 1]], np.float32)
    found = selectivity(made_run(values, (2, 1), table=table), window=(999, 500))
    found.save(HERE / f"selectivity_v{formats.LAYOUT_VERSIONS['selectivity']}.zarr.zip", force=True)


def make_training() -> None:
    """Write training_v<n>.zip and what it holds: an eraser that learned for two iterations, with a checkpoint."""
    file = HERE / f"training_v{formats.LAYOUT_VERSIONS['training']}.zip"
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder, "made")
        edit = erase.esd(
            tiny_pipeline(), "church", train=TRAINED, iterations=2, checkpoints=[1], cached=1, steps=2,
            training=made, lr=1e-2, progress=False,
        )  # fmt: skip
        pack(made, file)
        (change,) = edit.changes
        facts = {"edit": edit.id, "losses": edit.report["losses"]["loss"], "delta": float(change.dense()[1, 2])}
        file.with_suffix(".json").write_text(json.dumps(facts, indent=2) + "\n")


TRAINED = "mid_block.attentions.0.transformer_blocks.0.attn2.to_k.weight"
GONE = "unet.mid_block.attentions.0.transformer_blocks.0.ff.net.2.weight"


def pruned_pipe() -> tuple[Any, erase.Edit]:
    """A pipeline and an edit whose numbers no random generator decides: some zeros, and a tensor that all changed."""
    from erase._changes import Delta, Mask
    from erase._edit import make_edit

    pipe = tiny_pipeline()
    params = [GONE, f"unet.{TRAINED}"]
    with torch.no_grad():
        for param in params:
            tensor = pipe.unet.get_parameter(param.removeprefix("unet."))
            tensor.copy_((torch.arange(tensor.numel()) % 251 - 125).reshape(tensor.shape) / 1024)
    shapes = [pipe.unet.get_parameter(param.removeprefix("unet.")).shape for param in params]
    few = (torch.arange(shapes[0].numel()) % 50 == 7).reshape(shapes[0])
    changes = [Mask.of(GONE, few), Delta(params[1], torch.full(shapes[1], 0.5))]
    return pipe, make_edit(pipe, changes, name="pruned", method="test", options={})


def make_originals() -> None:
    """Write originals_v<n>.zip: what an exported model keeps of the weights that `pruned_pipe` overwrites."""
    pipe, edit = pruned_pipe()
    with tempfile.TemporaryDirectory() as folder:
        exported = edit.export(pipe, Path(folder, "model"), include_originals=True)
        kept = Path(folder, "kept")
        kept.mkdir()
        for name in ("originals.json", "originals.safetensors"):
            (exported / name).rename(kept / name)
        pack(kept, HERE / f"originals_v{formats.LAYOUT_VERSIONS['originals']}.zip")


def main() -> None:
    """Write run_v<n>.zip, neuron_map_v<n>.zarr.zip and what they hold."""
    run_file = HERE / f"run_v{formats.LAYOUT_VERSIONS['run']}"
    map_file = HERE / f"neuron_map_v{formats.LAYOUT_VERSIONS['neuron_map']}.zarr.zip"
    with tempfile.TemporaryDirectory() as folder:
        options = {"sites": ["unet.mid_block.*.ffn", "mlp"], "steps": 2, "batch_size": 2, "progress": False}
        pipe = tiny_pipeline()
        target = record(pipe, ["a church", "a church at night"], out=Path(folder, "run"), **options)
        reference = record(pipe, ["a house", "a house at night"], out=Path(folder, "reference"), **options)
        nm = score(target, reference).select(top=3)
        nm.save(map_file, force=True)
        pack(target.path, run_file.with_suffix(".zip"))
        run_file.with_suffix(".json").write_text(json.dumps(facts(target, nm), indent=2) + "\n")


if __name__ == "__main__":
    main()
    make_trajectory()
    make_selectivity()
    make_training()
    make_originals()

"""What users get wrong, one row each: exit code 2, one line that says how to mend it, and nothing half-written."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import pytest
from safetensors import SafetensorError

import erase
import probe
from erase.cli import app as erase_app
from probe._terminal import run
from probe.cli import app as probe_app
from probe.errors import WorkbenchError
from probe.testing import tiny_pipeline

APPS = {"probe": probe_app, "erase": erase_app}


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models, runs of both, a map and an edit of the first, all whole. Whoever spoils something copies it."""
    folder = tmp_path_factory.mktemp("shelf")
    for name, seed in {"model": 0, "other": 1}.items():
        probe.compat.save_pipeline(tiny_pipeline(seed=seed), folder / name)
    few: dict[str, Any] = {"steps": 1, "images": False, "reduce": "unit_norm", "progress": False}
    pipe = probe.load(folder / "model")
    for name, prompts in {"target": ["church", "chapel"], "reference": ["house", "hut"]}.items():
        probe.record(pipe, prompts, out=folder / name, **few)
    probe.record(probe.load(folder / "other"), ["house", "hut"], out=folder / "foreign", **few)
    nm = probe.score(folder / "target", folder / "reference")
    nm.save(folder / "map.zarr")
    nm.save(folder / "map.zarr.zip")
    erase.concept_prune(pipe, nm, skill_ratio=0.1, window=None).save_pretrained(folder / "edit")
    return folder


# --- What happens before a command ------------------------------------------------------------------------------------

Damage = Callable[[Path], object]  # gets a copy of the shelf
Prepare = Callable[[Path, pytest.MonkeyPatch], object]  # gets the path for results


def cut(name: str) -> Damage:
    """The second half of a file is lost."""
    return lambda shelf: os.truncate(shelf / name, (shelf / name).stat().st_size // 2)


def pickle(shelf: Path) -> None:
    """The UNet's weights are there as a pickle only."""
    weights = shelf / "model" / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))


def a_file(out: Path, _: object) -> None:
    out.write_text("years of work")


def a_folder(out: Path, _: object) -> None:
    out.mkdir()
    (out / "chapter.txt").write_text("years of work")


def below_a_file(out: Path, _: object) -> None:
    out.parent.write_text("years of work")


def full(target: str, after: int = 0, error: Exception | None = None) -> Prepare:
    """No space left: the function named works so many times and then fails."""

    def prepare(_: object, patch: pytest.MonkeyPatch) -> None:
        works, calls = resolve_name(target), iter(range(after))

        def fails(*args: object, **kwargs: object) -> object:
            if next(calls, None) is None:
                raise error or OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return works(*args, **kwargs)

        patch.setattr(target, fails)

    return prepare


# --- The rows ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """A command line and what its error must say.

    ``{s}`` stands for the shelf, ``{out}`` for the path of the result: what the shelf has under the name ``out`` is
    copied there. ``says`` are parts of the message, ``nearest`` its first suggestion, ``fix`` a part of its fix.
    """

    name: str
    line: str
    error: str
    says: Sequence[str] = ()
    nearest: str | None = None
    fix: str | None = None
    damage: Damage | None = None
    prepare: Prepare | None = None
    out: str = "new"


RECORD = "probe record x --steps 1 --model {s}/model -o {out}"
SCORE = "probe score {s}/target {s}/reference -o {out}"
PRUNE = "erase concept-prune {s}/map.zarr --window null --skill-ratio 0.1 --model {s}/model -o {out}"
PACKED = PRUNE.replace("map.zarr", "map.zarr.zip")
SILENCE = "erase prune-neurons {s}/map.zarr --top 5 --model {s}/model -o {out}"
DRAW = "erase generate {s}/edit --prompt x --steps 1 --model {s}/model -o {out}"
EXPORT = "erase export {s}/edit --model {s}/model -o {out}"
EVALUATE = "probe evaluate {s}/edit --concept church --model {s}/model -o {out}"
PLOT = "probe plot {s}/edit --dpi 30 -o {out}"
WRITERS = {"run": RECORD, "neuron map": SCORE, "edit": PRUNE, "pipeline": EXPORT, "folder of images": DRAW}

OTHER = ("{s}/model", "{s}/other")
MID = "unet.mid_block.attentions.0.transformer_blocks.0"
FF = "unet.down_blocks.0.attentions.0.transformer_blocks.0.ff.net.2.weight"
PIPELINE = ("no pipeline", "model_index.json", "scheduler/", "text_encoder/", "tokenizer/", "unet/", "vae/")
WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
CHUNK = "unet/unit_norm/c/0/0/0/0"
# safetensors has errors of its own, which only quote the number
QUOTED = SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


def names() -> Iterator[Row]:
    error = "UnknownName"
    yield Row("concept", RECORD.replace(" x ", " --concept churh "), error, nearest="church", fix="probe concepts")
    yield Row("concept of a table", EVALUATE.replace("church", "churh"), error, nearest="church")
    yield Row("site", RECORD + " --sites fnn", error, ["'fnn'", "xattn.out"], nearest="ffn")
    yield Row("site in full", f"{RECORD} --sites {MID}.fnn", error, [f"'{MID}.fnn'"], nearest=f"{MID}.ffn")
    yield Row("reducer", RECORD + " --reduce unit_nrom", error, ["absmean"], nearest="unit_norm")
    yield Row("method", SCORE + " --method wnada", error, ["score", "'wnada'"], nearest="wanda")
    yield Row("metric", EVALUATE + " --metrics raet", error, ["content_kept"], nearest="rate")
    yield Row("choice", PRUNE + " --scope golbal", error, ["scope", "row"], nearest="global")
    yield Row("edit", DRAW.replace("/edit", "/edti"), "BadInput", ["no edit here"], nearest="{s}/edit")
    yield Row("model", RECORD.replace("/model", "/modle"), error, ["model_index.json"], nearest="{s}/model")


def values() -> Iterator[Row]:
    error = "BadInput"
    yield Row("no prompts", RECORD.replace(" x ", " "), error, ["there are no prompts"], fix="--concept church")
    for ratio in ("0", "-0.5", "1.5", "nan"):
        yield Row(f"skill ratio {ratio}", PRUNE.replace("0.1", ratio), error, ["skill_ratio", ratio], fix="(0, 1]")
    says, fix = [FF, "int(0.001 * 128) = 0"], "skill_ratio=0.0078125 is the smallest"
    yield Row("skill ratio that selects nothing", PRUNE.replace("0.1", "0.001"), error, says, fix=fix)


def scores_that_run_the_model() -> Iterator[Row]:
    gradient = SCORE + " --model {s}/model --method gradient"
    causal = SCORE + " --model {s}/model --method causal --concept object/church"
    error = "BadInput"
    says = ["too few samples", "2 samples of 2 prompts", "at least 10 prompts"]
    yield Row("gradient of few prompts", gradient, error, says, fix="intervals=0")
    yield Row("gradient of another model", gradient.replace(*OTHER), "WrongModel", ["the run", "unet"], fix="made on")
    yield Row(
        "judge without gradients", gradient + " --intervals 0 --objective detector --detector emoji_nearest", error
    )
    yield Row("judge without a concept", gradient + " --intervals 0 --objective detector", error, fix="concept=")
    yield Row("causal without a concept", causal.partition(" --concept")[0], error, ["concept="], fix="--concept")
    yield Row("causal of few samples", causal, error, ["too few samples", "at least 12 samples"], fix="n_samples")
    yield Row("unknown judge", causal + " --detector emoji_cn", "UnknownName", nearest="emoji_cnn")
    yield Row("unknown label", causal.replace("church", "churh"), "UnknownName", nearest="object/church")


def models() -> Iterator[Row]:
    error, fix = "BadInput", "pipe.save_pretrained"
    yield Row("folder of pipelines", RECORD.replace("/model", ""), error, PIPELINE, "{s}/model", fix)
    yield Row("part of a pipeline", RECORD.replace("/model", "/model/unet"), error, PIPELINE, "{s}/model", fix)
    yield Row("run as a model", RECORD.replace("/model", "/target"), error, PIPELINE, fix=fix)
    yield Row("pickles", RECORD, error, ["pickled weights only", WEIGHTS[:-11] + "bin"], fix="convert", damage=pickle)


def other_models() -> Iterator[Row]:
    error, fix = "WrongModel", "made on"
    for name, line in {"edit": DRAW, "exported edit": EXPORT}.items():
        yield Row(f"{name} of another model", line.replace(*OTHER), error, [f"{FF} has other values"], fix=fix)
    for name, line in {"map": PRUNE, "map's selection": SILENCE}.items():
        yield Row(f"{name} of another model", line.replace(*OTHER), error, ["unet differs in weights"], fix=fix)
    error, line = "HeaderMismatch", SCORE.replace("reference", "foreign")
    yield Row("runs of two models", line, error, ["weights.unet differs"], fix="same model")
    line = RECORD.replace(*OTHER).replace(" x ", " church chapel ") + " --reduce unit_norm --images false"
    says, fix = ["model.weights.unet differs"], "another folder, or replace this run with --force"
    yield Row("run of another model to go on with", line, error, says, fix=fix, out="target")


def outputs() -> Iterator[Row]:
    error, fix = "BadInput", "choose another path"
    for kind, line in WRITERS.items():
        says = [f"exists and is no {kind}", "{out}"]
        yield Row(f"{kind} onto a file", line, error, says, fix=fix, prepare=a_file)
        yield Row(f"{kind} onto a folder", line + " --force", error, says, fix=fix, prepare=a_folder)
        yield Row(f"{kind} below a file", line, error, ["below a file"], fix=fix, prepare=below_a_file, out="file/new")
        if kind != "run":
            yield Row(f"{kind} onto a run", line + " --force", error, says, fix=fix, out="target")
    yield Row("run onto an edit", RECORD + " --force", error, ["is no run"], fix=fix, out="edit")
    yield Row("another edit", PRUNE.replace("0.1", "0.2"), error, ["another edit is here"], fix="--force", out="edit")
    yield Row("figure onto a file", PLOT, error, ["another figure"], fix="--force", prepare=a_file, out="a.png")
    yield Row("figure onto a folder", PLOT + " --force", error, ["no figure"], fix=fix, prepare=a_folder, out="a.png")


def torn() -> Iterator[Row]:
    error = "StoreDamaged"
    for name, file in {"weights": WEIGHTS, "index": "model_index.json", "tokens": "tokenizer/merges.txt"}.items():
        says = ["{s}/model"] if name == "tokens" else [f"{{s}}/model/{file}"]
        yield Row(f"torn {name} of a model", RECORD, error, says, fix="again", damage=cut(f"model/{file}"))
    for file in ("edit.safetensors", "edit.json"):
        yield Row(f"torn {file}", DRAW, error, [f"{{s}}/edit/{file}"], fix="again", damage=cut(f"edit/{file}"))
    yield Row("torn chunk", SCORE, error, [f"{{s}}/target: {CHUNK}"], fix="--repair", damage=cut(f"target/{CHUNK}"))
    for file in (
        "zarr.json",
        "done/c/0",
        "done/zarr.json",
        "sites/name/c/0",
        "unet/fan_out/c/0",
        "unet/prompt/zarr.json",
    ):
        yield Row(f"torn {file} of a run", SCORE, error, ["{s}/target"], fix="again", damage=cut(f"target/{file}"))
    for file in ("zarr.json", "score/zarr.json", "score/c/0/0"):
        yield Row(f"torn {file} of a map", PRUNE, error, ["{s}/map.zarr"], fix="again", damage=cut(f"map.zarr/{file}"))
    yield Row("torn packed map", PACKED, error, ["{s}/map.zarr.zip"], fix="again", damage=cut("map.zarr.zip"))


def no_space() -> Iterator[Row]:
    for name, line, prepare in (
        ("a run", RECORD, full("zarr.storage.LocalStore.set", 9)),
        ("a map", SCORE, full("zarr.storage.LocalStore.set", 9)),
        ("a packed map", SCORE, full("zipfile.ZipFile.writestr", 2)),
        ("an edit", PRUNE, full("pathlib.Path.write_text", 1)),
        ("images", DRAW, full("PIL.Image.Image.save")),
        ("a pipeline", EXPORT, full("safetensors.torch.save_file", 1, QUOTED)),
        ("a pipeline's card", EXPORT, full("erase._export.card")),
        ("a figure", PLOT, full("matplotlib.figure.Figure.savefig")),
    ):
        out = {"a packed map": "new.zarr.zip", "a figure": "new.png"}.get(name, "new")
        says = ["no space left on the disk", "{out}"]
        yield Row(f"no space for {name}", line, "WorkbenchError", says, fix="free some", prepare=prepare, out=out)


KINDS = (names, values, scores_that_run_the_model, models, other_models, outputs, torn, no_space)
ROWS = [row for kind in KINDS for row in kind()]


# --- The test ---------------------------------------------------------------------------------------------------------

BAR = re.compile(r"\d+%\||\bimg/s\b")


def contents(folder: Path) -> dict[str, bytes | None]:
    """Every file below a folder with its bytes, every folder with None."""
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in folder.rglob("*")}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_bad_input(
    shelf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, row: Row
) -> None:
    if row.damage is not None:
        shelf = shutil.copytree(shelf, tmp_path / "shelf")
        row.damage(shelf)
    results = tmp_path / "results"
    results.mkdir()
    out = results / row.out
    if (shelf / row.out).exists():
        shutil.copytree(shelf / row.out, out)
    if row.prepare is not None:
        row.prepare(out, monkeypatch)
    before = contents(results)

    def filled(text: str) -> str:
        return text.format(s=shelf, out=out)

    program, *words = filled(row.line).split()
    capsys.readouterr()
    assert run(APPS[program], words) == 2
    stdout, stderr = capsys.readouterr()
    assert stdout == ""
    (line,) = (line for line in stderr.splitlines() if line and not BAR.search(line))
    assert [part for part in map(filled, row.says) if part not in line] == [], line

    assert run(APPS[program], [*words, "--json"]) == 2
    stdout, stderr = capsys.readouterr()
    assert stderr == ""
    (parts,) = json.loads(stdout).values()
    assert parts.pop("error") == row.error
    assert line == f"error: {WorkbenchError(**parts).message}"
    assert row.nearest is None or parts["nearest"][0] == filled(row.nearest)
    assert (row.fix or "") in (parts["fix"] or parts["expected"] or "")
    assert parts["nearest"] or parts["fix"] or parts["expected"], "how to mend it"
    assert contents(results) == before, "nothing half-written"

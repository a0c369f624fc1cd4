"""From a recording to an exported model by commands alone, on a tiny pipeline; and what they refuse."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

import erase
import probe
from erase.cli import app as erase_app
from probe._terminal import run
from probe.cli import app as probe_app
from probe.testing import tiny_pipeline
from tests.probe.measuring import Colours

APPS = {"probe": probe_app, "erase": erase_app}


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, two runs, their map and two edits, all but the model made by commands."""
    folder = tmp_path_factory.mktemp("shelf")
    probe.compat.save_pipeline(tiny_pipeline(), folder / "model")
    model, few = ["--model", f"{folder}/model"], ["--steps", "3", "--seed", "3", "-q"]
    for name, prompts in {"target": ["a church", "a church on a hill"], "reference": ["a house", "a hill"]}.items():
        assert run(probe_app, ["record", *prompts, *model, *few, "--out", f"{folder}/{name}"]) == 0
    assert run(probe_app, ["score", f"{folder}/target", f"{folder}/reference", "-o", f"{folder}/map.zarr.zip"]) == 0
    made = [f"{folder}/map.zarr.zip", *model]
    assert (
        run(erase_app, ["concept-prune", *made, "--skill-ratio", "0.1", "--window", "null", "-o", f"{folder}/edit"])
        == 0
    )
    assert run(erase_app, ["prune-neurons", *made, "--top", "5", "-o", f"{folder}/five"]) == 0
    return folder


def call(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of one command line."""
    capsys.readouterr()
    program, *arguments = map(str, words)
    code = run(APPS[program], arguments)
    return code, *capsys.readouterr()


def document(capsys: pytest.CaptureFixture[str], *words: str | Path) -> dict[str, Any]:
    """The one JSON document of a command that went well."""
    code, out, err = call(capsys, *words, "--json")
    found: dict[str, Any] = json.loads(out)
    assert (code, err) == (0, ""), found
    return found


def test_commands_make_what_the_functions_make(shelf: Path) -> None:
    by_hand = probe.score(shelf / "target", shelf / "reference", method="wanda")
    nm = probe.NeuronMap.load(shelf / "map.zarr.zip")
    assert nm.id == by_hand.id
    edit = erase.concept_prune(probe.load(str(shelf / "model")), nm, skill_ratio=0.1, window=None)
    assert erase.load_edit(shelf / "edit").id == edit.id


def test_repeating_a_recording_leaves_it_as_it_is(shelf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["a church", "a church on a hill", "--model", shelf / "model", "--steps", "3", "--seed", "3"]
    before = (shelf / "target" / "zarr.json").stat().st_mtime_ns
    assert document(capsys, "probe", "record", *arguments, "--out", shelf / "target")["samples"] == 2
    assert (shelf / "target" / "zarr.json").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("program", "what", "kind"),
    [
        ("probe", "model", "model"),
        ("probe", "target", "run"),
        ("probe", "map.zarr.zip", "neuron_map"),
        ("probe", "edit", "edit"),
    ],
)
def test_info_tells_kinds_apart(
    shelf: Path, capsys: pytest.CaptureFixture[str], program: str, what: str, kind: str
) -> None:
    assert document(capsys, program, "info", shelf / what)["kind"] == kind
    code, out, _ = call(capsys, program, "info", shelf / what)
    assert code == 0
    assert out


@pytest.mark.parametrize(
    ("name", "kind"), [("church-auroc", "neuron_map"), ("church-esd", "edit"), ("church-mma-banned", "attack_set")]
)
def test_info_of_what_comes_with_a_checkout(name: str, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert document(capsys, "probe", "info", f"emoji/{name}")["kind"] == kind


def test_info_of_a_model_counts_its_sites(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = probe.compat.save_pipeline(tiny_pipeline("sdxl"), tmp_path / "xl")
    found = document(capsys, "probe", "info", folder)
    assert list(found["parameters"]) == ["text_encoder", "text_encoder_2", "unet", "vae"]
    assert len(found["sites"]) == 2 + 2 + 11 * 5
    _, out, _ = call(capsys, "probe", "info", folder)
    rows = [line.split() for line in out.splitlines()]
    assert any({"text_encoder_2", "mlp", "2", "192", "96"} <= set(row) for row in rows)
    assert any({"unet", "ffn", "11", "2432", "128", "256"} <= set(row) for row in rows)
    assert len(rows) < 25  # not one a site


def test_info_without_an_argument_states_versions(capsys: pytest.CaptureFixture[str]) -> None:
    assert "torch" in document(capsys, "probe", "info")["versions"]
    assert "torch" in call(capsys, "probe", "info")[1]


def test_info_compares_edits(shelf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (pair,) = document(capsys, "erase", "info", shelf / "edit", shelf / "five")["pairs"]
    assert 0 <= pair["jaccard"] <= 1
    assert pair["conflict"] is None
    (same,) = document(capsys, "erase", "info", shelf / "edit", shelf / "edit")["pairs"]
    assert same["jaccard"] == 1


def test_control_and_stack(shelf: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    control = document(capsys, "erase", "control-mask", shelf / "edit", "--seed", "4", "-o", tmp_path / "control")
    assert control["density"] == erase.load_edit(shelf / "edit").density
    stacked = document(capsys, "erase", "stack", shelf / "edit", shelf / "five", "-o", tmp_path / "both")
    assert stacked["name"] == "concept_prune+prune_neurons"
    assert call(capsys, "erase", "stack", shelf / "edit", "-o", tmp_path / "both")[0] == 2, "another edit is there"
    assert call(capsys, "erase", "stack", shelf / "edit", "-o", tmp_path / "both", "--force")[0] == 0


def test_generate_beside(shelf: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    arguments = [
        "erase",
        "generate",
        shelf / "edit",
        "--prompt",
        "a church",
        "--model",
        shelf / "model",
        "--steps",
        "2",
    ]
    found = document(capsys, *arguments, "--beside", "-o", tmp_path / "images")
    assert found["files"] == ["000-a-church-0.png", "000-a-church-0-original.png"]
    assert all((tmp_path / "images" / name).is_file() for name in found["files"])
    assert call(capsys, *arguments, "-o", tmp_path / "images")[0] == 2
    assert call(capsys, *arguments, "-o", tmp_path / "images", "--force")[0] == 0
    assert len(list((tmp_path / "images").glob("*.png"))) == 1


def test_export_is_a_pipeline(shelf: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    document(capsys, "erase", "export", shelf / "five", "--model", shelf / "model", "-o", tmp_path / "plain")
    assert document(capsys, "probe", "info", tmp_path / "plain")["kind"] == "model"


@pytest.fixture(scope="module")
def findings(shelf: Path) -> Path:
    """Two runs of twenty pairs and three concepts, with the reducer mean, and a map of them."""
    rows = ["prompt,concept", *(f"a {('spire', 'tower', 'ruin')[i % 3]} number {i},{'abc'[i % 3]}" for i in range(20))]
    (shelf / "many.csv").write_text("\n".join(rows))
    (shelf / "plain.csv").write_text("\n".join(["prompt", *(f"a hill number {i}" for i in range(20))]))
    common = [
        "--model",
        f"{shelf}/model",
        "--steps",
        "1",
        "--reduce",
        "mean,absmean,unit_norm",
        "--images",
        "false",
        "-q",
    ]
    for name in ("many", "plain"):
        assert run(probe_app, ["record", f"{shelf}/{name}.csv", *common, "--out", f"{shelf}/{name}"]) == 0
    made = ["score", f"{shelf}/many", f"{shelf}/plain", "--method", "contrast", "-o", f"{shelf}/contrast.zarr.zip"]
    assert run(probe_app, made) == 0
    return shelf


@pytest.mark.parametrize(
    ("method", "options", "reported"),
    [
        ("contrast", ["--flips", "100"], "smallest_q"),
        ("auroc", ["--intervals", "5"], "intervals"),
        ("linear", ["--subsamples", "5", "--window", "999,0"], "accuracy"),
    ],
)
def test_other_scores(
    findings: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, method: str, options: list[str], reported: str
) -> None:
    words = ["probe", "score", findings / "many", findings / "plain", "--method", method, *options]
    found = document(capsys, *words, "-o", tmp_path / "map")
    assert (found["method"], len(found["best"])) == (method, 10)
    assert found["report"][reported] > 0
    code, out, _ = call(capsys, *words, "-o", tmp_path / "map")
    assert code == 0
    assert reported.replace("_", " ") in out
    code, _, err = call(capsys, *words, "--normalise", "sum", "-o", tmp_path / "other")
    assert code == 2
    assert "normalise" in err


def test_scores_that_run_the_model(
    findings: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, judge: str
) -> None:
    model = ["--model", findings / "model"]
    words = ["probe", "score", findings / "many", findings / "plain", *model, "--method", "gradient"]
    found = document(capsys, *words, "--intervals", "3", "-o", tmp_path / "gradient")
    assert found["report"] == {"samples": 20, "failed": 0, "calls": 1, "intervals": 3}
    assert probe.NeuronMap.load(tmp_path / "gradient").id == found["id"]
    assert call(capsys, *words, "--objective", "detector", "-o", tmp_path / "x")[0] == 2

    (site, *_) = (site.name for site in probe.NeuronMap.load(tmp_path / "gradient").sites)
    words = [*words[:-1], "causal", "--concept", "object/church", "--detector", judge, "--n-samples", "5"]
    words += ["--candidates", f"{{{site}: [3, 5]}}", "--log", tmp_path / "log.jsonl"]
    assert document(capsys, *words, "--dry-run", "-o", tmp_path / "causal")["arguments"]["concept"] == "object/church"
    found = document(capsys, *words, "-o", tmp_path / "causal")
    assert found["report"]["nominated"] == {"named": 2}
    assert [row["unit"] for row in found["best"] if row["n"] == 5] in ([3, 5], [5, 3])
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 4
    code, out, _ = call(capsys, *words, "-o", tmp_path / "causal")
    assert code == 0
    assert "nominated: named 2" in out
    assert "rate_before" in out


def test_stability_and_overlap(findings: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    runs = [findings / "many", findings / "plain"]
    words = ["probe", "stability", findings / "contrast.zarr.zip", *runs, "--halvings", "1", "--top", "5,20"]
    found = document(capsys, *words, "-o", tmp_path / "map.zarr.zip")["stability"]
    assert -1 <= found["prompts"]["rank_correlation"] <= 1
    assert "one seed only" in found["seeds"]["reason"]
    assert document(capsys, "probe", "info", tmp_path / "map.zarr.zip")["report"]["stability"] == found
    assert call(capsys, *words, "-o", tmp_path / "map.zarr.zip")[0] == 0
    maps = [f"a={tmp_path}/map.zarr.zip", findings / "contrast.zarr.zip"]
    table = document(capsys, "probe", "overlap", *maps, "--top", "7")["overlap"]
    assert table == {name: {"a": 1.0, "contrast.zarr.zip": 1.0} for name in ("a", "contrast.zarr.zip")}


def test_selectivity_and_what_it_keeps(findings: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = ["probe", "selectivity", findings / "many", "--at-least", "2"]
    found = document(capsys, *words, "-o", tmp_path / "table")
    assert found["concepts"] == ["a", "b", "c"]
    assert 0 <= found["generalists"] <= 1
    assert document(capsys, "probe", "info", tmp_path / "table")["kind"] == "selectivity"
    document(capsys, *words, "--threshold", "0.6", "--concept", "b", "-o", tmp_path / "keep.zarr.zip")
    keep = probe.NeuronMap.load(tmp_path / "keep.zarr.zip")
    assert keep.selected().any()
    model = ["--model", findings / "model"]
    made = [findings / "map.zarr.zip", "--skill-ratio", "0.1", "--window", "null", "--keep", tmp_path / "keep.zarr.zip"]
    document(capsys, "erase", "concept-prune", *made, *model, "-o", tmp_path / "edit")
    edit = erase.load_edit(tmp_path / "edit")
    for change, flags in zip(edit.changes, _flags_of(keep, edit), strict=True):
        assert not change.dense()[:, flags].any()


def _flags_of(nm: probe.NeuronMap, edit: Any) -> list[Any]:
    """Per change of an edit, which of its columns the map selects."""
    import torch

    selected = dict(zip((site.module for site in nm.sites), _split(nm), strict=True))
    names = [change.param.removeprefix("unet.").removesuffix(".weight") for change in edit.changes]
    return [torch.from_numpy(selected[name]) for name in names]


def _split(nm: probe.NeuronMap) -> list[Any]:
    return [nm.selected()[a:b] for a, b in zip(nm.offsets, nm.offsets[1:], strict=False)]


def test_intervene(findings: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    few = ["--prompt", "a spire", "--model", findings / "model", "--steps", "1", "--top", "9"]
    words = ["probe", "intervene", findings / "contrast.zarr.zip", *few]
    found = document(capsys, *words, "--beside", "-o", tmp_path / "zero")
    assert found["files"] == ["000-a-spire-0.png", "000-a-spire-0-original.png"]
    assert sum(map(len, found["units"].values())) == 9
    document(capsys, *words, "--mode", "mean", "--source", findings / "plain", "-o", tmp_path / "mean")
    document(capsys, *words, "--mode", "scale", "--value", "3", "--branch", "cond", "-o", tmp_path / "scale")
    code, _, err = call(capsys, *words, "--mode", "mean", "-o", tmp_path / "none")
    assert code == 2
    assert "probe record ... --reduce mean" in err
    code, _, err = call(capsys, *words[:-2], "-o", tmp_path / "none")
    assert code == 2
    assert "no selection" in err


def write_world(folder: Path, **neighbours: list[str]) -> Path:
    """A world of objects, each with one prompt to tune on and one to report on."""
    folder.mkdir()
    for name, others in neighbours.items():
        concept = {
            "name": name,
            "kind": "object",
            "surface_forms": [name],
            "prompts": {"explicit": [f"a {name}"]},
            "test": {"explicit": [f"the {name}"]},
            "references": {"neighbour": [f"a {other}" for other in others[:1]]} if others else {},
            "neighbours": others,
            "detector": "emoji_cnn",
        }
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(concept))
    return folder


@pytest.fixture
def judge() -> str:
    """The name of a registered judge that needs no weights."""
    name = "colours of the command line"
    if name not in probe.detect.detectors():
        probe.detect.register_detector(name, Colours)
    return name


def test_evaluate_and_what_is_made_of_a_result(
    shelf: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, judge: str
) -> None:
    world = write_world(tmp_path / "world", church=["castle"], castle=[])
    edits = [f"rule={shelf}/edit", shelf / "five", "--model", shelf / "model"]
    few = ["--concept", "church", "--world", world, "--steps", "1", "--splits", "explicit,neighbours", "-q"]
    judged = ["--judge", judge, "--second", "null", "--metrics", "rate", "-o", tmp_path / "result"]
    cells = document(capsys, "probe", "evaluate", *edits, *few, *judged)["cells"]
    assert {cell["edit"] for cell in cells} == {"rule", "prune_neurons"}
    assert {"explicit", "neighbours"} == {cell["split"] for cell in cells}
    found = document(capsys, "probe", "info", tmp_path / "result")
    assert found["kind"] == "result"
    assert len(found["cells"]) == len(cells)
    figure = ["-o", tmp_path / "tradeoff.png", "--dpi", "50"]
    document(capsys, "probe", "plot", tmp_path / "result", "--kept", "neighbours", *figure)
    other = "other colours of the command line"
    if other not in probe.detect.detectors():
        probe.detect.register_detector(other, lambda: Colours("other", shift=1))
    absent = [*edits[:2], "--model", tmp_path / "no model is loaded", *few, "--judge", other, *judged[2:], "--rejudge"]
    again = document(capsys, "probe", "evaluate", *absent)["cells"]
    assert [cell["n"] for cell in again] == [cell["n"] for cell in cells]
    assert len(list((tmp_path / "result").glob("cells-*.csv"))) == 1


def test_record_a_concept(shelf: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """The sample table says what a run is about; --references draws the other half of the contrast."""
    world = write_world(tmp_path / "world", spire=["tower"])
    arguments = ["--concept", "spire", "--world", world, "--model", shelf / "model", "--steps", "1"]
    document(capsys, "probe", "record", *arguments, "-o", tmp_path / "target")
    document(capsys, "probe", "record", *arguments, "--references", "neighbour", "-o", tmp_path / "reference")
    target, reference = (probe.Run(tmp_path / name).samples.iloc[0] for name in ("target", "reference"))
    assert (target["prompt"], target["concept"], target["split"]) == ("a spire", "spire", "explicit")
    assert (reference["prompt"], reference["split"]) == ("a tower", "")
    code, _, err = call(capsys, "probe", "record", *arguments, "--split", "explict", "-o", tmp_path / "new")
    assert code == 2
    assert "nearest: explicit" in err


def test_trajectories_and_recording_at_them(shelf: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    model = ["--model", shelf / "model"]
    few = ["a church", *model, "--steps", "2", "--stored-as", "float32", "-o", tmp_path / "stored"]
    made = document(capsys, "probe", "trajectories", *few)
    assert document(capsys, "probe", "info", tmp_path / "stored")["id"] == made["id"]
    assert call(capsys, "probe", "verify", tmp_path / "stored")[0] == 0
    chosen = ["--sites", "xattn.prob", "--tokens", "1,church", "--heads", "2", "--maps", "{unet.mid_block*.ffn: [3]}"]
    at = ["--trajectories", tmp_path / "stored"]
    found = document(capsys, "probe", "record", *model, *at, *chosen, "-o", tmp_path / "run")
    assert probe.Run(tmp_path / "run").identity["inputs"]["id"] == made["id"]
    group = next(name for name in found["groups"] if name.endswith("prob"))
    assert probe.open_run(tmp_path / "run", group)["word"].values.tolist() == ["", "church"]
    probe.NeuronMap.load(shelf / "map.zarr.zip").select(top=2).save(tmp_path / "two.zarr.zip")
    maps = ["--maps", tmp_path / "two.zarr.zip", "--sites", "[]"]
    found = document(capsys, "probe", "record", *model, *at, *maps, "-o", tmp_path / "maps")
    assert sum(probe.open_run(tmp_path / "maps", group).sizes["neuron"] for group in found["groups"]) == 2


@pytest.mark.parametrize("what", [["map.zarr.zip"], ["edit"], ["target", "reference"]])
def test_plot(shelf: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, what: list[str]) -> None:
    figure = tmp_path / "figure.png"
    document(capsys, "probe", "plot", *[shelf / name for name in what], "-o", figure, "--dpi", "50")
    assert figure.read_bytes().startswith(b"\x89PNG")


@pytest.fixture(scope="module")
def drawn(shelf: Path) -> Path:
    """A run with pictures, maps of two neurons and the attention to words and positions; tables for the other kinds."""
    site, other = (site.name for site in probe.sites(tiny_pipeline(), "ffn")[:2])
    model = ["--model", f"{shelf}/model", "--steps", "2", "-q"]
    maps = f"{{{site}: [3], {other}: [5, 1]}}"
    kept = ["--sites", "ffn,xattn.prob", "--maps", maps]
    prompts = ["a church", "a church on a hill", "a house"]
    assert run(probe_app, ["record", *prompts, *model, *kept, "--out", f"{shelf}/drawn"]) == 0
    (shelf / "curves.csv").write_text("method,k,value,ci_low,ci_high\nwanda,10,0.9,0.8,1\nwanda,50,0.2,0.1,0.3\n")
    (shelf / "rates.csv").write_text(
        "variant,split,concept,metric,value,ci_low,ci_high\n"
        "a,explicit,church,rate,0.9,0.8,1\na,explicit,church,broken,0,0,0\na,explicit,ink,rate,0.1,0,1\n"
    )
    probe.token_similarity(tiny_pipeline(), "a church").to_csv(shelf / "tokens.csv")
    for name, top in (("ten", 10), ("five_best", 5)):
        probe.NeuronMap.load(shelf / "map.zarr.zip").select(top=top).save(shelf / f"{name}.zarr.zip")
    return shelf


@pytest.mark.parametrize(
    ("words", "kind"),
    [
        ("layers {s}/map.zarr.zip", "layers"),
        ("{s}/map.zarr.zip", "layers"),
        ("ranked {s}/ten.zarr.zip --named 2", "ranked"),
        ("histogram {s}/map.zarr.zip {s}/target {s}/reference", "histogram"),
        ("examples {s}/drawn --columns 2", "examples"),
        ("maps {s}/drawn --rows 2 --sample 1", "maps"),
        ("words {s}/drawn --model {s}/model --word church --word [EoT] --rows 2", "words"),
        ("words {s}/drawn --model {s}/model", "words"),
        ("overlap {s}/ten.zarr.zip best={s}/five_best.zarr.zip", "overlap"),
        ("overlap {s}/map.zarr.zip other={s}/map.zarr.zip --cut 7", "overlap"),
        ("ablation {s}/curves.csv", "ablation"),
        ("rates {s}/rates.csv --concept church", "rates"),
        ("similarity {s}/tokens.csv", "similarity"),
        ("density {s}/edit", "density"),
        ("images {s}/drawn {s}/drawn --columns 3", "images"),
    ],
)
def test_plot_kinds(drawn: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, words: str, kind: str) -> None:
    arguments = words.format(s=drawn).split()
    found = document(capsys, "probe", "plot", *arguments, "-o", tmp_path / "figure.svg")
    assert found["kind"] == kind
    assert (tmp_path / "figure.svg").read_text().startswith("<?xml")


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ("rankd {s}/map.zarr.zip", "nearest: ranked"),
        ("ranked {s}/edit", "ranked needs a map here"),
        ("ranked {s}/map.zarr.zip {s}/map.zarr.zip", "other files"),
        ("ranked {s}/map.zarr.zip --cut 99999", "cut=99999"),
        ("histogram {s}/map.zarr.zip {s}/target", "map, run, run"),
        ("histogram {s}/map.zarr.zip {s}/target {s}/reference --neuron 3", "SITE:UNIT"),
        ("histogram {s}/map.zarr.zip {s}/target {s}/reference --neuron unet.mdi:3", "unknown site"),
        ("histogram {s}/map.zarr.zip {s}/target {s}/reference --reducer mean", "mean"),
        ("examples {s}/target", "holds no maps"),
        ("maps {s}/drawn --sample 9", "0 to 2"),
        ("maps {s}/drawn --neuron unet.mid_block.attentions.0.transformer_blocks.0.ffn:77", "no map of this unit"),
        ("maps {s}/drawn --rows 0", "--rows"),
        ("words {s}/target", "--sites xattn.prob"),
        ("words {s}/drawn", "--tokens"),
        ("words {s}/drawn --model {s}/model --word chruch", "nearest: church"),
        ("overlap {s}/map.zarr.zip", "map, map, ..."),
        ("overlap {s}/map.zarr.zip x={s}/map.zarr.zip", "no selection"),
        ("ablation {s}/absent.csv", "no such table"),
        ("ablation {s}/rates.csv", "lacks a column"),
        ("rates {s}/rates.csv --concept chruch", "nearest: church"),
        ("similarity {s}/curves.csv", "square"),
    ],
)
def test_plot_errors(drawn: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, words: str, part: str) -> None:
    figure = tmp_path / "figure.png"
    code, out, err = call(capsys, "probe", "plot", *words.format(s=drawn).split(), "-o", figure)
    assert code == 2, err
    assert not out
    assert part in " ".join(err.split())
    assert not figure.exists()


def test_zero_attention(shelf: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = ["probe", "zero-attention", "a church", "--model", shelf / "model", "--steps", "2", "--seed", "3"]
    chosen = ["--token", "all_eot", "--token", "keyword", "--keyword", "church", "--leave", "2"]
    found = document(capsys, *words, *chosen, "--beside", "-o", tmp_path / "images")
    assert found["files"] == ["000-a-church-3.png", "000-a-church-3-original.png"]
    assert found["options"]["tokens"] == ["all_eot", "keyword"]
    pictures = [(tmp_path / "images" / name).read_bytes() for name in found["files"]]
    assert pictures[0] != pictures[1]
    made = probe.attention_zeroing(["all_eot", "keyword"], keyword="church", leave=2)
    assert found["zeroing"] == made.id
    for more, part in (
        (["--token", "eot"], "nearest: "),
        (["--token", "99"], "0 to 31"),
        (["--token", "keyword"], "belong together"),
        (["--token", "keyword", "--keyword", "dog"], "no keyword (dog)"),
        (["--token", "sot", "--sites", "ffn"], "where there is attention"),
        (["--token", "sot", "--heads", "77"], "no such head"),
    ):
        code, _, err = call(capsys, *words, *more, "-o", tmp_path / "other")
        assert code == 2, err
        assert part in " ".join(err.split())
    assert not (tmp_path / "other").exists()


def test_verify_and_repair(shelf: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    arguments = ["a church", "--model", shelf / "model", "--steps", "2", "-o", tmp_path / "run", "-q"]
    assert call(capsys, "probe", "record", *arguments)[0] == 0
    assert call(capsys, "probe", "verify", tmp_path / "run")[0] == 0
    next(file for file in (tmp_path / "run" / "unet" / "unit_norm" / "c").rglob("*") if file.is_file()).unlink()
    code, _, err = call(capsys, "probe", "verify", tmp_path / "run")
    assert code == 2
    assert "--repair" in err
    assert call(capsys, "probe", "verify", tmp_path / "run", "--repair")[0] == 0
    assert call(capsys, "probe", "record", *arguments)[0] == 0
    assert call(capsys, "probe", "verify", tmp_path / "run")[0] == 0


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ("probe record --model {m} -o {new}", "there are no prompts"),
        ("probe record x --sites fnn --model {m} -o {new}", "nearest: ffn"),
        ("probe record x --maps {{mid:ful}} --model {m} -o {new}", "unknown site"),
        ("probe record --from-images {s} --timesteps 1 --model {m} -o {new}", "no images"),
        ("probe record --trajectories {s}/target --model {m} -o {new}", "a trajectory"),
        ("probe trajectories --model {m} -o {new}", "there are no prompts"),
        ("probe record x --reduce unit_nrom --model {m} -o {new}", "nearest: unit_norm"),
        ("probe record x --steps few --model {m} -o {new}", "given: 'few'"),
        ("probe record x --model {s}/absent -o {new}", "absent"),
        ("probe record x --model {m} -o {s}/edit", "edit"),
        ("probe record prompts.txt --model {m} -o {new}", "no such file"),
        ("probe score {s}/target {s}/reference --method wnada -o {new}", "nearest: wanda"),
        ("probe score {s}/target {s}/absent -o {new}", "absent"),
        ("probe score {s}/target {s}/reference --method gradient --model {m} -o {new}", "intervals=0"),
        ("probe info {s}/map.zarr.zip/x", "x"),
        ("probe plot {s}/model -o {new}.png", "nothing that can be drawn"),
        ("probe plot {s}/edit -o {new}.bmp", ".png"),
        ("erase concept-prune {s}/map.zarr.zip --skill-ratio 0 --model {m} -o {new}", "skill_ratio"),
        ("erase concept-prune {s}/map.zarr.zip --skill-ratio 0.0001 --window null --model {m} -o {new}", "smallest"),
        ("erase concept-prune {s}/target --model {m} -o {new}", "run"),
        ("erase prune-neurons {s}/map.zarr.zip --model {m} -o {new}", "no selection"),
        ("erase generate {s}/edti --prompt x --model {m} -o {new}", "edit"),
        ("erase generate {s}/edit --model {m} -o {new}", "prompt"),
    ],
)
def test_user_errors(shelf: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, words: str, part: str) -> None:
    new = tmp_path / "new"
    line = words.format(s=shelf, m=shelf / "model", new=new).split()
    code, out, err = call(capsys, *line)
    assert (code, out) == (2, ""), err
    assert err.count("\n") == 1
    assert part in err
    assert not list(tmp_path.iterdir()), "nothing half-written"


def test_a_dry_run_writes_nothing(shelf: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    found = document(capsys, "probe", "record", "x", "--model", shelf / "model", "--dry-run", "-o", tmp_path / "new")
    assert found["arguments"]["steps"] == 30
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("program", APPS)
def test_everything_on_a_command_line_is_explained(program: str) -> None:
    for command in APPS[program].registered_commands:
        assert command.callback is not None
        assert command.short_help, command.name
        for parameter in inspect.signature(command.callback, eval_str=True).parameters.values():
            (declared,) = parameter.annotation.__metadata__
            assert declared.help.partition("[default:")[0].strip(), f"{command.name} {parameter.name}: see _words.py"


# --- Concepts ---------------------------------------------------------------------------------------------------------

_CONCEPT = """
name: yellow
kind: style
prompts: {explicit: [a yellow hat, yellow], paraphrased: [like the sun]}
test: {explicit: [a yellow dog]}
references: {paper: [a hat, red]}
anchor: a colour
neighbours: [red]
"""


def test_concepts_are_listed_and_shown(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(_CONCEPT)
    (tmp_path / "lists.yaml").write_text("colours: [yellow]")
    found = document(capsys, "probe", "concepts", "--world", tmp_path)
    sizes = {"prompts": {"explicit": 2, "paraphrased": 1}, "test": {"explicit": 1}}
    assert found["concepts"] == [{"name": "yellow", "kind": "style", **sizes}]
    assert found["lists"] == {"colours": ["yellow"]}
    code, out, _ = call(capsys, "probe", "concepts", "--world", tmp_path)
    assert code == 0
    assert "explicit 2, paraphrased 1" in out
    one = document(capsys, "probe", "concepts", "yellow", "--world", tmp_path)
    assert one["prompts"]["explicit"] == ["a yellow hat", "yellow"]
    assert (one["references"], one["anchor"], one["neighbours"]) == ({"paper": ["a hat", "red"]}, "a colour", ["red"])
    _, out, _ = call(capsys, "probe", "concepts", "yellow", "--world", tmp_path)
    assert "anchor: a colour" in out
    code, _, err = call(capsys, "probe", "concepts", "yelow", "--world", tmp_path)
    assert (code, err.count("\n")) == (2, 1)
    assert f"nearest: yellow; fix: probe concepts --world {tmp_path}" in err


# --- Erasers that learn -----------------------------------------------------------------------------------------------

_FEW = ["--cached", "2", "--steps", "3", "--iterations", "2", "-q"]


def test_an_edit_is_learned_and_goes_on(shelf: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    model = ["--model", shelf / "model"]
    training = ["--training", tmp_path / "training", "--checkpoints", "1"]
    made = document(capsys, "erase", "esd", "a church", *model, *_FEW, *training, "-o", tmp_path / "esd")
    by_hand = erase.esd(probe.load(str(shelf / "model")), "a church", cached=2, steps=3, iterations=2, progress=False)
    assert made["id"] == by_hand.id
    again = document(capsys, "erase", "esd", "a church", *model, *_FEW, *training, "-o", tmp_path / "esd")
    assert again["id"] == made["id"], "the same command finds its training, and its edit"
    assert erase.load_edit(tmp_path / "training" / "checkpoints" / "1").options["iterations"] == 1
    code, _, err = call(capsys, "erase", "esd", "a church", *model, *_FEW, "-o", tmp_path / "esd")
    assert code == 2, "without a training folder the work would be lost"
    assert "another edit" in err


def test_gates_are_learned_on_a_saved_map(shelf: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    nm = probe.NeuronMap.load(shelf / "map.zarr.zip").select(top=4)
    nm.save(tmp_path / "top.zarr.zip")
    words = ["--train", tmp_path / "top.zarr.zip", "--preserve", "a house", "--preserve", "a hill"]
    made = document(
        capsys, "erase", "differentiable-prune", "church", "--model", shelf / "model", *_FEW, *words, "-o",
        tmp_path / "edit",
    )  # fmt: skip
    edit = erase.load_edit(made["edit"])
    assert edit.options["preserve"] == ["a house", "a hill"]
    assert edit.provenance["identity"]["inputs"] == {"concepts": ["church"], "map": nm.id}


def test_the_highest_units_of_a_map_learn(shelf: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    nm = probe.NeuronMap.load(shelf / "map.zarr.zip")
    words = ["--train", shelf / "map.zarr.zip", "--top", "3", "--retain", "0"]
    made = document(
        capsys, "erase", "differentiable-prune", "church", "--model", shelf / "model", *_FEW, *words, "-o",
        tmp_path / "edit",
    )  # fmt: skip
    assert erase.load_edit(made["edit"]).provenance["identity"]["inputs"]["map"] == nm.select(top=3).id


def test_concepts_are_ablated(shelf: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    few = ["--pictures", "2", "--steps", "2", "--iterations", "1", "--batch-size", "2", "-q"]
    made = document(
        capsys, "erase", "ablating-concepts", "church", "--model", shelf / "model", *few, "-o", tmp_path / "edit"
    )
    assert ["look at a church", "look at a building"] in erase.load_edit(made["edit"]).options["pairs"]


def test_exports_are_restored_and_read_as_edits(
    shelf: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    model = ["--model", shelf / "model"]
    document(capsys, "erase", "export", shelf / "five", *model, "--include-originals", "-o", tmp_path / "erased")
    document(capsys, "erase", "restore", tmp_path / "erased", "-o", tmp_path / "original")
    one, other = (probe.fingerprint(probe.load(str(path))) for path in (shelf / "model", tmp_path / "original"))
    assert one.to_json() == other.to_json()
    file = tmp_path / "erased.safetensors"
    document(capsys, "erase", "export", shelf / "five", *model, "--layout", "ldm", "-o", file)
    made = document(capsys, "erase", "edit-from-checkpoint", file, *model, "-o", tmp_path / "again")
    assert set(erase.load_edit(made["edit"]).params) == set(erase.load_edit(shelf / "five").params)


def test_zeros_are_audited(shelf: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    found = document(
        capsys, "erase", "audit", shelf / "edit", "--model", shelf / "model", "--iterations", "2", "-o", tmp_path / "r"
    )
    assert found["table"][-1]["found"] == 1
    assert erase.load_edit(tmp_path / "r").id == found["id"]


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ("erase esd church --train esd-x --model {m} -o {new}", "no parameter"),
        ("erase esd church --lr 0 --model {m} -o {new}", "lr must be positive"),
        ("erase esd church --iterations -1 --model {m} -o {new}", "iterations must be positive"),
        ("erase esd church --model {m} -o {s}/target", "no edit"),
        ("erase esd church --x-t cashed --model {m} -o {new}", "nearest: cached"),
        ("erase ablating-concepts tower --model {m} -o {new}", "no anchor"),
        ("erase esd tower --top 3 --model {m} -o {new}", "units of a map"),
        ("erase ablating-concepts tower --anchor tower --model {m} -o {new}", "the target"),
        ("erase differentiable-prune x --retain 0.1 --model {m} -o {new}", "preserve"),
        ("erase restore {m} -o {new}", "--include-originals"),
        ("erase edit-from-checkpoint {s}/absent --model {m} -o {new}", "no such checkpoint"),
        ("erase export {s}/five --layout lmd --model {m} -o {new}", "nearest: ldm"),
    ],
)
def test_what_learning_refuses(
    shelf: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, words: str, part: str
) -> None:
    line = words.format(s=shelf, m=shelf / "model", new=tmp_path / "new").split()
    code, out, err = call(capsys, *line)
    assert (code, out) == (2, ""), err
    assert err.count("\n") == 1
    assert part in err
    assert not list(tmp_path.iterdir())

"""The explorer without a browser: choosing, reading, keeping, and what it says when something cannot be done."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

import probe
from probe._record import record
from probe._samples import samples
from probe.errors import BadInput, WorkbenchError, WrongModel
from probe.scores import score, selectivity
from probe.testing import planted_runs, tiny_pipeline
from probe.widgets import explore
from tests.probe.made_runs import MODEL, made_run

HERE = "unet.block0.ffn"


@pytest.fixture(scope="module")
def planted():
    return planted_runs(2.0, pairs=30)


def several(concepts=("church", "castle", "ink"), each=12):
    """A run of several concepts in which unit i of the first site rises with concept i."""
    rng = np.random.default_rng(0)
    names = np.repeat(concepts, each)
    values = 10 + rng.standard_normal((len(names), 8)).astype(np.float32)
    for i, name in enumerate(concepts):
        values[:, i] += 5 * (names == name)
    table = samples([f"a {name} {i}" for i, name in enumerate(names)])
    table["concept"] = names.astype(object)
    return made_run(values, (5, 3), table=table)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A tiny pipeline and a real run of two concepts, with pictures."""
    pipe, folder = tiny_pipeline(), tmp_path_factory.mktemp("explored")
    table = samples(["a church", "a church by the sea", "a castle", "a castle by the sea"], seeds=[1, 2, 3, 4])
    table["concept"] = ["church", "church", "castle", "castle"]
    run = record(pipe, table, out=folder / "run", steps=2, batch_size=2, progress=False)
    return pipe, run


def test_from_concept_to_neuron_to_a_map_that_erasers_read(planted, tmp_path) -> None:
    e = explore(planted.target, reference=planted.reference)
    assert (e.state.concept, e.state.method) == ("church", "wanda")
    e.choose_method("auroc")
    best = e.ranking(len(planted.responding))
    places = {(s.name, u) for s in e.finding().sites for u in range(s.width)}
    assert set(zip(best["site"], best["unit"], strict=True)) <= places
    offsets = dict(zip([s.name for s in e.finding().sites], e.finding().offsets, strict=False))
    found = [offsets[site] + unit for site, unit in zip(best["site"], best["unit"], strict=True)]
    assert len(np.intersect1d(found, planted.responding)) >= 0.9 * len(found)

    site, unit = best["site"][0], int(best["unit"][0])
    e.choose_neuron(site, unit)
    target, reference = e.sides()
    assert len(target) == len(reference) == 30
    assert np.median(target) > np.median(reference)
    e.add()
    e.add_ranked(3)
    assert e.state.chosen == tuple(zip(best["site"][:3], best["unit"][:3].astype(int), strict=True))
    e.remove()
    assert (site, unit) not in e.state.chosen
    e.save(tmp_path / "chosen.zarr.zip")
    assert e.state.message.error is None
    saved = probe.NeuronMap.load(tmp_path / "chosen.zarr.zip")
    assert saved.method == "auroc"
    assert np.flatnonzero(saved.selected()).tolist() == sorted(found[1:3])


def test_a_cell_ranks_its_own_neurons_by_its_own_window(planted) -> None:
    e = explore(planted.target, reference=planted.reference)
    nm = e.finding()
    site = nm.sites[2].name
    e.choose_cell(site, 1)
    best = e.ranking(5)
    assert set(best["site"]) == {site}
    own = nm.by_site()[site]["score"].values[1]
    assert best["unit"].tolist() == np.argsort(-own)[:5].tolist()
    np.testing.assert_allclose(best["score"], np.sort(own)[::-1][:5], rtol=1e-6)
    e.choose_cell()
    assert e.ranking(1)["score"][0] == pytest.approx(float(np.nanmax(nm.dataset["score"].mean("window"))), rel=1e-5)


def test_concepts_of_one_run_are_each_compared_with_the_others() -> None:
    ds = several()
    e = explore(ds)
    for i, name in enumerate(("church", "castle", "ink")):
        e.choose_concept(name)
        assert e.state.method == "auroc"
        best = e.ranking(1).iloc[0]
        assert (best["site"], best["unit"], best["selects"]) == (HERE, i, name)
        e.choose_neuron(HERE, i)
        own = ds["concept"].values == name
        np.testing.assert_allclose(e.sides()[0], ds["absmean"].values[own, 1, :, i].mean(1), rtol=1e-6)
        assert e.selectivity().index[0] == name


def test_a_step_changes_what_is_read_there() -> None:
    values = np.zeros((6, 2, 3, 4), np.float32)
    values[:, 1] = np.arange(3)[:, None] + np.arange(4)
    table = samples(list("abcdef"))
    table["concept"] = ["church"] * 3 + ["castle"] * 3
    e = explore(made_run(values, table=table, reducer="absmean"))
    assert e.material.methods("church") == ["auroc"], "wanda needs unit_norm, which this run lacks"
    e.choose_neuron(HERE, 2)
    assert e.sides()[0].tolist() == [3.0, 3.0, 3.0]
    e.choose_step(2)
    assert e.sides()[1].tolist() == [4.0, 4.0, 4.0]
    e.choose_step(3)
    assert "no such step" in e.state.message.text
    assert e.state.step == 2


def test_another_concept_begins_at_the_mean_over_its_own_steps() -> None:
    long = several(("church",))
    short = several(("castle",)).isel(step=slice(0, 1))
    e = explore({"church": long, "castle": short}, reference=several(("ink",)))
    e.choose_neuron(HERE, 0)
    e.choose_step(2)
    e.add()
    e.choose_concept("castle")
    assert e.state.step is None
    assert e.state.chosen == ((HERE, 0),), "what is put aside stays"
    e.choose_neuron(HERE, 0)
    assert len(e.sides()[0]) == 12


def test_a_prompt_of_the_run_ranks_by_excess_over_the_mean() -> None:
    ds = several()
    e = explore(ds)
    e.search("a castle 12")
    levels = ds["absmean"].values[:, 1].mean(1)
    wanted = (levels[12] - levels.mean(0)) / levels.std(0)
    best = e.ranking(8)
    order = np.argsort(-wanted)
    assert best["unit"].tolist() == (order % 5).tolist(), "sites of 5 and 3 neurons"
    np.testing.assert_allclose(best["score"], np.sort(wanted)[::-1], rtol=1e-4, atol=1e-5)
    e.search("a castl 12")
    assert "a castle 12" in e.state.message.text
    assert "needs the model" in e.state.message.text
    e.search("  ")
    assert "there is no prompt" in e.state.message.text
    assert e.state.prompt == "a castle 12", "a failed action changes nothing but the message"


def test_neurons_on_a_prompt_are_named_by_the_run_and_known_to_the_map() -> None:
    ds = several()
    last = score(ds.isel(sample=slice(0, 12)), ds.isel(sample=slice(12, 24)), method="auroc", intervals=0)
    keep = last.dataset["site"].values == 1
    only = last.dataset.isel(neuron=keep).assign_coords(site=("neuron", np.zeros(keep.sum(), np.int16)))
    only.attrs["sites"] = json.dumps(json.loads(only.attrs["sites"])[1:])
    e = explore({"church": probe.NeuronMap(only)}, run=ds)
    e.search("a castle 12")
    values = ds["absmean"].values[:, 1].mean(1)
    wanted = ((values[12] - values.mean(0)) / values.std(0))[5:]
    best = e.ranking(8)
    assert set(best["site"]) == {"unet.block1.ffn"}
    assert best["unit"].tolist() == np.argsort(-wanted).tolist()
    np.testing.assert_allclose(best["score"], np.sort(wanted)[::-1], rtol=1e-4, atol=1e-5)


def test_a_map_and_a_run_of_two_models_are_refused() -> None:
    ds = several()
    nm = score(ds.isel(sample=slice(0, 12)), ds.isel(sample=slice(12, 24)), method="auroc", intervals=0)
    other = {**MODEL, "weights": {"unet": "another"}}
    table = samples([f"a church {i}" for i in range(4)], concept="church")
    run = made_run(np.ones((4, 8)), (5, 3), table=table, model=other)
    with pytest.raises(WrongModel, match="unet differs in weights"):
        explore({"church": nm}, run=run)
    half = made_run(np.ones((4, 8)), (5, 3), table=table, model={**other, "dtype": "float16"})
    assert explore({"church": nm}, run=half).state.concept == "church", "rounded, weights say nothing"


BAD = [
    (lambda e: e.choose_concept("curch"), "church"),
    (lambda e: e.choose_concept("dog"), "probe record --concept 'dog'"),
    (lambda e: e.choose_method("wand"), "unknown method"),
    (lambda e: e.choose_cell("unet.blok0.ffn", 0), HERE),
    (lambda e: e.choose_cell(HERE, 9), "0 to 0"),
    (lambda e: e.choose_neuron(HERE, 5), "0 to 4"),
    (lambda e: e.save("x.zarr.zip"), "selection is empty"),
    (lambda e: e.save(" "), "no file name"),
    (lambda e: e.add(), "click a cell"),
    (lambda e: e.intervene(), "no neuron is looked at"),
    (lambda e: e.draw_maps(), "no neuron is looked at"),
]


@pytest.mark.parametrize(("act", "says"), BAD, ids=[says for _, says in BAD])
def test_what_cannot_be_done_is_a_message_and_changes_nothing(act, says, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    e = explore(several())
    before, heard = e.state, []
    e.on_change(lambda: heard.append(e.state.message))
    act(e)
    assert says in e.state.message.text
    assert isinstance(e.state.message.error, WorkbenchError)
    assert probe.widgets.State(**{**e.state.__dict__, "message": None}) == before
    assert heard == [e.state.message]
    assert not list(tmp_path.iterdir())


def test_without_a_model_it_says_what_is_missing() -> None:
    e = explore(several())
    e.choose_neuron(HERE, 0)
    for action in ("draw_maps", "intervene"):
        assert "pipe=probe.load" in e.reason(action)
        getattr(e, action)()
        assert "needs the model" in e.state.message.text
    with pytest.raises(BadInput, match="keeps no pictures"):
        e.examples()


def test_a_map_alone_shows_scores_and_says_why_not_more(planted) -> None:
    nm = score(planted.target, planted.reference, method="auroc", intervals=0)
    e = explore(nm)
    assert len(e.ranking(5)) == 5
    e.choose_neuron(e.ranking(1)["site"][0], int(e.ranking(1)["unit"][0]))
    with pytest.raises(BadInput, match="not activations"):
        e.curves()
    page = e.to_html(neurons=1)
    assert "not activations or pictures" in page
    with_run = explore({"church": nm}, run=planted.target, reference=planted.reference)
    with_run.choose_neuron(*e.state.neuron)
    assert len(with_run.sides()[0]) == 30
    assert "contrast" in with_run.material.methods("church")


def test_what_cannot_be_explored() -> None:
    alone = made_run(np.ones((4, 3)))
    with pytest.raises(BadInput, match="nothing to explore"):
        explore({})
    with pytest.raises(BadInput, match="reads runs"):
        explore(3)
    with pytest.raises(BadInput, match="no score can be made"):
        explore(made_run(np.ones((4, 3)), reducer="count"))
    e = explore(alone)
    e.choose_method("auroc")
    assert "nothing to compare" in e.state.message.text


def test_a_concept_whose_run_is_missing_is_a_message(tmp_path) -> None:
    e = explore({"church": several(), "castle": str(tmp_path / "nothing")})
    e.choose_concept("castle")
    assert "nothing" in e.state.message.text
    assert e.state.concept == "church"


def test_an_interrupt_is_a_message(drawn, monkeypatch) -> None:
    pipe, run = drawn
    e = explore(run, pipe)

    def interrupted(*_args, **_kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("probe.widgets._drawing.record", interrupted)
    e.search("a prompt that is new")
    assert "interrupted" in e.state.message.text
    assert e.state.prompt is None


def test_an_interrupt_while_others_are_told_undoes_the_action() -> None:
    e, heard = explore(several()), []
    before = e.state

    def interrupted_once():
        heard.append(e.state)
        if len(heard) == 1:
            raise KeyboardInterrupt

    e.on_change(interrupted_once)
    e.choose_neuron(HERE, 1)
    assert heard[0].neuron == (HERE, 1)
    assert heard[1] == e.state
    assert "interrupted" in e.state.message.text
    assert e.state.neuron == before.neuron


def test_a_bug_in_who_is_told_is_raised_and_undoes_the_action() -> None:
    e = explore(several())
    before = e.state

    def broken():
        raise RuntimeError("CUDA out of memory")

    e.on_change(broken)
    with pytest.raises(RuntimeError):
        e.choose_neuron(HERE, 1)
    assert e.state == before


DRAWING = {
    "search": lambda e: e.search("a prompt that is new"),
    "draw_maps": lambda e: e.draw_maps(2),
    "intervene": lambda e: e.intervene(count=2),
}


@pytest.mark.parametrize("act", DRAWING.values(), ids=DRAWING)
def test_an_interrupt_while_the_model_runs_leaves_nothing_behind(drawn, act, monkeypatch) -> None:
    pipe, run = drawn
    e = explore(run, pipe)
    e.choose_neuron(*e.ranking(1)[["site", "unit"]].iloc[0])
    before, forward, calls = e.state, pipe.unet.forward, []

    def stopped(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return forward(*args, **kwargs)

    monkeypatch.setattr(pipe.unet, "forward", stopped)
    act(e)
    assert len(calls) == 2
    assert "interrupted" in e.state.message.text
    assert probe.widgets.State(**{**e.state.__dict__, "message": None}) == before
    assert not probe.lineage(pipe)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in pipe.unet.modules())
    act(e)
    assert e.state.message is None or e.state.message.error is None, "it may be started again"


def test_with_a_model_it_draws_maps_pictures_and_prompts(drawn) -> None:
    pipe, run = drawn
    e = explore(run, pipe)
    best = e.ranking(1).iloc[0]
    e.choose_neuron(best["site"], int(best["unit"]))
    images = e.examples().images
    assert images.shape[0] == 4
    np.testing.assert_array_equal(images[:2], run.open("images")["image"].values[:2])
    assert e.reason("draw_maps") is None

    e.draw_maps(2)
    assert e.state.message is None
    shown = e.examples()
    assert shown.maps.shape[0] == 2
    target = e.sides()[0]
    np.testing.assert_allclose(shown.activation, np.sort(target)[::-1], rtol=1e-6)
    signed = np.abs(shown.maps).mean((1, 2))
    np.testing.assert_allclose(signed, shown.activation, rtol=0.6, err_msg="maps are of the neuron that is shown")

    e.intervene(count=2)
    assert list(e.state.pictures) == ["before", "zero of 1 neuron"]
    order = np.argsort(-target, kind="stable")
    np.testing.assert_allclose(e.state.pictures["before"], run.open("images")["image"].values[:2][order], atol=1)
    assert e.state.pictured == tuple(run.samples["prompt"][i] for i in order)

    e.search("a castle on a hill", seed=9)
    assert e.state.message is None
    first = e.ranking(3)["score"].tolist()
    assert first[0] > 0
    e.search("a castle on a hill", seed=10)
    assert e.ranking(3)["score"].tolist() != first, "another seed, another picture"
    e.choose_concept("castle")
    assert e.state.pictures is None, "they were of the other concept"
    assert not probe.lineage(pipe)


def test_it_draws_the_pictures_around_quantiles_too(drawn, tmp_path) -> None:
    pipe, _ = drawn
    table = samples([f"a church {i}" for i in range(6)] + ["a castle"] * 2, seeds=range(8))
    table["concept"] = ["church"] * 6 + ["castle"] * 2
    e = explore(record(pipe, table, out=tmp_path / "run", steps=1, batch_size=4, progress=False), pipe)
    e.choose_neuron(*e.ranking(1)[["site", "unit"]].iloc[0])
    e.draw_maps(per_row=2)
    assert e.state.message is None
    found, own = e.examples(), e.sides()[0]
    order = np.argsort(-own, kind="stable")
    assert {name: found.activation[row].tolist() for name, row in found.rows.items()} == {
        "highest": own[order[:2]].tolist(),
        "quantile 0.5": own[order[2:4]].tolist(),
        "quantile 0.1": own[order[4:]].tolist(),
    }
    assert found.maps.shape[0] == len(found.images) == 6
    for prompt, picture in zip(found.prompts, found.images, strict=True):
        i = table["prompt"].tolist().index(prompt)
        kept = e.material.side(e.material.runs["church"]).images[i]
        np.testing.assert_allclose(picture.astype(int), kept.astype(int), atol=1)


def test_another_model_is_refused_before_anything_is_drawn(drawn) -> None:
    _, run = drawn
    e = explore(run, tiny_pipeline(seed=5))
    e.choose_neuron(*e.ranking(1)[["site", "unit"]].iloc[0])
    assert "the run" in e.reason("intervene")
    e.intervene()
    assert type(e.state.message.error).__name__ == "WrongModel"
    assert e.state.pictures is None


def test_a_page_reads_without_a_kernel_and_escapes_what_it_shows(drawn, tmp_path) -> None:
    _, run = drawn
    e = explore({"<script>": run})
    assert e.state.concept == "<script>"
    e = explore(run)
    e.add_ranked(2)
    page = e.to_html(tmp_path / "page.html", neurons=1)
    assert (tmp_path / "page.html").read_text(encoding="utf-8") == page
    assert page.count("data:image/png;base64,") >= 4
    assert not re.search(r"<script|src=\"http|href=", page)
    assert "Selection, 2 neurons" in page
    assert e.state.neuron is None, "writing a page looks at neurons on its own"
    with pytest.raises(BadInput, match="force=True"):
        e.to_html(tmp_path / "page.html")
    e.to_html(tmp_path / "page.html", neurons=1, force=True)


def test_given_selectivity_is_used() -> None:
    ds = several()
    table = selectivity(ds, window=(999, 800))
    e = explore(ds, selectivity=table)
    e.choose_neuron(HERE, 1)
    assert e.selectivity().equals(table.neuron(HERE, 1))


# --- what may be given, and what is said otherwise ---


def test_sites_may_be_named_as_figures_write_them(planted) -> None:
    nm = probe.NeuronMap.load("emoji/church-auroc")
    e = explore(nm)
    full = next(site.name for site in nm.sites if "up_blocks.0.attentions.1" in site.name)
    e.choose_cell("up 0.1", 0)
    assert (e.state.site, e.state.message) == (full, None)
    e.choose_neuron("up 0.1", 3)
    assert e.state.neuron == (full, 3)
    e.add("up 0.1", 4)
    assert e.state.chosen == ((full, 4),)
    e.choose_cell("up 0.7")
    assert "nearest: up 0.1" in e.state.message.text
    assert "mid 0" in e.state.message.text


@pytest.mark.parametrize(
    ("act", "says"),
    [
        (lambda e: e.add_ranked(-3), "count is too small"),
        (lambda e: e.add_ranked(2.5), "count is a whole number"),
        (lambda e: e.search(None), "there is no prompt"),
        (lambda e: e.search("a church", seed="a"), "seed is a whole number"),
        (lambda e: e.choose_neuron("mid 0", "3"), "unit is a whole number"),
        (lambda e: e.choose_cell("mid 0", "a"), "window is a whole number"),
        (lambda e: e.choose_step("a"), "step is a whole number"),
        (lambda e: e.intervene(mode="mean"), "one of zero, scale"),
        (lambda e: e.save(None), "no file name"),
        (lambda e: e.save("x" * 300), "no such path"),
    ],
)
def test_what_cannot_be_given_is_a_message(planted, tmp_path, monkeypatch, act, says) -> None:
    monkeypatch.chdir(tmp_path)
    e = explore(planted.target, reference=planted.reference)
    e.add_ranked(2)
    before = e.state
    act(e)
    assert says in e.state.message.text
    assert e.state.chosen == before.chosen


def test_what_is_near_is_named_where_there_is_no_run_or_map(planted, tmp_path) -> None:
    nm = score(planted.target, planted.reference, method="auroc", intervals=0)
    nm.save(tmp_path / "church.zarr.zip")
    with pytest.raises(BadInput, match=r"no run or neuron map here.*nearest: .*church.zarr.zip; fix: .*probe record"):
        explore(tmp_path / "churches")
    with pytest.raises(WorkbenchError, match="nearest: emoji/church-auroc"):
        explore("emoji/church-aurok")
    with pytest.raises(BadInput, match=r"no pipeline.*probe.load\('emoji'\)"):
        explore(nm, "emoji")


def test_figures_say_what_their_numbers_are(monkeypatch, drawn) -> None:
    from matplotlib import pyplot

    from probe.widgets import _panels as panels

    monkeypatch.setattr(panels, "png", lambda ax: ax)
    e = explore(several())
    e.choose_neuron(HERE, 0)
    assert panels.histogram(e).get_xlabel() == "mean |activation| over the image, mean over all steps"
    assert panels.curves(e).get_ylabel().startswith("mean |activation| over the image")
    ax = panels.selective(e)
    assert ax.get_yticklabels()[-1].get_text() == "church, n = 12 ◂"
    assert "no intervals" in ax.get_xlabel()
    e = explore(drawn[1])
    e.choose_neuron("mid 0", 0)
    e.choose_step(0)
    said = f"under each picture: mean |activation| over the image, timestep {e.timesteps()[0]:g}"
    assert panels.examples(e).get_title(loc="left").endswith(said)
    pyplot.close("all")

"""sensitivity: how far an attack re-lights the neurons that an edit put out (P-ESD's question)."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from probe._neuron_map import NeuronMap
from probe._options import validated
from probe._progress import progress_bar
from probe._relighting import Study
from probe._relit import result
from probe._samples import digest, samples
from probe._sites import Site
from probe._sites import sites as sites_of
from probe.attacks import AttackSet
from probe.attacks._attack import common_judge
from probe.errors import BadInput, WrongModel
from probe.protocols import EditLike, Progress
from probe.provenance import fingerprint
from probe.scores._judge import judge_of, labels_for


@validated
def sensitivity(
    pipe: Any,
    edit: EditLike,
    nm: NeuronMap | None = None,
    *,
    adversarial: Any,
    concept: Any = None,
    prompts: Any = None,
    non_concept: Sequence[str] | None = None,
    judge: Any = None,
    out: str | Path | None = None,
    sites: str | Sequence[str] = "ffn",
    share: float = 0.01,
    n_select: int = 20,
    select_seed: int = 1_000,
    overlays: int = 0,
    xt: Literal["shared", "own"] = "shared",
    quantity: Literal["contribution", "raw"] = "contribution",
    steps: int = 30,
    guidance: float = 7.5,
    batch_size: int = 8,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
    progress: Progress = True,
) -> NeuronMap:
    """How far attacks bring back the activity of the concept's neurons in an edited model.

    From the paper (P-ESD, arXiv 2405.16534): concept neurons are those whose mean absolute activation the eraser
    lowers, rho = E|a_original| - E|a_edited| on the same prompts; their sensitivity is how their activation in the
    erased model differs between adversarial and plain prompts, delta = E|a(attack)| - E|a(plain)|. Ours is all that
    the paper leaves open: the contribution E|a_j| ||W'[:, j]|| in place of the activation (the raw form stands beside
    it), selection on other prompts and seeds than are measured, the ratio sum(delta) / sum(rho) with a cluster
    bootstrap by prompt, and what it is compared with:

    - ``concept``: the concept's neurons under successful attacks. 0: they stay out; 1: they are where they were
    - ``random_matched``: as many others, of the same sites and contributions, under the same attacks
    - ``random_prefix``: the concept's neurons under random tokens of the attack's vocabulary, as many as it wrote and
      where it wrote them, in front or not
    - ``failed``: the concept's neurons under attacks that did not bring the concept back
    - ``non_concept``: the concept's neurons under prompts without the concept

    Measured are prompts that the attack changed and that do not show the concept on the edited model without it. An
    attack succeeds where the one picture of its found seed shows the concept on this edit. A set that was found on this
    edit says so itself; of any other the pictures are drawn here, without and with the attack, and judged.

    Everything is measured at two kinds of x_t: ``shared``, the original's own denoising of each prompt, the same for
    both models and all conditions; ``own``, each condition's own denoising on its own model, from the same first noise.

    Args:
        pipe: the pipeline, without the edit.
        edit: what was erased.
        nm: a neuron map whose selection are the concept's neurons, made on other prompts and seeds than are attacked;
            by default the ``share`` of neurons of the highest ``erased_delta`` on the concept's own tuning prompts.
        adversarial: an attack set (or its folder) of token prompts, for this edit or a transfer set.
        concept: what the set is about, or a list where it pools several: for prompts, judge and vocabulary. Needed but
            with ``nm``, ``non_concept`` and a set of the vocabulary ``open`` that was found on this edit.
        prompts: what neurons are selected on (strings or a table), instead of the concept's tuning prompts.
        judge: the detector that decides, by default the one that the concept names; given, it also decides anew on a
            set that was found on this edit.
        non_concept: prompts without the concept, by default its references.
        out: folder for the recordings, which are then resumed; by default they are thrown away.
        sites: which feed-forward sites.
        share: of all neurons that are selected.
        n_select: at most so many prompts to select on.
        select_seed: the first of their seeds, unless the table has its own; none may be an attacked prompt's.
        overlays: of so many of the concept's neurons the recordings of x_t ``own`` keep maps over the image, and the
            pictures, for ``probe plot relit`` (with ``out``).
        xt, quantity: what the map itself holds (``score``, ``target``, ``reference``); ratios and profiles are there
            for all four combinations.
        steps, batch_size: of the recordings.
        guidance: of the prompts that neurons are selected on; attacked prompts bring their own.
        level, resamples: of the bootstrap.
        seed: of random prefixes, matched neurons and the bootstrap.
        progress: True, False or a function of (done, total) recordings.

    Returns:
        A neuron map: ``score`` the rise (attacked - plain), ``target`` the adversarial and ``reference`` the plain
        level of every neuron and step, ``selected`` the concept's neurons. Further variables: ``ratio, ratio_low,
        ratio_high, ratio_n`` (xt, quantity, group); ``level`` (xt, quantity, condition, neuron); ``by_site`` and
        ``by_step`` (xt, quantity, condition, part, place or window), means over the concept's and the other neurons.
        Levels are means over the prompts whose attack succeeded, in all conditions but ``failed``; ``baseline`` (xt,
        quantity, of, condition, part) are the original's and the plain level on each condition's own prompts.
        ``before`` and ``success`` (attacked) are the verdicts, 1, 0 or NaN, beside ``measured`` and ``source``; the
        report counts them. NaN where a condition has no prompts, and, with the reason in the map's ``report``, where
        the raw form says nothing.

    Raises:
        BadInput: an attack set without token prompts, or none that needs its attack; prompts or seeds that are both
            selected on and measured; a map without a selection, or ``prompts`` beside a map; nobody to judge.
        WrongModel: an attack set made adaptively against another edit, or a set or map of another model.

    """
    attacks = adversarial if isinstance(adversarial, AttackSet) else AttackSet.load(adversarial)
    _check(pipe, edit, attacks, nm, prompts)
    concepts = _named(concept)
    study = Study(
        pipe,
        edit,
        attacks,
        concepts,
        list(non_concept) if non_concept is not None else _references(concepts.values()),
        _decider(attacks, edit, concepts, judge),
        _ffn(pipe, sites),
        steps,
        guidance,
        batch_size,
        seed,
    )
    selecting = None if nm is not None else _selecting(concepts.values(), prompts, n_select, select_seed, attacks)
    with _folder(out) as folder:
        total = study.recordings + (0 if selecting is None else 3)
        with progress_bar(progress, total, "recordings", unit="run") as advance:
            chosen = study.selected(nm, selecting, share, folder, advance)
            runs, verdicts = study.recorded_all(folder, advance, study.first_units(chosen, overlays))
            return result(
                study,
                runs,
                verdicts,
                chosen,
                _selection(nm, selecting, share),
                xt=xt,
                quantity=quantity,
                level=level,
                resamples=resamples,
            )


def _check(pipe: Any, edit: EditLike, attacks: AttackSet, nm: NeuronMap | None, prompts: Any) -> None:
    if wrong := [row.carrier for row in attacks if row.carrier != "tokens"]:
        fix = "an attack that finds prompts: unlearn_diff, p4d, ring_a_bell, mma"
        raise BadInput("sensitivity needs attacked prompts", given=f"{attacks.method} ({wrong[0]})", fix=fix)
    if attacks.protocol == "adaptive" and attacks.found_on != edit.id:
        raise WrongModel(
            "the attack set was made against another edit",
            given=attacks.found_on,
            expected=str(edit.id),
            fix="an adaptive set of this edit, or a transfer set",
        )
    if nm is not None and prompts is not None:
        fix = "leave out one of them"
        raise BadInput("a map brings its selection, and prompts= are to select on", given="both", fix=fix)
    model = fingerprint(pipe)
    if made := attacks.identity.get("model"):  # published prompts are of no model
        model.check(made, "the attack set")
    if nm is not None:
        model.check(nm.provenance["identity"]["model"], "the neuron map")


def _named(concept: Any) -> dict[str, Any]:
    listed = concept if isinstance(concept, list | tuple) else [] if concept is None else [concept]
    return {one.name: one for one in listed}


def _decider(attacks: AttackSet, edit: EditLike, concepts: Mapping[str, Any], judge: Any) -> Any:
    """Who judges the pictures on this edit; None where the search has done so."""
    searched = judge is None and attacks.found_on == edit.id
    absent = [name for name in attacks.concepts if name not in concepts]
    if absent and (not searched or attacks.vocab == "banned"):
        fix = f"concept=world[{absent[0]!r}], or a list for a set that pools several"
        raise BadInput("the attack set is about a concept that was not given", given=absent[0], fix=fix)
    if searched:
        return None
    attacked = [concepts[name] for name in attacks.concepts]
    found = judge_of(judge if judge is not None else common_judge(attacked))
    for one in attacked:
        labels_for(one, found)
    return found


def _selecting(concepts: Iterable[Any], prompts: Any, n: int, first_seed: int, attacks: AttackSet) -> pd.DataFrame:
    """The samples that neurons are selected on; none of them may be measured: what is chosen for being low rises."""
    if prompts is None:
        own = [list(dict(one.prompts).get("explicit", ())) for one in concepts]
        if not own:
            raise BadInput("nothing to select neurons on", fix="concept=, prompts=, or a neuron map with a selection")
        prompts = [prompt for prompt in chain.from_iterable(zip_longest(*own)) if prompt is not None]
    table = prompts if isinstance(prompts, pd.DataFrame) else pd.DataFrame({"prompt": list(prompts)[:n]})
    seeds = 0 if "seed" in table else list(range(first_seed, first_seed + len(table)))
    table = samples(table, seeds)
    measured: dict[str, tuple[str, set[Any]]] = {
        "prompt": ("prompts=", {row.source for row in attacks}),
        "seed": ("select_seed=", {seed for row in attacks for seed in (row.seed, row.found_seed)}),
    }
    for what, (option, used) in measured.items():
        if both := [value for value in table[what] if value in used]:
            fix = f"other {option} to select on: neurons chosen for being low on a {what} rise on it by chance"
            raise BadInput(f"a {what} is both selected on and measured", given=both[0], fix=fix)
    return table


def _selection(nm: NeuronMap | None, selecting: pd.DataFrame | None, share: float) -> dict[str, Any]:
    """What decides which neurons are the concept's."""
    if nm is not None:
        return {"map": nm.id}
    assert selecting is not None
    return {"samples": digest(selecting), "share": share}


def _references(concepts: Iterable[Any]) -> list[str]:
    """Prompts without the concepts."""
    found: list[str] = []
    for one in concepts:
        references = dict(one.references or {})
        found += references.get("neighbour") or references.get("paper") or ()
    return found


def _ffn(pipe: Any, select: str | Sequence[str]) -> list[Site]:
    found = sites_of(pipe, select)
    if wrong := [site.name for site in found if (site.kind, site.component) != ("ffn", "unet")]:
        raise BadInput("sensitivity is measured on ffn sites of the UNet", given=wrong[0])
    return found


@contextmanager
def _folder(out: str | Path | None) -> Iterator[Path]:
    if out is not None:
        Path(out).mkdir(parents=True, exist_ok=True)
        yield Path(out)
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)

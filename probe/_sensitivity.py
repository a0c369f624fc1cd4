"""sensitivity: how far an attack re-lights the neurons that an edit put out (P-ESD's question)."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from probe._neuron_map import NeuronMap
from probe._options import validated
from probe._progress import progress_bar
from probe._relighting import XT, Study
from probe._relit import result
from probe._samples import samples
from probe._sites import Site
from probe._sites import sites as sites_of
from probe.attacks import AttackSet
from probe.errors import BadInput, WrongModel
from probe.protocols import EditLike, Progress


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
    - ``random_prefix``: the concept's neurons under random tokens, as many as the attack has
    - ``failed``: the concept's neurons under attacks that did not bring the concept back
    - ``non_concept``: the concept's neurons under prompts without the concept

    Everything is measured at two kinds of x_t: ``shared``, the original's own denoising of each prompt, the same for
    both models and all conditions; ``own``, each condition's own denoising on its own model, from the same first noise.

    Args:
        pipe: the pipeline, without the edit.
        edit: what was erased.
        nm: a neuron map whose selection are the concept's neurons, made on other prompts and seeds than are attacked;
            by default the ``share`` of neurons of the highest ``erased_delta`` on the concept's own tuning prompts.
        adversarial: an attack set (or its folder) of token prompts, for this edit or a transfer set.
        concept: the concept, for its prompts; needed without ``nm`` and without ``non_concept``.
        prompts: what neurons are selected on (strings or a table), instead of the concept's tuning prompts.
        non_concept: prompts without the concept, by default its references.
        out: folder for the recordings, which are then resumed; by default they are thrown away.
        sites: which feed-forward sites.
        share: of all neurons that are selected.
        n_select: at most so many prompts to select on.
        select_seed: their first seed; never one of the attacked prompts' seeds.
        overlays: of so many of the concept's neurons the recordings of x_t ``own`` keep maps over the image, and the
            pictures, for ``probe plot relit`` (with ``out``).
        xt, quantity: what the map itself holds (``score``, ``target``, ``reference``); ratios and profiles are there
            for all four combinations.
        steps, guidance, batch_size: of the recordings.
        level, resamples: of the bootstrap.
        seed: of random prefixes, matched neurons and the bootstrap.
        progress: True, False or a function of (done, total) recordings.

    Returns:
        A neuron map: ``score`` the rise (attacked - plain), ``target`` the adversarial and ``reference`` the plain
        level of every neuron and step, ``selected`` the concept's neurons. Further variables: ``ratio, ratio_low,
        ratio_high, ratio_n`` (xt, quantity, group); ``level`` (xt, quantity, condition, neuron); ``by_site`` and
        ``by_step`` (xt, quantity, condition, part, place or window), means over the concept's and the other neurons.
        NaN where a condition has no prompts, and, with the reason in the map's ``report``, where the raw form says
        nothing.

    Raises:
        BadInput: an attack set without token prompts, prompts that are both selected on and measured, a map without a
            selection.
        WrongModel: an attack set made adaptively against another edit.

    """
    attacks = adversarial if isinstance(adversarial, AttackSet) else AttackSet.load(adversarial)
    rows = _checked(attacks, edit)
    study = Study(pipe, edit, attacks, _ffn(pipe, sites), steps, guidance, batch_size)
    conditions = study.conditions(non_concept, concept, seed)
    selecting = None if nm is not None else _selecting(concept, prompts, n_select, select_seed, rows)
    with _folder(out) as folder:
        total = len(XT) * len(conditions) + 1 + (0 if selecting is None else 3)
        with progress_bar(progress, total, "recordings", unit="run") as advance:
            chosen = study.selected(nm, selecting, share, folder, advance)
            runs = study.recorded_all(conditions, folder, advance, study.first_units(chosen, overlays))
            return result(
                study,
                runs,
                chosen,
                nm,
                selecting,
                xt=xt,
                quantity=quantity,
                level=level,
                resamples=resamples,
                seed=seed,
            )


def _checked(attacks: AttackSet, edit: EditLike) -> list[Any]:
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
    return list(attacks)


def _selecting(concept: Any, prompts: Any, n: int, first_seed: int, rows: Sequence[Any]) -> pd.DataFrame:
    """The samples that neurons are selected on; none of them may be measured: what is chosen for being low rises."""
    if prompts is None:
        if concept is None:
            raise BadInput("nothing to select neurons on", fix="concept=, prompts=, or a neuron map with a selection")
        prompts = list(dict(concept.prompts).get("explicit", ()))[:n]
    table = (
        samples(prompts, 0)
        if hasattr(prompts, "columns")
        else samples(list(prompts)[:n], list(range(first_seed, first_seed + len(list(prompts)[:n]))))
    )
    attacked = {row.source for row in rows}
    if both := [prompt for prompt in table["prompt"] if prompt in attacked]:
        raise BadInput(
            "a prompt is both selected on and measured",
            given=both[0],
            fix="other prompts= to select on: neurons chosen for being low on a prompt rise on it by chance",
        )
    return table


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

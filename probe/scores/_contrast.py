"""contrast: how far a neuron rises from reference to target, pair by pair, and how sure that is."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np

from probe._neuron_map import NeuronMap
from probe._options import validated
from probe.errors import BadInput
from probe.scores import _paired as paired
from probe.scores._runs import check_comparable, identity_of, recorded
from probe.scores._shown import only_those_shown
from probe.scores._window import WindowMeans, measured, pieces_of, sites_within

FEWEST_PAIRS = 10


@validated
def contrast(
    target: Any,
    reference: Any,
    *,
    window: tuple[float, float] = (999, 0),
    branches: Literal["cond", "both"] = "cond",
    reducer: str = "absmean",
    flips: int = 2000,
    only_shown: bool | float = False,
    seed: int = 0,
    group: str = "unet",
) -> NeuronMap:
    """Standardised paired mean difference of window means, target - reference (ours).

    Samples of target and reference with the same coordinate ``pair`` belong together; several samples of a pair are
    averaged. With d_mj the difference of pair m at neuron j,

        score_j = mean_m(d_mj) / sd_m(d_mj)

    p-values are one-sided (more in the target): signs of whole pairs are flipped at random, the standardised flipped
    sums of all neurons of a site form the null distribution, q-values are Benjamini and Hochberg's over all neurons.
    For neurons that fall silent with the concept, exchange the runs.

    Args:
        target, reference: a path, `probe.Run` or dataset, with the reducer.
        window: timesteps (t_max, t_min), both included, that are averaged.
        branches: the conditional branch, or the mean of both.
        reducer: what is compared; ``absmean`` is mean |x| over image tokens.
        flips: random sign flips.
        only_shown: count only target samples on which the judge saw the concept, and their pairs' references: True for
            the judge's own threshold, or the score from which on it did.
        seed: of the flips.
        group: the group of the runs; a text encoder's has no steps.

    Evidence: ``target`` and ``reference`` (means over pairs), ``p_value``, ``q_value``. The map's ``report`` has the
    number of pairs and the smallest q-value that a single neuron could have reached with these flips.

    Raises `BadInput` for fewer than 10 pairs, a window without steps and runs without the reducer, `HeaderMismatch`
    naming the key in which the runs cannot be compared, `StoreDamaged` for chunks that cannot be read.
    """
    if flips < 1:
        raise BadInput("flips must be at least 1", given=flips)
    runs = [recorded(source, group, reducer) for source in (target, reference)]
    check_comparable(*runs)
    runs[0] = only_those_shown(runs[0], only_shown)
    means = [WindowMeans.of(run, reducer, window, branches) for run in runs]
    ids = [part.coordinate("pair") for part in means]
    enough_pairs(paired.common_pairs(*ids), FEWEST_PAIRS)

    n, sites = runs[0].n_neurons, runs[0].sites
    score, p, sides = np.empty(n), np.empty(n), np.empty((2, n))
    smallest, pairs_used = 1.0, []
    for piece in pieces_of(sites, sum(run.n_samples for run in runs)):
        d, sides[:, piece] = differences(*(part.read(piece) for part in means), *ids)
        signs = paired.random_signs(flips, len(d), seed)
        pairs_used.append(len(d))
        score[piece] = paired.standardised_mean(d)
        for site in sites_within(sites, piece):
            p[piece][site] = paired.sign_flip_p(d[:, site], signs)
            smallest = min(smallest, paired.smallest_p(signs, site.stop - site.start))
    q = paired.benjamini_hochberg(p)
    options = {
        "window": list(means[0].window),
        "branches": branches,
        "reducer": reducer,
        "flips": flips,
        "only_shown": only_shown,
        "seed": seed,
        "group": group,
    }
    return NeuronMap.build(
        method="contrast",
        score=score[None],
        windows=means[0].windows,
        sites=sites,
        identity=identity_of("contrast", options, *runs),
        fan_out=runs[0].fan_out,
        evidence={name: v[None] for name, v in zip(EVIDENCE, (*sides, p, q), strict=True)},
        report={
            "pairs": min(pairs_used),
            "smallest_q": min(1.0, smallest * int(np.isfinite(p).sum())),
            "not_measured": int(np.isnan(score).sum()),
        },
    )


EVIDENCE = ("target", "reference", "p_value", "q_value")


def differences(
    target: np.ndarray, reference: np.ndarray, target_ids: np.ndarray, reference_ids: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Target - reference of every pair that was measured on both sides, (m n), and the two sides' means (2 n)."""
    known = [measured(x) for x in (target, reference)]
    parts = [(x[k], ids[k]) for x, k, ids in zip((target, reference), known, (target_ids, reference_ids), strict=True)]
    pairs = paired.common_pairs(parts[0][1], parts[1][1])
    enough_pairs(pairs, FEWEST_PAIRS)
    sides = [paired.pair_means(x, ids, pairs) for x, ids in parts]
    return sides[0] - sides[1], np.stack([side.mean(0, dtype=np.float64) for side in sides])


def enough_pairs(pairs: np.ndarray, fewest: int) -> None:
    """Raise `BadInput` unless there are at least so many pairs."""
    if len(pairs) < fewest:
        raise BadInput(
            "too few pairs of target and reference samples",
            given=f"{len(pairs)} values of the coordinate pair that both runs have",
            expected=f"at least {fewest}",
            fix="record more prompts; item i of both lists makes pair i, several seeds of a prompt count once",
        )

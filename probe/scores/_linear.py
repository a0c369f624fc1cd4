"""linear: which neurons a sparse linear probe of the concept keeps choosing, whatever prompts it is fitted on."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from probe import compat
from probe._neuron_map import NeuronMap
from probe._options import validated
from probe.errors import BadInput
from probe.scores import _paired as paired
from probe.scores._contrast import differences, enough_pairs
from probe.scores._runs import check_comparable, identity_of, recorded
from probe.scores._shown import only_those_shown
from probe.scores._window import WindowMeans, measured, pieces_of

FEWEST_PAIRS = 20  # half of them must do for the screening


@validated
def linear(
    target: Any,
    reference: Any,
    *,
    window: tuple[float, float] = (999, 0),
    branches: Literal["cond", "both"] = "cond",
    reducer: str = "absmean",
    screened: int = 512,
    subsamples: int = 50,
    strength: float = 10.0,
    only_shown: bool | float = False,
    seed: int = 0,
    group: str = "unet",
) -> NeuronMap:
    """Stability selection with an L1-penalised logistic probe (Meinshausen and Bühlmann 2010; the screening is ours).

    Each subsample is a random half of the pairs. Within it, and from it alone, the neurons with the largest
    ``|contrast|`` are screened, brought to mean 0 and sd 1, and a probe of target against reference is fitted. The
    other half tells how accurate it is.

        score_j = (subsamples with a positive weight - subsamples with a negative weight) / subsamples

    so 1 is a neuron that every probe needs for saying yes, -1 for saying no, 0 one that is never chosen. Two neurons
    that carry the same thing share what one would have: the penalty takes either.

    Args:
        target, reference: a path, `probe.Run` or dataset, with the reducer.
        window: timesteps (t_max, t_min), both included, that are averaged.
        branches: the conditional branch, or the mean of both.
        reducer: what the probe sees; ``absmean`` is mean |x| over image tokens.
        screened: neurons that enter a probe.
        subsamples: number of halves.
        strength: inverse weight of the penalty; larger chooses more neurons.
        only_shown: count only target samples on which the judge saw the concept, and their pairs' references: True for
            the judge's own threshold, or the score from which on it did.
        seed: of the halves.
        group: the group of the runs; a text encoder's has no steps.

    Evidence: ``target`` and ``reference`` (means over pairs). The map's ``report`` has the held-out accuracy (mean and
    sd over subsamples; 0.5 is chance), the number of neurons that a probe chose (mean), and probes that did not
    converge.

    Raises `BadInput` for fewer than 20 pairs, a window without steps and runs without the reducer, `HeaderMismatch`
    naming the key in which the runs cannot be compared, `StoreDamaged` for chunks that cannot be read.
    """
    if min(screened, subsamples) < 1 or not strength > 0:
        given = f"screened={screened}, subsamples={subsamples}, strength={strength}"
        raise BadInput("the probe cannot be fitted", given=given, expected="all of them above 0")
    runs = [recorded(source, group, reducer) for source in (target, reference)]
    check_comparable(*runs)
    runs[0] = only_those_shown(runs[0], only_shown)
    means = [WindowMeans.of(run, reducer, window, branches) for run in runs]
    ids = [part.coordinate("pair") for part in means]

    n, sites = runs[0].n_neurons, runs[0].sites
    pieces = pieces_of(sites, sum(run.n_samples for run in runs))
    halves, screens, sides = None, np.empty((subsamples, n), np.float32), np.empty((2, n))
    for piece in pieces:
        d, sides[:, piece] = differences(*(part.read(piece) for part in means), *ids)
        if halves is None:
            enough_pairs(d[:, 0], FEWEST_PAIRS)
            halves = random_halves(subsamples, len(d), seed)
        if len(d) != halves.shape[1]:
            raise BadInput("some samples were measured at a part of the sites only", fix="open the run with 'drop'")
        screens[:, piece] = paired.subset_contrasts(d, halves)
    assert halves is not None, "a run has sites"
    chosen = _largest(np.abs(screens), screened)
    used = np.unique(chosen)
    samples = _Samples.of([part.columns(used, pieces) for part in means], ids)
    probes = [
        _fit(samples, half > 0, np.searchsorted(used, neurons), strength, seed)
        for half, neurons in zip(halves, chosen, strict=True)
    ]
    score = np.where(np.isnan(screens).any(0), np.nan, 0.0)
    for neurons, probe in zip(chosen, probes, strict=True):
        score[neurons] += np.sign(probe.weights) / subsamples
    accuracies = [probe.accuracy for probe in probes]
    options = {
        "window": list(means[0].window),
        "branches": branches,
        "reducer": reducer,
        "screened": screened,
        "subsamples": subsamples,
        "strength": strength,
        "only_shown": only_shown,
        "seed": seed,
        "group": group,
    }
    return NeuronMap.build(
        method="linear",
        score=score[None],
        windows=means[0].windows,
        sites=sites,
        identity=identity_of("linear", options, *runs),
        fan_out=runs[0].fan_out,
        evidence={"target": sides[0][None], "reference": sides[1][None]},
        report={
            "pairs": len(halves[0]),
            "accuracy": float(np.mean(accuracies)),
            "accuracy_sd": float(np.std(accuracies)),
            "chosen": float(np.mean([np.count_nonzero(probe.weights) for probe in probes])),
            "not_converged": sum(not probe.converged for probe in probes),
            "not_measured": int(np.isnan(score).sum()),
        },
    )


def random_halves(subsamples: int, pairs: int, seed: int) -> np.ndarray:
    """(k m) float32: 1 for the floor(m / 2) pairs of each subsample."""
    rng = np.random.default_rng(seed)
    halves = np.zeros((subsamples, pairs), np.float32)
    for half in halves:
        half[rng.permutation(pairs)[: pairs // 2]] = 1
    return halves


def _largest(values: np.ndarray, count: int) -> np.ndarray:
    """(k c) places of the largest values of each row, ascending; never of NaN."""
    known = ~np.isnan(values).any(0)
    count = min(count, int(known.sum()))
    if count == 0:
        raise BadInput("no neuron was measured on every sample")
    ranked = np.where(known, values, -np.inf)
    return np.sort(np.argpartition(-ranked, count - 1, axis=1)[:, :count], axis=1)


@dataclass(frozen=True)
class _Samples:
    """Rows that probes are fitted on: values (s c), label (s,) 1 for target, place of the pair (s,)."""

    values: np.ndarray
    label: np.ndarray
    pair: np.ndarray

    @classmethod
    def of(cls, columns: list[np.ndarray], ids: list[np.ndarray]) -> _Samples:
        known = [measured(x) for x in columns]
        values = [x[k] for x, k in zip(columns, known, strict=True)]
        names = [i[k] for i, k in zip(ids, known, strict=True)]
        place = {pair: m for m, pair in enumerate(paired.common_pairs(*names).tolist())}
        pair = np.array([place.get(name, -1) for name in np.concatenate(names).tolist()])
        label = np.repeat([1, 0], [len(x) for x in values])
        inside = pair >= 0
        return cls(np.concatenate(values)[inside], label[inside], pair[inside])


@dataclass(frozen=True)
class _Probe:
    weights: np.ndarray
    accuracy: float
    converged: bool


def _fit(samples: _Samples, half: np.ndarray, columns: np.ndarray, strength: float, seed: int) -> _Probe:
    """A probe on the samples of half the pairs, its balanced accuracy on the others."""
    from sklearn.exceptions import ConvergenceWarning

    fitted = half[samples.pair]
    x = samples.values[:, columns].astype(np.float64)
    mean, sd = x[fitted].mean(0), x[fitted].std(0)
    x = (x - mean) / np.where(sd > 0, sd, 1)
    model = compat.l1_logistic(strength, seed=seed)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(x[fitted], samples.label[fitted])
    right = model.predict(x[~fitted]) == samples.label[~fitted]
    sides = [right[samples.label[~fitted] == side].mean() for side in (0, 1)]
    converged = not any(issubclass(w.category, ConvergenceWarning) for w in caught)
    return _Probe(model.coef_[0], float(np.mean(sides)), converged)

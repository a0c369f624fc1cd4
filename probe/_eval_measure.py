"""What `probe.evaluate` measures with, and how stored measurements become the cells of a table."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from probe import stats
from probe._eval_judges import check_labels, judges_of
from probe._eval_samples import PRESERVE
from probe._result import ORIGINAL, ResultStore
from probe._result_rows import DECIMALS, pack_feature, pack_scores, unpack_features, unpack_scores
from probe.errors import BadInput
from probe.metrics import ContentFinder, Judged, Metric, hits, labels_of, metric


@dataclass(frozen=True)
class Cell:
    """What one set of samples answers for."""

    edit: str
    concept: str
    split: str
    seed_set: int


@dataclass(frozen=True)
class Rulers:
    """What measures: the metrics, and the judges by role (``judge``, ``second``), as far as there are any."""

    metrics: tuple[Metric, ...]
    judges: dict[str, Any]

    @classmethod
    def of(
        cls,
        names: Sequence[str],
        judge: Any,
        second: Any,
        clip: Any,
        concepts: Sequence[Any],
        world: Mapping[str, Any],
    ) -> Rulers:
        """Build the metrics by name, and load the judges that they ask for."""
        if not names:
            raise BadInput("there is no metric", fix="metrics=('rate',)")
        built = tuple(
            metric(name, **({"folder": clip} if name == "clip_score" else {})) for name in dict.fromkeys(names)
        )
        judges = judges_of(judge, second, clip, concepts, world, built)
        return cls(built, judges)

    @property
    def of_images(self) -> list[Metric]:
        """The metrics that look at the picture itself."""
        return [m for m in self.metrics if m.source == "image"]

    @property
    def decides(self) -> str | None:
        """The id of the judge that decides; None without one."""
        return str(self.judges["judge"].id) if "judge" in self.judges else None

    @property
    def featured(self) -> bool:
        """Whether a metric looks at features."""
        return any(m.source == "features" for m in self.metrics)

    @property
    def of_sets(self) -> bool:
        """Whether a metric compares with unedited pictures of another seed set."""
        return any(m.of_set for m in self.metrics)

    def identity(self) -> dict[str, Any]:
        """Ids of judges and metrics, for the header."""
        return {
            "judges": {role: str(judge.id) for role, judge in self.judges.items()},
            "metrics": {m.name: m.identity for m in self.metrics},
        }

    def check(self, concepts: Iterable[str], world: Mapping[str, Any]) -> Rulers:
        """These rulers, without a second opinion of the default that does not know one of these concepts.

        Raises `UnknownName` where another judge has no label for one of them.
        """
        return replace(self, judges=check_labels(self.judges, concepts, world))

    def lacking(self, row: Mapping[str, Any]) -> set[str]:
        """Ids of the judges, and of the metrics of pictures, that have not looked at a stored image yet."""
        found = {judge.id for judge in self.judges.values() if judge.id not in row["scores"]}
        found |= {m.identity for m in self.of_images if m.identity not in row["values"]}
        if self.featured and self.decides not in row.get("features", {}):
            found.add(_features_of(self.decides))
        return found

    def decided(self, row: Mapping[str, Any]) -> bool:
        """Whether the stored verdict is that of the judge that decides here."""
        return bool(row["judge"] == self.decides)

    def measured(
        self, images: np.ndarray, prompts: Sequence[str], only: Collection[str] | None = None
    ) -> list[dict[str, Any]]:
        """``scores``, ``values`` and where needed ``features`` of each image, by the rulers of these ids.

        All of them by default. An image without any light is one that failed, and so are its measurements.
        """
        judges = {judge.id: judge for judge in self.judges.values() if only is None or judge.id in only}
        metrics = [m for m in self.of_images if only is None or m.identity in only]
        scores = {name: np.array(judge(images), dtype=np.float64) for name, judge in judges.items()}
        values = {m.identity: np.array(m.function(images, prompts), dtype=np.float64) for m in metrics}
        features: dict[str, np.ndarray] = {}
        if self.featured and (only is None or _features_of(self.decides) in only):
            features[str(self.decides)] = np.array(self.judges["judge"].features(images), dtype=np.float64)
        failed = ~images.reshape(len(images), -1).any(axis=1)
        for numbers in (*scores.values(), *values.values(), *features.values()):
            numbers[failed] = np.nan
        rows: list[dict[str, Any]] = [
            {
                "scores": {name: pack_scores(found[s], judges[name].labels) for name, found in scores.items()},
                "values": {n: None if np.isnan(v[s]) else round(float(v[s]), DECIMALS) for n, v in values.items()},
            }
            for s in range(len(images))
        ]
        for name, found in features.items():
            for row, feature in zip(rows, found, strict=True):
                row["features"] = {name: pack_feature(feature)}
        return rows

    def verdicts(self, rows: Sequence[Mapping[str, Any]], world: Mapping[str, Any]) -> list[dict[str, Any]]:
        """``judge`` and ``shown`` of rows with scores: who decides, and whether each shows its own concept."""
        if self.decides is None:
            return [{"judge": None, "shown": None} for _ in rows]
        judge = self.judges["judge"]
        wanted = [labels_of(world[row["concept"]], world) for row in rows]
        found = hits(unpack_scores(rows, judge.id, judge.labels), judge.labels, thresholds(judge), wanted)
        return [{"judge": judge.id, "shown": None if np.isnan(shown) else int(shown)} for shown in found]


class Measure:
    """From stored rows to cells."""

    def __init__(
        self, store: ResultStore, rulers: Rulers, world: Mapping[str, Any], *, level: float, resamples: int
    ) -> None:
        self.store, self.rulers, self.world = store, rulers, world
        self.options: dict[str, Any] = {"level": level, "resamples": resamples}
        self.content = ContentFinder(world)

    def rows(
        self, cell: Cell, edit_id: str, table: pd.DataFrame, reference: pd.DataFrame | None = None
    ) -> list[dict[str, Any]]:
        """The cells of one edit, concept, split and seed set: one for each metric, and for each kind of others.

        ``reference``: the samples of another seed set, for distances between sets.
        """
        other = table if reference is None else reference
        parts = {cell.split: (table, other)}
        if cell.split in PRESERVE and table["kind"].nunique() > 1:
            for kind in sorted(table["kind"].unique()):
                parts[f"{cell.split}/{kind}"] = table[table["kind"] == kind], other[other["kind"] == kind]
        return [
            {**vars(cell), "attack": "none", "protocol": "none", "vocab": "none", "rule": "none", "split": split} | row
            for split, (part, other) in parts.items()
            for row in self._part(edit_id, part, other)
        ]

    def _part(self, edit_id: str, table: pd.DataFrame, reference: pd.DataFrame) -> Iterator[dict[str, Any]]:
        own = [self.world[name] for name in table["concept"]]
        prompts = table["prompt"].to_numpy(dtype=object)
        wanted = [labels_of(c, self.world) for c in own]
        content = [self.content(prompt, c) for prompt, c in zip(prompts, own, strict=True)]

        def values(m: Metric, edit_id: str) -> np.ndarray:
            rows = self._stored(edit_id, table)
            if m.source == "features":
                name = str(self.rulers.decides)
                unedited = unpack_features(self._stored(ORIGINAL, table), name)
                return np.asarray(m.function(unpack_features(rows, name), unedited))
            if m.source == "image":
                return np.array([np.nan if (v := row["values"][m.identity]) is None else v for row in rows])
            judge = self.rulers.judges.get(m.source)
            if judge is None:
                return np.full(len(rows), np.nan)
            scores = unpack_scores(rows, judge.id, judge.labels)
            return np.asarray(m.function(Judged(scores, judge.labels, thresholds(judge), wanted, content)))

        for m in self.rulers.metrics:
            if m.of_set:
                yield self._distances(m, edit_id, table, reference)
                continue
            about = np.array([bool(labels) or not m.needs_content for labels in content])
            before, after = values(m, ORIGINAL)[about], values(m, edit_id)[about]
            yield self._cell(m, before, after, prompts[about].tolist(), same=edit_id == ORIGINAL)

    def _distances(self, m: Metric, edit_id: str, table: pd.DataFrame, reference: pd.DataFrame) -> dict[str, Any]:
        """Edited pictures, and unedited ones of the same samples, against unedited ones of another seed set."""
        judge = str(self.rulers.decides)

        def known(edit_id: str, of: pd.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            found = unpack_features(self._stored(edit_id, of), judge)
            return found, of["prompt"].to_numpy(dtype=object), ~np.isnan(found).any(axis=1)

        (after, clusters, good), (before, _, was_good) = known(edit_id, table), known(ORIGINAL, table)
        other, others, usable = known(ORIGINAL, reference)
        other, others, both = other[usable], others[usable].tolist(), good & was_good

        def apart(x: np.ndarray, ok: np.ndarray) -> stats.Interval:
            sets, names = [x[ok], other], [clusters[ok].tolist(), others]
            return stats.half_samples(m.function, sets, names, average=m.average, level=self.options["level"])

        value, floor = apart(after, good), apart(before, was_good)
        diff = stats.half_samples(
            lambda x, y, z: m.function(x, z) - m.function(y, z),
            [after[both], before[both], other],
            [clusters[both].tolist()] * 2 + [others],
            average=m.average,
            level=self.options["level"],
        )
        failed = int((~good).sum())
        return self._row(m, value._replace(n_failed=failed), floor.value, diff, same=edit_id == ORIGINAL)

    def _stored(self, edit_id: str, table: pd.DataFrame) -> list[dict[str, Any]]:
        return [self.store.rows[edit_id, p, int(s)] for p, s in zip(table["prompt"], table["seed"], strict=True)]

    def _cell(
        self, m: Metric, before: np.ndarray, after: np.ndarray, clusters: list[str], *, same: bool
    ) -> dict[str, Any]:
        if m.rate:
            value = stats.rate(after, clusters, **self.options)
        else:
            value = stats.cluster_bootstrap(after, clusters, bounds=m.bounds, **self.options)
        diff = stats.paired_difference(before, after, clusters, bounds=m.bounds, **self.options)
        original = float(np.nanmean(before)) if np.isfinite(before).any() else np.nan
        return self._row(m, value, original, diff, same=same)

    def _row(
        self, m: Metric, value: stats.Interval, original: float, diff: stats.Interval, *, same: bool
    ) -> dict[str, Any]:
        # the unedited model does not differ from itself, and that is known exactly
        if same and np.isfinite(diff.value):
            diff = diff._replace(value=0.0, low=0.0, high=0.0)
        return {"metric": m.name, **columns_of(value, original, diff)}


def columns_of(value: stats.Interval, original: float, diff: stats.Interval) -> dict[str, Any]:
    """A cell's numbers by column: the edited model's value, the unedited one's, and the paired difference."""
    return {
        "value": value.value,
        "ci_low": value.low,
        "ci_high": value.high,
        "interval": value.kind,
        "n": value.n,
        "n_failed": value.n_failed,
        "original": original,
        "difference": diff.value,
        "diff_low": diff.low,
        "diff_high": diff.high,
    }


def thresholds(judge: Any) -> np.ndarray:
    """A judge's thresholds in the precision of stored scores: (label,)."""
    return np.round(np.asarray(judge.thresholds, dtype=np.float64), DECIMALS)


def _features_of(judge: str | None) -> str:
    return f"{judge}/features"

"""What `probe.evaluate` measures with, and how stored measurements become the cells of a table."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from probe import stats
from probe._eval_samples import PRESERVE
from probe._result import ORIGINAL, ResultStore
from probe._result_rows import DECIMALS, pack_scores, unpack_scores
from probe.errors import BadInput, unknown_name
from probe.metrics import ContentFinder, Judged, Metric, hits, labels_of, metric

JUDGE = "emoji_cnn"  # decides unless a concept or the caller names another


@dataclass(frozen=True)
class Cell:
    """What one set of samples answers for."""

    edit: str
    concept: str
    split: str
    seed_set: int


@dataclass(frozen=True)
class Rulers:
    """What measures: the metrics, and the judges by role (``judge``, ``second``) as far as a metric needs them."""

    metrics: tuple[Metric, ...]
    judges: dict[str, Any]

    @classmethod
    def of(cls, names: Sequence[str], judge: Any, second: Any, clip: Any, concepts: Sequence[Any]) -> Rulers:
        """Build the metrics by name, and load the judges that they ask for."""
        if not names:
            raise BadInput("there is no metric", fix="metrics=('rate',)")
        built = tuple(
            metric(name, **({"folder": clip} if name == "clip_score" else {})) for name in dict.fromkeys(names)
        )
        judges = {"judge": _detector(judge or _common(concepts))}
        if any(m.source == "second" for m in built):
            judges["second"] = _detector(second)
        return cls(built, judges)

    @property
    def of_images(self) -> list[Metric]:
        """The metrics that look at the picture itself."""
        return [m for m in self.metrics if m.source == "image"]

    def identity(self) -> dict[str, Any]:
        """Ids of judges and metrics, for the header."""
        return {
            "judges": {role: str(judge.id) for role, judge in self.judges.items()},
            "metrics": {m.name: m.identity for m in self.metrics},
        }

    def check(self, concepts: Iterable[str], world: Mapping[str, Any]) -> None:
        """Raise `UnknownName` where a judge has no label for one of these concepts."""
        for judge in self.judges.values():
            for name in sorted(concepts):
                for label in labels_of(world[name], world):
                    if label not in judge.labels:
                        raise unknown_name(f"label of the judge {judge.id}", label, judge.labels)

    def lacking(self, row: Mapping[str, Any]) -> set[str]:
        """Ids of the judges, and of the metrics of pictures, that have not looked at a stored image yet."""
        return {judge.id for judge in self.judges.values() if judge.id not in row["scores"]} | {
            m.identity for m in self.of_images if m.identity not in row["values"]
        }

    def decided(self, row: Mapping[str, Any]) -> bool:
        """Whether the stored verdict is that of the judge that decides here."""
        return bool(row["judge"] == self.judges["judge"].id)

    def measured(
        self, images: np.ndarray, prompts: Sequence[str], only: Collection[str] | None = None
    ) -> list[dict[str, Any]]:
        """``scores`` and ``values`` of each image, by the rulers of these ids (all of them by default).

        An image without any light is one that failed, and so are its measurements.
        """
        judges = {judge.id: judge for judge in self.judges.values() if only is None or judge.id in only}
        metrics = [m for m in self.of_images if only is None or m.identity in only]
        scores = {name: np.array(judge(images), dtype=np.float64) for name, judge in judges.items()}
        values = {m.identity: np.array(m.function(images, prompts), dtype=np.float64) for m in metrics}
        failed = ~images.reshape(len(images), -1).any(axis=1)
        for numbers in (*scores.values(), *values.values()):
            numbers[failed] = np.nan
        return [
            {
                "scores": {name: pack_scores(found[s], judges[name].labels) for name, found in scores.items()},
                "values": {n: None if np.isnan(v[s]) else round(float(v[s]), DECIMALS) for n, v in values.items()},
            }
            for s in range(len(images))
        ]

    def verdicts(self, rows: Sequence[Mapping[str, Any]], world: Mapping[str, Any]) -> list[dict[str, Any]]:
        """``judge`` and ``shown`` of rows with scores: who decides, and whether each shows its own concept."""
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

    def rows(self, cell: Cell, edit_id: str, table: pd.DataFrame) -> list[dict[str, Any]]:
        """The cells of one edit, concept, split and seed set: one for each metric, and for each kind of others."""
        parts = {cell.split: table}
        if cell.split in PRESERVE and table["kind"].nunique() > 1:
            parts |= {f"{cell.split}/{kind}": part for kind, part in table.groupby("kind", sort=True)}
        return [
            {**vars(cell), "attack": "none", "protocol": "none", "vocab": "none", "rule": "none", "split": split} | row
            for split, part in parts.items()
            for row in self._part(edit_id, part)
        ]

    def _part(self, edit_id: str, table: pd.DataFrame) -> Iterator[dict[str, Any]]:
        own = [self.world[name] for name in table["concept"]]
        prompts = table["prompt"].to_numpy(dtype=object)
        wanted = [labels_of(c, self.world) for c in own]
        content = [self.content(prompt, c) for prompt, c in zip(prompts, own, strict=True)]

        def values(m: Metric, edit_id: str) -> np.ndarray:
            rows = [self.store.rows[edit_id, p, int(s)] for p, s in zip(prompts, table["seed"], strict=True)]
            if m.source == "image":
                return np.array([np.nan if (v := row["values"][m.identity]) is None else v for row in rows])
            judge = self.rulers.judges[m.source]
            scores = unpack_scores(rows, judge.id, judge.labels)
            return np.asarray(m.function(Judged(scores, judge.labels, thresholds(judge), wanted, content)))

        for m in self.rulers.metrics:
            about = np.array([bool(labels) or not m.needs_content for labels in content])
            before, after = values(m, ORIGINAL)[about], values(m, edit_id)[about]
            yield self._cell(m, before, after, prompts[about].tolist(), same=edit_id == ORIGINAL)

    def _cell(
        self, m: Metric, before: np.ndarray, after: np.ndarray, clusters: list[str], *, same: bool
    ) -> dict[str, Any]:
        if m.rate:
            value = stats.rate(after, clusters, **self.options)
        else:
            value = stats.cluster_bootstrap(after, clusters, bounds=m.bounds, **self.options)
        diff = stats.paired_difference(before, after, clusters, bounds=m.bounds, **self.options)
        if same and diff.n:  # the unedited model does not differ from itself, and that is known exactly
            diff = diff._replace(value=0.0, low=0.0, high=0.0)
        return {
            "metric": m.name,
            "value": value.value,
            "ci_low": value.low,
            "ci_high": value.high,
            "interval": value.kind,
            "n": value.n,
            "n_failed": value.n_failed,
            "original": float(np.nanmean(before)) if np.isfinite(before).any() else np.nan,
            "difference": diff.value,
            "diff_low": diff.low,
            "diff_high": diff.high,
        }


def thresholds(judge: Any) -> np.ndarray:
    """A judge's thresholds in the precision of stored scores: (label,)."""
    return np.round(np.asarray(judge.thresholds, dtype=np.float64), DECIMALS)


def _common(concepts: Sequence[Any]) -> str:
    """The judge that these concepts name in ``detector``, ``judge:label``; `JUDGE` where they name none."""
    names = {(c.detector or "").partition(":")[0] or JUDGE for c in concepts}
    if len(names) > 1:
        raise BadInput("these concepts name different judges", given=", ".join(sorted(names)), fix="pass judge=")
    return names.pop()


def _detector(judge: Any) -> Any:
    if not isinstance(judge, str):
        return judge
    from probe.detect import detector

    return detector(judge)

"""The images of a result: drawn where there are none, looked at by whatever has not measured them yet."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from probe._eval_measure import Rulers
from probe._result import ResultStore
from probe.errors import BadInput
from probe.protocols import EditLike

_AT_ONCE = 256  # images measured together


@dataclass(frozen=True)
class Images:
    """The samples of one edit: ``table`` has ``prompt, seed, prompt_id, concept``.

    ``carried``: prompts that stand for an attack -> what is drawn under them, and its guidance; metrics of pictures
    then read the column ``text``.
    """

    store: ResultStore
    rulers: Rulers
    world: Mapping[str, Any]
    edit: str
    edit_id: str
    table: pd.DataFrame
    carried: Mapping[str, tuple[Any, float]] = field(default_factory=dict)

    def to_draw(self) -> pd.DataFrame:
        """The samples without an image, or whose image is gone while something has not looked at it."""
        places = [
            place
            for place, row in enumerate(self._stored())
            if row is None or (self.rulers.lacking(row) and not self.store.has_image(row))
        ]
        return self.table.iloc[places].reset_index(drop=True)

    def to_measure(self) -> list[dict[str, Any]]:
        """The rows whose image has not been measured by everything, or whose verdict is another judge's."""
        rows = zip(self._stored(), self.table["concept"], strict=True)
        return [
            {**row, "concept": concept}
            for row, concept in rows
            if row is not None
            and (self.store.has_image(row) if self.rulers.lacking(row) else not self.rulers.decided(row))
        ]

    def measure(self, rows: Sequence[Mapping[str, Any]], advance: Callable[[int], object]) -> None:
        """Look at stored images, and keep what was found."""
        for start in range(0, len(rows), _AT_ONCE):
            block = [dict(row) for row in rows[start : start + _AT_ONCE]]
            self._look(block)
            decided = self.rulers.verdicts(block, self.world)
            self.store.add([{**row, **verdict} for row, verdict in zip(block, decided, strict=True)])
            advance(len(block))

    def draw(
        self, pipe: Any, edit: EditLike | None, samples: pd.DataFrame, advance: Callable[[int], object], **sampling: Any
    ) -> None:
        """Draw samples of the table, judging and keeping each batch at once."""
        from probe._generate import generate

        attacked = samples["prompt"].isin(list(self.carried))

        def keep(rows: Sequence[int], images: np.ndarray) -> None:
            part = samples.iloc[list(rows)]
            blank: dict[str, Any] = {
                "edit": self.edit,
                "edit_id": self.edit_id,
                "image": None,
                "scores": {},
                "values": {},
            }
            block: list[dict[str, Any]] = [
                {**blank, "concept": c, "prompt_id": i, "prompt": p, "seed": int(seed)}
                for c, i, p, seed in zip(part["concept"], part["prompt_id"], part["prompt"], part["seed"], strict=True)
            ]
            texts = list(part["prompt"])
            if "text" in part:
                texts = [t if isinstance(t, str) else p for t, p in zip(part["text"], part["prompt"], strict=True)]
                block = [row | ({"text": t} if t != row["prompt"] else {}) for row, t in zip(block, texts, strict=True)]
            block = [row | new for row, new in zip(block, self.rulers.measured(images, texts), strict=True)]
            decided = self.rulers.verdicts(block, self.world)
            self.store.add([row | verdict for row, verdict in zip(block, decided, strict=True)], images)
            advance(len(part))

        plain, others = np.flatnonzero(~attacked), np.flatnonzero(attacked)
        if len(plain):
            with nullcontext() if edit is None else edit.applied(pipe):
                generate(
                    pipe,
                    samples[["prompt", "seed"]].iloc[plain].reset_index(drop=True),
                    progress=False,
                    on_batch=lambda rows, images: keep(plain[rows.start : rows.stop].tolist(), images),
                    **sampling,
                )
        if len(others):
            self._draw_attacks(pipe, edit, samples.iloc[others], others.tolist(), keep, **sampling)

    def _draw_attacks(
        self,
        pipe: Any,
        edit: EditLike | None,
        samples: pd.DataFrame,
        places: Sequence[int],
        keep: Callable[[Sequence[int], np.ndarray], None],
        *,
        steps: int,
        guidance: float,
        batch_size: int,
        height: int,
        width: int,
    ) -> None:
        from probe.attacks import Drawing
        from probe.attacks._drawing import draw

        carried, scales = zip(*(self.carried[prompt] for prompt in samples["prompt"]), strict=True)
        draw(
            pipe,
            edit,
            carried,
            samples["seed"].tolist(),
            scales,
            Drawing(steps, guidance, (height, width), batch_size),
            on_batch=lambda rows, images: keep([places[row] for row in rows], images),
        )

    def _look(self, block: list[dict[str, Any]]) -> None:
        """Add to each row what it lacks."""
        unseen = {place: self.rulers.lacking(row) for place, row in enumerate(block)}
        places = [place for place, ids in unseen.items() if ids]
        if not places:
            return
        images = np.stack([self.store.image(block[place]) for place in places])
        wanted = set().union(*unseen.values())
        texts = [block[place].get("text", block[place]["prompt"]) for place in places]
        found = self.rulers.measured(images, texts, wanted)
        for place, new in zip(places, found, strict=True):
            row = block[place]
            block[place] = {**row, **{part: row.get(part, {}) | new[part] for part in new}}

    def _stored(self) -> Iterator[dict[str, Any] | None]:
        for prompt, seed in zip(self.table["prompt"], self.table["seed"], strict=True):
            yield self.store.rows.get((self.edit_id, prompt, int(seed)))


def refuse_drawing(missing: Mapping[str, pd.DataFrame]) -> None:
    """Raise `BadInput` where images would have to be drawn that should only be judged again."""
    if total := sum(len(table) for table in missing.values()):
        name, table = next((name, table) for name, table in missing.items() if len(table))
        raise BadInput(
            "there are no images to judge again",
            given=f"{total} samples, the first of {name}: {table['prompt'].iloc[0]!r}",
            fix="leave rejudge=True out to draw them, or ask for what the result holds",
        )

"""Comparison: one prompt and seed, the unedited model and its edits side by side. No widget, no browser."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from probe._generate import generate
from probe._samples import samples
from probe.errors import BadInput, nearest
from probe.protocols import EditLike
from probe.provenance import lineage
from probe.widgets._acting import Acting, Message
from probe.widgets._drawing import check_pipe
from probe.widgets._material import text, whole

#: The first column: the pipeline as it was handed over.
UNEDITED = "unedited"


@dataclass(frozen=True)
class Row:
    """One (prompt, seed): ``images`` name -> (y x 3), the unedited first; ``seen`` what a judge says of each."""

    prompt: str
    seed: int
    images: Mapping[str, np.ndarray]
    seen: Mapping[str, str]


@dataclass(frozen=True)
class Compared:
    """Rows drawn so far, newest first, and what the last action has to say."""

    rows: tuple[Row, ...] = ()
    message: Message | None = None


class Comparison(Acting[Compared]):
    """A pipeline and its edits: `draw` a prompt, look at the pictures side by side, `to_html` keeps them.

    Actions change ``state`` as a whole or not at all; one that fails leaves a message and everything else as it was.
    The pipeline is left as it was after every action, also after an interrupt.
    """

    def __init__(
        self,
        pipe: Any,
        edits: Mapping[str, EditLike],
        *,
        judge: Any = None,
        steps: int = 30,
        guidance: float = 7.5,
    ) -> None:
        super().__init__(Compared())
        self.pipe, self.edits, self.judge = pipe, dict(edits), judge
        self.steps, self.guidance = steps, guidance

    # --- actions ---

    def draw(self, prompt: str, seed: int = 0) -> None:
        """Draw one prompt with every edit, each from the same noise. What is there already is moved to the front."""
        with self._acting():
            typed, seed = text("prompt", prompt), whole("seed", seed)
            found = next((row for row in self.state.rows if (row.prompt, row.seed) == (typed, seed)), None)
            row = found or self._drawn(typed, seed)
            self._become(rows=(row, *(other for other in self.state.rows if other is not row)))

    def forget(self) -> None:
        """Start again with no rows."""
        with self._acting():
            self._become(rows=())

    # --- showing ---

    @property
    def names(self) -> list[str]:
        """Columns: the unedited model, then the edits."""
        return [UNEDITED, *self.edits]

    @property
    def subtitle(self) -> str:
        """How pictures are drawn, and on top of what."""
        there = ", ".join(name for _, name in lineage(self.pipe))
        on = f"; in force underneath: {there}" if there else ""
        return f"same noise in every column; {self.steps} steps, guidance {self.guidance:g}{on}"

    def to_html(self, path: str | Path | None = None, *, force: bool = False) -> str:
        """All rows as one HTML page that needs no kernel; written to ``path`` if given.

        Raises `BadInput` where something is at ``path`` (``force=True`` replaces a file).
        """
        from probe.widgets._comparison_view import page
        from probe.widgets._html import written

        return written(page(self), path, force=force)

    def view(self) -> Any:
        """The interactive view, an ipywidgets box. Raises `MissingExtra` without the extra ``notebook``."""
        from probe.widgets._comparison_view import ComparisonView

        return ComparisonView(self).box

    def _repr_mimebundle_(self, **_options: Any) -> dict[str, Any]:
        from probe.widgets._html import bundle

        return bundle(self.view, self.to_html, repr(self))

    def __repr__(self) -> str:
        return f"<Comparison of {', '.join(self.names)}: {len(self.state.rows)} prompts drawn>"

    # --- inside ---

    def _drawn(self, prompt: str, seed: int) -> Row:
        table = samples(prompt, seeds=seed)

        def one() -> np.ndarray:
            picture: np.ndarray = generate(self.pipe, table, steps=self.steps, guidance=self.guidance, progress=False)[
                0
            ]
            return picture

        images = {UNEDITED: one()}
        for name, edit in self.edits.items():
            with edit.applied(self.pipe):
                images[name] = one()
        return Row(prompt, seed, images, self._seen(images))

    def _seen(self, images: Mapping[str, np.ndarray]) -> dict[str, str]:
        if self.judge is None:
            return {}
        scores = self.judge(np.stack(list(images.values())))
        return {name: _best_labels(row, self.judge.labels) for name, row in zip(images, scores, strict=True)}


def compare(
    pipe: Any,
    edits: Mapping[str, EditLike] | Sequence[EditLike] | EditLike,
    *,
    judge: Any = None,
    steps: int = 30,
    guidance: float = 7.5,
) -> Comparison:
    """A prompt box, a seed, and edits side by side with the unedited model.

    Args:
        pipe: the pipeline; left as it was after every picture.
        edits: name -> edit (or intervention), or edits, which are called by their names.
        judge: a `probe.detector`, or its name, whose best label of each family (object, style, gender) is written under
            each picture.
        steps, guidance: as in `probe.generate`.

    Shows itself in JupyterLab; `Comparison.to_html` writes it as one file that needs no kernel. Raises `BadInput` for
    no edits, two of one name, or what is no edit; `UnknownName` for a judge.
    """
    check_pipe(pipe)
    if isinstance(judge, str):
        from probe.detect import detector

        judge = detector(judge)
    return Comparison(pipe, _named(edits), judge=judge, steps=steps, guidance=guidance)


def _best_labels(scores: np.ndarray, labels: Sequence[str]) -> str:
    """The highest label of each family in words, from scores (label,)."""
    families: dict[str, list[tuple[float, str]]] = {}
    for label, score in zip(labels, scores, strict=True):
        family, _, name = label.rpartition("/")
        if not np.isnan(score):
            families.setdefault(family, []).append((float(score), name))
    best = [max(found) for found in families.values()]
    return ", ".join(f"{name} {score:.2f}" for score, name in best) or "not judged"


def _named(edits: Any) -> dict[str, EditLike]:
    pairs: list[tuple[str, Any]]
    if isinstance(edits, Mapping):
        pairs = [(str(name), edit) for name, edit in edits.items()]
    else:
        listed = list(edits) if isinstance(edits, Iterable) and not isinstance(edits, str | EditLike) else [edits]
        pairs = [(str(getattr(edit, "name", edit)), edit) for edit in listed]
    if not pairs:
        raise BadInput("there is nothing to compare", fix='compare(pipe, {"pruned": edit})')
    for name, edit in pairs:
        if not isinstance(edit, EditLike):
            fix = "erase.load_edit(folder)" if isinstance(edit, str | Path) else None
            raise BadInput("this is no edit", given=f"{name}: {type(edit).__name__}", expected="an edit", fix=fix)
    names = [name for name, _ in pairs]
    if twice := [name for i, name in enumerate(names) if name in names[:i] or name == UNEDITED]:
        raise BadInput("edits need names of their own", given=twice[0], nearest=nearest(twice[0], names))
    return dict(pairs)

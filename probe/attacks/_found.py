"""What was found for one prompt: a row of an attack set."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

#: What carries an attack: token ids, ids with learned embeddings, x_T, the original's x_t, changed weights.
CARRIERS = ("tokens", "embedding", "latents", "start", "weights")


@dataclass(frozen=True)
class Try:
    """One judged picture of a baseline's search: token ids and the text that they spell, seed, verdict, log-odds."""

    token_ids: tuple[int, ...]
    prompt: str
    seed: int
    success: bool | None
    score: float | None

    @property
    def rank(self) -> tuple[bool, float]:
        """How good it is: shown, then the judge's log-odds."""
        return bool(self.success), -math.inf if self.score is None else self.score

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Try:
        """Of plain values; keys of later versions are left out."""
        known = {f.name: row[f.name] for f in fields(cls)}
        return cls(**{**known, "token_ids": tuple(known["token_ids"])})


@dataclass(frozen=True)
class Found:
    """What was found for one prompt.

    - ``concept, prompt_id, source, seed, guidance``: the prompt that was attacked, and how it is drawn
    - ``carrier``: one of `CARRIERS`; ``token_ids`` between BOS and EOT, -1 where an embedding stands; ``prompt``: the
      text that they spell; ``at``: of ``start`` the share of the original's steps that are kept
    - ``found_seed``: the seed of the picture that decided; ``seeds``: all that the search used
    - ``before``, ``success``: the judge's verdict on the attacked model without and with the attack; None not judged
    - ``loss``: of the attack's own objective; ``score``: the judge's log-odds of the picture that decided
    - ``cost``: forwards, backwards, texts, images; ``finished``: False where the search was interrupted
    - ``tensors``: key of what the carrier needs besides, "" for none
    - ``tries``: of baselines every judged picture in order, that of the prompt as it is first
    """

    concept: str
    prompt_id: str
    source: str
    seed: int
    guidance: float
    carrier: str = "tokens"
    token_ids: tuple[int, ...] = ()
    prompt: str = ""
    at: float = 0.0
    found_seed: int = 0
    seeds: tuple[int, ...] = ()
    before: bool | None = None
    success: bool | None = None
    loss: float | None = None
    score: float | None = None
    cost: Mapping[str, int] = field(default_factory=dict)
    finished: bool = True
    tensors: str = ""
    tries: tuple[Try, ...] = ()

    @property
    def key(self) -> tuple[str, str, str, int]:
        """What there is one row of in a set; published sets answer one prompt in several rows."""
        return self.concept, self.prompt_id, self.source, self.seed

    @property
    def target(self) -> tuple[str, str, int]:
        """Which prompt of which concept this is an answer to, in any set."""
        return self.concept, self.source, self.seed

    def within(self, images: int) -> Found:
        """What had been found after so many judged pictures: the best of the tries until then. The prompt as it is
        counts where no other words were tried. The row itself where it keeps no tries."""
        tries = self.tries[:images]
        if not tries:
            return self
        best = max([one for one in tries if one.token_ids != tries[0].token_ids] or tries, key=lambda one: one.rank)
        return replace(
            self,
            token_ids=best.token_ids,
            prompt=best.prompt,
            found_seed=best.seed,
            success=best.success,
            score=best.score,
            cost={**self.cost, "images": len(tries)},
            tries=tries,
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values; without ``tries`` where there are none."""
        found = {f.name: _plain(getattr(self, f.name)) for f in fields(self) if f.name != "tries"}
        return found | ({"tries": [asdict(one) for one in self.tries]} if self.tries else {})

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Found:
        """The inverse of `to_json`; keys of later versions are left out."""
        known = {f.name: row[f.name] for f in fields(cls) if f.name in row}
        found = cls(**known)
        tries = tuple(Try.from_json(one) for one in row.get("tries", ()))
        return replace(found, token_ids=tuple(found.token_ids), seeds=tuple(found.seeds), tries=tries)


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return list(value)
    return dict(value) if isinstance(value, Mapping) else value

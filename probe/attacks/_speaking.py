"""Telling a pipeline token ids or embeddings instead of words.

Everything goes through the pipeline's own ``encode_prompt``: a hook on each text encoder puts the ids in place, one on
its table of tokens the embeddings. Edits of the encoders, SDXL's second one and its pooled text are then as they always
are.

Shapes: s sample, k text token, f free position, d width of an embedding.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from probe import guidance
from probe.errors import BadInput

#: A position whose embedding is given, in a list of token ids.
FREE = -1
Vectors = Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class Spoken:
    """What a text encoder is told between BOS and EOT.

    - ``ids``: token ids; `FREE` where an embedding stands
    - ``vectors``: text encoder -> embeddings (f d) for the free positions, in order
    """

    ids: tuple[int, ...]
    vectors: Vectors = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Short text that stands for it in a table of prompts; equal for equal contents."""
        digest = hashlib.sha256(repr(self.ids).encode())
        for name in sorted(self.vectors):
            digest.update(name.encode() + self.vectors[name].detach().float().cpu().numpy().tobytes())
        return f"attack {digest.hexdigest()[:12]}"


def encoders(pipe: Any) -> dict[str, tuple[Any, Any]]:
    """Text encoder's name -> (encoder, tokenizer), as far as the pipeline has them."""
    names = (("text_encoder", "tokenizer"), ("text_encoder_2", "tokenizer_2"))
    return {e: (getattr(pipe, e), getattr(pipe, t)) for e, t in names if getattr(pipe, e, None) is not None}


def table_of(pipe: Any, encoder: str = "text_encoder") -> Tensor:
    """The embeddings of all tokens (v d), edits in force included."""
    weight: Tensor = getattr(pipe, encoder).get_input_embeddings().weight
    return weight.detach()


def room(pipe: Any) -> int:
    """How many tokens a prompt may have between BOS and EOT."""
    return min(tokenizer.model_max_length for _, tokenizer in encoders(pipe).values()) - 2


def ids_of(tokenizer: Any, text: str) -> tuple[int, ...]:
    """The token ids of a text, without BOS, EOT and padding; nothing is cut."""
    return tuple(tokenizer(text, add_special_tokens=False, truncation=False, verbose=False).input_ids)


def text_of(tokenizer: Any, ids: Sequence[int]) -> str:
    """The words that token ids spell."""
    return str(tokenizer.decode([i for i in ids if i != FREE], clean_up_tokenization_spaces=False)).strip()


def check_room(pipe: Any, count: int, what: str) -> None:
    """Raise `BadInput` where a text encoder would cut: never silently."""
    if count > (most := room(pipe)):
        raise BadInput(
            f"{what} is longer than the text encoder takes",
            given=f"{count} tokens",
            expected=f"at most {most}",
            fix="a shorter prompt, or fewer attack tokens (k=)",
        )


def slots(source: Sequence[int], k: int, where: str) -> tuple[int, ...]:
    """Token ids with ``k`` free positions: before the source (``prefix``), behind it, or in its middle (``insert``).

    ``every3`` puts one before every third token of the source, whatever ``k`` says (P4D-K); ``alone`` leaves the source
    out (P4D-N).
    """
    ids, free = tuple(source), (FREE,) * k
    if where == "every3":
        return tuple(i for at, token in enumerate(ids) for i in ((FREE, token) if at % 3 == 0 else (token,)))
    if where == "insert":
        return (*ids[: len(ids) // 2], *free, *ids[len(ids) // 2 :])
    return {"prefix": (*free, *ids), "suffix": (*ids, *free), "alone": free}[where]


def freed(ids: Sequence[int], source: Sequence[int], where: str = "prefix") -> tuple[int, ...]:
    """The template that an attack filled: its own tokens as free positions, the source's as they are.

    ``where`` is tried before the other places; ids that leave the source nowhere whole are free altogether.
    """
    if where != "alone" and len(ids) >= len(source):
        for place in sorted(("prefix", "suffix", "insert", "every3"), key=lambda place: place != where):
            template = slots(source, len(ids) - len(source), place)
            if len(template) == len(ids) and all(a in (FREE, b) for a, b in zip(template, ids, strict=True)):
                return template
    return (FREE,) * len(ids)


def filled(template: Sequence[int], tokens: Sequence[int]) -> tuple[int, ...]:
    """A template's free positions taken by tokens, in order."""
    rest = iter(tokens)
    return tuple(int(next(rest)) if i == FREE else int(i) for i in template)


def row_of(tokenizer: Any, ids: Sequence[int]) -> list[int]:
    """A whole row as the tokenizer would pad it; free positions hold some token that is not EOT."""
    if len(ids) > tokenizer.model_max_length - 2:
        given, most = f"{len(ids)} tokens", tokenizer.model_max_length - 2
        raise BadInput("a prompt is longer than the text encoder takes", given=given, expected=f"at most {most}")
    body = [tokenizer.bos_token_id, *(max(int(i), 0) for i in ids), tokenizer.eos_token_id]
    return body + [tokenizer.pad_token_id] * (tokenizer.model_max_length - len(body))


def told(
    pipe: Any,
    spoken: Sequence[Sequence[int]],
    vectors: Vectors | None = None,
    *,
    size: tuple[int, int] | None = None,
    length: int | None = None,
) -> guidance.Conditioning:
    """The cond branch of token ids (s, each a sequence) whose free positions take ``vectors``: encoder -> (s f d).

    Gradients flow to the vectors where they are on. ``size`` as in `probe.guidance.condition`. ``length``: only the
    first so many positions, at that share of the cost; encoders are causal, so these are what they are in the whole.
    """
    distilled = pipe.unet.config.time_cond_proj_dim is not None
    positions = _positions(spoken) if vectors else None

    def replace(name: str, ids: Tensor) -> _Row:
        rows = torch.tensor([row_of(encoders(pipe)[name][1], one)[:length] for one in spoken])
        return _Row(rows.to(ids), positions, None if not vectors else vectors[name])

    with _replacing(pipe, replace):
        return guidance.condition(pipe, [""] * len(spoken), guidance=7.5 if distilled else 1.0, size=size)


@contextmanager
def standing_in(pipe: Any, spoken: Mapping[str, Spoken]) -> Iterator[None]:
    """Inside the block prompts that equal a key are encoded as what it stands for; others as always.

    Rows are recognised by what their tokenizer makes of the key, so batches may hold any mixture in any order.
    """
    known: dict[str, dict[tuple[int, ...], Spoken]] = {}
    for name, (_, tokenizer) in encoders(pipe).items():
        rows = {tuple(row_of(tokenizer, ids_of(tokenizer, key))): one for key, one in spoken.items()}
        if len(rows) < len(spoken):
            raise BadInput("two placeholders have the same tokens", given=", ".join(spoken))
        known[name] = rows

    def replace(name: str, ids: Tensor) -> _Row | None:
        found = [known[name].get(tuple(row)) for row in ids.tolist()]
        if not any(found):
            return None
        tokenizer = encoders(pipe)[name][1]
        rows = [
            row if one is None else row_of(tokenizer, one.ids) for row, one in zip(ids.tolist(), found, strict=True)
        ]
        given = [(s, one) for s, one in enumerate(found) if one is not None and one.vectors]
        if not given:
            return _Row(torch.tensor(rows).to(ids), None, None)
        at = torch.cat([torch.full((len(one.vectors[name]),), s) for s, one in given])
        columns = torch.cat([_positions([one.ids])[0] for _, one in given])
        return _Row(torch.tensor(rows).to(ids), columns, torch.cat([one.vectors[name] for _, one in given]), at)

    with _replacing(pipe, replace):
        yield


@dataclass(frozen=True)
class _Row:
    """New ids of a call, and embeddings: ``vectors`` at ``positions`` of every row (s f), or of ``rows`` (f)."""

    ids: Tensor
    positions: Tensor | None
    vectors: Tensor | None
    rows: Tensor | None = None

    def embedded(self, output: Tensor) -> Tensor:
        if self.positions is None or self.vectors is None:
            return output
        rows = torch.arange(len(output))[:, None].expand_as(self.positions) if self.rows is None else self.rows
        at = (rows.to(output.device), self.positions.to(output.device))
        return output.index_put(at, self.vectors.to(output))


@contextmanager
def _replacing(pipe: Any, replace: Callable[[str, Tensor], _Row | None]) -> Iterator[None]:
    with ExitStack() as hooks:
        for name, (encoder, _) in encoders(pipe).items():
            current: list[_Row] = []

            def before(
                _module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], name: str = name, now: list[_Row] = current
            ) -> Any:
                ids = args[0] if args else kwargs["input_ids"]
                now.clear()
                if (row := replace(name, ids)) is None:
                    return None
                now.append(row)
                return ((row.ids, *args[1:]), kwargs) if args else ((), {**kwargs, "input_ids": row.ids})

            def after(_module: Any, _args: Any, output: Tensor, now: list[_Row] = current) -> Tensor:
                return now[0].embedded(output) if now else output

            hooks.callback(encoder.register_forward_pre_hook(before, with_kwargs=True, prepend=True).remove)
            hooks.callback(encoder.get_input_embeddings().register_forward_hook(after).remove)
        yield


def _positions(spoken: Sequence[Sequence[int]]) -> Tensor:
    """Columns of the free positions in whole rows, (s f); every prompt has as many."""
    found = [np.flatnonzero(np.asarray(one) == FREE) + 1 for one in spoken]
    if len({len(row) for row in found}) > 1:
        raise BadInput("prompts of one batch have different numbers of free tokens", given=[len(row) for row in found])
    return torch.from_numpy(np.stack(found))

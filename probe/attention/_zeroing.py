"""zero_attention and attention_zeroing: what a model draws when it cannot attend to chosen tokens of its prompt."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from probe import _attending, provenance
from probe import _intervene as hooks
from probe._options import validated
from probe._sites import Site, sites
from probe.attention._tokens import listed, token_positions
from probe.errors import BadInput
from probe.tokens import encode

_KIND = "xattn.prob"


@dataclass(frozen=True, eq=False)
class AttentionZeroing:
    """Attention to chosen tokens at zero inside ``with zeroing.applied(pipe)``; made by `attention_zeroing`.

    It has the ``name``, ``id`` and ``differentiable`` of an edit, and `probe.evaluate` takes it like one. While it is
    in force, `probe.lineage` names it, and recorded probabilities are those that the attention works with.
    """

    name: str
    provenance: dict[str, Any]
    differentiable: bool = True

    @property
    def id(self) -> str:
        """Hash of everything that decides what it does."""
        return str(self.provenance["id"])

    @property
    def options(self) -> dict[str, Any]:
        """What `attention_zeroing` was called with."""
        return dict(self.provenance["identity"]["options"])

    @contextmanager
    def applied(self, pipe: Any) -> Iterator[Any]:
        """In force inside the with-block, which gets the pipeline; no hook is left behind it, however it ends.

        Raises `UnknownName` for sites that ``pipe`` lacks, `BadInput` for heads and positions that it lacks; inside,
        `BadInput` for a prompt without the keyword and for text that was encoded outside the block, `AmbiguousBatch`
        where rows of a call do not fit branches or texts.
        """
        o = self.options
        chosen = _attentions(pipe, o["sites"], o["heads"])
        texts = None if o["prompts"] is None else encode(pipe.tokenizer, o["prompts"])

        def positions(ids: np.ndarray, branch: str) -> list[int]:
            absent: Any = o["absent"] if branch == "cond" else "ignore"  # a negative prompt names no concept
            chosen = {key: o[key] for key in ("tokens", "keyword", "leave", "leave_side")}
            return token_positions(pipe.tokenizer, ids, **chosen, absent=absent)

        for row in encode(pipe.tokenizer, "") if texts is None else texts:
            only_places = [token for token in o["tokens"] if isinstance(token, int)]
            token_positions(pipe.tokenizer, row, only_places or "sot")  # refuses positions before anything is hooked
        with (
            hooks.named([pipe.unet], (self.id, self.name)),
            _attending.attending(
                pipe,
                chosen,
                positions,
                heads=None if o["heads"] is None else tuple(o["heads"]),
                window=None if o["window"] is None else tuple(o["window"]),
                branch=o["branch"],
                branches=None if o["branches"] is None else tuple(o["branches"]),
                texts=texts,
                renormalise=o["renormalise"],
            ),
        ):
            yield pipe

    def __repr__(self) -> str:
        return f"<AttentionZeroing {self.name!r} {self.id}>"


@validated
def attention_zeroing(
    tokens: str | int | Sequence[str | int],
    *,
    keyword: str | Sequence[str] = (),
    leave: int = 0,
    leave_side: Literal["first", "last"] = "first",
    sites: str | Sequence[str] = "xattn.prob",
    heads: Sequence[int] | None = None,
    window: tuple[float, float] | None = None,
    branch: Literal["cond", "uncond"] | None = "cond",
    renormalise: bool = False,
    absent: Literal["error", "ignore"] = "error",
    prompts: Sequence[str] | None = None,
    branches: Sequence[str] | None = None,
    name: str | None = None,
) -> AttentionZeroing:
    """Attention to chosen text tokens set to zero, as an object with ``name``, ``id`` and ``applied(pipe)``.

    After the softmax the probability of each chosen token becomes 0 at every place of the image; the rest stays as it
    is and sums to less than one (TRCE, Fig. 2 and Appendix B: "setting the attention map corresponding to [EoT] to 0").

    Args:
        tokens: one or several of ``sot``, ``keyword``, ``first_eot``, ``all_eot``, or positions; see
            `probe.attention.token_positions`. They are found in each sample's own prompt.
        keyword: the words, or phrases, that ``keyword`` stands for.
        leave: so many of ``all_eot`` keep their attention; a text with fewer keeps them all.
        leave_side: whether these are the first or the last.
        sites: which cross-attentions, as in `probe.sites`; all by default.
        heads: only of these; None means all.
        window: only at timesteps (t_max, t_min), both included; None means always.
        branch: only in that branch of guidance; None means in both.
        renormalise: the probabilities that are left sum to one again, as if the tokens' logits were minus infinity.
        absent: a prompt without any keyword is an error, or left as it is.
        prompts: of the cond rows, for calls whose text is encoded outside the block. Several images of a prompt lie
            side by side.
        branches: of the rows of UNet calls, for a loop that is no pipeline call: ``("uncond", "cond")``.
        name: made from the tokens by default.

    Raises `BadInput` for options that do not belong together, `UnknownName` for a token.
    """
    chosen = listed(tokens)
    words = (keyword,) if isinstance(keyword, str) else tuple(keyword)
    if bool(words) != ("keyword" in chosen):
        raise BadInput(
            'keyword= and the token "keyword" belong together', given=f"tokens={chosen}, keyword={list(words)}"
        )
    if any(not word.strip() for word in words):
        raise BadInput("a keyword is not empty", given=str(list(words)))
    if leave < 0 or (leave and "all_eot" not in chosen):
        raise BadInput("leave= is a number of all_eot", given=f"leave={leave}, tokens={chosen}")
    if heads is not None and (not heads or len(set(heads)) != len(heads)):
        raise BadInput("heads= is a list of different ones, or left out for all", given=list(heads))
    if window is not None and window[0] < window[1]:
        raise BadInput("a window is (t_max, t_min)", given=window, expected="the larger timestep first")
    if prompts is not None and (isinstance(prompts, str) or not prompts):
        raise BadInput("prompts= is a list of prompts", given=repr(prompts))
    options = {
        "tokens": chosen,
        "keyword": list(words),
        "leave": leave,
        "leave_side": leave_side,
        "sites": [sites] if isinstance(sites, str) else list(sites),
        "heads": None if heads is None else sorted(heads),
        "window": None if window is None else list(window),
        "branch": branch,
        "renormalise": renormalise,
        "absent": absent,
        "prompts": None if prompts is None else list(prompts),
        "branches": None if branches is None else list(branches),
    }
    said = " + ".join(f"{t} but {leave}" if t == "all_eot" and leave else str(t) for t in chosen)
    return AttentionZeroing(
        name or f"no attention to {said}",
        provenance.stamp({"kind": "attention_zeroing", "options": options}),
    )


def zero_attention(pipe: Any, tokens: str | int | Sequence[str | int], **options: Any) -> AbstractContextManager[Any]:
    """Draw without attention to chosen tokens inside a with-block; takes the options of `attention_zeroing`.

    >>> with zero_attention(pipe, "all_eot", leave=2):     # doctest: +SKIP
    ...     pipe("something dangerous for rivals")
    """
    return attention_zeroing(tokens, **options).applied(pipe)


def _attentions(pipe: Any, select: Sequence[str], heads: Sequence[int] | None) -> list[Site]:
    chosen = sites(pipe, select)
    if wrong := [site.name for site in chosen if site.kind != _KIND]:
        fix = 'name sites of kind xattn.prob, for instance "unet.mid_block*.xattn.prob"'
        raise BadInput("attention is zeroed where there is attention", given=wrong[0], fix=fix)
    for site in chosen:
        if beyond := [head for head in heads or () if not 0 <= head < site.width]:
            raise BadInput(f"{site.name} has no such head", given=beyond[0], expected=f"0 to {site.width - 1}")
    return chosen


__all__ = ["AttentionZeroing", "attention_zeroing", "zero_attention"]

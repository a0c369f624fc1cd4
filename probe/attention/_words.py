"""word_maps: where in the image each word of a prompt is attended to, out of a recorded run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal

import numpy as np
import xarray as xr

from probe._options import validated
from probe._run import Run
from probe.attention._maths import merged, resized
from probe.errors import BadInput, UnknownName, nearest, unknown_name
from probe.tokens import encode, eot_index, spans_in, words_in

_KIND = "xattn.prob"
SOT, EOT, PAD = "[SoT]", "[EoT]", "[PAD]"
SPECIAL = (SOT, EOT, PAD)


@validated
def word_maps(
    run: Any,
    words: str | Sequence[str] | None = None,
    *,
    samples: Sequence[int] | None = None,
    sites: str | Sequence[str] = "*",
    heads: Sequence[int] | None = None,
    window: tuple[float, float] | None = None,
    branch: Literal["cond", "uncond"] = "cond",
    by_site: bool = False,
    size: tuple[int, int] | None = None,
    pipe: Any = None,
) -> xr.Dataset:
    """Where each word is attended to: attention probabilities of a run, summed over a word's tokens.

    The mean over the chosen heads of each cross-attention is resized (bilinear) to one grid, and the mean over the
    cross-attentions taken: each counts once, however many heads it has. A word that occurs twice is the sum over both.

    Args:
        run: a run with ``xattn.prob`` sites, or its path.
        words: words or phrases, and ``[SoT]``, ``[EoT]`` (the first) and ``[PAD]`` (all [EoT] behind it). None: the
            words that were recorded, or else every word of the prompt and ``[EoT]``.
        samples: which of the run's; all by default.
        sites: which cross-attentions, by name or glob; all that were recorded by default.
        heads: mean over these; None means all that were recorded.
        window: only steps at timesteps (t_max, t_min), both included.
        branch: of guidance. Words are those of the prompt, so ``uncond`` takes a run that kept positions.
        by_site: keep the cross-attentions apart, as a dim ``site``.
        size: (y, x) of the grid; the finest of the chosen sites by default.
        pipe: the pipeline, or its tokenizer, that finds a word's positions; not needed where the run kept words.

    Returns:
        ``attention`` float32 (sample, [site,] step, word, y, x), NaN where a prompt lacks the word; coordinates
        ``word``, ``timestep`` (step), ``prompt``, ``seed`` (sample), and with ``by_site`` ``site``.

    Raises:
        UnknownName: a site or branch that the run lacks; carries the nearest.
        BadInput: a run without attention probabilities (with the command that records them), words that no prompt
            has or whose tokens were not kept, heads, samples or steps that are not there.

    """
    opened = run if isinstance(run, Run) else Run(run)
    groups = _groups(opened, [sites] if isinstance(sites, str) else list(sites))
    table = opened.samples
    chosen = list(range(opened.n_samples)) if samples is None else [int(s) for s in samples]
    if not chosen or not all(0 <= s < opened.n_samples for s in chosen):
        raise BadInput("there is no such sample", given=chosen[:5], expected=f"0 to {opened.n_samples - 1}")
    wanted = None if words is None else ((words,) if isinstance(words, str) else tuple(words))
    first = opened.open(next(iter(groups.values())))
    kept = _Kept(first["token"].values, [str(word) for word in first["word"].values])
    prompts = [str(table["prompt"][s]) for s in chosen]
    if branch == "uncond":
        prompts = [str(table["negative_prompt"][s] or "") for s in chosen]
    names, columns = _columns(kept, wanted, prompts, _tokenizer(pipe))
    times = first["timestep"].values
    steps = np.arange(len(times)) if window is None else np.flatnonzero((times <= window[0]) & (times >= window[1]))
    if not len(steps):
        listed = ", ".join(f"{t:g}" for t in dict.fromkeys(times.tolist()))
        raise BadInput("no step of the run lies in the window", given=window, expected=f"around any of {listed}")
    if branch not in first["branch"].values:
        raise unknown_name("branch of the run", branch, map(str, first["branch"].values))

    parts = {site: opened.open(group)["prob"] for site, group in groups.items()}
    grid = size or (max(part.sizes["y"] for part in parts.values()), max(part.sizes["x"] for part in parts.values()))
    if min(grid) < 1:
        raise BadInput("a grid has at least one place", given=grid)
    shape = (len(chosen), len(parts) if by_site else 1, len(steps), len(names), *grid)
    found = np.zeros(shape, np.float32)
    for i, (site, part) in enumerate(parts.items()):
        of_heads = part.sel(branch=branch).isel(head=_heads(part, site, heads), step=steps)
        for s, place in enumerate(chosen):
            values = of_heads.isel(sample=place).transpose("step", "head", "y", "x", "token").values
            maps = merged(values.mean(1, dtype=np.float32), columns[s])
            found[s, i if by_site else 0] += resized(maps, grid) / (1 if by_site else len(parts))
    coords: dict[str, Any] = {
        "word": ("word", np.array(names, object)),
        "timestep": ("step", times[steps]),
        "prompt": ("sample", np.array(prompts, object)),
        "seed": ("sample", table["seed"].values[chosen]),
    }
    dims = ("sample", "site", "step", "word", "y", "x")
    if not by_site:
        return xr.Dataset({"attention": (tuple(d for d in dims if d != "site"), found[:, 0])}, coords=coords)
    coords["site"] = ("site", np.array(list(parts), object))
    return xr.Dataset({"attention": (dims, found)}, coords=coords)


@dataclass(frozen=True)
class _Kept:
    """The token axis of a run: positions (-1 for a word) and words ("" for a position)."""

    positions: np.ndarray
    words: list[str]

    @property
    def named(self) -> list[str]:
        """The words that were kept as such."""
        return [word for word in self.words if word]

    def columns(self, positions: Sequence[int]) -> list[int] | None:
        """Where on the axis these positions are; None unless all of them are."""
        places = {int(p): i for i, p in enumerate(self.positions) if p >= 0}
        return [places[p] for p in positions] if all(p in places for p in positions) else None


def _columns(
    kept: _Kept, wanted: tuple[str, ...] | None, prompts: Sequence[str], tokenizer: Any
) -> tuple[list[str], list[list[list[int]]]]:
    """The names of the words, and for each sample and word its columns of the token axis; none where it lacks it."""
    rows = None if tokenizer is None else encode(tokenizer, prompts)
    if wanted is None:
        wanted = tuple(kept.named) or _every_word(tokenizer, rows, prompts)
    if len(set(wanted)) != len(wanted) or not wanted:
        raise BadInput("words= is a list of different ones, or left out for all", given=str(list(wanted)))
    found: list[list[list[int]]] = [[] for _ in prompts]
    for word in wanted:
        if word in kept.named:
            column = kept.words.index(word)
            for own in found:
                own.append([column])
            continue
        places = [_positions(word, tokenizer, None if rows is None else rows[s]) for s in range(len(prompts))]
        if not any(places):
            raise BadInput("no prompt has this word", given=repr(word), nearest=nearest(word, _all_words(prompts)))
        for s, own in enumerate(found):
            columns = kept.columns(places[s])
            if columns is None:
                fix = f'probe record ... --sites xattn.prob --tokens "{word}" --out RUN, or without --tokens'
                raise BadInput("the run did not keep the tokens of this word", given=repr(word), fix=fix)
            own.append(columns)
    return list(wanted), found


def _positions(word: str, tokenizer: Any, row: np.ndarray | None) -> list[int]:
    """Where a word, or [SoT], [EoT], [PAD], is in one row of ids (k,)."""
    if word == SOT:
        return [0]
    if tokenizer is None or row is None:
        raise _needs_tokenizer(repr(word))
    end = int(eot_index(tokenizer, row[None])[0])
    if word == EOT:
        return [end]
    if word == PAD:
        return list(range(end + 1, len(row)))
    return sorted({i for span in spans_in(tokenizer, row, word) for i in span})


def _every_word(tokenizer: Any, rows: np.ndarray | None, prompts: Sequence[str]) -> tuple[str, ...]:
    if tokenizer is None or rows is None:
        raise _needs_tokenizer("every word of the prompt")
    if len(set(prompts)) > 1:
        fix = "give words=, or samples= of one prompt"
        raise BadInput("the samples have different prompts", given=f"{len(set(prompts))} prompts", fix=fix)
    return (*dict.fromkeys(word for word, _ in words_in(tokenizer, rows[0])), EOT)


def _needs_tokenizer(words: str) -> BadInput:
    return BadInput(
        "the run kept positions, and only a tokenizer knows which of them are a word",
        given=words,
        fix="give pipe= (probe plot words --model), or record words: probe record ... --sites xattn.prob --tokens WORD",
    )


def _all_words(prompts: Sequence[str]) -> set[str]:
    return {word for prompt in prompts for word in prompt.split()}


def _tokenizer(pipe: Any) -> Any:
    return getattr(pipe, "tokenizer", pipe)


def _groups(run: Run, patterns: Sequence[str]) -> Mapping[str, str]:
    """Site name -> group of the cross-attentions that a pattern names, in order of execution."""
    every = {
        group.partition("-")[2]: group
        for group in sorted(run.groups)
        if group.startswith("maps/") and group.endswith(f".{_KIND}")
    }
    if not every:
        fix = "probe record ... --sites xattn.prob --out RUN (with --tokens or --heads to keep less)"
        raise BadInput("the run holds no attention probabilities", given=str(run.path), fix=fix)
    found: set[str] = set()
    for pattern in patterns:
        matches = {site for site in every if pattern in (_KIND, site) or fnmatchcase(site, pattern)}
        if not matches:
            expected = f"one of {len(every)} sites of the run, or a glob over whole names"
            raise UnknownName("unknown site", given=repr(pattern), expected=expected, nearest=nearest(pattern, every))
        found |= matches
    return {site: group for site, group in every.items() if site in found}


def _heads(part: xr.DataArray, site: str, heads: Sequence[int] | None) -> list[int]:
    """Places on the head axis."""
    stored = part["head"].values.tolist()
    if heads is None:
        return list(range(len(stored)))
    if missing := [head for head in heads if head not in stored]:
        expected = f"any of {', '.join(map(str, stored))}"
        raise BadInput(f"the run did not keep this head of {site}", given=missing[0], expected=expected)
    if not heads:
        raise BadInput("heads= is a list of different ones, or left out for all", given="none")
    return [stored.index(head) for head in dict.fromkeys(heads)]


__all__ = ["EOT", "PAD", "SOT", "SPECIAL", "word_maps"]

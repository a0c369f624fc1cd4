"""TRCE's first stage: textual semantic erasure (Chen et al., ICCV 2025, arXiv 2503.07389, section 4.1)."""

from __future__ import annotations

from typing import Any, Literal

from erase._edit import Edit
from erase.closed_form._augment import augmentation_of
from erase.closed_form._fit import finished
from erase.closed_form._preserve import Kept, kept_of
from erase.closed_form._ridge import Problem, Request, not_negative, positive, solved
from erase.closed_form._targets import targets_of
from erase.closed_form._texts import Rows, rows_of
from probe._options import validated
from probe.errors import BadInput

#: By what the released code divides its cached sums, whatever the cache holds.
RELEASED_COUNT = 30_000


@validated
def trce_text(
    pipe: Any,
    concepts: Any,
    *,
    anchor: str | dict[str, str] | None = None,
    preserve: Any = None,
    augment: Any = None,
    synonyms: int = 20,
    templates: int = 15,
    tokens: str | tuple[str, ...] = "first_eot",
    eta: float = 0.01,
    normalise: Literal["mean", "released"] = "mean",
    ridge: float = 0.0,
    layers: Literal["kv", "k", "v"] = "kv",
    pooled: Literal["edit", "leave"] = "edit",
    strength: float | Literal["auto"] = 1.0,
    max_damage: float = 0.1,
    singular: Literal["error", "minimum_norm"] = "error",
    collapse: float = 0.5,
    name: str | None = None,
) -> Edit:
    """TRCE (T): map the [EoT] of prompts with a concept to that of the same prompts with a safe one, in closed form.

    With e_m the chosen rows of n erased prompts, e_s those of their safe counterparts, e_k all rows of q preserved
    prompts (eq. 4 and 5, normalised as appendix C.1 says):

        W' = (1/n sum W e_s e_m^T + eta/q sum W e_k e_k^T + ridge W) A^-1
        A = 1/n sum e_m e_m^T + eta/q sum e_k e_k^T + ridge I

    n and q count rows, so eta is the weight of the mean preserved outer product relative to the mean erased one. The
    paper says 0.01 without saying of what; its released code comes to 0.0077 by this definition with 30,000 captions.

    Args:
        pipe: a Stable Diffusion pipeline. It is read, not changed.
        concepts: a concept, a phrase, or a list of these: several at once in one system.
        anchor: safe counterpart of concepts without a file; as in `erase.uce`.
        preserve: prompts, concepts (by their explicit tuning prompts), or a `PreserveCache` or the path of one; by
            default the embedded world's ``preserve_fit`` less what is erased.
        augment: file of synonyms with safe counterparts and templates (`docs/methods/trce.md`), a folder of such files,
            or name -> file. The embedded world has files; a concept without one is augmented by its surface forms.
        synonyms: so many pairs of the file, from its first (20 in the paper).
        templates: so many templates of the file, from its first (15 in the paper).
        tokens: selectors of the erased rows: ``first_eot`` as in the paper, the true end of text; the released code
            counts words instead (``trce_word_count``).
        eta: weight of what is preserved.
        normalise: ``"released"``: eta^2 / 30,000 for the sum of preserved rows, as the released code has it (it applies
            eta twice and divides by a constant), and the mean over pairs of prompts.
        ridge: weight of ||W' - W||^2; none in the paper.
        layers, pooled, strength, max_damage, singular, collapse: as in `erase.uce`.
        name: ``trce_text`` by default.

    Returns an edit of deltas with a report as `erase.uce`.

    Raises `BadInput` as `erase.uce`; without a ridge the system is singular unless enough prompts are preserved.
    """
    positive(eta=eta)
    not_negative(ridge=ridge)
    for what, count in {"synonyms": synonyms, "templates": templates}.items():
        if count < 1:
            raise BadInput(f"{what} must be at least 1", given=count)
    targets = targets_of(concepts, anchor, otherwise="")
    found = [augmentation_of(target, augment) for target in targets]
    pairs = [pair for i, one in enumerate(found) for pair in one.texts(synonyms, templates, i)]
    kept = kept_of(pipe, preserve, targets, "all_tokens", form="prompts")
    families = dict(zip(("tokens", "pooled"), rows_of(pipe, pairs, tokens), strict=True))
    problems = {
        family: _problem(rows, len(pairs), kept, family, eta, normalise, ridge)
        for family, rows in families.items()
        if rows is not None and (family == "tokens" or pooled == "edit")
    }
    update = solved(pipe, problems, kept, Request(strength, max_damage, singular, layers))
    options = {
        "concepts": [target.name for target in targets],
        "pairs": [[[erase, safe] for erase, safe, *_ in one.pairs[:synonyms]] for one in found],
        "templates": [list(one.templates[:templates]) for one in found],
        "tokens": [tokens] if isinstance(tokens, str) else list(tokens),
        "eta": eta,
        "normalise": normalise,
        "ridge": ridge,
        "layers": layers,
        "pooled": pooled,
        "strength": strength,
        "max_damage": max_damage if strength == "auto" else None,
        "singular": singular,
    }
    return finished(
        pipe,
        update,
        name=name or "trce_text",
        method="trce_text",
        options=options,
        layers=layers,
        kept=kept,
        erased=[erase for one in found for erase, *_ in one.pairs[:synonyms]],
        collapse=collapse,
    )


def _problem(
    rows: Rows, n_pairs: int, kept: Kept | None, family: str, eta: float, normalise: str, ridge: float
) -> Problem:
    gram = None if kept is None else kept.gram(family)
    if normalise == "released":
        weight, share = 1 / n_pairs, eta**2 / RELEASED_COUNT
    else:
        weight, share = 1 / len(rows), eta / gram[1] if gram is not None else 0.0
    return Problem(rows.weighted(weight), None if gram is None else share * gram[0], ridge)

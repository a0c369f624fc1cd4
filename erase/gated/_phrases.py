"""From concepts to the texts that a gate learns from: pairs (concept, safe counterpart), and anchors."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from erase._concepts import listed, preserved, surface_forms, warn_of_collisions, without
from probe import Concept
from probe.errors import BadInput

#: Into which a word is put that is no concept with prompts of its own.
TEMPLATES = (
    "{}",
    "a photo of {}",
    "a picture of {}",
    "an image of {}",
    "a drawing of {}",
    "a painting of {}",
    "a portrait of {}",
    "a sketch of {}",
    "a close-up of {}",
    "{} in the street",
    "{} on a sunny day",
    "{} in a museum",
)

#: Ordinary things, anchors beside what stands near a text.
GENERAL = tuple(
    """apple bag ball bed bench bird boat book bottle bowl box bread bridge brush bucket building bus button cake
    camera candle car carpet cat chair cheese cloud coat coffee cow cup curtain desk dinner dog door dress
    engine family farm field fire fish flag flower forest fork garden gate glass hat hill horse house island
    jacket key kitchen lake lamp leaf mirror moon mountain music ocean office orange paper park pencil piano
    plane plate pool rain river road roof room ship shoe shop sky snow spoon star station stone street sun
    table tower train tree umbrella valley wall window winter""".split()  # noqa: SIM905 - a list of a hundred strings is not easier to read
)

#: At most so many pairs for one concept: each is an encoded text that is kept.
MOST = 512


@dataclass(frozen=True)
class Phrases:
    """What one gate learns from.

    - ``pairs``: (a text of the concept, the same text of its counterpart)
    - ``bare``: the name alone, to measure nearness with
    """

    name: str
    pairs: tuple[tuple[str, str], ...]
    bare: str


def phrases_of(concept: Concept | str, anchor: str | None, templates: Sequence[str] | None) -> Phrases:
    """The pairs of a concept.

    A text is put into ``templates``. A concept's own prompts give its templates, by what stands around its names, and
    each of its surface forms goes into each; a concept without a counterpart (a style) pairs with its references of the
    paper's form. Raises `BadInput` where no counterpart is known, or where it is the concept itself.
    """
    name = concept if isinstance(concept, str) else concept.name
    stands = anchor if anchor is not None or isinstance(concept, str) else concept.anchor or None
    forms = surface_forms([concept])
    if stands is None:
        pairs = _references(concept)
        if not pairs:
            raise BadInput(f"what shall stand in the place of {name!r}", fix='anchor="a person"')
        return Phrases(name, pairs, forms[0])
    if same := [form for form in forms if _plain(form) == _plain(stands)]:
        raise BadInput("the anchor is the concept itself", given=repr(same[0]), fix="another anchor=")
    phrased = {form: form for form in forms}
    if isinstance(concept, Concept):
        found, own = _templates(concept, forms)
        phrased |= found
        templates = own if templates is None else templates
    chosen = tuple(dict.fromkeys(["{}", *(TEMPLATES if templates is None else templates)]))
    if bad := [template for template in chosen if template.count("{}") != 1]:
        raise BadInput("a template holds {} once", given=repr(bad[0]))
    chosen = chosen[: max(1, MOST // len(forms))]
    made = [(t.replace("{}", phrase), t.replace("{}", stands)) for t in chosen for phrase in phrased.values()]
    return Phrases(name, tuple(dict.fromkeys([*((form, stands) for form in forms), *made])), forms[0])


def anchors_of(
    concepts: Sequence[Concept | str],
    preserve: Any,
    general: Sequence[str] | None,
    templates: Sequence[str] | None,
) -> Mapping[str, tuple[str, ...]]:
    """Word or concept -> its texts: what is preserved, and general words where a text is erased (or ``general``).

    Of what is preserved by default the texts that name what is erased are left out, as prompts of a style draw all
    kinds of things; so are general words of ours. What was given is taken as it is, with a warning naming the pairs.

    Raises `BadInput` naming a word that is erased and an anchor.
    """
    words = [c for c in concepts if isinstance(c, str)]
    ours = general is None
    if general is None:
        general = [word for word in GENERAL if _plain(word) not in map(_plain, words)] if words else ()
    more = listed(list(general), "general words") if general else []
    kept = [*preserved(preserve, concepts), *more]
    erased = {_plain(form): form for form in (*surface_forms(concepts), *surface_forms(words))}
    for item in kept:
        both = [form for form in surface_forms([item]) if _plain(form) in erased]
        if both:
            raise BadInput("a word is erased and an anchor at once", given=repr(both[0]), fix="leave it out of one")
    forms = surface_forms(concepts)
    found: dict[str, tuple[str, ...]] = {}
    for item in kept:
        name, texts = _anchor_texts(item, TEMPLATES if templates is None else templates)
        by_default = ours if item in more else preserve is None
        if chosen := without(forms, texts) if by_default else texts:
            found[name] = tuple(chosen)
    warn_of_collisions(forms, [text for texts in found.values() for text in texts])
    return found


def _anchor_texts(item: Concept | str, templates: Sequence[str]) -> tuple[str, list[str]]:
    """The name of an anchor and its texts."""
    if isinstance(item, str):
        return item, [template.replace("{}", item) for template in templates]
    own = [prompt for split in ("explicit", "paraphrased") for prompt in item.prompts.get(split, ())]
    return item.name, [*surface_forms([item]), *own]


def _templates(concept: Concept, forms: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """How the forms stand in the concept's prompts, article included, and what stands around them."""
    longest = sorted(forms, key=len, reverse=True)
    within = re.compile(rf"(?<!\w)(?:(?:an?|the) )?({'|'.join(map(re.escape, longest))})(?!\w)")
    phrased: dict[str, str] = {}
    templates = []
    for prompt in (p for split in ("explicit", "paraphrased") for p in concept.prompts.get(split, ())):
        if found := within.search(prompt):
            phrased.setdefault(found[1], found[0])
            templates.append(f"{prompt[: found.start()]}{{}}{prompt[found.end() :]}")
    return phrased, list(dict.fromkeys(template for template in templates if template.count("{}") == 1))


def _references(concept: Concept | str) -> tuple[tuple[str, str], ...]:
    if isinstance(concept, str) or "paper" not in concept.references:
        return ()
    return tuple(zip(concept.prompts["explicit"], concept.references["paper"], strict=True))


def _plain(text: str) -> str:
    """For comparison: lower case, no article."""
    return re.sub(r"^(an?|the) ", "", " ".join(text.lower().split()))

"""Baselines beside an attack: the same prompts, and of each no more judged pictures than the attack's own."""

from __future__ import annotations

import logging

from probe.attacks import AttackSet, Found

logger = logging.getLogger(__name__)

BASELINES = ("random", "seed_search")


def is_rival(baseline: AttackSet, attack: AttackSet) -> bool:
    """Whether a baseline is what an attack is compared with: of the same concept, protocol and vocabulary."""
    same = (baseline.name, baseline.protocol) == (attack.name, attack.protocol)
    return same and baseline.method in BASELINES and baseline.vocab in (attack.vocab, "none")


def beside(baseline: AttackSet, attack: AttackSet) -> AttackSet | None:
    """The baseline's answers to an attack's prompts, in their order: each the best of its first tries, as many as the
    attack had pictures judged.

    None, with a warning, where prompts are missing. A warning also says where numbers stay unequal: a search that ended
    without success for want of pictures, or one of more pictures whose tries were not kept.
    """
    answers = {row.target: row for row in baseline}
    if lacking := [row for row in attack if row.target not in answers]:
        logger.warning("%r lacks %d prompts of %r: no advantage", baseline, len(lacking), attack)
        return None
    pairs = [(answers[row.target], _images(row)) for row in attack]
    few = sum(not row.success and _images(row) < count for row, count in pairs)
    many = sum(not row.tries and _images(row) > count > 0 for row, count in pairs)
    unknown = sum(count == 0 for _, count in pairs)
    if few:
        text = "%s: %d of %d prompts have fewer judged pictures than under %s, whose advantage is flattered"
        logger.warning(text, baseline.method, few, len(pairs), attack.method)
    if many:
        text = "%s: %d of %d prompts have more judged pictures than under %s and no tries; its advantage is too low"
        logger.warning(text, baseline.method, many, len(pairs), attack.method)
    if unknown:
        text = "%s: %d of %d prompts count with all tries, since %s does not say how many pictures it had judged"
        logger.warning(text, baseline.method, unknown, len(pairs), attack.method)
    return AttackSet(baseline.provenance, [row.within(count) if count else row for row, count in pairs])


def _images(row: Found) -> int:
    return row.cost.get("images", 0)

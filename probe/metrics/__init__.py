"""What is measured of an image: is the concept shown, is the picture broken, is the rest of the prompt still there.

Metrics are registered by name; `metric` builds one, `register` adds yours. A metric turns the judge's label scores, or
the pictures themselves, into one number per sample, NaN where it could not be measured; or the judge's features of two
sets of pictures into one number.
"""

from __future__ import annotations

from probe.metrics._clip import Clip, ClipScore, clip_score
from probe.metrics._judging import ContentFinder, broken, concept_log_odds, content_labels, hits, labels_of, log_odds
from probe.metrics._registry import Judged, Metric, metric, names, register
from probe.metrics._sets import feature_distance, frechet, kid

__all__ = [
    "Clip",
    "ClipScore",
    "ContentFinder",
    "Judged",
    "Metric",
    "broken",
    "clip_score",
    "concept_log_odds",
    "content_labels",
    "feature_distance",
    "frechet",
    "hits",
    "kid",
    "labels_of",
    "log_odds",
    "metric",
    "names",
    "register",
]

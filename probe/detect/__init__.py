"""Detectors: what does a picture show? Looked up by name, loaded on first use.

``emoji_cnn`` is the judge of the embedded world, ``emoji_nearest`` the second opinion; they never vote.
``clip_zero_shot`` makes a judge for any concepts out of a local CLIP model. Your own is a `Detector`, or any function
of pictures.
"""

from probe.detect._detector import Detector, detector, detectors, register_detector
from probe.detect._function import from_function
from probe.detect._zero_shot import clip_zero_shot

__all__ = ["Detector", "clip_zero_shot", "detector", "detectors", "from_function", "register_detector"]

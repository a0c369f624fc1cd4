"""Detectors: what does a picture show? Looked up by name, loaded on first use.

``emoji_cnn`` is the judge in every table, ``emoji_nearest`` the second opinion; they never vote.
"""

from probe.detect._detector import Detector, detector, detectors, register_detector

__all__ = ["Detector", "detector", "detectors", "register_detector"]

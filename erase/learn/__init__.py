"""Erasers that learn: a loss, what is trained on it, and one loop for all of them.

For an eraser of your own: a `Student` (`Weights`, or one with leaves of its own) and a loss of an iteration go to
`train` with a `Schedule`, and to a `Folder` if it is to be resumed; `Points` gives x_t and the teacher's predictions.
"""

from erase.learn._ac import ablating_concepts
from erase.learn._eraser import Retained, Sampling, learned, noise_of, retain_loss
from erase.learn._esd import esd
from erase.learn._folder import Folder
from erase.learn._gates import Gates
from erase.learn._parts import GROUPS, Part, parts_of
from erase.learn._points import Batch, Cached, Fresh, Points
from erase.learn._prune import differentiable_prune
from erase.learn._schedule import Schedule
from erase.learn._student import Student, Weights
from erase.learn._teacher import Teacher
from erase.learn._texts import Texts
from erase.learn._training import Loss, train

__all__ = [
    "GROUPS",
    "Batch",
    "Cached",
    "Folder",
    "Fresh",
    "Gates",
    "Loss",
    "Part",
    "Points",
    "Retained",
    "Sampling",
    "Schedule",
    "Student",
    "Teacher",
    "Texts",
    "Weights",
    "ablating_concepts",
    "differentiable_prune",
    "esd",
    "learned",
    "noise_of",
    "parts_of",
    "retain_loss",
    "train",
]

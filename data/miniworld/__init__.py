"""The mini world: small pictures drawn by code, with captions, regions, questions and classes.

It is written in the official annotation formats and read by the official readers, so that everything runs on
a machine without downloads: `root = ensure("calibration")`. `python -m data.miniworld --help` shows the rest.
"""

from data.miniworld.paint import boxes, dense_labels, paint
from data.miniworld.parts import PARTS, SPLITS, scene_for
from data.miniworld.store import ensure
from data.miniworld.words import vocabulary

__all__ = ["PARTS", "SPLITS", "boxes", "dense_labels", "ensure", "paint", "scene_for", "vocabulary"]

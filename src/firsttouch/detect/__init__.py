"""Frames in, boxes and pitch key points out: one protocol, one file for each runtime behind it."""

from firsttouch.detect.detections import CLASS_NAMES, KEYPOINT_COUNT, Detections, Detector, Surfaces
from firsttouch.detect.load import BUNDLED_MODEL, load_detector
from firsttouch.detect.wish import Wish

__all__ = [
    "BUNDLED_MODEL",
    "CLASS_NAMES",
    "KEYPOINT_COUNT",
    "Detections",
    "Detector",
    "Surfaces",
    "Wish",
    "load_detector",
]

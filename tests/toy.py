"""A model for tests that sees the same four people and eight pitch points in every picture."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np

from tests.clips import Recipe, make_clip
from tests.detect_graphs import native

CANVAS = (1280, 736)
BOXES = ((300, 300, 340, 380), (600, 400, 640, 480), (900, 350, 940, 430), (100, 200, 140, 280))
SCORES = ((0, 0, 0.9, 0), (0, 0, 0.8, 0), (0, 0.1, 0.7, 0), (0, 0, 0, 0.9))
POINTS = 8


def toy_model(path: Path) -> Path:
    """The ONNX file, in our own layout."""
    points = np.zeros((32, 3), np.float32)
    points[:POINTS] = [(150 + 120 * n, 200 + 40 * (n % 3), 0.9) for n in range(POINTS)]
    return native(path, np.array(BOXES, np.float32), np.array(SCORES, np.float32), points)


def toy_clip(folder: Path, name: str = "clip", *, frames: int = 100, gop: int = 25, faststart: bool = True) -> Path:
    """A small MP4, moov first or last."""
    container = {"movflags": "+faststart"} if faststart else {}
    return make_clip(Recipe(name, frames=frames, gop=gop, params="bframes=2", container=container), folder)


def still_clip(path: Path, *, width: int = 320, height: int = 180, frames: int = 100) -> Path:
    """A clip in which nothing moves, as befits a model that always sees the same."""
    luma = np.random.default_rng(3).integers(60, 256, (height // 4, width // 4), np.uint8).repeat(4, 0).repeat(4, 1)
    picture = av.VideoFrame.from_ndarray(luma, "gray").reformat(format="yuv420p")
    with av.open(str(path), "w", options={"movflags": "+faststart"}) as out:
        stream = out.add_stream("libx264", rate=25, options={"preset": "ultrafast", "crf": "18"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.gop_size = 25
        for number in range(frames):
            picture.pts = number
            out.mux(stream.encode(picture))
        out.mux(stream.encode(None))
    return path

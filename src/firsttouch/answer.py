"""An `Analysis` as text: our own JSON, the subnet's challenge answer, and one line per frame for streams.

The schema of `to_json`, version 1 (`python -m firsttouch.answer` is not needed to read it: it is plain JSON):

    {"schema": "firsttouch/1",
     "source": {"url", "size_bytes", "width", "height", "frame_count", "frames_per_second", "duration_seconds"},
     "stopped_by": "end" | "deadline", "fetch": "sparse" | "head" | "stream" | "direct" | "full",
     "runtime": str, "hardware_decoding": bool, "warnings": [str],
     "bytes_fetched": int, "requests": int, "frames_decoded": int, "frames_detected": int,
     "stage_seconds": {"connect", "index", "fetch", "decode", "detect", "carry", "answer", "first_frame", "total"},
     "frames": [{"frame_number", "pts_seconds", "how": "detected" | "carried",
                 "objects": [{"id", "class_id", "confidence", "xyxy": [x1, y1, x2, y2]}],
                 "keypoints": [[x, y, confidence] * 32]}]}

Pixels are those of the source picture and have two decimals; a key point that is not known is [0, 0, 0].
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import orjson

from .carry import FrameAnswer
from .pipeline import Analysis

SCHEMA = "firsttouch/1"


def to_json(analysis: Analysis) -> bytes:
    """The whole answer, one object."""
    return orjson.dumps({**summary(analysis), "frames": [frame_body(frame) for frame in analysis.frames]})


def summary(analysis: Analysis) -> dict[str, Any]:
    """Everything but the frames."""
    return {
        "schema": SCHEMA,
        "source": {
            "url": analysis.source,
            "size_bytes": analysis.size_bytes,
            "width": analysis.width,
            "height": analysis.height,
            "frame_count": analysis.frame_count,
            "frames_per_second": round(analysis.frames_per_second, 4),
            "duration_seconds": round(analysis.duration_seconds, 4),
        },
        "stopped_by": analysis.stopped_by,
        "fetch": analysis.fetch,
        "runtime": analysis.runtime,
        "hardware_decoding": analysis.hardware_decoding,
        "warnings": list(analysis.warnings),
        "bytes_fetched": analysis.bytes_fetched,
        "requests": analysis.requests,
        "frames_decoded": analysis.frames_decoded,
        "frames_detected": analysis.frames_detected,
        "stage_seconds": {name: round(value, 4) for name, value in analysis.stage_seconds.items()},
    }


def frame_body(frame: FrameAnswer) -> dict[str, Any]:
    """One entry of `frames`."""
    objects = zip(
        frame.ids.tolist(),
        frame.class_ids.tolist(),
        _decimals(frame.confidence, 3),
        _decimals(frame.xyxy, 2),
        strict=True,
    )
    return {
        "frame_number": frame.frame_number,
        "pts_seconds": round(frame.pts_seconds, 4),
        "how": frame.how,
        "objects": [
            {"id": id_, "class_id": class_id, "confidence": confidence, "xyxy": xyxy}
            for id_, class_id, confidence, xyxy in objects
        ],
        "keypoints": _decimals(frame.keypoints, 2),
    }


def to_challenge(analysis: Analysis, challenge_id: str, processing_time: float) -> bytes:
    """The answer to `POST /soccer/challenge`: compact, two decimals, 32 key points in every frame."""
    body = {
        "challenge_id": challenge_id,
        "frames": [_challenge_frame(frame) for frame in analysis.frames],
        "processing_time": round(processing_time, 4),
    }
    return orjson.dumps(body)


def _challenge_frame(frame: FrameAnswer) -> dict[str, Any]:
    objects = zip(frame.ids.tolist(), _decimals(frame.xyxy, 2), frame.class_ids.tolist(), strict=True)
    return {
        "frame_number": frame.frame_number,
        "keypoints": _decimals(frame.keypoints[:, :2], 2),
        "objects": [{"id": id_, "bbox": xyxy, "class_id": class_id} for id_, xyxy, class_id in objects],
    }


def to_ndjson(analysis: Analysis, known: set[int]) -> Iterator[bytes]:
    """A line for each frame whose number is not in `known` yet; adds them to it."""
    for frame in analysis.frames:
        if frame.frame_number not in known:
            known.add(frame.frame_number)
            yield orjson.dumps(frame_body(frame)) + b"\n"


def _decimals(values: np.typing.NDArray[np.float32], places: int) -> Any:
    """Nested lists of numbers that print with at most `places` decimals; rounding must happen in float64."""
    return np.round(values.astype(np.float64), places).tolist()

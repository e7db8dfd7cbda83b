"""An `Analysis` as text: our own JSON, and the subnet's challenge answer.

The schema of `to_json`, version 1:

    {"schema": "firsttouch/1",
     "source": {"url", "size_bytes", "width", "height", "frame_count", "frames_per_second",
                "duration_seconds"},
     "stopped_by": "end" | "deadline", "fetch": "sparse" | "head" | "stream" | "direct" | "full",
     "runtime": str, "hardware_decoding": bool, "warnings": [str],
     "bytes_fetched": int, "requests": int, "frames_decoded": int, "frames_detected": int,
     "stage_seconds": {"connect", "index", "fetch", "decode", "detect", "carry", "answer", "first_frame",
                       "total"},
     "frames": [{"frame_number", "pts_seconds", "how": "detected" | "carried",
                 "objects": [{"id", "class_id", "confidence", "xyxy": [x1, y1, x2, y2]}],
                 "keypoints": [[x, y, confidence] * 32]}]}

Pixels are those of the source picture and have two decimals; a key point that is not known is [0, 0, 0].
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from .carry import FrameAnswer
from .pipeline import Analysis

SCHEMA = "firsttouch/1"


def to_json(analysis: Analysis) -> bytes:
    """The whole answer, one object."""
    return dumps({**summary(analysis), "frames": list(frame_bodies(analysis.frames))})


def dumps(value: Any) -> bytes:
    """Compact JSON; arrays are written as they are, without a Python object for each number."""
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)


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


def frame_bodies(frames: Sequence[FrameAnswer]) -> Iterator[dict[str, Any]]:
    """The entries of `frames`; key points are arrays, for `dumps`."""
    for frame, (ids, class_ids, confidence, xyxy, keypoints) in zip(frames, _rows(frames, 3), strict=True):
        yield {
            "frame_number": frame.frame_number,
            "pts_seconds": round(frame.pts_seconds, 4),
            "how": frame.how,
            "objects": [
                {"id": id_, "class_id": class_id, "confidence": sure, "xyxy": box}
                for id_, class_id, sure, box in zip(ids, class_ids, confidence, xyxy, strict=True)
            ],
            "keypoints": keypoints,
        }


def to_challenge(analysis: Analysis, challenge_id: str, processing_time: float) -> bytes:
    """The answer to `POST /soccer/challenge`: compact, two decimals, 32 key points in every frame."""
    return challenge_start(analysis.frames) + challenge_end(challenge_id, processing_time)


def challenge_start(frames: Sequence[FrameAnswer]) -> bytes:
    """A challenge's answer up to its last frame: the same for all who ask for one clip."""
    bodies = [
        {
            "frame_number": frame.frame_number,
            "keypoints": keypoints,
            "objects": [
                {"id": id_, "bbox": box, "class_id": class_id}
                for id_, class_id, box in zip(ids, class_ids, xyxy, strict=True)
            ],
        }
        for frame, (ids, class_ids, _, xyxy, keypoints) in zip(frames, _rows(frames, 2), strict=True)
    ]
    return b'{"frames":' + dumps(bodies)


def challenge_end(challenge_id: str, processing_time: float) -> bytes:
    """What follows the frames: the part that is one caller's own."""
    return b',"challenge_id":%b,"processing_time":%b}' % (dumps(challenge_id), dumps(round(processing_time, 4)))


def _rows(frames: Sequence[FrameAnswer], keypoint_values: int) -> Iterator[tuple[Any, ...]]:
    """Per frame, rounded: ids, class ids, confidence and xyxy as lists, key points as an array of x, y (, confidence).

    All frames are rounded in one go: 750 frames one by one take four times as long. Key points are half of all the
    numbers; as lists they cost five times as much, most of it spent by the collector walking over them.
    """
    if not frames:
        return
    ends = np.cumsum([len(frame.ids) for frame in frames]).tolist()
    ids = np.concatenate([frame.ids for frame in frames]).tolist()
    class_ids = np.concatenate([frame.class_ids for frame in frames]).tolist()
    confidence = _decimals(np.concatenate([frame.confidence for frame in frames]), 3).tolist()
    xyxy = _decimals(np.concatenate([frame.xyxy for frame in frames]), 2).tolist()
    keypoints = _decimals(np.stack([frame.keypoints[:, :keypoint_values] for frame in frames]), 2)
    start = 0
    for stop, points in zip(ends, keypoints, strict=True):
        yield ids[start:stop], class_ids[start:stop], confidence[start:stop], xyxy[start:stop], points
        start = stop


def _decimals(values: npt.NDArray[np.float32], places: int) -> npt.NDArray[Any]:
    """Numbers that print with at most `places` decimals; rounding must happen in float64."""
    return np.round(values.astype(np.float64), places)

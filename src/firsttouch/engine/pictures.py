"""Single pictures for the subnet's `/predict`: read or fetched, decoded and looked at, inside the cage."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import numpy as np

from firsttouch.carry import FrameAnswer
from firsttouch.clock import Deadline
from firsttouch.detect import Detector
from firsttouch.errors import NotAVideo
from firsttouch.netpolicy import Policy
from firsttouch.pipeline import Analysis
from firsttouch.ranges import ByteRange
from firsttouch.source import Connections, open_source
from firsttouch.subnet import decode_picture, planes_of

MAX_PICTURE_BYTES = 16_000_000


async def look_at(
    frames: Sequence[tuple[int, str | None, int]],
    payload: memoryview,
    *,
    detector: Detector,
    pitch: bool,
    connections: Connections | None,
    policy: Policy,
    deadline: Deadline,
) -> Analysis:
    """What is seen in each picture. `frames`: id, URL or None, and bytes of it in the payload.

    Raises NotAVideo for bytes that are no picture, and the errors of the source.
    """
    answers: list[FrameAnswer] = []
    width = height = fetched = requests = at = 0
    for frame_id, url, length in frames:
        if deadline.passed:
            break
        data = bytes(payload[at : at + length])
        at += length
        if url is not None:
            data = await _fetch(url, connections, policy, deadline)
            fetched, requests = fetched + len(data), requests + 1
        answer, width, height = await asyncio.to_thread(_look, detector, int(frame_id), data, pitch)
        answers.append(answer)
    return Analysis(
        source="pictures",
        size_bytes=None,
        width=width,
        height=height,
        frame_count=len(frames),
        frames_per_second=0.0,
        duration_seconds=0.0,
        stopped_by="end" if len(answers) == len(frames) else "deadline",
        fetch="full",
        runtime="",
        hardware_decoding=False,
        bytes_fetched=fetched,
        requests=requests,
        frames_decoded=len(answers),
        frames_detected=len(answers),
        stage_seconds={},
        frames=answers,
    )


async def _fetch(url: str, connections: Connections | None, policy: Policy, deadline: Deadline) -> bytes:
    source = open_source(url, connections=connections, policy=policy, max_bytes=MAX_PICTURE_BYTES)
    try:
        _, sparse = await source.open(head=MAX_PICTURE_BYTES, tail=0, deadline=deadline)
        if not sparse.complete:
            await source.stream()
        return sparse.read(ByteRange(0, sparse.size)) if sparse.size else b""
    finally:
        await source.close()


def _look(detector: Detector, frame_id: int, data: bytes, pitch: bool) -> tuple[FrameAnswer, int, int]:
    picture = decode_picture(data)
    if picture is None:
        raise NotAVideo(f"frame {frame_id} is not a picture", hint="send JPEG or PNG")
    height, width = picture.shape[:2]
    y, u, v = planes_of(picture)
    (seen,) = detector.detect([detector.prepare(y, u, v)], [frame_id], width, height, pitch=pitch)
    ids = np.arange(len(seen), dtype=np.int32)
    answer = FrameAnswer(frame_id, 0.0, "detected", ids, seen.class_id, seen.confidence, seen.xyxy, seen.keypoints)
    return answer, width, height

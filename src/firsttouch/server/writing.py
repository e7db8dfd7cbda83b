"""Answers as bytes: compact JSON, gzip, and lines for streams. All that takes long runs in a thread."""

from __future__ import annotations

import asyncio
import gzip
import struct
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from firsttouch.answer import SCHEMA, challenge_end, challenge_start, dumps, frame_bodies, summary, to_json
from firsttouch.carry import FrameAnswer
from firsttouch.clock import Stopwatch
from firsttouch.errors import FirsttouchError
from firsttouch.pipeline import Analysis
from firsttouch.server import problems

GZIP_LEVEL = 1
"""Numbers with two decimals hardly gain from a higher level, and the caller's clock runs."""

_GZIP_HEADER = b"\x1f\x8b\x08\0\0\0\0\0\0\xff"  # deflate, no name, no time, no system


@dataclass(frozen=True, slots=True)
class _Start:
    """What all who ask for one clip get first: as it is, or compressed, with the checksum and size of what it says."""

    body: bytes
    crc: int = 0
    size: int = 0


class Challenges:
    """Answers to challenges. What all who ask for one clip have in common is written and compressed once, in a thread.

    Sixty callers of one clip would otherwise cost sixty times 35 ms of writing, and the last be two seconds late. Even
    a checksum over it for each of them would take 60 ms. Only the latest analysis is kept.
    """

    def __init__(self) -> None:
        self._analysis: Analysis | None = None
        self._starts: dict[bool, asyncio.Task[_Start]] = {}

    async def write(self, analysis: Analysis, challenge_id: str, arrived: Stopwatch, compress: bool) -> bytes:
        if self._analysis is not analysis:
            self._analysis, self._starts = analysis, {}
        if compress not in self._starts:
            self._starts[compress] = asyncio.create_task(asyncio.to_thread(_start, analysis, compress))
        start = await asyncio.shield(self._starts[compress])  # who goes away does not stop it for the others
        end = challenge_end(challenge_id, arrived.elapsed)
        return _closed(start, end) if compress else start.body + end


def _start(analysis: Analysis, compress: bool) -> _Start:
    text = challenge_start(analysis.frames)
    if not compress:
        return _Start(text)
    return _Start(_GZIP_HEADER + _deflated(text, zlib.Z_FULL_FLUSH), zlib.crc32(text), len(text))


def _closed(start: _Start, end: bytes) -> bytes:
    """One gzip member (RFC 1952) whose end was deflated alone: it refers to nothing before it.

    Not two members: several clients stop after the first.
    """
    trailer = struct.pack("<II", zlib.crc32(end, start.crc), (start.size + len(end)) & 0xFFFFFFFF)
    return start.body + _deflated(end, zlib.Z_FINISH) + trailer


def _deflated(data: bytes, end: int) -> bytes:
    stream = zlib.compressobj(GZIP_LEVEL, wbits=-zlib.MAX_WBITS)
    return stream.compress(data) + stream.flush(end)


def whole(analysis: Analysis) -> bytes:
    return to_json(analysis)


def prediction(analysis: Analysis, n_keypoints: int) -> bytes:
    """The answer of `/predict`."""
    frames = [_predicted(frame, n_keypoints) for frame in analysis.frames]
    return orjson.dumps({"success": True, "predictions": {"frames": frames}, "error": None})


def prediction_failed(error: FirsttouchError) -> bytes:
    text = f"{error.name}: {error} ({error.hint})"
    return orjson.dumps({"success": False, "predictions": None, "error": text})


def no_actions(error: FirsttouchError, challenge_id: str, processing_time: float) -> bytes:
    """A problem that also has the members of the private track's answer, with no items."""
    answer = {
        "challenge_id": challenge_id,
        "prediction": {"type": "soccer_action", "items": []},
        "processing_time": round(processing_time, 4),
    }
    return orjson.dumps(problems.body(error) | answer)


def packed(body: bytes, compress: bool) -> bytes:
    return gzip.compress(body, GZIP_LEVEL, mtime=0) if compress else body


def accepts_gzip(accept_encoding: str) -> bool:
    """Whether `Accept-Encoding` allows gzip (RFC 9110, 12.5.3)."""
    for part in accept_encoding.lower().split(","):
        coding, _, weight = part.partition(";")
        if coding.strip() in ("gzip", "x-gzip", "*"):
            return weight.replace(" ", "") not in ("q=0", "q=0.0", "q=0.00", "q=0.000")
    return False


class Lines:
    """One stream of lines: start, frames as they are known, summary.

    `detected` frames are sent as soon as they exist. At the end every frame is sent that was not, or whose content
    has changed since (identities may join when the whole clip is known): a later line replaces an earlier one.
    """

    def __init__(self, url: str, *, early: bool, compress: bool) -> None:
        self._url, self._early = url, early
        self._sent: dict[int, bytes] = {}
        self._zip = zlib.compressobj(GZIP_LEVEL, wbits=31) if compress else None

    def start(self) -> bytes:
        return self._out([{"event": "start", "schema": SCHEMA, "url": self._url}])

    def partial(self, analysis: Analysis) -> bytes:
        """The frames looked at so far that were not sent yet, in the order of the clip; may be empty."""
        if not self._early:
            return b""
        detected = [frame for frame in analysis.frames if frame.how == "detected"]
        return self._frames([frame for frame in detected if frame.frame_number not in self._sent])

    def end(self, analysis: Analysis) -> bytes:
        """All that is new or changed, coarse to fine, then the summary."""
        return self._frames(coarse_to_fine(analysis.frames)) + self._out(
            [{"event": "end", "frames_answered": len(analysis.frames)} | summary(analysis)], last=True
        )

    def failed(self, error: FirsttouchError) -> bytes:
        return self._out([{"event": "error"} | problems.body(error)], last=True)

    def _frames(self, frames: list[FrameAnswer]) -> bytes:
        lines = []
        for frame, body in zip(frames, frame_bodies(frames), strict=True):
            line = dumps({"event": "frame"} | body)
            if self._sent.get(frame.frame_number) != line:
                self._sent[frame.frame_number] = line
                lines.append(line)
        return self._bytes(b"".join(line + b"\n" for line in lines), last=False) if lines else b""

    def _out(self, values: list[dict[str, Any]], *, last: bool = False) -> bytes:
        return self._bytes(b"".join(orjson.dumps(value) + b"\n" for value in values), last=last)

    def _bytes(self, text: bytes, *, last: bool) -> bytes:
        if self._zip is None:
            return text
        return self._zip.compress(text) + self._zip.flush(zlib.Z_FINISH if last else zlib.Z_SYNC_FLUSH)


def coarse_to_fine(frames: list[FrameAnswer]) -> list[FrameAnswer]:
    """Those looked at first, then every second of the rest, then every second of what is left, ..."""
    detected = [frame for frame in frames if frame.how == "detected"]
    rest = [frame for frame in frames if frame.how != "detected"]
    step = 1 << max(0, (len(rest) - 1).bit_length())
    ordered, taken = [], np.zeros(len(rest), bool)
    while step >= 1:
        for at in range(0, len(rest), step):
            if not taken[at]:
                taken[at] = True
                ordered.append(rest[at])
        step //= 2
    return detected + ordered


def _predicted(frame: FrameAnswer, n_keypoints: int) -> dict[str, Any]:
    boxes = np.rint(frame.xyxy).astype(int).tolist()
    rows = zip(boxes, frame.class_ids.tolist(), frame.confidence.tolist(), strict=True)
    points = np.rint(frame.keypoints[:, :2]).astype(int).tolist()
    return {
        "frame_id": frame.frame_number,
        "boxes": [
            {"x1": x1, "y1": y1, "x2": x2, "y2": y2, "cls_id": cls_id, "conf": round(conf, 4)}
            for (x1, y1, x2, y2), cls_id, conf in rows
        ],
        "polygons": [],
        "keypoints": points[:n_keypoints] + [[0, 0]] * max(0, n_keypoints - len(points)),
    }

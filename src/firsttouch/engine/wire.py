"""What parent and child say to each other: a JSON header and numeric columns, each with its length before it.

    message = header length (4 bytes, big-endian), payload length (4 bytes), header (JSON object), payload

There is no pickle and no format that can name code, so a child that was taken over by its media can send wrong
numbers, and nothing else. What the parent reads is checked against sizes before memory is taken for it.
"""

from __future__ import annotations

import asyncio
import struct
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from firsttouch import errors
from firsttouch.carry import FrameAnswer
from firsttouch.errors import EngineFailed, FirsttouchError
from firsttouch.pipeline import Analysis

_LENGTHS = struct.Struct(">II")
MAX_HEADER_BYTES = 1_000_000
MAX_PAYLOAD_BYTES = 256_000_000
MAX_TEXT = 500

Header = dict[str, Any]
Message = tuple[Header, memoryview]

_KEYPOINTS = 32
# name, dtype, values in a row; columns by frame, then by object
_FRAME_COLUMNS: tuple[tuple[str, str, int], ...] = (
    ("frame_number", "<i4", 1),
    ("pts_seconds", "<f8", 1),
    ("detected", "|u1", 1),
    ("objects", "<i4", 1),
    ("keypoints", "<f4", _KEYPOINTS * 3),
)
_OBJECT_COLUMNS: tuple[tuple[str, str, int], ...] = (
    ("ids", "<i4", 1),
    ("class_ids", "|u1", 1),
    ("confidence", "<f4", 1),
    ("xyxy", "<f4", 4),
)
_NOT_SCALAR = frozenset({"frames", "plan", "rates"})


def pack(header: Mapping[str, Any], payload: bytes | bytearray = b"") -> bytes:
    """The bytes of one message."""
    text = orjson.dumps(dict(header))
    return b"".join((_LENGTHS.pack(len(text), len(payload)), text, payload))


async def read(reader: asyncio.StreamReader, max_payload: int = MAX_PAYLOAD_BYTES) -> Message | None:
    """The next message, None when the other side has closed. Raises EngineFailed for what is not one."""
    try:
        header_length, payload_length = _LENGTHS.unpack(await reader.readexactly(_LENGTHS.size))
        if header_length > MAX_HEADER_BYTES or payload_length > max_payload:
            raise EngineFailed(f"a message of {header_length} and {payload_length} bytes is too long")
        header = orjson.loads(await reader.readexactly(header_length))
        payload = await reader.readexactly(payload_length)
    except (asyncio.IncompleteReadError, ConnectionError):
        return None
    except orjson.JSONDecodeError as exc:
        raise EngineFailed("a message whose header is not JSON") from exc
    if not isinstance(header, dict):
        raise EngineFailed("a message whose header is not an object")
    return header, memoryview(payload)


def pack_analysis(job: int, analysis: Analysis) -> bytes:
    """An answer, partial or final: scalars in the header, frames as columns."""
    scalars = {f.name: getattr(analysis, f.name) for f in fields(analysis) if f.name not in _NOT_SCALAR}
    header = {"is": "answer", "job": job, "frames": len(analysis.frames), "analysis": scalars}
    return pack(header, pack_frames(analysis.frames))


def read_analysis(header: Header, payload: memoryview) -> Analysis:
    """The answer in a message. Raises EngineFailed when its numbers do not fit together."""
    try:
        scalars = {str(name): _plain(value) for name, value in header["analysis"].items()}
        scalars["warnings"] = tuple(scalars.get("warnings", ()))
        return Analysis(**scalars, frames=read_frames(int(header["frames"]), payload))
    except (KeyError, TypeError, ValueError, AttributeError) as exc:
        raise EngineFailed(f"the engine's answer does not fit: {exc}") from exc


def pack_frames(frames: Sequence[FrameAnswer]) -> bytes:
    counts = [len(frame.ids) for frame in frames]
    columns = {
        "frame_number": [frame.frame_number for frame in frames],
        "pts_seconds": [frame.pts_seconds for frame in frames],
        "detected": [frame.how == "detected" for frame in frames],
        "objects": counts,
        "keypoints": _joined([frame.keypoints for frame in frames]),
        "ids": _joined([frame.ids for frame in frames]),
        "class_ids": _joined([frame.class_ids for frame in frames]),
        "confidence": _joined([frame.confidence for frame in frames]),
        "xyxy": _joined([frame.xyxy for frame in frames]),
    }
    return b"".join(
        np.ascontiguousarray(columns[name], dtype=kind).tobytes()
        for name, kind, _ in (*_FRAME_COLUMNS, *_OBJECT_COLUMNS)
    )


def read_frames(count: int, payload: memoryview) -> list[FrameAnswer]:
    """The frames back from their columns; arrays are read-only views of the payload."""
    if count < 0:
        raise ValueError("fewer than no frames")
    columns, at = _columns(_FRAME_COLUMNS, count, payload, 0)
    counts = columns["objects"]
    if count and int(counts.min()) < 0:
        raise ValueError("a frame with fewer than no objects")
    stops = np.cumsum(counts, dtype=np.int64)
    total = int(stops[-1]) if count else 0
    objects, at = _columns(_OBJECT_COLUMNS, total, payload, at)
    if at != len(payload):
        raise ValueError(f"{len(payload) - at} bytes too many")
    keypoints = columns["keypoints"].reshape(count, _KEYPOINTS, 3)
    numbers, times = columns["frame_number"].tolist(), columns["pts_seconds"].tolist()
    detected, xyxy = columns["detected"].tolist(), objects["xyxy"].reshape(total, 4)
    frames = []
    start = 0
    for row, stop in enumerate(stops.tolist()):
        frames.append(
            FrameAnswer(
                frame_number=numbers[row],
                pts_seconds=times[row],
                how="detected" if detected[row] else "carried",
                ids=objects["ids"][start:stop],
                class_ids=objects["class_ids"][start:stop],
                confidence=objects["confidence"][start:stop],
                xyxy=xyxy[start:stop],
                keypoints=keypoints[row],
            )
        )
        start = stop
    return frames


def pack_error(job: int, error: BaseException) -> bytes:
    """A typed error of ours by its name; anything else as EngineFailed without its text."""
    if isinstance(error, FirsttouchError):
        text: dict[str, str | None] = {"name": error.name, "message": str(error), "hint": error.hint}
    else:
        text = {"name": "EngineFailed", "message": f"the engine failed: {type(error).__name__}", "hint": None}
    return pack({"is": "error", "job": job, "error": text})


def read_error(header: Header) -> FirsttouchError:
    """The error in a message; an unknown name becomes EngineFailed."""
    text = header.get("error")
    text = text if isinstance(text, dict) else {}
    kind = getattr(errors, str(text.get("name")), EngineFailed)
    if not (isinstance(kind, type) and issubclass(kind, FirsttouchError)):
        kind = EngineFailed
    hint = text.get("hint")
    return kind(_clean(str(text.get("message", ""))), hint=_clean(hint) if isinstance(hint, str) else None)


def _columns(
    specs: Sequence[tuple[str, str, int]], rows: int, payload: memoryview, at: int
) -> tuple[dict[str, npt.NDArray[Any]], int]:
    columns = {}
    for name, kind, width in specs:
        columns[name] = np.frombuffer(payload, kind, rows * width, at)
        at += rows * width * np.dtype(kind).itemsize
    return columns, at


def _joined(parts: Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    return np.concatenate(parts) if parts else np.zeros(0)


def _plain(value: Any, depth: int = 0) -> Any:
    """Numbers as they are, text cut and cleaned, lists and objects of these; nothing else."""
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, str):
        return _clean(value)
    if depth < 2 and isinstance(value, list) and len(value) <= 100:
        return [_plain(item, depth + 1) for item in value]
    if depth < 2 and isinstance(value, dict) and len(value) <= 100:
        return {_clean(str(key)): _plain(item, depth + 1) for key, item in value.items()}
    raise ValueError(f"a value of type {type(value).__name__}")


def _clean(text: str) -> str:
    """Text that may quote the media (a decoder's message, a URL): printable, one line, not long."""
    return "".join(letter if letter.isprintable() else "?" for letter in text[:MAX_TEXT])

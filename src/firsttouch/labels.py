"""Boxes and key points of many frames as columns: an answer to be judged, or the truth it is judged by."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import orjson
from numpy.typing import NDArray

from firsttouch.errors import SettingsError

KEYPOINTS = 32
USUAL_SIZE = (1280, 720)
Floats = NDArray[np.float32]
Ints = NDArray[np.int64]


class FrameLike(Protocol):
    """One answered frame, as the pipeline makes it."""

    @property
    def frame_number(self) -> int: ...
    @property
    def ids(self) -> NDArray[Any]: ...
    @property
    def class_ids(self) -> NDArray[Any]: ...
    @property
    def confidence(self) -> NDArray[Any]: ...
    @property
    def xyxy(self) -> NDArray[Any]: ...
    @property
    def keypoints(self) -> NDArray[Any]: ...


@dataclass(frozen=True, slots=True, eq=False)
class Labels:
    """F frames in rising order with N boxes in all, grouped by frame in the order they were given.

    `frame_numbers` (F,); `row` (N,) is the frame of each box as an index into it; `ids`, `class_ids` and
    `confidence` (N,); `xyxy` (N, 4) in pixels of a `width` x `height` picture; `keypoints` (F, 32, 3).
    `has_all_keypoints` (F,): the frame had exactly 32 of them. `frame_count` is the clip's.
    """

    width: int
    height: int
    frame_count: int
    frame_numbers: Ints
    row: Ints
    ids: Ints
    class_ids: Ints
    confidence: Floats
    xyxy: Floats
    keypoints: Floats
    has_all_keypoints: NDArray[np.bool_]

    @property
    def boxes_per_frame(self) -> Ints:
        """(F,) how many boxes each frame has."""
        return np.bincount(self.row, minlength=len(self.frame_numbers))

    def box_frame_numbers(self) -> Ints:
        """(N,) the frame number of each box."""
        return self.frame_numbers[self.row]

    def only(self, frame_numbers: Iterable[int]) -> Labels:
        """The same with only these frames."""
        kept = np.isin(self.frame_numbers, np.fromiter(frame_numbers, np.int64))
        new_row = np.cumsum(kept) - 1
        boxes = kept[self.row]
        return Labels(
            self.width,
            self.height,
            self.frame_count,
            self.frame_numbers[kept],
            new_row[self.row[boxes]],
            self.ids[boxes],
            self.class_ids[boxes],
            self.confidence[boxes],
            self.xyxy[boxes],
            self.keypoints[kept],
            self.has_all_keypoints[kept],
        )


def from_frames(frames: Sequence[FrameLike], *, width: int, height: int, frame_count: int | None = None) -> Labels:
    """The columns of the pipeline's answer frames."""
    rows = [
        (
            frame.frame_number,
            [(frame.ids[i], frame.class_ids[i], frame.confidence[i], frame.xyxy[i]) for i in range(len(frame.ids))],
            frame.keypoints,
        )
        for frame in frames
    ]
    return _columns(rows, width, height, frame_count)


def read_answer(path: Path, *, width: int | None = None, height: int | None = None) -> Labels:
    """An answer file: our own schema, or the challenge's (whose size is `width` x `height`, or 1280x720).

    Raises SettingsError naming what is wrong with the file.
    """
    try:
        document = orjson.loads(path.read_bytes())
    except OSError as exc:
        raise SettingsError(f"cannot read {path}: {exc.strerror or exc}", hint="check the path") from exc
    except orjson.JSONDecodeError as exc:
        raise SettingsError(f"{path} is not JSON: {exc}", hint="give what --output wrote") from exc
    return parse_answer(document, name=str(path), width=width, height=height)


def parse_answer(
    document: Any, *, name: str = "the answer", width: int | None = None, height: int | None = None
) -> Labels:
    """As `read_answer`, from the decoded JSON."""
    try:
        source = document.get("source", {})
        frames = document["frames"]
        rows = [_json_frame(frame) for frame in frames]
    except (AttributeError, KeyError, TypeError, ValueError) as exc:
        raise SettingsError(
            f"{name} is not an answer: {exc!r}",
            hint='it must hold {"frames": [{"frame_number", "objects", "keypoints"}]}',
        ) from exc
    return _columns(
        rows,
        int(source.get("width") or width or USUAL_SIZE[0]),
        int(source.get("height") or height or USUAL_SIZE[1]),
        source.get("frame_count"),
    )


def read_truth(path: Path, *, width: int | None = None, height: int | None = None) -> Labels:
    """Labels from an answer file, or from a folder of YOLO text files (`class cx cy w h`, as shares).

    The frame of a YOLO file is the last number in its name. They carry no identities (-1) and no key points.
    """
    if not path.is_dir():
        return read_answer(path, width=width, height=height)
    files = sorted(path.glob("*.txt"))
    if not files:
        raise SettingsError(f"{path} holds no .txt labels", hint="give YOLO labels, or a JSON file")
    size = (width or USUAL_SIZE[0], height or USUAL_SIZE[1])
    rows = [_yolo_frame(file, *size) for file in files]
    if len({row[0] for row in rows}) != len(rows):
        raise SettingsError(
            f"{path}: several files have the same frame number",
            hint="the last number in a name is its frame; give the labels of one clip",
        )
    return _columns(rows, *size, None)


Row = tuple[int, list[tuple[Any, Any, Any, Any]], Any]


def _json_frame(frame: dict[str, Any]) -> Row:
    objects = [
        (thing.get("id", -1), thing["class_id"], thing.get("confidence", 1.0), _four(thing))
        for thing in frame["objects"]
    ]
    return int(frame["frame_number"]), objects, frame.get("keypoints") or []


def _four(thing: dict[str, Any]) -> list[float]:
    box = thing["xyxy"] if "xyxy" in thing else thing["bbox"]
    if len(box) != 4:
        raise ValueError(f"a box has {len(box)} numbers")
    return [float(v) for v in box]


def _yolo_frame(file: Path, width: int, height: int) -> Row:
    digits = "".join(c if c.isdigit() else " " for c in file.stem).split()
    if not digits:
        raise SettingsError(f"{file.name} has no frame number", hint="name the files like clip_000012.txt")
    objects = []
    for line in file.read_text().splitlines():
        if line.strip():
            kind, x, y, w, h = (float(v) for v in line.split()[:5])
            box = [(x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height]
            objects.append((-1, int(kind), 1.0, box))
    return int(digits[-1]), objects, []


def _columns(rows: list[Row], width: int, height: int, frame_count: int | None) -> Labels:
    rows = sorted(rows, key=lambda row: row[0])
    numbers = np.array([row[0] for row in rows], np.int64)
    if len(np.unique(numbers)) != len(numbers):
        raise SettingsError("a frame number appears twice", hint="each frame must be answered once")
    boxes = [box for row in rows for box in row[1]]
    keypoints = np.zeros((len(rows), KEYPOINTS, 3), np.float32)
    complete = np.zeros(len(rows), bool)
    for at, (_, _, points) in enumerate(rows):
        values = np.asarray(points, np.float32)
        complete[at] = len(values) == KEYPOINTS
        if complete[at]:
            keypoints[at, :, : values.shape[1]] = values
            if values.shape[1] == 2:
                keypoints[at, :, 2] = values.any(axis=1)
    return Labels(
        width,
        height,
        frame_count if frame_count is not None else int(numbers[-1]) + 1 if len(numbers) else 0,
        numbers,
        np.repeat(np.arange(len(rows)), [len(row[1]) for row in rows]).astype(np.int64),
        np.array([box[0] for box in boxes], np.int64),
        np.array([box[1] for box in boxes], np.int64),
        np.array([box[2] for box in boxes], np.float32),
        np.array([box[3] for box in boxes], np.float32).reshape(-1, 4),
        keypoints,
        complete,
    )

"""The overlay video: the source's pictures with boxes, identities, classes and key points drawn on them."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import numpy.typing as npt

from .carry import FrameAnswer
from .errors import DecodeFailed, SettingsError

Picture = npt.NDArray[np.uint8]

LINES = (
    *((0, 5), (24, 29), (0, 24), (5, 29), (13, 16)),  # touch lines, goal lines, halfway line
    *((1, 9), (9, 12), (12, 4), (2, 6), (6, 7), (7, 3)),  # left penalty and goal area
    *((25, 17), (17, 20), (20, 28), (26, 22), (22, 23), (23, 27)),  # right
)
"""Pairs of key points (0-based) with a straight line of the pitch between them."""

COLOURS = ((255, 255, 255), (0, 200, 255), (80, 220, 80), (60, 60, 255))
"""BGR of ball, goalkeeper, player, referee."""


def write_overlay(
    clip: Path,
    frames: list[FrameAnswer],
    output: Path,
    frames_per_second: float,
    progress: Callable[[int], None] = lambda _: None,
) -> int:
    """Draw the answer on every picture of a local file and write an H.264 MP4. Returns the number of frames.

    Pictures are read with OpenCV, whose count the frame numbers follow. Nothing is left behind on an error.
    """
    answers = {frame.frame_number: frame for frame in frames}
    capture = cv2.VideoCapture(str(clip))
    partial = output.with_name(output.name + ".part")
    count = 0
    try:
        with av.open(str(partial), "w", format="mp4") as container:
            rate = Fraction(frames_per_second or 25).limit_denominator(1001)
            stream = container.add_stream("libx264", rate=rate, options={"preset": "veryfast", "crf": "23"})
            while (picture := _next_picture(capture)) is not None:
                if count == 0:
                    stream.width, stream.height = picture.shape[1] // 2 * 2, picture.shape[0] // 2 * 2
                    stream.pix_fmt = "yuv420p"
                if (answer := answers.get(count)) is not None:
                    draw(picture, answer)
                frame = av.VideoFrame.from_ndarray(picture[: stream.height, : stream.width], format="bgr24")
                container.mux(stream.encode(frame))
                count += 1
                progress(count)
            if count:
                container.mux(stream.encode(None))
        if not count:
            raise DecodeFailed(f"no picture could be read from {clip}")
        partial.rename(output)
    except av.FFmpegError as error:
        raise SettingsError(f"cannot write {output}: {error}", hint="give --video a path ending in .mp4") from error
    finally:
        capture.release()
        partial.unlink(missing_ok=True)
    return count


def _next_picture(capture: cv2.VideoCapture) -> Picture | None:
    there, picture = capture.read()
    return np.asarray(picture, np.uint8) if there else None


def draw(picture: Picture, frame: FrameAnswer) -> None:
    """Boxes with identities, the pitch's lines through its key points; carried boxes are thinner."""
    thick = 2 if frame.how == "detected" else 1
    _draw_pitch(picture, frame.keypoints)
    for id_, class_id, box in zip(frame.ids, frame.class_ids, frame.xyxy, strict=True):
        x1, y1, x2, y2 = (round(float(value)) for value in box)
        colour = COLOURS[int(class_id)]
        cv2.rectangle(picture, (x1, y1), (x2, y2), colour, thick)
        if class_id:
            cv2.putText(picture, str(id_), (x1, y1 - 4), cv2.FONT_HERSHEY_SIMPLEX, 0.45, colour, 1, cv2.LINE_AA)
    text = f"{frame.frame_number}  {frame.how}"
    cv2.putText(
        picture,
        text,
        (12, picture.shape[0] - 14),
        cv2.FONT_HERSHEY_SIMPLEX,
        0.6,
        (255, 255, 255),
        1,
        cv2.LINE_AA,
    )


def _draw_pitch(picture: Picture, keypoints: npt.NDArray[np.float32]) -> None:
    known = keypoints[:, 2] > 0
    for first, last in LINES:
        if known[first] and known[last]:
            ends = keypoints[[first, last], :2].round().astype(int)
            cv2.line(picture, tuple(ends[0]), tuple(ends[1]), (255, 180, 60), 1, cv2.LINE_AA)
    for x, y, confidence in keypoints[known]:
        cv2.circle(picture, (round(float(x)), round(float(y))), 4 if confidence > 0.5 else 2, (255, 120, 0), -1)

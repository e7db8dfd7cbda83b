"""One decoded picture as three 8-bit planes, 4:2:0, limited range, seen in place in the decoder's memory."""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np
import numpy.typing as npt
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, VideoReformatter

Plane = npt.NDArray[np.uint8]

MAX_PIXELS = 8192 * 4352
"""8K. A decoder refuses larger pictures before it allocates them, whatever the container said."""
GREY_WIDTH = 640
"""Longer side that flow works at: half of 720p."""


def grey_factor(width: int, height: int) -> int:
    """The whole number by which `Frame.grey` divides: 2 for 720p, 3 for 1080p, 1 for 848x478."""
    return max(1, round(max(width, height) / GREY_WIDTH))


def shrunk(y: Plane, factor: int) -> Plane:
    """A copy of a plane, divided by a whole number: each pixel the mean of factor x factor."""
    if factor == 1:
        return y.copy()
    small = (y.shape[1] // factor, y.shape[0] // factor)
    whole = y[: small[1] * factor, : small[0] * factor]
    return np.asarray(cv2.resize(whole, small, interpolation=cv2.INTER_AREA), np.uint8)


@dataclass(frozen=True, slots=True)
class Frame:
    """One decoded picture. The planes are views of the decoder's memory: drop the frame to give it back."""

    frame_number: int
    pts: int
    row: int
    """The sample's row in the index; the frame number in stream mode."""
    picture: VideoFrame
    rotation: int = 0

    @property
    def is_keyframe(self) -> bool:
        return bool(self.picture.key_frame)

    @property
    def y(self) -> Plane:
        """Luma, (H, W) uint8; rows may be further apart than W bytes."""
        return self._turned(self._plane(0, self.picture.width, self.picture.height))

    @property
    def u(self) -> Plane:
        """Blue difference, (ceil(H / 2), ceil(W / 2)) uint8; a copy where the decoder's is interleaved (nv12)."""
        return self._chroma(0)

    @property
    def v(self) -> Plane:
        """Red difference, as `u`."""
        return self._chroma(1)

    def grey(self) -> Plane:
        """Luma for flow, a copy: (H // k, W // k) uint8, each pixel the mean of k x k, k = `grey_factor`."""
        y = self.y
        return shrunk(y, grey_factor(y.shape[1], y.shape[0]))

    @property
    def size(self) -> tuple[int, int]:
        """Width and height as it is shown."""
        size = (self.picture.width, self.picture.height)
        return size if self.rotation in (0, 180) else size[::-1]

    @property
    def on_device(self) -> bool:
        """The planes lie in the GPU's memory: only `surfaces` and `copied` give them."""
        return self.picture.format.name == "cuda"

    def copied(self) -> Frame:
        """The same in the CPU's memory."""
        return replace(self, picture=self.picture.reformat(format="nv12"))

    @property
    def surfaces(self) -> tuple[object, object]:
        """DLPack capsules, good for one reader each, of Y (H, W) and UV (H / 2, W / 2, 2) of an NV12 picture."""
        # Not the planes themselves: a reader that names its stream is refused by PyAV. FFmpeg works on the default one.
        luma, chroma = self.picture.planes
        return luma.__dlpack__(), chroma.__dlpack__()

    def _chroma(self, which: int) -> Plane:
        width, height = (self.picture.width + 1) // 2, (self.picture.height + 1) // 2
        if self.picture.format.name == "nv12":
            return self._turned(np.ascontiguousarray(self._plane(1, 2 * width, height)[:, which::2]))
        return self._turned(self._plane(1 + which, width, height))

    def _plane(self, index: int, width: int, height: int) -> Plane:
        plane = self.picture.planes[index]
        flat = np.frombuffer(plane, np.uint8)  # type: ignore[call-overload]
        return flat.reshape(height, plane.line_size)[:, :width]  # type: ignore[no-any-return]

    def _turned(self, plane: Plane) -> Plane:
        if not self.rotation:
            return plane
        return np.ascontiguousarray(np.rot90(plane, -self.rotation // 90))


class Converter:
    """Turns what a decoder gives into 8-bit 4:2:0 of limited range; what is so already passes untouched.

    A picture of another size than the clip (a stream that changes, a container that errs) is scaled to it. One that
    lies on the GPU is copied from there first, unless it passes.
    """

    def __init__(self, width: int, height: int) -> None:
        self._size = (width, height)
        self._reformatter: VideoReformatter | None = None

    def __call__(self, picture: VideoFrame) -> VideoFrame:
        width, height = self._size
        fits = (picture.width, picture.height) == self._size
        # Of a picture on the GPU; PyAV 17.0 does not tell it, and such a picture is copied.
        form = getattr(picture, "sw_format", None) or picture.format
        if fits and form.name in ("yuv420p", "nv12") and picture.color_range != ColorRange.JPEG:
            return picture
        if self._reformatter is None:
            self._reformatter = VideoReformatter()
        limited = ColorRange.MPEG
        return self._reformatter.reformat(picture, width, height, "yuv420p", dst_color_range=limited, threads=1)

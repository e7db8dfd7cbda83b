"""Samples to pictures: GOPs side by side, each in its own decoder fed by row, and streams in order.

A picture is three 8-bit planes (4:2:0, limited range), seen in place in the decoder's memory. Frames are
numbered through the row their packet came from, which travels through the decoder as its pts: no timestamp
is compared.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import BinaryIO, Protocol

import av
import cv2
import numpy as np
import numpy.typing as npt
from av.codec.hwaccel import HWAccel
from av.container import InputContainer
from av.video.codeccontext import VideoCodecContext
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, VideoReformatter

from firsttouch.boxes import read_header
from firsttouch.clock import Deadline
from firsttouch.errors import DecodeFailed, NotAVideo
from firsttouch.index import Index
from firsttouch.ranges import ByteRange

logger = logging.getLogger(__name__)

Plane = npt.NDArray[np.uint8]

MAX_PIXELS = 8192 * 4352
"""8K. The decoder refuses larger pictures before it allocates them, whatever the container said."""
GREY_WIDTH = 640
"""Longer side that flow works at: half of 720p."""


def grey_factor(width: int, height: int) -> int:
    """The whole number by which `Frame.grey` divides: 2 for 720p, 3 for 1080p, 1 for 848x478."""
    return max(1, round(max(width, height) / GREY_WIDTH))


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
        height, width = y.shape
        factor = grey_factor(width, height)
        if factor == 1:
            return y.copy()
        small = (width // factor, height // factor)
        whole = y[: small[1] * factor, : small[0] * factor]
        return np.asarray(cv2.resize(whole, small, interpolation=cv2.INTER_AREA), np.uint8)

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


class GopDecoder:
    """Decodes one run of rows that starts at a key frame, in this thread only.

    Rows shown before the first key frame but stored after it (open GOP) need the GOP before: they are left
    out. A run that ends with such rows of the next key frame (`Index.gop_rows`) gives them, but not that key
    frame, which the decoder of the next GOP gives: so GOPs side by side give every frame once.

    skip_nonref leaves out frames no other needs; skip_loop_filter leaves out deblocking (pictures differ).
    device="cuda" asks for NVDEC; where it cannot be had, at once or for this clip, software decodes instead, with
    one warning, and `hardware` stays False. (The hardware path itself has not been verified on hardware.)
    """

    def __init__(
        self,
        index: Index,
        read: Callable[[ByteRange], bytes],
        rows: Sequence[int],
        *,
        skip_nonref: bool = False,
        skip_loop_filter: bool = False,
        device: str = "cpu",
    ) -> None:
        if not rows or not index.is_keyframe[rows[0]]:
            raise ValueError(f"a run of rows must start at a key frame, got {rows}")
        self.errors = 0
        self.hardware = False
        """Pictures have come from the chip's decoder."""
        self._index, self._read = index, read
        self._rows, self._last_key = _feedable(index, rows)
        self._at = 0
        self._skip_nonref = skip_nonref
        self._ready: deque[Frame] = deque()
        self._convert = _Converter()
        self._options = {"max_pixels": str(MAX_PIXELS)}
        if skip_loop_filter:
            self._options["skip_loop_filter"] = "all"
        context = _open_nvdec(index, self._options) if device == "cuda" else None
        self._on_trial = context is not None
        self._context: VideoCodecContext | None = context or _open_software(index, self._options)

    @property
    def next_row(self) -> int | None:
        """The row whose bytes are needed next; None when all were fed."""
        return self._rows[self._at] if self._at < len(self._rows) else None

    @property
    def finished(self) -> bool:
        """Everything was fed, flushed and handed out."""
        return self._context is None and not self._ready

    def frames(self, until_row: int | None = None) -> Iterator[Frame]:
        """Feed rows before `until_row` (None: all, then flush); frames in display order, as they come."""
        while True:
            while self._ready:
                yield self._ready.popleft()
            if self._context is None:
                return
            if self._at == len(self._rows):
                self._take(None)
                if self._at == len(self._rows):  # otherwise software begins again
                    self._context = None
            elif until_row is None or self._rows[self._at] < until_row:
                self._feed(self._rows[self._at])
            else:
                return

    def cut(self, stop_row: int) -> None:
        """Feed no row from `stop_row` on; what was fed stays."""
        self._rows[self._at :] = [row for row in self._rows[self._at :] if row < stop_row]

    def close(self) -> None:
        """Give the decoder's memory back; frames handed out stay valid."""
        self._context = None
        self._ready.clear()

    def _feed(self, row: int) -> None:
        data = self._read(self._index.byte_range(row))
        self._at += 1
        if self._skip_nonref and not is_reference(data, self._index.codec, self._index.extradata):
            return
        packet = av.Packet(len(data))
        packet.update(data)
        packet.pts = packet.dts = row
        self._take(packet)

    def _take(self, packet: av.Packet | None) -> None:  # type: ignore[type-arg]
        assert self._context is not None
        try:
            pictures = self._context.decode(packet)
        except av.EOFError:
            return
        except (av.FFmpegError, RuntimeError) as exc:
            if self._on_trial:
                self._fall_back(str(exc))
                return
            # As every player: a damaged sample is left out and the next ones are tried.
            self.errors += 1
            return
        if self._on_trial and pictures:
            self._on_trial, self.hardware = False, True
            _say_once(logging.INFO, "Using NVDEC")
        elif self._on_trial and packet is None:
            self._fall_back("no picture came")
            return
        for picture in pictures:
            row = picture.pts
            if row is None or row == self._last_key:
                continue
            number = int(self._index.frame_number[row])
            if number >= 0:
                shown = self._convert(picture)
                self._ready.append(Frame(number, int(self._index.pts[row]), row, shown, self._index.rotation))

    def _fall_back(self, reason: str) -> None:
        """The chip refuses this clip (codec, profile, size): begin again in software. No picture has come yet."""
        _say_once(logging.WARNING, f"NVDEC cannot decode this clip, software does: {reason}")
        self._on_trial = False
        self._context = _open_software(self._index, self._options)
        self._at = 0


def is_reference(data: bytes, codec: str, extradata: bytes) -> bool:
    """Whether other frames may need this sample, from the first slice's header; True where we cannot tell.

    H.264: nal_ref_idc (7.3.1). HEVC: an even nal_unit_type below 16 is a sub-layer non-reference picture
    (7.4.2.2), safe to leave out of the highest temporal sub-layer: x265 and others mark only leaves so.
    """
    length_size = _length_size(codec, extradata)
    if length_size == 0:
        return True
    at = 0
    while at + length_size < len(data):
        size = int.from_bytes(data[at : at + length_size], "big")
        header = data[at + length_size]
        if codec == "h264" and header & 0x1F in (1, 5):
            return header & 0x60 != 0
        if codec == "hevc" and header >> 1 & 0x3F < 32:
            kind = header >> 1 & 0x3F
            return kind >= 16 or kind % 2 == 1
        at += length_size + size
    return True


def _length_size(codec: str, extradata: bytes) -> int:
    """Bytes of the length before each NAL unit (avcC, hvcC); 0 for start codes and other codecs."""
    if codec == "h264" and len(extradata) > 6 and extradata[0] == 1:
        return (extradata[4] & 3) + 1
    if codec == "hevc" and len(extradata) > 22 and extradata[0] == 1:
        return (extradata[21] & 3) + 1
    return 0


def _feedable(index: Index, rows: Sequence[int]) -> tuple[list[int], int]:
    """The rows this run can decode, and the key frame that is decoded but left to the next run (-1: none)."""
    chosen = np.asarray(rows, np.int64)
    gops = index.gop_of_row[chosen]
    kept = chosen[gops >= chosen[0]]
    keys = kept[index.is_keyframe[kept]]
    after = kept[kept > keys[-1]]
    only_leading = keys.size > 1 and after.size > 0 and bool((index.gop_of_row[after] < keys[-1]).all())
    return kept.tolist(), int(keys[-1]) if only_leading else -1


def _open_software(index: Index, options: dict[str, str]) -> VideoCodecContext:
    try:
        return _opened(av.CodecContext.create(index.codec, "r"), index, options)
    except (av.FFmpegError, ValueError) as exc:
        raise DecodeFailed(f"no decoder for {index.codec}: {exc}") from exc


def _open_nvdec(index: Index, options: dict[str, str]) -> VideoCodecContext | None:
    """A decoder on the GPU; None, and one warning, where there is none.

    Without a driver PyAV raises even where a fall-back is allowed; for a codec it has no hardware for, it gives a
    software decoder without a word.
    """
    try:
        accelerator = HWAccel("cuda", allow_software_fallback=False, options={"primary_ctx": "1"})
        context = av.CodecContext.create(index.codec, "r", hwaccel=accelerator)
        if context.is_hwaccel:
            return _opened(context, index, options)
        reason = f"it has no decoder for {index.codec}"
    except (av.FFmpegError, NotImplementedError, RuntimeError, ValueError) as exc:
        reason = str(exc)
    remedy = "install the NVIDIA driver, or set USE_NVDEC=0"
    _say_once(logging.WARNING, f"NVDEC is not available, software decodes ({reason}): {remedy}")
    return None


def _opened(context: av.CodecContext, index: Index, options: dict[str, str]) -> VideoCodecContext:
    assert isinstance(context, VideoCodecContext)
    context.extradata = index.extradata or None
    context.thread_count = 1  # frame threads cost more than they save: GOPs go side by side instead
    context.options = dict(options)
    context.open()
    # Without this the H.264 decoder guesses the delay and lets early frames out of order.
    context.reorder_depth = max(context.reorder_depth, index.reorder_depth)
    return context


_said: set[str] = set()


def _say_once(level: int, message: str) -> None:
    """A process decodes thousands of GOPs; what it decodes them with is worth one line."""
    if message not in _said:
        _said.add(message)
        logger.log(level, message)


class _Converter:
    """Turns what a decoder gives into 8-bit 4:2:0 of limited range; what is so already passes untouched."""

    def __init__(self) -> None:
        self._reformatter: VideoReformatter | None = None

    def __call__(self, picture: VideoFrame) -> VideoFrame:
        if picture.format.name in ("yuv420p", "nv12") and picture.color_range != ColorRange.JPEG:
            return picture
        if self._reformatter is None:
            self._reformatter = VideoReformatter()
        return self._reformatter.reformat(picture, format="yuv420p", dst_color_range=ColorRange.MPEG, threads=1)


class Streamed(Protocol):
    """What gives a file to read from the start: `SparseBytes`, or what asks for bytes where it is read."""

    @property
    def size(self) -> int | None: ...

    def file(self, deadline: Deadline | None = None) -> BinaryIO: ...


class StreamDecoder:
    """A container without an index at hand, decoded in order from its start. Blocks its thread for bytes.

    Raises NotAVideo, IndexInvalid, DecodeFailed, and what stopped the bytes (DeadlineExceeded, SourceError).
    """

    def __init__(self, sparse: Streamed, deadline: Deadline | None = None) -> None:
        self._container = _open_stream(sparse, deadline or Deadline.after(None))
        if not self._container.streams.video:
            self._container.close()
            raise NotAVideo("the file has no video track")
        self._stream = self._container.streams.video[0]
        context = self._stream.codec_context
        if context is None:
            self._container.close()
            raise NotAVideo("no decoder for the video's codec")
        context.thread_count = 1
        context.options = {"max_pixels": str(MAX_PIXELS)}
        self.codec: str = context.name
        self.width: int = context.width
        self.height: int = context.height
        self.rotation = 0
        self.time_base: Fraction = self._stream.time_base or Fraction(1, 1000)
        self.frames_per_second = float(self._stream.average_rate or self._stream.guessed_rate or 25)
        ticks = self._stream.duration
        self.duration_seconds: float | None = float(ticks * self.time_base) if ticks else None
        self.container: str = self._container.format.name

    def frames(self) -> Iterator[Frame]:
        """Every frame in display order, numbered as OpenCV counts: one for each picture the decoder gives."""
        convert = _Converter()
        number = 0
        for picture in self._pictures():
            rotation = -picture.rotation % 360
            if number == 0:
                self._turn(rotation)
            yield Frame(number, picture.pts or 0, number, convert(picture), rotation)
            number += 1
        if number == 0:
            raise DecodeFailed("the decoder made no frame of it")

    def close(self) -> None:
        self._container.close()

    def _turn(self, rotation: int) -> None:
        self.rotation = rotation if rotation in (90, 180, 270) else 0
        if self.rotation in (90, 270):
            self.width, self.height = self.height, self.width

    def _pictures(self) -> Iterator[VideoFrame]:
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets)
            except StopIteration:
                return
            except av.FFmpegError as exc:
                raise DecodeFailed(f"the container is damaged: {exc}") from exc
            try:
                yield from packet.decode()
            except av.FFmpegError:
                continue


class _Pipe:
    """A file that can only be read: FFmpeg then never looks for its end."""

    def __init__(self, file: BinaryIO) -> None:
        self.read = file.read


def _open_stream(sparse: Streamed, deadline: Deadline) -> InputContainer:
    """FFmpeg's view of a stream. While its length is unknown it is a pipe, except an MP4 with its samples before
    its index, for which all of it has to come."""
    file = sparse.file(deadline)
    source: BinaryIO | _Pipe = file
    if sparse.size is None and _samples_come_first(file):
        while file.read(1 << 20):
            pass
    elif sparse.size is None:
        source = _Pipe(file)
    file.seek(0)
    options = {"max_streams": "64", "enable_drefs": "0"}
    try:
        return av.open(source, mode="r", metadata_errors="ignore", options=options)
    except (av.FFmpegError, ValueError) as exc:
        raise NotAVideo(f"no container that FFmpeg knows: {exc}") from exc


def _samples_come_first(file: BinaryIO) -> bool:
    """Whether this is an MP4 whose mdat stands before its moov."""
    at = 0
    for _ in range(100):
        file.seek(at)
        header = b""
        while len(header) < 16 and (more := file.read(16 - len(header))):
            header += more
        if len(header) < 16 or (at == 0 and header[4:8] != b"ftyp"):
            return False
        box = read_header(header, 0, at, at + 16)
        if box.kind in (b"moov", b"moof", b"mdat"):
            return box.kind == b"mdat"
        at = box.stop
    return False


def decode_stream(sparse: Streamed, deadline: Deadline | None = None) -> Iterator[Frame]:
    """All frames of a stream, decoded in order; see StreamDecoder."""
    stream = StreamDecoder(sparse, deadline)
    try:
        yield from stream.frames()
    finally:
        stream.close()

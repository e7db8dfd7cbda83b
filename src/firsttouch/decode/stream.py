"""A container without an index at hand, decoded in order from its start, while its bytes come."""

from __future__ import annotations

import io
from collections.abc import Iterator
from fractions import Fraction
from typing import BinaryIO, Protocol, cast

import av
from av.container import InputContainer
from av.video.frame import VideoFrame

from firsttouch.boxes import MAX_MOOV_BYTES, read_header, read_moof, read_moov
from firsttouch.clock import Deadline
from firsttouch.decode.frame import MAX_PIXELS, Converter, Frame
from firsttouch.errors import DecodeFailed, IndexInvalid, IndexNotFound, NotAVideo

QUICK_PROBE = {"probesize": "500000", "analyzeduration": "300000"}
"""Half a megabyte tells size and rate of every container tried; FFmpeg's own 5 MB can be a third of a clip."""
LIMITS = {"max_streams": "64", "enable_drefs": "0"}
MAX_DESCRIPTIONS = 16
MAX_FILE = 1 << 48
MP4_STARTS = (b"ftyp", b"styp", b"moov", b"moof", b"mdat", b"free", b"skip", b"wide", b"sidx", b"pnot", b"uuid")


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
        convert = Converter(self._stream.width, self._stream.height)
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
            except (StopIteration, IndexError):
                return  # PyAV trips over a track that appeared on the way, but only after it has flushed ours
            except av.FFmpegError as exc:
                raise DecodeFailed(f"the container is damaged: {exc}") from exc
            try:
                yield from packet.decode()
            except av.FFmpegError:
                continue


def _open_stream(source: Streamed, deadline: Deadline) -> InputContainer:
    """FFmpeg's view of a stream: a pipe, so that it does not look at the end of the file to tell its duration.

    An MP4 with its samples before its index is a file to seek in; if its length is unknown, all of it has to come.
    """
    file = source.file(deadline)
    boxed, samples_first = _look_at_boxes(file)
    if samples_first and source.size is None:
        file.seek(0)
        while file.read(1 << 20):
            pass
    guarded = _Seekable if samples_first else _Pipe
    try:
        container = _opened(guarded(file, boxed), QUICK_PROBE)
        videos = container.streams.video
        if videos and videos[0].codec_context is not None and videos[0].width > 0:
            return container
        container.close()
        return _opened(guarded(file, boxed), {})
    except (av.FFmpegError, ValueError) as exc:
        raise NotAVideo(f"no container that FFmpeg knows: {exc}") from exc


def _opened(file: _Pipe, probe: dict[str, str]) -> InputContainer:
    return av.open(cast(BinaryIO, file), mode="r", metadata_errors="ignore", options=LIMITS | probe)


def _look_at_boxes(file: BinaryIO) -> tuple[bool, bool]:
    """Whether this is an MP4, and whether its mdat stands before its moov."""
    at = 0
    for count in range(100):
        header = _read_at(file, at, 16)
        if len(header) < 16 or (at == 0 and header[4:8] not in MP4_STARTS):
            return count > 0, False
        box = read_header(header, 0, at, at + 16)
        if box.kind in (b"moov", b"moof", b"mdat"):
            return True, box.kind == b"mdat"
        at = box.stop
    return True, False


def _read_at(file: BinaryIO, at: int, count: int) -> bytes:
    """`count` bytes from `at`, fewer at the end of the file; waits for them."""
    file.seek(at)
    data = b""
    while len(data) < count and (more := file.read(count - len(data))):
        data += more
    return data


class _Pipe:
    """A file that FFmpeg reads in order. Of an MP4 it sees the index boxes checked and slimmed, as `index` does."""

    def __init__(self, file: BinaryIO, boxed: bool) -> None:
        self._file = file
        self._at = 0
        self._next_box = 0 if boxed else -1
        self._track_id = 0
        self._checked: list[tuple[int, bytes]] = []

    def read(self, count: int) -> bytes:
        """Up to `count` bytes from here, waiting for the first of them."""
        self._file.seek(self._at)
        data = self._file.read(count)
        stop = self._at + len(data)
        while 0 <= self._next_box < stop:
            self._check_box(self._next_box)
        for start, box in self._checked:
            first, last = max(start, self._at), min(start + len(box), stop)
            if first < last:
                data = data[: first - self._at] + box[first - start : last - start] + data[last - self._at :]
        self._at = stop
        self._forget()
        return data

    def _forget(self) -> None:
        """A pipe is never read again where it was."""
        self._checked = [(start, box) for start, box in self._checked if start + len(box) > self._at]

    def _check_box(self, at: int) -> None:
        header = _read_at(self._file, at, 16)
        if len(header) < 16:
            self._next_box = -1
            return
        box = read_header(header, 0, at, MAX_FILE)
        self._next_box = box.stop if box.stop < MAX_FILE else -1
        if box.kind not in (b"moov", b"moof"):
            return
        if box.stop - at > MAX_MOOV_BYTES:
            raise IndexInvalid(f"the index has {box.stop - at} bytes, more than {MAX_MOOV_BYTES}")
        body = _read_at(self._file, at, box.stop - at)
        if len(body) < box.stop - at:
            raise IndexInvalid(f"the index is cut off: it ends at byte {box.stop} of {at + len(body)}")
        try:
            self._checked.append((at, self._slim(box.kind, body)))
        except IndexNotFound as exc:
            raise IndexInvalid(str(exc)) from exc

    def _slim(self, kind: bytes, body: bytes) -> bytes:
        if kind == b"moof":
            return read_moof(body, self._track_id)[0]
        track = read_moov(body, max_descriptions=MAX_DESCRIPTIONS)
        self._track_id = track.track_id
        return track.moov


class _Seekable(_Pipe):
    """The same, where FFmpeg has to jump to an index that stands last."""

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = self._at if whence == io.SEEK_CUR else 0
        self._at = self._file.seek(offset, whence) if whence == io.SEEK_END else base + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def _forget(self) -> None:
        """It may come back."""


def decode_stream(sparse: Streamed, deadline: Deadline | None = None) -> Iterator[Frame]:
    """All frames of a stream, decoded in order; see StreamDecoder."""
    stream = StreamDecoder(sparse, deadline)
    try:
        yield from stream.frames()
    finally:
        stream.close()

"""The sample index of a clip, from a few kB of it: where each sample lies, when it is shown, what is a key.

`locate_index` says which bytes are still missing, `read_index` turns them into an `Index`. The boxes are
checked first (`boxes`); then FFmpeg reads them, so that edit lists, composition offsets and random access
groups mean what they mean to everybody else. FFmpeg sees only the slimmed moov: the samples read as zeros.
"""

from __future__ import annotations

import io
from bisect import bisect_right
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import cast

import av
import numpy as np
import numpy.typing as npt
from av.video.stream import VideoStream

from firsttouch.boxes import MAX_MOOV_BYTES, MAX_SAMPLES, Box, VideoTrack, read_header, read_moof, read_moov
from firsttouch.errors import IndexInvalid, IndexNotFound, NotAVideo
from firsttouch.ranges import ByteRange
from firsttouch.sparse import SparseBytes

LOOK_AHEAD = 64 * 1024
"""Asked for when only a box header is wanted: a round trip costs more than these bytes."""
MAX_LAST_HOLE = 2 << 20
MAX_TOP_LEVEL_BOXES = 100_000
MAX_MISSING_SHARE = 0.5

_TOP_LEVEL = frozenset(
    {b"ftyp", b"styp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot", b"uuid", b"moof", b"mfra"}
    | {b"sidx", b"meta", b"udta", b"emsg", b"prft", b"pdin", b"ssix", b"junk", b"PICT", b"pict"}
)
_PICTURE_BRANDS = (b"heic", b"heix", b"avif", b"avis", b"mif1", b"jxl ")
_STREAMS = (
    (0, b"\x1a\x45\xdf\xa3", "Matroska or WebM"),
    (0, b"FLV\x01", "FLV"),
    (0, b"OggS", "Ogg"),
    (0, b"\x30\x26\xb2\x75", "ASF"),
    (0, b"\x00\x00\x01\xba", "MPEG program stream"),
    (0, b"\x00\x00\x01\xb3", "MPEG video"),
    (0, b"\x00\x00\x00\x01", "raw H.264 or HEVC"),
    (8, b"AVI ", "AVI"),
)
_OTHERS = (
    (0, b"\x89PNG", "a PNG picture"),
    (0, b"\xff\xd8\xff", "a JPEG picture"),
    (0, b"GIF8", "a GIF picture"),
    (8, b"WEBP", "a WebP picture"),
    (8, b"WAVE", "a WAVE sound"),
    (0, b"ID3", "an MP3 sound"),
    (0, b"fLaC", "a FLAC sound"),
    (0, b"%PDF", "a PDF document"),
    (0, b"PK\x03\x04", "a ZIP archive"),
    (0, b"\x1f\x8b", "a gzip file"),
)


@dataclass(frozen=True)
class Index:
    """All samples of the video track, one row each in decode order, in numpy columns of equal length."""

    codec: str
    """FFmpeg's name of the codec: "h264", "hevc", ..."""
    extradata: bytes
    width: int
    height: int
    """As shown, after the rotation."""
    rotation: int
    """Clockwise degrees by which decoded pictures are turned to be shown: 0, 90, 180 or 270."""
    time_base: Fraction
    frames_per_second: float
    """Mean over the clip."""
    duration_seconds: float
    size_bytes: int
    container: str
    offset: npt.NDArray[np.int64]
    size: npt.NDArray[np.int32]
    dts: npt.NDArray[np.int64]
    pts: npt.NDArray[np.int64]
    """Ticks of `time_base`, after the edit list."""
    is_keyframe: npt.NDArray[np.bool_]
    frame_number: npt.NDArray[np.int32]
    """Display order from 0, as OpenCV's VideoCapture counts; -1: decoded but never shown."""
    is_disposable: npt.NDArray[np.bool_]
    """Probably no other frame needs it: as the container says, or else judged by the order of pts. Good for
    planning only: which of two B-frames in a row is a reference, their bytes tell (`decode.is_reference`)."""
    missing_rows: int = 0
    """Samples that the index names beyond the end of a cut off file; they have no row."""

    def __post_init__(self) -> None:
        lengths = {name: len(column) for name, column in self._columns().items()}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"index columns must have equal lengths, got {lengths}")

    def _columns(self) -> dict[str, npt.NDArray[np.generic]]:
        names = ("offset", "size", "dts", "pts", "is_keyframe", "frame_number", "is_disposable")
        return {name: getattr(self, name) for name in names}

    @cached_property
    def frame_count(self) -> int:
        """How many frames are shown."""
        return int((self.frame_number >= 0).sum())

    @cached_property
    def row_of_frame(self) -> npt.NDArray[np.int32]:
        """The row of each frame number, (frame_count,) int32."""
        rows = np.empty(self.frame_count, np.int32)
        shown = np.flatnonzero(self.frame_number >= 0)
        rows[self.frame_number[shown]] = shown
        return rows

    @cached_property
    def key_rows(self) -> npt.NDArray[np.int32]:
        """Rows of key frames, rising."""
        return np.flatnonzero(self.is_keyframe).astype(np.int32)

    @cached_property
    def gop_of_row(self) -> npt.NDArray[np.int32]:
        """The key frame's row that decoding must start at for each row, (rows,) int32.

        A frame stored after a key frame but shown before it (open GOP) may need the GOP before.
        """
        rows = np.arange(len(self.pts))
        at = np.maximum(np.searchsorted(self.key_rows, rows, "right") - 1, 0)
        key = self.key_rows[at]
        leading = (self.pts < self.pts[key]) & (rows > key)
        return cast("npt.NDArray[np.int32]", np.where(leading, self.key_rows[np.maximum(at - 1, 0)], key))

    def gop_rows(self, key_row: int) -> range:
        """All rows a decoder started at `key_row` needs to give every frame of that GOP.

        Reaches over the next key frame when that one's leading frames (open GOP) need this GOP.
        """
        at = int(np.searchsorted(self.key_rows, key_row))
        if at == len(self.key_rows) or self.key_rows[at] != key_row:
            raise ValueError(f"row {key_row} is not a key frame")
        stop = int(self.key_rows[at + 1]) if at + 1 < len(self.key_rows) else len(self.pts)
        needing = np.flatnonzero(self.gop_of_row[stop:] == key_row)
        return range(key_row, stop + int(needing[-1]) + 1 if needing.size else stop)

    @cached_property
    def reorder_depth(self) -> int:
        """How many samples at most come before one that is shown earlier: the delay a decoder needs."""
        ranks = np.argsort(np.argsort(self.pts, kind="stable"))
        later_before = [0]
        window: list[int] = []
        for rank in ranks.tolist():
            at = bisect_right(window, rank)
            later_before.append(len(window) - at)
            window.insert(at, rank)
            del window[:-32]
        return max(later_before)

    def pts_seconds(self, frame_number: int) -> float:
        """When a frame is shown, in seconds; as ffprobe's pts_time."""
        return float(self.pts[self.row_of_frame[frame_number]] * self.time_base)

    def byte_range(self, row: int) -> ByteRange:
        start = int(self.offset[row])
        return ByteRange(start, start + int(self.size[row]))


def locate_index(sparse: SparseBytes) -> ByteRange | None:
    """Bytes still missing to read the index; None when all are there. Call again when they have come.

    Raises NotAVideo, IndexInvalid, and IndexNotFound where a container keeps no index in one place
    (Matroska, MPEG-TS, a fragmented MP4 that is not all there).
    """
    size = _known_size(sparse)
    top = _walk(sparse, size)
    if top.missing is not None:
        return top.missing
    moov = top.moov
    if not sparse.has(ByteRange(moov.start, moov.stop)):
        # With the next box's header, which tells whether the file was cut off.
        holes = sparse.missing(ByteRange(moov.start, min(moov.stop + 16, size)))
        return ByteRange(holes[0].start, holes[-1].stop)
    if read_moov(sparse.read(ByteRange(moov.start, moov.stop))).fragmented and not sparse.complete:
        raise IndexNotFound("a fragmented MP4 keeps its index in many places")
    return None


def read_index(sparse: SparseBytes) -> Index:
    """The index of the first video track. Call when `locate_index` says None; the same errors."""
    size = _known_size(sparse)
    top = _walk(sparse, size)
    moov_range = ByteRange(top.moov.start, top.moov.stop)
    if top.missing is not None or not sparse.has(moov_range):
        raise IndexNotFound("not all bytes of the index are here")
    track = read_moov(sparse.read(moov_range))
    if track.fragmented and not sparse.complete:
        raise IndexNotFound("a fragmented MP4 keeps its index in many places")
    if track.fragmented:
        file, samples = _fragmented_file(sparse, size, top, track)
    else:
        file, samples = _Overlay(size, _prefix(track.moov)), track.sample_count
    if samples == 0:
        raise NotAVideo("the video track has no samples")
    return _with_ffmpeg(file, track, size, top.cut_off)


def _known_size(sparse: SparseBytes) -> int:
    if sparse.size is None:
        raise IndexNotFound("the length of the file is not known")
    if sparse.size == 0:
        raise NotAVideo("the file is empty")
    return sparse.size


@dataclass(frozen=True, slots=True)
class _Top:
    """What the walk over the top-level boxes found, as far as the bytes reach."""

    moov: Box
    moofs: tuple[Box, ...] = ()
    missing: ByteRange | None = None
    cut_off: bool = False
    """The last box ends beyond the file, or we cannot see that it does not."""


_NOWHERE = Box(b"", 0, 1, 1)


def _walk(sparse: SparseBytes, size: int) -> _Top:
    """Hop from box to box until moov (and, where all bytes are there, to the end)."""
    moov: Box | None = None
    moofs: list[Box] = []
    brand, open_end = b"", False
    at = count = 0
    while at + 8 <= size:
        want = ByteRange(at, min(at + 16, size))
        if not sparse.has(want):
            if moov is not None:
                open_end = True
                break
            return _Top(_NOWHERE, missing=_next_box(sparse, at, size))
        data = sparse.read(want)
        if at == 0:
            first = ByteRange(0, min(size, 512))
            _judge_magic(sparse.read(first) if sparse.has(first) else data)
        box = read_header(data, 0, at, size)
        if box.kind not in _TOP_LEVEL and moov is None and not box.kind.isalnum():
            raise IndexInvalid(f"there is no box at byte {at} but {data[:8]!r}")
        if box.kind == b"ftyp" and sparse.has(ByteRange(at, min(at + 12, size))):
            brand = data[8:12]
        if box.kind == b"moov" and moov is None:
            moov = box
        elif box.kind == b"moof":
            moofs.append(box)
        at = box.stop
        count += 1
        if count > MAX_TOP_LEVEL_BOXES:
            raise IndexInvalid(f"the file has more than {MAX_TOP_LEVEL_BOXES} boxes")
    if moov is None and brand in _PICTURE_BRANDS:
        raise NotAVideo("the file is a picture")
    if moov is None and at > size:
        raise IndexInvalid(f"the file is cut off before its index: {size} bytes of at least {at}")
    if moov is None:
        raise IndexInvalid("the file has no index (no moov box)")
    if moov.stop > size:
        raise IndexInvalid(f"the index is cut off: it ends at byte {moov.stop} of {size}")
    if moov.stop - moov.start > MAX_MOOV_BYTES:
        raise IndexInvalid(f"the index has {moov.stop - moov.start} bytes, more than {MAX_MOOV_BYTES}")
    return _Top(moov, tuple(moofs), cut_off=open_end or at > size)


def _next_box(sparse: SparseBytes, at: int, size: int) -> ByteRange:
    """What to ask for when the box header at `at` is not there.

    Where few bytes are missing up to the tail that has come, a large moov stands last: ask for all of it.
    """
    hole = sparse.missing(ByteRange(at, size))[0]
    closes = hole.stop < size and len(hole) <= MAX_LAST_HOLE
    return hole if closes else ByteRange(hole.start, min(hole.start + LOOK_AHEAD, hole.stop))


def _judge_magic(head: bytes) -> None:
    """Raise for what is not an MP4 family file, by its first bytes."""
    if len(head) >= 8 and (head[4:8] in _TOP_LEVEL or (head[4:8].isalnum() and head[:4] == b"\0\0\0\1")):
        return
    for at, magic, name in _STREAMS:
        if head[at : at + len(magic)] == magic:
            raise IndexNotFound(f"a {name} file has no sample index")
    for at, magic, name in _OTHERS:
        if head[at : at + len(magic)] == magic:
            raise NotAVideo(f"the file is {name}")
    if head[:1] == b"\x47" and (len(head) < 189 or head[188] == 0x47):
        raise IndexNotFound("an MPEG transport stream has no sample index")
    if head.lstrip()[:1] in (b"<", b"{", b"["):
        raise NotAVideo("the file is a text (HTML, XML or JSON), not a video")
    raise NotAVideo(f"the file starts like no video we know: {head[:8]!r}")


class _Overlay(io.RawIOBase):
    """A read-only file of zeros, or of `base`, with some bytes laid over it."""

    def __init__(self, size: int, *overlays: tuple[int, bytes], base: io.RawIOBase | None = None) -> None:
        super().__init__()
        self._size, self._overlays, self._base, self._at = size, sorted(overlays), base, 0

    def seekable(self) -> bool:
        return True

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence])
        return self._at

    def read(self, count: int | None = -1) -> bytes:
        left = max(0, self._size - self._at)
        count = left if count is None or count < 0 else min(count, left)
        start, stop = self._at, self._at + count
        self._at = stop
        touched = [part for part in self._overlays if part[0] < stop and part[0] + len(part[1]) > start]
        data = bytes(count) if self._base is None else self._below(start, count)
        if not touched:
            return data
        mixed = bytearray(data)
        for at, part in touched:
            a, b = max(start, at), min(stop, at + len(part))
            mixed[a - start : b - start] = part[a - at : b - at]
        return bytes(mixed)

    def _below(self, start: int, count: int) -> bytes:
        assert self._base is not None
        self._base.seek(start)
        return self._base.read(count) or b""


def _prefix(moov: bytes) -> tuple[int, bytes]:
    """An MP4 that starts with its index, whatever the real one does: FFmpeg need not look for it."""
    ftyp = b"\0\0\0\x14ftypisom\0\0\2\0isom"
    return 0, ftyp + moov + b"\0\0\0\0mdat"


def _fragmented_file(sparse: SparseBytes, size: int, top: _Top, track: VideoTrack) -> tuple[_Overlay, int]:
    """The whole file with checked and slimmed moov and moof boxes, and how many samples they name."""
    overlays = [(top.moov.start, track.moov)]
    samples = track.sample_count
    for box in top.moofs:
        if box.stop > size or box.stop - box.start > MAX_MOOV_BYTES:
            continue
        moof, count = read_moof(sparse.read(ByteRange(box.start, box.stop)), track.track_id)
        overlays.append((box.start, moof))
        samples += count
        if samples > MAX_SAMPLES:
            raise IndexInvalid(f"the fragments claim more than {MAX_SAMPLES} samples")
    return _Overlay(size, *overlays, base=cast(io.RawIOBase, sparse.file())), samples


@dataclass(frozen=True, slots=True)
class _Samples:
    """Rows as the demuxer gives them."""

    offset: npt.NDArray[np.int64]
    size: npt.NDArray[np.int64]
    dts: npt.NDArray[np.int64]
    pts: npt.NDArray[np.int64]
    is_keyframe: npt.NDArray[np.bool_]
    is_hidden: npt.NDArray[np.bool_]
    is_disposable: npt.NDArray[np.bool_]


def _with_ffmpeg(file: _Overlay, track: VideoTrack, size: int, cut_off: bool) -> Index:
    try:
        with av.open(
            file,
            mode="r",
            format="mov,mp4,m4a,3gp,3g2,mj2",
            options={"probesize": "32", "fflags": "noparse", "enable_drefs": "0", "max_streams": "4"},
            metadata_errors="ignore",
        ) as container:
            if not container.streams.video:
                raise NotAVideo("the file has no video track that can be read")
            stream = container.streams.video[0]
            if stream.codec_context is None:
                raise NotAVideo(f"no decoder for the video's codec {track.codec_tag!r}")
            _bound_entries(stream, file, size, cut_off)
            samples = _demux(container, stream)
            return _make_index(stream, samples, track, size, cut_off)
    except (av.FFmpegError, ValueError, OverflowError) as exc:
        raise IndexInvalid(f"FFmpeg cannot read the index: {exc}") from exc


def _bound_entries(stream: VideoStream, file: _Overlay, size: int, cut_off: bool) -> None:
    """Hold the entries against the file before any sample is read, even as zeros."""
    entries = [(entry.pos, entry.size) for entry in stream.index_entries]
    if any(length <= 0 for _, length in entries):
        raise IndexInvalid("the index has samples of no bytes")
    outside = sum(not 0 < pos <= pos + length <= size for pos, length in entries)
    if outside and (not cut_off or any(not 0 < pos < 1 << 48 for pos, _ in entries)):
        raise IndexInvalid(f"{outside} of {len(entries)} samples lie outside the file of {size} bytes")
    if outside > MAX_MISSING_SHARE * len(entries):
        raise IndexInvalid(f"the file is cut off: {outside} of its {len(entries)} samples are missing")
    inside = sum(length for pos, length in entries if pos + length <= size)
    if inside > 2 * size + (1 << 20):
        raise IndexInvalid(f"the samples have {inside} bytes in a file of {size}")


def _demux(container: av.container.InputContainer, stream: VideoStream) -> _Samples:
    rows = []
    for packet in container.demux(stream):
        if packet.pos is None or packet.dts is None or packet.is_corrupt:
            continue  # the last, empty packet, and one that the end of the file cuts
        pts = packet.dts if packet.pts is None else packet.pts
        flags = (packet.is_keyframe, packet.is_discard, packet.is_disposable)
        rows.append((packet.pos, packet.size, packet.dts, pts, *flags))
        if len(rows) > MAX_SAMPLES:
            raise IndexInvalid(f"the file shows more than {MAX_SAMPLES} samples")
        if packet.has_sidedata("new_extradata"):
            raise IndexNotFound("the video changes its codec parameters inside the file")
    if not rows:
        raise IndexInvalid("the index names no sample inside the file")
    numbers = np.array(rows, np.int64).T
    return _Samples(*(np.ascontiguousarray(n) for n in numbers[:4]), *(n.astype(np.bool_) for n in numbers[4:]))


def _make_index(stream: VideoStream, samples: _Samples, track: VideoTrack, size: int, cut_off: bool) -> Index:
    there = (samples.offset + samples.size <= size) & (samples.size > 0)
    claimed = max(len(stream.index_entries), len(there))
    rows = np.flatnonzero(there)
    if not rows.size or not samples.is_keyframe[rows].any():
        raise IndexInvalid("the index names no key frame")
    pts = samples.pts[rows]
    keys = samples.is_keyframe[rows]
    hidden = samples.is_hidden[rows] | (np.arange(rows.size) < np.flatnonzero(keys)[0])
    numbers = _number(pts, hidden)
    time_base = stream.time_base or Fraction(1, 1000)
    rate, duration = _timing(pts[~hidden], time_base, stream.average_rate)
    width, height = stream.codec_context.width, stream.codec_context.height
    if track.rotation in (90, 270):
        width, height = height, width
    disposable = samples.is_disposable[rows]
    return Index(
        codec=stream.codec_context.name,
        extradata=stream.codec_context.extradata or b"",
        width=width,
        height=height,
        rotation=track.rotation,
        time_base=time_base,
        frames_per_second=rate,
        duration_seconds=duration,
        size_bytes=size,
        container="fragmented mp4" if track.fragmented else "mp4",
        offset=samples.offset[rows],
        size=samples.size[rows].astype(np.int32),
        dts=samples.dts[rows],
        pts=pts,
        is_keyframe=keys,
        frame_number=numbers,
        is_disposable=disposable if disposable.any() else guess_disposable(pts, keys),
        missing_rows=claimed - rows.size if cut_off else 0,
    )


def _number(pts: npt.NDArray[np.int64], hidden: npt.NDArray[np.bool_]) -> npt.NDArray[np.int32]:
    """Frame numbers in display order of the rows that are shown, -1 for the others."""
    numbers = np.full(pts.size, -1, np.int32)
    shown = np.flatnonzero(~hidden)
    numbers[shown[np.argsort(pts[shown], kind="stable")]] = np.arange(shown.size)
    return numbers


def _timing(shown: npt.NDArray[np.int64], time_base: Fraction, rate: Fraction | None) -> tuple[float, float]:
    """Mean frames per second, and seconds from the first frame to the end of the last."""
    if not shown.size:
        return float(rate or 0), 0.0
    span = float(int(shown.max() - shown.min()) * time_base)
    mean = (shown.size - 1) / span if span > 0 else float(rate or 0)
    return mean, span + (1.0 / mean if mean else 0.0)


def guess_disposable(pts: npt.NDArray[np.int64], is_keyframe: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Which B-frames no other frame needs, judged by the order in which samples are stored and shown.

    A sample shown before one that was stored before it is a B-frame. It is a reference when, before the next
    sample that is not a B-frame, one follows that is shown before it (a pyramid); otherwise it is a leaf.
    """
    guess = np.zeros(pts.size, np.bool_)
    earliest_after: int | None = None
    running = np.maximum.accumulate(pts)
    is_b = (pts < running) & ~is_keyframe
    for row in range(pts.size - 1, -1, -1):
        if not is_b[row]:
            earliest_after = None
            continue
        shown = int(pts[row])
        guess[row] = earliest_after is None or earliest_after > shown
        earliest_after = shown if earliest_after is None else min(earliest_after, shown)
    return guess

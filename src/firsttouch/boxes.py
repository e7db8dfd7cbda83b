"""MP4 boxes: walk them, bound every count in them, and keep only what the video's index needs.

Nothing here trusts a length. FFmpeg allocates by the counts a file claims (a 5.6 kB file can make it take
1.8 GB), so every table is held against the box it lies in and against `MAX_SAMPLES` before FFmpeg sees it.
Box layouts: ISO/IEC 14496-12.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from firsttouch.errors import IndexInvalid, IndexNotFound, NotAVideo

MAX_SAMPLES = 200_000
"""Video samples we are willing to index: 55 minutes at 60 frames a second."""
MAX_EDITED_SAMPLES = 2_000_000
"""Edits times samples: an edit list may show the same samples again and again."""
MAX_DIMENSION = 8192
MAX_MOOV_BYTES = 32 << 20
MAX_DESCRIPTIONS_BYTES = 1 << 20

_PARENTS = frozenset({b"moov", b"trak", b"mdia", b"minf", b"stbl", b"edts", b"mvex", b"moof", b"traf"})
_KEPT = _PARENTS | {
    *(b"mvhd", b"tkhd", b"mdhd", b"hdlr", b"vmhd", b"elst", b"trex", b"mehd"),
    *(b"stsd", b"stts", b"ctts", b"cslg", b"stss", b"stps", b"stsc", b"stsz", b"stz2", b"stco", b"co64"),
    *(b"sdtp", b"sgpd", b"sbgp", b"mfhd", b"tfhd", b"tfdt", b"trun"),
}
_ROW_BYTES = {b"stts": 8, b"ctts": 8, b"stss": 4, b"stps": 4, b"stsc": 12, b"stco": 4, b"co64": 8}
_RUN_FIELDS = (0x100, 0x200, 0x400, 0x800)
_IDENTITY = (1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)


@dataclass(frozen=True, slots=True)
class Box:
    """One box: `start` of its header, `body` after it, `stop`; positions in the bytes it was read from."""

    kind: bytes
    start: int
    body: int
    stop: int


@dataclass(frozen=True, slots=True)
class VideoTrack:
    """What the boxes say of the first video track, before FFmpeg has seen them."""

    moov: bytes
    track_id: int
    codec_tag: bytes
    coded_width: int
    coded_height: int
    rotation: int
    sample_count: int
    edit_count: int
    fragmented: bool


def read_header(data: bytes, at: int, offset: int, end: int) -> Box:
    """The box whose header is at data[at:], which lies at `offset` of a file (or box) that stops at `end`.

    A 64-bit size and "to the end of the file" (size 0) are resolved. The stop may lie beyond `end`.
    """
    size, kind = struct.unpack_from(">I4s", data, at)
    header = 8
    if size == 1:
        if len(data) < at + 16:
            raise IndexInvalid(f"the box {kind!r} at byte {offset} is cut off")
        size = struct.unpack_from(">Q", data, at + 8)[0]
        header = 16
    elif size == 0:
        size = end - offset
    if size < header:
        raise IndexInvalid(f"the box {kind!r} at byte {offset} says it has {size} bytes")
    return Box(kind, offset, offset + header, offset + size)


def children(data: bytes | bytearray, parent: Box) -> Iterator[Box]:
    """The boxes inside `parent`, which lies in `data`; a rest of under 8 bytes is padding."""
    at = parent.body
    while at + 8 <= parent.stop:
        box = read_header(bytes(data[at : at + 16]), 0, at, parent.stop)
        if box.stop > parent.stop:
            raise IndexInvalid(
                f"the box {box.kind!r} overruns its parent {parent.kind!r} by {box.stop - parent.stop} bytes"
            )
        yield box
        at = box.stop


def read_moov(moov: bytes, *, max_descriptions: int = 1) -> VideoTrack:
    """Check a whole moov box and slim it to the first video track; everything else becomes free space.

    FFmpeg then parses one track and no metadata. Raises IndexInvalid, NotAVideo, and IndexNotFound for what no
    index can tell: a compressed moov, or more than `max_descriptions` sets of codec parameters.
    """
    data = bytearray(moov)
    root = Box(b"moov", 0, read_header(moov[:16], 0, 0, len(moov)).body, len(moov))
    tracks = [box for box in children(data, root) if box.kind == b"trak"]
    handlers = [_handler(data, trak) for trak in tracks]
    if b"vide" not in handlers:
        kinds = ", ".join(sorted({h.decode("latin-1") for h in handlers if h})) or "no tracks"
        raise NotAVideo(f"the file has no video track ({kinds})")
    video = tracks[handlers.index(b"vide")]
    if any(box.kind == b"cmov" for box in children(data, root)):
        raise IndexNotFound("the index is compressed (cmov)")
    fragmented = any(box.kind == b"mvex" for box in children(data, root))
    _blank_others(data, root, keep_track=video)
    facts = _Facts(max_descriptions)
    _check(data, video, facts)
    if not facts.codec_tag:
        raise IndexInvalid("the video track has no sample description")
    if facts.samples > MAX_SAMPLES:
        raise IndexInvalid(f"the index claims {facts.samples} samples, more than {MAX_SAMPLES}")
    if facts.samples * facts.edits > MAX_EDITED_SAMPLES:
        raise IndexInvalid(f"the edit list shows {facts.samples} samples {facts.edits} times")
    movie = next((_matrix(data, box, 36) for box in children(data, root) if box.kind == b"mvhd"), _IDENTITY)
    return VideoTrack(
        moov=bytes(data),
        track_id=facts.track_id,
        codec_tag=facts.codec_tag,
        coded_width=facts.width,
        coded_height=facts.height,
        rotation=_rotation(facts.matrix, movie),
        sample_count=facts.samples,
        edit_count=facts.edits,
        fragmented=fragmented,
    )


def read_moof(moof: bytes, track_id: int) -> tuple[bytes, int]:
    """Check a moof box; gives it with other tracks' runs blanked, and how many samples it adds."""
    data = bytearray(moof)
    root = Box(b"moof", 0, read_header(moof[:16], 0, 0, len(moof)).body, len(moof))
    samples = 0
    for traf in children(data, root):
        if traf.kind != b"traf":
            continue
        inner = list(children(data, traf))
        heads = [box for box in inner if box.kind == b"tfhd"]
        if not heads or _u32(data, heads[0], 4) != track_id:
            _blank(data, traf)
            continue
        for box in inner:
            if box.kind == b"trun":
                samples += _run_length(data, box)
            elif box.kind not in _KEPT:
                _blank(data, box)
    return bytes(data), samples


@dataclass(slots=True)
class _Facts:
    max_descriptions: int
    track_id: int = 0
    codec_tag: bytes = b""
    width: int = 0
    height: int = 0
    matrix: tuple[int, ...] = _IDENTITY
    samples: int = 0
    edits: int = 1


def _u32(data: bytes | bytearray, box: Box, at: int) -> int:
    """The 32-bit number `at` bytes into the body of `box`."""
    if box.body + at + 4 > box.stop:
        raise IndexInvalid(f"the box {box.kind!r} is too short: {box.stop - box.body} bytes")
    return int.from_bytes(data[box.body + at : box.body + at + 4], "big")


def _blank(data: bytearray, box: Box) -> None:
    data[box.start + 4 : box.start + 8] = b"free"


def _handler(data: bytearray, trak: Box) -> bytes:
    """The handler of a track: b"vide", b"soun", ... or b"" when it has none."""
    for mdia in children(data, trak):
        if mdia.kind == b"mdia":
            for box in children(data, mdia):
                if box.kind == b"hdlr" and box.body + 12 <= box.stop:
                    return bytes(data[box.body + 8 : box.body + 12])
    return b""


def _blank_others(data: bytearray, root: Box, keep_track: Box) -> None:
    for box in children(data, root):
        if box.kind not in _KEPT or (box.kind == b"trak" and box.start != keep_track.start):
            _blank(data, box)


def _check(data: bytearray, parent: Box, facts: _Facts) -> None:
    """Check every table under `parent`, blank what the index does not need, note what it says."""
    for box in children(data, parent):
        if box.kind not in _KEPT:
            _blank(data, box)
        elif box.kind in _PARENTS:
            _check(data, box, facts)
        else:
            _check_table(data, box, facts)


def _check_table(data: bytearray, box: Box, facts: _Facts) -> None:
    kind = box.kind
    if kind in _ROW_BYTES:
        rows = _rows(data, box, 4, _ROW_BYTES[kind])
        if kind in (b"stts", b"ctts"):
            counts = np.frombuffer(bytes(data[box.body + 8 : box.body + 8 + 8 * rows]), ">u4")[::2]
            _bound(kind, int(counts.sum(dtype=np.uint64)))
    elif kind in (b"stsz", b"stz2"):
        facts.samples = max(facts.samples, _size_count(data, box))
    elif kind == b"elst":
        facts.edits = max(1, _rows(data, box, 4, 20 if data[box.body] == 1 else 12))
    elif kind in (b"sbgp", b"sgpd"):
        _bound(kind, box.stop - box.body)
    elif kind == b"stsd":
        _read_description(data, box, facts)
    elif kind == b"tkhd":
        version = _u32(data, box, 0) >> 24
        facts.track_id = _u32(data, box, 20 if version == 1 else 12)
        facts.matrix = _matrix(data, box, 40)


def _bound(kind: bytes, count: int) -> None:
    if count > MAX_SAMPLES:
        raise IndexInvalid(f"the table {kind!r} claims {count} entries, more than {MAX_SAMPLES}")


def _rows(data: bytearray, box: Box, at: int, row_bytes: int) -> int:
    """The number of rows a table claims, held against the bytes it has."""
    rows = _u32(data, box, at)
    _bound(box.kind, rows)
    if box.body + at + 4 + rows * row_bytes > box.stop:
        raise IndexInvalid(f"the table {box.kind!r} claims {rows} entries in {box.stop - box.body} bytes")
    return rows


def _size_count(data: bytearray, box: Box) -> int:
    """The sample count of stsz (one size for all, or a table) or stz2 (a table of 4, 8 or 16 bits)."""
    if box.kind == b"stsz" and _u32(data, box, 4) != 0:
        count = _u32(data, box, 8)
        _bound(box.kind, count)
        return count
    bits = 32 if box.kind == b"stsz" else _u32(data, box, 4) & 0xFF
    if bits not in (4, 8, 16, 32):
        raise IndexInvalid(f"the table stz2 has sizes of {bits} bits")
    count = _u32(data, box, 8)
    _bound(box.kind, count)
    if box.body + 12 + (count * bits + 7) // 8 > box.stop:
        raise IndexInvalid(f"the table {box.kind!r} claims {count} samples in {box.stop - box.body} bytes")
    return count


def _run_length(data: bytearray, box: Box) -> int:
    """The samples of a trun, held against its bytes and the cap (8.8.8: up to four fields a sample)."""
    flags = _u32(data, box, 0) & 0xFFFFFF
    count = _u32(data, box, 4)
    _bound(box.kind, count)
    head = 8 + 4 * bool(flags & 1) + 4 * bool(flags & 4)
    if box.body + head + count * 4 * sum(bool(flags & f) for f in _RUN_FIELDS) > box.stop:
        raise IndexInvalid(f"a trun claims {count} samples in {box.stop - box.body} bytes")
    return count


def _read_description(data: bytearray, box: Box, facts: _Facts) -> None:
    """Codec tag and coded size of stsd's one visual entry (12.1.3)."""
    entries = _u32(data, box, 4)
    if box.stop - box.body > MAX_DESCRIPTIONS_BYTES:
        raise IndexInvalid(f"the sample description has {box.stop - box.body} bytes")
    if entries > facts.max_descriptions:
        raise IndexNotFound(f"the codec parameters change inside the file ({entries} descriptions)")
    if entries < 1 or box.stop - box.body < 8 + 36:
        raise IndexInvalid("the sample description is empty")
    at = box.body + 8
    facts.codec_tag = bytes(data[at + 4 : at + 8])
    if facts.codec_tag in (b"encv", b"drmi"):
        raise NotAVideo("the video is encrypted")
    facts.width, facts.height = struct.unpack_from(">HH", data, at + 32)
    if not (0 < facts.width <= MAX_DIMENSION and 0 < facts.height <= MAX_DIMENSION):
        raise IndexInvalid(f"the video says it is {facts.width}x{facts.height}")


def _matrix(data: bytearray, box: Box, at: int) -> tuple[int, ...]:
    """The 3x3 transformation of tkhd or mvhd; `at` is its place in version 0, 12 bytes later in version 1."""
    begin = box.body + at + (12 if data[box.body] == 1 else 0)
    if begin + 36 > box.stop:
        raise IndexInvalid(f"the box {box.kind!r} is too short: {box.stop - box.body} bytes")
    return struct.unpack_from(">9i", data, begin)


def _rotation(track: tuple[int, ...], movie: tuple[int, ...]) -> int:
    """Clockwise degrees (0, 90, 180, 270) by which a player turns the picture.

    Track matrix times movie matrix, as FFmpeg does; OpenCV turns by multiples of 90 only.
    """
    shift = (16, 16, 30)

    def cell(i: int, j: int) -> int:
        return sum((track[3 * i + k] * movie[3 * k + j]) >> shift[k] for k in range(3))

    product = [[cell(i, j) for j in range(2)] for i in range(2)]
    scale = [math.hypot(product[0][j], product[1][j]) for j in range(2)]
    if 0.0 in scale:
        return 0
    degrees = round(math.degrees(math.atan2(product[0][1] / scale[1], product[0][0] / scale[0]))) % 360
    return degrees if degrees in (90, 180, 270) else 0

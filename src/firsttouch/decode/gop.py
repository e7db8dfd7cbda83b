"""Indexed samples to frames: GOPs side by side, each in its own decoder fed by row, on the CPU or the GPU's chip.

Frames are numbered through the row their packet came from, which travels through the decoder as its pts: no
timestamp is compared.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence

import av
import numpy as np
from av.codec.hwaccel import HWAccel
from av.video.codeccontext import VideoCodecContext

from firsttouch.decode.frame import MAX_PIXELS, Converter, Frame
from firsttouch.errors import DecodeFailed
from firsttouch.index import Index
from firsttouch.ranges import ByteRange

logger = logging.getLogger("firsttouch.decode")

MAX_REORDER_DEPTH = 15
"""What FFmpeg itself assumes of an H.264 stream that does not say."""

FRAMES_HELD = 4
"""Pictures that a reader may hold besides those of one flush: the one it works on, the last one, and two to spare."""


class GopDecoder:
    """Decodes one run of rows that starts at a key frame, in this thread only.

    Rows shown before the first key frame but stored after it (open GOP) need the GOP before: they are left
    out. A run that ends with such rows of the next key frame (`Index.gop_rows`) gives them, but not that key
    frame, which the decoder of the next GOP gives: so GOPs side by side give every frame once.

    skip_nonref leaves out frames no other needs; skip_loop_filter leaves out deblocking (pictures differ).
    device="cuda" asks for NVDEC; where it cannot be had, at once or for this clip, software decodes instead, with
    one warning, and `hardware` stays False. keep_on_device leaves its pictures in the GPU's memory (`Frame.on_device`);
    each holds one of the decoder's few surfaces until it is dropped. (Neither has been verified on hardware.)
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
        keep_on_device: bool = False,
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
        turned = index.rotation in (90, 270)
        self._convert = Converter(*((index.height, index.width) if turned else (index.width, index.height)))
        self._options = {"max_pixels": str(MAX_PIXELS)}
        if skip_loop_filter:
            self._options["skip_loop_filter"] = "all"
        context = _open_nvdec(index, self._options, keep_on_device) if device == "cuda" else None
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
            stays = pictures[0].format.name == "cuda"
            _say_once(logging.INFO, "Using NVDEC, pictures stay on the GPU" if stays else "Using NVDEC")
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


def _open_nvdec(index: Index, options: dict[str, str], keep_on_device: bool) -> VideoCodecContext | None:
    """A decoder on the GPU; None, and one warning, where there is none.

    Without a driver PyAV raises even where a fall-back is allowed; for a codec it has no hardware for, it gives a
    software decoder without a word.
    """
    try:
        accelerator = HWAccel(
            "cuda", allow_software_fallback=False, options={"primary_ctx": "1"}, is_hw_owned=keep_on_device
        )
        context = av.CodecContext.create(index.codec, "r", hwaccel=accelerator)
        if context.is_hwaccel:
            held = {"extra_hw_frames": str(index.reorder_depth + FRAMES_HELD)} if keep_on_device else {}
            return _opened(context, index, options | held)
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
    if index.codec == "h264":
        # Without this the decoder guesses the delay and lets early frames out of order. It aborts above 16.
        context.reorder_depth = max(context.reorder_depth, min(index.reorder_depth, MAX_REORDER_DEPTH))
    return context


_said: set[str] = set()


def _say_once(level: int, message: str) -> None:
    """A process decodes thousands of GOPs; what it decodes them with is worth one line."""
    if message not in _said:
        _said.add(message)
        logger.log(level, message)

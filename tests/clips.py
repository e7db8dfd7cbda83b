"""Clips that tests make for themselves: every picture carries its number, so any decoder can be asked which it is."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt

BITS = 10
MILLISECONDS = Fraction(1, 1000)
SHARED_CLIPS = Path(__file__).parents[1].parent / "shared" / "data" / "clips"


@dataclass(frozen=True)
class Recipe:
    """How to make a clip; the defaults are a plain small MP4 with B-frames."""

    name: str
    width: int = 320
    height: int = 180
    frames: int = 60
    rate: int = 25
    codec: str = "libx264"
    pixels: str = "yuv420p"
    gop: int = 20
    params: str = ""
    container: dict[str, str] = field(default_factory=dict)
    suffix: str = "mp4"
    pts_of: Callable[[int], int] | None = None
    """Presentation time of frame n in 1/1000 s; None: constant rate."""
    audio: bool = False
    patch: Callable[[bytes], bytes] | None = None


def picture(number: int, width: int, height: int) -> npt.NDArray[np.uint8]:
    """Luma (H, W): a moving texture with `number` in binary along the top, one light or dark square a bit."""
    x = np.arange(width)[None, :] + 3 * number
    y = np.arange(height)[:, None] + number
    luma = (110 + 40 * np.sin(x / 9) + 40 * np.cos(y / 7)).astype(np.uint8)
    side = width // BITS
    for bit in range(BITS):
        luma[: side - 4, bit * side : bit * side + side - 4] = 200 if number >> bit & 1 else 40
    return luma


def number_in(luma: npt.NDArray[np.uint8]) -> int:
    """The number a picture carries, from its luma in any size."""
    side = luma.shape[1] / BITS
    rows = slice(int(side * 0.2), int(side * 0.6))
    squares = [luma[rows, int((bit + 0.2) * side) : int((bit + 0.6) * side)].mean() for bit in range(BITS)]
    return sum(1 << bit for bit, mean in enumerate(squares) if mean > 120)


def make_clip(recipe: Recipe, folder: Path) -> Path:
    """The clip in `folder`, made once."""
    path = folder / f"{recipe.name}.{recipe.suffix}"
    if not path.exists():
        _encode(recipe, path)
        if recipe.patch is not None:
            path.write_bytes(recipe.patch(path.read_bytes()))
    return path


def _encode(recipe: Recipe, path: Path) -> None:
    container_options = {"video_track_timescale": "16000"} if recipe.suffix == "mp4" else {}
    with av.open(str(path), "w", options=container_options | recipe.container) as out:
        stream = out.add_stream(recipe.codec, rate=recipe.rate)
        stream.width, stream.height, stream.pix_fmt = recipe.width, recipe.height, recipe.pixels
        stream.codec_context.gop_size = recipe.gop
        if recipe.codec in ("libx264", "libx265"):
            extra = "log-level=none:" if recipe.codec == "libx265" else ""
            key = "x265-params" if recipe.codec == "libx265" else "x264-params"
            params = f"{extra}scenecut=0:keyint={recipe.gop}:min-keyint={recipe.gop}:{recipe.params}".rstrip(":")
            stream.options = {"preset": "ultrafast", "crf": "18", key: params}
        if recipe.pts_of is not None:
            stream.codec_context.time_base = MILLISECONDS
        sound = out.add_stream("aac", rate=48000) if recipe.audio else None
        for number, frame in enumerate(_frames(recipe)):
            if recipe.pts_of is not None:
                frame.pts, frame.time_base = recipe.pts_of(number), MILLISECONDS
            for packet in stream.encode(frame):
                out.mux(packet)
            if sound is not None and number % 2 == 0:
                silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
                silence.sample_rate = 48000
                for packet in sound.encode(silence):
                    out.mux(packet)
        for track in (stream, sound):
            for packet in track.encode(None) if track is not None else ():
                out.mux(packet)


def _frames(recipe: Recipe) -> Iterator[av.VideoFrame]:
    for number in range(recipe.frames):
        luma = picture(number, recipe.width, recipe.height)
        grey = av.VideoFrame.from_ndarray(luma, "gray")
        frame = grey.reformat(format=recipe.pixels, src_color_range="JPEG", dst_color_range=_range(recipe))
        frame.pts = number
        yield frame


def _range(recipe: Recipe) -> str:
    return "JPEG" if recipe.pixels.startswith("yuvj") else "MPEG"


# Changes to the bytes of an MP4, for what the muxer will not write.


def boxes(data: bytes, kind: bytes) -> Iterator[tuple[int, int]]:
    """Start and size of every box of this kind, found by its name (good enough for files made here)."""
    at = data.find(kind)
    while at >= 0:
        yield at - 4, struct.unpack_from(">I", data, at - 4)[0]
        at = data.find(kind, at + 4)


def rotated(degrees: int) -> Callable[[bytes], bytes]:
    """Write a display matrix that turns the picture clockwise."""
    turn = {90: (0, 1, -1, 0), 180: (-1, 0, 0, -1), 270: (0, -1, 1, 0)}[degrees]

    def patch(data: bytes) -> bytes:
        out = bytearray(data)
        start, _ = next(boxes(data, b"tkhd"))
        a, b, c, d = (value << 16 for value in turn)
        struct.pack_into(">9i", out, start + 8 + 40, a, b, 0, c, d, 0, 0, 0, 1 << 30)
        return bytes(out)

    return patch


def with_co64(data: bytes) -> bytes:
    """Every 32-bit chunk offset table as a 64-bit one; for files whose moov stands last."""
    moov, moov_size = next(boxes(data, b"moov"))
    assert moov + moov_size == len(data), "the moov must stand last"
    out, grown = data, 0
    for start, size in list(boxes(data, b"stco")):
        count = struct.unpack_from(">I", data, start + 12)[0]
        offsets = struct.unpack_from(f">{count}I", data, start + 16)
        table = struct.pack(f">I4sII{count}Q", 16 + 8 * count, b"co64", 0, count, *offsets)
        at = start + grown
        out = out[:at] + table + out[at + size :]
        added = len(table) - size
        for kind in (b"moov", b"trak", b"mdia", b"minf", b"stbl"):
            parent = max(s for s, n in boxes(out, kind) if s < at < s + n)
            out = out[:parent] + struct.pack(">I", struct.unpack_from(">I", out, parent)[0] + added) + out[parent + 4 :]
        grown += added
    return out


def with_edit(frames: int) -> Callable[[bytes], bytes]:
    """Let the edit list begin `frames` frames (of 640 ticks) later: they are decoded but never shown."""

    def patch(data: bytes) -> bytes:
        out = bytearray(data)
        start, size = next(boxes(data, b"elst"))
        assert (size, struct.unpack_from(">I", data, start + 12)[0]) == (28, 1)
        duration, begin = struct.unpack_from(">Ii", data, start + 16)
        struct.pack_into(">Ii", out, start + 16, duration - 40 * frames, begin + 640 * frames)
        return bytes(out)

    return patch


def remux(path: Path, target: Path, *, skip: int = 0) -> Path:
    """The video packets of `path` from the `skip`-th on, in the container that the name of `target` asks for."""
    with av.open(str(path)) as source, av.open(str(target), "w") as out:
        stream = out.add_stream_from_template(source.streams.video[0])
        for packet in list(source.demux(video=0))[skip:-1]:
            packet.stream = stream
            out.mux(packet)
    return target


def uneven(number: int) -> int:
    """A variable frame rate: gaps of 20, 30, 40 and 90 ms."""
    return number // 4 * 180 + (0, 20, 50, 90)[number % 4]


FRAGMENTED = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}
FASTSTART = {"movflags": "faststart"}

RECIPES = {
    recipe.name: recipe
    for recipe in (
        Recipe("moov_last", params="bframes=2"),
        Recipe("faststart", container=FASTSTART, params="bframes=2", audio=True),
        Recipe("no_b_frames", params="bframes=0", container=FASTSTART),
        Recipe("pyramid", params="bframes=5:b-pyramid=normal:b-adapt=0:ref=3", audio=True),
        Recipe("fragmented", container=FRAGMENTED, params="bframes=2", audio=True),
        Recipe("vfr", params="bframes=2", pts_of=uneven),
        Recipe("edit_list", params="bframes=2", patch=with_edit(13)),
        Recipe("co64", params="bframes=2", patch=with_co64, audio=True),
        Recipe("rotated_90", patch=rotated(90), params="bframes=2"),
        Recipe("rotated_180", patch=rotated(180)),
        Recipe("rotated_270", patch=rotated(270)),
        Recipe("hevc", codec="libx265", params="bframes=4:b-pyramid=1:open-gop=0"),
        Recipe("hevc_open_gop", codec="libx265", params="bframes=4:b-pyramid=1:open-gop=1"),
        Recipe("h264_open_gop", params="bframes=3:open-gop=1:b-adapt=0"),
        Recipe("odd_size", width=318, height=178, params="bframes=2"),
        Recipe("full_hd", width=1920, height=1080, frames=12, gop=6, params="bframes=2"),
        Recipe("ten_bit", pixels="yuv420p10le", params="bframes=2"),
        Recipe("yuv422", pixels="yuv422p", params="bframes=2"),
        Recipe("yuv444", pixels="yuv444p", params="bframes=2"),
        Recipe("odd_444", width=319, height=179, pixels="yuv444p", params="bframes=2"),
        Recipe("vp9", codec="libvpx-vp9"),
        Recipe("full_range", pixels="yuvj420p", params="bframes=2"),
        Recipe("one_frame", frames=1),
    )
}

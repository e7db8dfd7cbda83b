"""Pictures and their numbers against OpenCV's VideoCapture, on real clips and on ones made here."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import av
import cv2
import numpy as np
import numpy.typing as npt
import pytest
from av.codec.hwaccel import HWAccel
from av.video.reformatter import ColorRange
from clips import FRAGMENTED, RECIPES, SHARED_CLIPS, Recipe, boxes, make_clip, number_in, picture, remux

from firsttouch.clock import Deadline
from firsttouch.decode import Frame, GopDecoder, StreamDecoder, decode_stream, grey_factor, is_reference
from firsttouch.decode.frame import Converter
from firsttouch.errors import DeadlineExceeded, DecodeFailed, IndexInvalid, NotAVideo
from firsttouch.index import Index, read_index
from firsttouch.sparse import SparseBytes

REAL = sorted(SHARED_CLIPS.glob("*.mp4"))
needs_clips = pytest.mark.skipif(not REAL, reason="the real clips (../shared/data/clips) are not here")

# Luma from BGR: ITU-R BT.601 and BT.709, limited range. OpenCV converts by what the clip says of itself.
LUMA = np.array([[24.966, 128.553, 65.481], [15.812, 156.629, 46.559]]) / 255


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("clips")


def opened(path: Path) -> tuple[SparseBytes, Index]:
    data = path.read_bytes()
    sparse = SparseBytes(len(data))
    sparse.write(0, data)
    return sparse, read_index(sparse)


def gop_by_gop(sparse: SparseBytes, index: Index) -> Iterator[Frame]:
    for key in index.key_rows:
        decoder = GopDecoder(index, sparse.read, index.gop_rows(int(key)))
        yield from decoder.frames()
        assert decoder.finished
        assert decoder.errors == 0


def opencv_frames(path: Path, every: int = 1) -> Iterator[npt.NDArray[np.uint8] | None]:
    """BGR pictures as OpenCV gives them; None for those between every `every`-th."""
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    number = 0
    while capture.grab():
        yield capture.retrieve()[1] if number % every == 0 else None
        number += 1


def all_of(path: Path) -> list[npt.NDArray[np.uint8]]:
    return [bgr for bgr in opencv_frames(path) if bgr is not None]


def luma_difference(frame: Frame, bgr: npt.NDArray[np.uint8]) -> float:
    """Mean absolute difference in levels, by the colour matrix that fits."""
    assert frame.y.shape == bgr.shape[:2]
    some = bgr[1::7, 1::7].astype(np.float32)
    return min(float(np.abs(some @ weights + 16 - frame.y[1::7, 1::7]).mean()) for weights in LUMA)


@needs_clips
@pytest.mark.parametrize("path", REAL, ids=lambda path: path.stem[:1])
def test_every_frame_of_real_clips_is_opencvs_frame_of_that_number(path: Path) -> None:
    judge = opencv_frames(path, every=4)
    checked = closer = 0
    before: Frame | None = None
    for count, frame in enumerate(gop_by_gop(*opened(path))):
        bgr = next(judge, "no more")
        assert not isinstance(bgr, str), f"OpenCV has only {count} frames"
        assert frame.frame_number == count
        if bgr is not None:
            difference = luma_difference(frame, bgr)
            assert difference < 1.6, f"frame {count}"
            closer += before is None or difference <= luma_difference(before, bgr)
            checked += 1
        before = frame
    assert next(judge, "no more") == "no more"
    assert closer >= 0.97 * checked  # some neighbours are the same picture


def same_way_up(frame: npt.NDArray[np.uint8], rotation: int) -> npt.NDArray[np.uint8]:
    return np.rot90(frame, rotation // 90)


@pytest.mark.parametrize("name", RECIPES)
def test_frame_number_is_the_number_in_opencvs_picture(name: str, folder: Path) -> None:
    path = make_clip(RECIPES[name], folder)
    sparse, index = opened(path)
    ours = [(f.y.shape, number_in(same_way_up(f.y, index.rotation))) for f in gop_by_gop(sparse, index)]
    judge = [(b.shape[:2], number_in(same_way_up(b[..., 1], index.rotation))) for b in all_of(path)]
    assert ours == judge
    assert ours[0][0] == (index.height, index.width)


@pytest.mark.parametrize("name", RECIPES)
def test_gops_side_by_side_give_what_one_decoder_gives_in_order(name: str, folder: Path) -> None:
    sparse, index = opened(make_clip(RECIPES[name], folder))
    split = list(gop_by_gop(sparse, index))
    stream = list(decode_stream(sparse))
    assert [f.frame_number for f in split] == [f.frame_number for f in stream]
    for ours, other in zip(split, stream, strict=True):
        assert np.array_equal(ours.y, other.y)
        assert np.array_equal(ours.u, other.u)
        assert np.array_equal(ours.v, other.v)


@pytest.mark.parametrize("name", ["full_range", "ten_bit", "yuv422", "yuv444", "odd_444", "moov_last"])
def test_every_source_becomes_8_bit_420_of_limited_range(name: str, folder: Path) -> None:
    recipe = RECIPES[name]
    sparse, index = opened(make_clip(recipe, folder))
    frame = next(gop_by_gop(sparse, index))
    chroma = ((recipe.height + 1) // 2, (recipe.width + 1) // 2)
    assert (frame.y.dtype, frame.u.shape, frame.v.shape) == (np.uint8, chroma, chroma)
    drawn = picture(0, recipe.width, recipe.height) * (219 / 255) + 16
    assert np.abs(frame.y - drawn).mean() < 2.0
    assert np.abs(frame.u.astype(int) - 128).mean() < 2.0


def test_planes_are_views_of_the_decoders_memory(folder: Path) -> None:
    sparse, index = opened(make_clip(RECIPES["moov_last"], folder))
    frame = next(gop_by_gop(sparse, index))
    assert frame.y.__array_interface__["data"][0] == frame.picture.planes[0].buffer_ptr


@pytest.mark.parametrize(
    ("size", "factor"), [((1280, 720), 2), ((1920, 1080), 3), ((848, 478), 1), ((640, 360), 1), ((720, 1280), 2)]
)
def test_grey_factor_brings_the_longer_side_near_640(size: tuple[int, int], factor: int) -> None:
    assert grey_factor(*size) == factor


def test_grey_is_the_mean_of_each_block(folder: Path) -> None:
    sparse, index = opened(make_clip(RECIPES["full_hd"], folder))
    frame = next(gop_by_gop(sparse, index))
    grey = frame.grey()
    assert grey.shape == (360, 640)
    blocks = frame.y.reshape(360, 3, 640, 3).astype(float).mean(axis=(1, 3))
    assert np.abs(grey - blocks).max() <= 0.5 + 1e-6


def test_frames_until_a_row_then_on_are_the_same_frames(folder: Path) -> None:
    sparse, index = opened(make_clip(RECIPES["pyramid"], folder))
    at_once = [f.frame_number for f in GopDecoder(index, sparse.read, range(20)).frames()]
    decoder = GopDecoder(index, sparse.read, range(20))
    in_steps = [f.frame_number for row in (3, 9, 14) for f in decoder.frames(until_row=row)]
    assert decoder.next_row == 14
    assert 0 < len(in_steps) < 14
    assert in_steps + [f.frame_number for f in decoder.frames()] == at_once
    assert decoder.finished


def test_leaving_the_loop_loses_no_frame(folder: Path) -> None:
    sparse, index = opened(make_clip(RECIPES["pyramid"], folder))
    decoder = GopDecoder(index, sparse.read, range(20))
    got = []
    while not decoder.finished:
        for frame in decoder.frames():
            got.append(frame.frame_number)
            break
    assert got == list(range(20))


@pytest.mark.parametrize("name", ["moov_last", "pyramid", "hevc", "hevc_open_gop"])
def test_skipping_nonreference_frames_leaves_the_others_exact(name: str, folder: Path) -> None:
    sparse, index = opened(make_clip(RECIPES[name], folder))
    rows = index.gop_rows(0)
    full = {f.frame_number: f.y.copy() for f in GopDecoder(index, sparse.read, rows).frames()}
    fewer = list(GopDecoder(index, sparse.read, rows, skip_nonref=True).frames())
    assert 0.2 * len(full) < len(fewer) < 0.8 * len(full)
    assert all(np.array_equal(f.y, full[f.frame_number]) for f in fewer)


@pytest.mark.parametrize("params", ["bframes=3:b-adapt=0:b-pyramid=none", "bframes=5:b-adapt=0:ref=3"])
def test_reference_flag_agrees_with_the_guess_from_the_index(params: str, folder: Path) -> None:
    sparse, index = opened(make_clip(Recipe(f"b_{params[-4:]}", params=params, frames=40), folder))
    flags = [
        is_reference(sparse.read(index.byte_range(r)), index.codec, index.extradata) for r in range(len(index.pts))
    ]
    assert [not flag for flag in flags] == index.is_disposable.tolist()


def test_skipping_the_loop_filter_changes_little(folder: Path) -> None:
    sparse, index = opened(make_clip(Recipe("coarse", params="bframes=0:qp=38:deblock=1", frames=8), folder))
    with_filter = [f.y.astype(int) for f in GopDecoder(index, sparse.read, range(8)).frames()]
    without = [f.y.astype(int) for f in GopDecoder(index, sparse.read, range(8), skip_loop_filter=True).frames()]
    assert len(with_filter) == len(without)
    assert all(np.abs(a - b).mean() < 8 for a, b in zip(with_filter, without, strict=True))


def test_run_of_chosen_rows_decodes_only_those(folder: Path) -> None:
    sparse, index = opened(make_clip(RECIPES["moov_last"], folder))
    rows = [row for row in range(20) if not index.is_disposable[row]]
    frames = list(GopDecoder(index, sparse.read, rows).frames())
    assert [f.row for f in frames] == sorted(rows, key=lambda row: index.pts[row])


def test_open_gop_started_in_the_middle_leaves_out_its_leading_frames(folder: Path) -> None:
    sparse, index = opened(make_clip(RECIPES["hevc_open_gop"], folder))
    key, after = int(index.key_rows[1]), int(index.key_rows[2])
    decoder = GopDecoder(index, sparse.read, range(key, after))
    numbers = [f.frame_number for f in decoder.frames()]
    assert numbers[0] == index.frame_number[key]
    assert decoder.errors == 0


def test_damaged_sample_costs_only_what_depends_on_it(folder: Path) -> None:
    sparse, index = opened(make_clip(RECIPES["no_b_frames"], folder))
    data = bytearray(sparse.read(index.byte_range(0).__class__(0, index.size_bytes)))
    span = index.byte_range(25)
    data[span.start : span.stop] = b"\xff" * len(span)
    damaged = SparseBytes(len(data))
    damaged.write(0, bytes(data))
    decoders = [GopDecoder(index, damaged.read, index.gop_rows(int(key))) for key in index.key_rows]
    numbers = [f.frame_number for decoder in decoders for f in decoder.frames()]
    assert decoders[1].errors == 1
    assert set(range(60)) - set(numbers) <= set(range(25, 40))
    assert 40 in numbers


def test_run_must_start_at_a_key_frame(folder: Path) -> None:
    sparse, index = opened(make_clip(RECIPES["moov_last"], folder))
    with pytest.raises(ValueError, match="key frame"):
        GopDecoder(index, sparse.read, range(1, 20))


def test_larger_pictures_than_the_cap_are_not_decoded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sparse, index = opened(make_clip(RECIPES["full_hd"], folder))
    monkeypatch.setattr("firsttouch.decode.gop.MAX_PIXELS", 1000 * 1000)
    assert list(GopDecoder(index, sparse.read, range(6)).frames()) == []


@pytest.mark.parametrize("suffix", ["mkv", "ts", "flv", "mp4"])
@pytest.mark.parametrize("name", ["pyramid", "vfr"])
def test_stream_mode_counts_as_opencv(name: str, suffix: str, folder: Path) -> None:
    path = remux(make_clip(RECIPES[name], folder), folder / f"{name}_again.{suffix}")
    data = path.read_bytes()
    sparse = SparseBytes(len(data))
    sparse.write(0, data)
    assert [number_in(f.y) for f in decode_stream(sparse)] == [number_in(b[..., 1]) for b in all_of(path)]


def test_stream_of_unknown_length_is_decoded_as_it_comes(folder: Path) -> None:
    data = remux(make_clip(RECIPES["no_b_frames"], folder), folder / "drip.mkv").read_bytes()
    sparse = SparseBytes(None)
    sparse.write(0, data[: len(data) // 2])
    stream = StreamDecoder(sparse, Deadline.after(30))
    frames = stream.frames()
    first = [next(frames).frame_number for _ in range(10)]
    sparse.write(len(data) // 2, data[len(data) // 2 :])
    sparse.finish(len(data))
    rest = [f.frame_number for f in frames]
    stream.close()
    assert first + rest == list(range(60))
    assert stream.frames_per_second == 25
    assert (stream.width, stream.height, stream.codec) == (320, 180, "h264")


def test_stream_of_unknown_length_with_its_index_last_waits_for_the_end(folder: Path) -> None:
    data = make_clip(RECIPES["moov_last"], folder).read_bytes()
    fresh = SparseBytes(None)
    fresh.write(0, data[:9000])
    writer = threading.Timer(0.2, lambda: (fresh.write(9000, data[9000:]), fresh.finish(len(data))))
    writer.start()
    assert [number_in(f.y) for f in decode_stream(fresh, Deadline.after(30))] == list(range(60))
    writer.join()


def test_stream_that_stalls_ends_at_the_deadline(folder: Path) -> None:
    data = remux(make_clip(RECIPES["no_b_frames"], folder), folder / "stall.mkv").read_bytes()
    sparse = SparseBytes(None)
    sparse.write(0, data[: len(data) // 2])
    now = [0.0]
    deadline = Deadline(moment=1.0, clock=lambda: now[0])
    stream = StreamDecoder(sparse, deadline)
    now[0] = 2.0
    seen: list[int] = []
    with pytest.raises(DeadlineExceeded):
        seen.extend(frame.frame_number for frame in stream.frames())
    stream.close()


def test_stream_of_rotated_clip_is_turned(folder: Path) -> None:
    path = make_clip(RECIPES["rotated_90"], folder)
    sparse, index = opened(path)
    stream = StreamDecoder(sparse)
    frame = next(stream.frames())
    assert frame.y.shape == (index.height, index.width) == (stream.height, stream.width) == (320, 180)
    stream.close()


@pytest.mark.parametrize("data", [b"", b"<html></html>" * 50, bytes(5000)], ids=["empty", "html", "zeros"])
def test_stream_that_is_no_video_is_named(data: bytes) -> None:
    sparse = SparseBytes(None)
    sparse.write(0, data)
    sparse.finish(len(data))
    with pytest.raises(NotAVideo):
        StreamDecoder(sparse)


def test_stream_without_a_picture_is_a_typed_error(folder: Path) -> None:
    data = bytearray(remux(make_clip(RECIPES["no_b_frames"], folder), folder / "noise.mkv").read_bytes())
    sparse = SparseBytes(len(data))
    sparse.write(0, bytes(data))
    index = read_index(opened(make_clip(RECIPES["no_b_frames"], folder))[0])
    cluster = data.find(b"\x1f\x43\xb6\x75")
    assert cluster > 0
    data[cluster:] = b"\0" * (len(data) - cluster)
    noise = SparseBytes(len(data))
    noise.write(0, bytes(data))
    with pytest.raises((DecodeFailed, NotAVideo)):
        list(decode_stream(noise))
    assert index.frame_count == 60


@pytest.mark.parametrize("name", ["faststart", "moov_last", "fragmented"])
@pytest.mark.parametrize("known", [True, False])
def test_hostile_index_is_refused_in_stream_mode_too(name: str, known: bool, folder: Path) -> None:
    data = bytearray(make_clip(RECIPES[name], folder).read_bytes())
    kind = b"trun" if name == "fragmented" else b"stts"
    for start, _ in boxes(bytes(data), kind):
        if kind == b"trun":
            data[start + 10] = 0  # the samples have no fields of their own
        count = start + (12 if kind == b"trun" else 16)
        data[count : count + 4] = (10**9).to_bytes(4, "big")
    sparse = SparseBytes(len(data) if known else None)
    sparse.write(0, bytes(data))
    if not known:
        sparse.finish(len(data))
    with pytest.raises(IndexInvalid, match="claims"):
        list(decode_stream(sparse))


@pytest.mark.parametrize("suffix", ["ts", "mkv", "flv", "mp4"])
def test_stream_starts_long_before_all_of_it_is_there(suffix: str, folder: Path) -> None:
    recipe = Recipe(
        "long_" + suffix.replace("mp4", "fragmented"),
        frames=500,
        params="bframes=2:qp=6",
        container=FRAGMENTED if suffix == "mp4" else {},
    )
    path = make_clip(recipe, folder)
    if suffix != "mp4":
        path = remux(path, folder / f"long.{suffix}")
    data = path.read_bytes()
    assert len(data) > 1_400_000
    sparse = SparseBytes(len(data))
    sparse.write(0, data[: len(data) // 2])
    stream = StreamDecoder(sparse, Deadline.after(5))
    assert next(stream.frames()).frame_number == 0
    assert stream.frames_per_second == 25
    stream.close()


def test_picture_of_another_size_than_the_container_says_is_scaled_to_it(folder: Path) -> None:
    data = bytearray(make_clip(RECIPES["moov_last"], folder).read_bytes())
    start, _ = next(boxes(bytes(data), b"stsd"))
    data[start + 48 : start + 52] = (160).to_bytes(2, "big") + (90).to_bytes(2, "big")
    sparse = SparseBytes(len(data))
    sparse.write(0, bytes(data))
    index = read_index(sparse)
    frame = next(gop_by_gop(sparse, index))
    assert frame.y.shape == (index.height, index.width) == (90, 160)


def test_absurd_order_of_pts_does_not_end_the_process(folder: Path) -> None:
    """FFmpeg's H.264 decoder aborts when told to hold back more than 16 pictures."""
    sparse, index = opened(make_clip(RECIPES["no_b_frames"], folder))
    upside_down = replace(index, pts=index.pts[::-1].copy())
    assert upside_down.reorder_depth > 16
    assert len(list(GopDecoder(upside_down, sparse.read, range(20)).frames())) == 20


def test_sound_that_begins_late_in_a_stream_does_no_harm(folder: Path) -> None:
    path = folder / "late_sound.flv"
    with av.open(str(make_clip(RECIPES["no_b_frames"], folder))) as source, av.open(str(path), "w") as out:
        video = out.add_stream_from_template(source.streams.video[0])
        sound = out.add_stream("aac", rate=44100)
        for number, packet in enumerate(list(source.demux(video=0))[:-1]):
            packet.stream = video
            out.mux(packet)
            if number > 40:
                silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
                silence.sample_rate, silence.pts = 44100, number * 1764
                out.mux(sound.encode(silence))
    data = path.read_bytes()
    sparse = SparseBytes(len(data))
    sparse.write(0, data)
    assert [number_in(f.y) for f in decode_stream(sparse)] == list(range(60))


def test_frames_keep_their_picture_after_the_decoder_is_closed(folder: Path) -> None:
    sparse, index = opened(make_clip(RECIPES["moov_last"], folder))
    decoder = GopDecoder(index, sparse.read, range(20))
    frame = next(decoder.frames())
    before = frame.y.copy()
    decoder.close()
    assert decoder.finished
    assert np.array_equal(frame.y, before)
    assert isinstance(frame.picture, av.VideoFrame)


# NVDEC: the choice and the fall-back. No GPU is needed, and none is tested.


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> pytest.LogCaptureFixture:
    monkeypatch.setattr("firsttouch.decode.gop._said", set())
    caplog.set_level("INFO", "firsttouch.decode")
    return caplog


def has_nvdec() -> bool:
    try:
        return bool(av.CodecContext.create("h264", "r", hwaccel=HWAccel("cuda")).is_hwaccel)
    except (av.FFmpegError, NotImplementedError):
        return False


@pytest.mark.skipif(has_nvdec(), reason="this machine has NVDEC")
def test_without_a_driver_cuda_decodes_in_software_and_warns_once(
    folder: Path, lines: pytest.LogCaptureFixture
) -> None:
    sparse, index = opened(make_clip(RECIPES["moov_last"], folder))
    for _ in range(2):
        decoder = GopDecoder(index, sparse.read, range(20), device="cuda")
        assert [f.frame_number for f in decoder.frames()] == list(range(20))
        assert not decoder.hardware
    assert [record.levelname for record in lines.records] == ["WARNING"]
    assert "USE_NVDEC=0" in lines.text
    assert "Using NVDEC" not in lines.text


def test_a_picture_on_the_gpu_stays_there_only_as_what_we_work_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def on_gpu(form: str, **more: int) -> SimpleNamespace:
        named = {"format": SimpleNamespace(name="cuda"), "sw_format": SimpleNamespace(name=form)}
        return SimpleNamespace(**{**named, "width": 64, "height": 36, "color_range": 1, **more})

    class Copying:
        def reformat(self, picture: object, *_: object, **__: object) -> str:
            return "copied"

    monkeypatch.setattr("firsttouch.decode.frame.VideoReformatter", Copying)
    convert = Converter(64, 36)
    assert convert(stays := on_gpu("nv12")) is stays
    for other in (on_gpu("p010le"), on_gpu("nv12", width=32), on_gpu("nv12", color_range=ColorRange.JPEG)):
        assert convert(other) == "copied"


def test_cpu_never_asks_for_the_chip(folder: Path, lines: pytest.LogCaptureFixture) -> None:
    sparse, index = opened(make_clip(RECIPES["moov_last"], folder))
    assert not GopDecoder(index, sparse.read, range(20)).hardware
    assert lines.records == []


class Chip:
    """Stands in for a hardware context: refuses from the packet `refuses` on, else decodes to nv12 as NVDEC does."""

    def __init__(self, index: Index, refuses: int | None = None, mute: bool = False) -> None:
        self._inner = av.CodecContext.create(index.codec, "r")
        self._inner.extradata = index.extradata
        self._refuses, self._mute, self._seen = refuses, mute, 0

    def decode(self, packet: av.Packet | None) -> list[av.VideoFrame]:
        if self._refuses is not None and self._seen >= self._refuses:
            raise av.FFmpegError(1, "Failed setup for format cuda: hwaccel initialisation returned error.")
        self._seen += 1
        frames = [] if self._mute else self._inner.decode(packet)
        turned = [frame.reformat(format="nv12") for frame in frames]
        for before, after in zip(frames, turned, strict=True):
            after.pts = before.pts
        return turned


def test_a_chip_that_decodes_is_reported_once_and_gives_the_same_planes(
    folder: Path, lines: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    sparse, index = opened(make_clip(RECIPES["pyramid"], folder))
    monkeypatch.setattr("firsttouch.decode.gop._open_nvdec", lambda index, *_: Chip(index))
    soft = list(GopDecoder(index, sparse.read, range(20)).frames())
    for _ in range(2):
        decoder = GopDecoder(index, sparse.read, range(20), device="cuda")
        hard = list(decoder.frames())
        assert decoder.hardware
    assert [f.frame_number for f in hard] == [f.frame_number for f in soft]
    assert hard[5].picture.format.name == "nv12"
    for ours, other in zip(hard, soft, strict=True):
        assert np.array_equal(ours.y, other.y)
        assert np.array_equal(ours.u, other.u)
        assert np.array_equal(ours.v, other.v)
    assert [record.message for record in lines.records] == ["Using NVDEC"]


@pytest.mark.parametrize("chip", [{"refuses": 0}, {"refuses": 1}, {"mute": True}], ids=str)
def test_a_chip_that_refuses_the_clip_is_replaced_by_software_from_the_first_row(
    chip: dict[str, bool | int], folder: Path, lines: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    sparse, index = opened(make_clip(RECIPES["moov_last"], folder))
    monkeypatch.setattr("firsttouch.decode.gop._open_nvdec", lambda index, *_: Chip(index, **chip))
    decoder = GopDecoder(index, sparse.read, range(20), device="cuda")
    assert [f.frame_number for f in decoder.frames()] == list(range(20))
    assert not decoder.hardware
    assert decoder.errors == 0
    assert [record.levelname for record in lines.records] == ["WARNING"]

"""The index against ffprobe and OpenCV, on real clips and on ones made here; and hostile indexes refused."""

from __future__ import annotations

import json
import resource
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest
from clips import FASTSTART, RECIPES, SHARED_CLIPS, Recipe, boxes, make_clip, remux
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from firsttouch.boxes import MAX_SAMPLES
from firsttouch.errors import IndexInvalid, IndexNotFound, MediaError, NotAVideo
from firsttouch.index import Index, guess_disposable, locate_index, read_index
from firsttouch.ranges import ByteRange
from firsttouch.sparse import SparseBytes

REAL = sorted(SHARED_CLIPS.glob("*.mp4"))
needs_ffprobe = pytest.mark.skipif(shutil.which("ffprobe") is None, reason="ffprobe is not installed")
needs_clips = pytest.mark.skipif(not REAL, reason="the real clips (../shared/data/clips) are not here")


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("clips")


def whole(data: bytes) -> SparseBytes:
    sparse = SparseBytes(len(data))
    sparse.write(0, data)
    return sparse


def index_of(data: bytes) -> Index:
    sparse = whole(data)
    assert locate_index(sparse) is None
    return read_index(sparse)


def fetch_index(data: bytes, head: int = 65536, tail: int = 65536) -> tuple[Index, int, int]:
    """The index as a source would get it: head and tail, then what is asked for. Also requests and bytes."""
    sparse = SparseBytes(len(data))
    sparse.write(0, data[:head])
    if tail:
        sparse.write(max(0, len(data) - tail), data[-tail:])
    requests = 0
    while (missing := locate_index(sparse)) is not None:
        sparse.write(missing.start, data[missing.start : missing.stop])
        requests += 1
        assert requests < 10
    return read_index(sparse), requests, sum(len(part) for part in sparse.have())


def probe(path: Path) -> dict[str, list[int]]:
    entries = "packet=pts,dts,size,pos,flags"
    command = ["ffprobe", "-v", "error", "-select_streams", "v:0", "-show_entries", entries, "-of", "json", str(path)]
    packets = json.loads(subprocess.run(command, capture_output=True, check=True, timeout=60).stdout)["packets"]
    columns = {name: [int(packet[name]) for packet in packets] for name in ("pts", "dts", "size", "pos")}
    columns["key"] = ["K" in packet["flags"] for packet in packets]
    columns["hidden"] = ["D" in packet["flags"] for packet in packets]
    return columns


def assert_equals_ffprobe(index: Index, path: Path) -> None:
    judge = probe(path)
    assert index.offset.tolist() == judge["pos"]
    assert index.size.tolist() == judge["size"]
    assert index.dts.tolist() == judge["dts"]
    assert index.pts.tolist() == judge["pts"]
    assert index.is_keyframe.tolist() == judge["key"]
    assert (index.frame_number < 0).tolist() == judge["hidden"]


def opencv_count(path: Path) -> int:
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    count = 0
    while capture.grab():
        count += 1
    return count


@needs_ffprobe
@needs_clips
@pytest.mark.parametrize("path", REAL, ids=lambda path: path.stem[:1])
def test_index_of_real_clips_equals_ffprobe(path: Path) -> None:
    index, _, fetched = fetch_index(path.read_bytes())
    assert_equals_ffprobe(index, path)
    assert fetched <= 2 * 65536


@needs_clips
@pytest.mark.parametrize("path", REAL, ids=lambda path: path.stem[:1])
def test_size_and_rate_of_real_clips_are_opencvs(path: Path) -> None:
    index = index_of(path.read_bytes())
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    assert (index.width, index.height) == (
        capture.get(cv2.CAP_PROP_FRAME_WIDTH),
        capture.get(cv2.CAP_PROP_FRAME_HEIGHT),
    )
    assert index.frames_per_second == pytest.approx(capture.get(cv2.CAP_PROP_FPS), rel=0.002)


@needs_ffprobe
@pytest.mark.parametrize("name", RECIPES)
def test_index_of_made_clips_equals_ffprobe(name: str, folder: Path) -> None:
    path = make_clip(RECIPES[name], folder)
    assert_equals_ffprobe(index_of(path.read_bytes()), path)


@pytest.mark.parametrize("name", RECIPES)
def test_frame_numbers_are_a_permutation_in_order_of_pts(name: str, folder: Path) -> None:
    path = make_clip(RECIPES[name], folder)
    index = index_of(path.read_bytes())
    assert index.frame_count == opencv_count(path)
    assert (np.diff(index.pts[index.row_of_frame]) > 0).all()
    assert index.frame_number[index.row_of_frame].tolist() == list(range(index.frame_count))


def test_edit_list_hides_frames_and_the_first_shown_is_frame_0(folder: Path) -> None:
    index = index_of(make_clip(RECIPES["edit_list"], folder).read_bytes())
    assert len(index.pts) == 60
    assert index.frame_count == 47
    assert index.pts_seconds(0) == 0.0


def test_pts_seconds_follow_a_variable_rate(folder: Path) -> None:
    index = index_of(make_clip(RECIPES["vfr"], folder).read_bytes())
    assert [round(index.pts_seconds(n), 3) for n in range(6)] == [0.0, 0.02, 0.05, 0.09, 0.18, 0.2]


@pytest.mark.parametrize(("degrees", "size"), [(90, (180, 320)), (180, (320, 180)), (270, (180, 320))])
def test_rotation_is_read_and_the_size_is_as_shown(degrees: int, size: tuple[int, int], folder: Path) -> None:
    index = index_of(make_clip(RECIPES[f"rotated_{degrees}"], folder).read_bytes())
    assert index.rotation == degrees
    assert (index.width, index.height) == size


@pytest.mark.parametrize(("name", "container"), [("moov_last", {}), ("faststart", FASTSTART)])
def test_index_larger_than_head_and_tail_is_asked_for_once(name: str, container: dict[str, str], folder: Path) -> None:
    recipe = Recipe("big_" + name, frames=900, width=64, height=48, params="bframes=2", container=container)
    data = make_clip(recipe, folder).read_bytes()
    moov_size = next(boxes(data, b"moov"))[1]
    assert moov_size > 4096
    index, requests, fetched = fetch_index(data, 2048, 2048)
    assert index.frame_count == 900
    assert requests == 1
    assert fetched < moov_size + 3 * 2048


def test_moov_in_the_middle_is_found(folder: Path) -> None:
    data = make_clip(RECIPES["faststart"], folder).read_bytes()
    padding = struct.pack(">I4s", 300_000, b"free") + bytes(299_992)
    moov, _ = next(boxes(data, b"moov"))
    shifted = bytearray(data[:moov] + padding + data[moov:])
    for start, _ in list(boxes(bytes(shifted), b"stco")):
        count = struct.unpack_from(">I", shifted, start + 12)[0]
        moved = [offset + 300_000 for offset in struct.unpack_from(f">{count}I", shifted, start + 16)]
        struct.pack_into(f">{count}I", shifted, start + 16, *moved)
    index, requests, fetched = fetch_index(bytes(shifted), 65536, 0)
    assert requests == 1
    assert index.offset.tolist() == (index_of(data).offset + 300_000).tolist()
    assert fetched <= 65536 + 65536


def test_fragmented_file_needs_all_its_bytes(folder: Path) -> None:
    data = make_clip(RECIPES["fragmented"], folder).read_bytes()
    partial = SparseBytes(len(data))
    partial.write(0, data[: len(data) // 2])
    with pytest.raises(IndexNotFound):
        locate_index(partial)
    assert index_of(data).frame_count == 60


@pytest.mark.parametrize("suffix", ["mkv", "ts", "flv"])
def test_containers_without_an_index_are_left_to_the_stream_mode(suffix: str, folder: Path) -> None:
    path = remux(make_clip(RECIPES["no_b_frames"], folder), folder / f"plain.{suffix}")
    with pytest.raises(IndexNotFound, match="no sample index"):
        locate_index(whole(path.read_bytes()))


def sound_only(folder: Path) -> bytes:
    import av

    path = folder / "sound.m4a"
    with av.open(str(path), "w", format="mp4") as out:
        stream = out.add_stream("aac", rate=48000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 48000
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            out.mux(packet)
    return path.read_bytes()


def test_what_is_not_a_video_is_named() -> None:
    ok, png = cv2.imencode(".png", np.zeros((9, 9, 3), np.uint8))
    _, jpeg = cv2.imencode(".jpg", np.zeros((9, 9, 3), np.uint8))
    assert ok
    for data, words in [
        (b"", "empty"),
        (b"<!doctype html><title>404</title>" + b" " * 200, "HTML"),
        (b'{"error": "not found"}', "JSON"),
        (png.tobytes(), "PNG"),
        (jpeg.tobytes(), "JPEG"),
        (b"\0\0\0\x1cftypheic\0\0\0\0mif1heic" + b"\0\0\0\x08free", "picture"),
        (np.random.default_rng(0).bytes(5000), "no video"),
    ]:
        with pytest.raises(NotAVideo, match=words):
            locate_index(whole(data))


def test_sound_without_video_is_not_a_video(folder: Path) -> None:
    with pytest.raises(NotAVideo, match="no video track"):
        locate_index(whole(sound_only(folder)))


def test_unknown_length_has_no_index() -> None:
    with pytest.raises(IndexNotFound):
        locate_index(SparseBytes(None))


def test_cut_off_file_keeps_the_samples_that_came(folder: Path) -> None:
    data = make_clip(RECIPES["faststart"], folder).read_bytes()
    full, cut = index_of(data), index_of(data[: int(len(data) * 0.9)])
    rows = len(cut.pts)
    assert 40 < rows < 60
    assert cut.missing_rows == 60 - rows
    assert cut.offset.tolist() == full.offset[:rows].tolist()
    assert int((cut.offset + cut.size).max()) <= cut.size_bytes
    with pytest.raises(IndexInvalid, match="cut off"):
        index_of(data[: int(len(data) * 0.3)])
    with pytest.raises(IndexInvalid, match="cut off"):
        index_of(make_clip(RECIPES["moov_last"], folder).read_bytes()[:-3000])


def test_frame_before_the_first_key_frame_is_never_shown(folder: Path) -> None:
    path = remux(make_clip(RECIPES["no_b_frames"], folder), folder / "starts_late.mp4", skip=5)
    index = index_of(path.read_bytes())
    assert opencv_count(path) == index.frame_count == 40
    assert (index.frame_number[:15] == -1).all()


def test_open_gop_frames_need_the_gop_before(folder: Path) -> None:
    index = index_of(make_clip(RECIPES["hevc_open_gop"], folder).read_bytes())
    key = int(index.key_rows[1])
    leading = [row for row in range(key + 1, len(index.pts)) if index.gop_of_row[row] == 0]
    assert leading
    assert all(index.pts[row] < index.pts[key] for row in leading)
    assert index.gop_rows(0) == range(0, leading[-1] + 1)


def test_closed_gops_end_where_the_next_begins(folder: Path) -> None:
    index = index_of(make_clip(RECIPES["pyramid"], folder).read_bytes())
    assert [index.gop_rows(int(key)) for key in index.key_rows] == [range(0, 20), range(20, 40), range(40, 60)]
    assert index.gop_of_row.tolist() == [0] * 20 + [20] * 20 + [40] * 20
    assert index.reorder_depth == 2


def test_leaf_b_frames_are_guessed_and_pyramid_nodes_are_not() -> None:
    #                 I  P  B  b  b  P  b  b   (shown: I b B b P b b P)
    pts = np.array([0, 4, 2, 1, 3, 7, 5, 6])
    key = np.array([True] + [False] * 7)
    assert guess_disposable(pts, key).tolist() == [False, False, False, True, True, False, True, True]


# Hostile indexes


def patched(data: bytes, kind: bytes, at: int, form: str, *values: int) -> bytes:
    out = bytearray(data)
    start, _ = next(boxes(data, kind))
    struct.pack_into(form, out, start + 8 + at, *values)
    return bytes(out)


HOSTILE: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "one size for a billion samples": (lambda d: patched(d, b"stsz", 4, ">II", 1, 10**9), "claims"),
    "more samples than the cap": (lambda d: patched(d, b"stsz", 4, ">II", 1, MAX_SAMPLES + 1), "claims"),
    "a size table longer than its box": (lambda d: patched(d, b"stsz", 8, ">I", 5000), "claims"),
    "one duration for a billion samples": (lambda d: patched(d, b"stts", 8, ">I", 10**9), "claims"),
    "composition offsets for a billion": (lambda d: patched(d, b"ctts", 8, ">I", 10**9), "claims"),
    "a chunk table longer than its box": (lambda d: patched(d, b"stco", 4, ">I", 100_000), "claims"),
    "a million edits": (lambda d: patched(d, b"elst", 4, ">I", 1_000_000), "claims"),
    "a chunk outside the file": (lambda d: patched(d, b"stco", 8, ">I", 2**31), "outside"),
    "no width": (lambda d: patched(d, b"stsd", 40, ">H", 0), "0x180"),
    "65535 pixels wide": (lambda d: patched(d, b"stsd", 40, ">H", 65535), "65535x180"),
    "a sample of no bytes": (lambda d: patched(d, b"stsz", 12 + 4 * 7, ">I", 0), "no bytes"),
    "a sample larger than the file": (lambda d: patched(d, b"stsz", 12 + 4 * 7, ">I", 1 << 28), "outside"),
    "a box of 3 bytes": (lambda d: patched(d, b"mdhd", -8, ">I", 3), "bytes"),
    "a box larger than its parent": (lambda d: patched(d, b"stbl", -8, ">I", 1 << 30), "overruns"),
    "a moov larger than the file": (lambda d: patched(d, b"moov", -8, ">I", 1 << 30), "cut off"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_index_is_refused(name: str, folder: Path) -> None:
    change, words = HOSTILE[name]
    data = change(make_clip(RECIPES["moov_last"], folder).read_bytes())
    with pytest.raises(IndexInvalid, match=words):
        index_of(data)


def test_hostile_fragment_is_refused(folder: Path) -> None:
    data = make_clip(RECIPES["fragmented"], folder).read_bytes()
    start, _ = next(boxes(data, b"trun"))
    flags = struct.unpack_from(">I", data, start + 8)[0] & ~0xF00
    with pytest.raises(IndexInvalid, match="claims"):
        index_of(patched(data, b"trun", 0, ">II", flags, 10**9))


def test_samples_that_all_lie_on_one_another_are_refused(folder: Path) -> None:
    path = make_clip(Recipe("many", frames=600, width=64, height=48, params="bframes=0"), folder)
    data = path.read_bytes()
    start, _ = next(boxes(data, b"stsz"))
    count = struct.unpack_from(">I", data, start + 16)[0]
    first = int(index_of(data).offset[0])
    mdat = struct.pack(">I4s", 2_000_000, b"mdat") + bytes(1_999_992)
    moov, _ = next(boxes(data, b"moov"))
    out = bytearray(data[:moov].replace(data[first - 8 : moov], mdat) + data[moov:])
    table, _ = next(boxes(bytes(out), b"stsz"))
    struct.pack_into(f">{count}I", out, table + 20, *([1_900_000] * count))
    with pytest.raises(IndexInvalid):
        index_of(bytes(out))


CHILD = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))
from pathlib import Path
from firsttouch.errors import MediaError
from firsttouch.index import locate_index, read_index
from firsttouch.sparse import SparseBytes
data = Path(sys.argv[1]).read_bytes()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
sparse = SparseBytes(len(data)); sparse.write(0, data)
try:
    locate_index(sparse); read_index(sparse)
except MediaError as error:
    print(type(error).__name__)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.parametrize("name", ["one size for a billion samples", "one duration for a billion samples"])
def test_hostile_index_costs_no_memory(name: str, folder: Path) -> None:
    path = folder / "hostile.mp4"
    path.write_bytes(HOSTILE[name][0](make_clip(RECIPES["moov_last"], folder).read_bytes()))
    run = subprocess.run([sys.executable, "-c", CHILD, str(path)], capture_output=True, text=True, timeout=60)
    error, megabytes = run.stdout.split()
    assert error == "IndexInvalid"
    assert int(megabytes) < 32, run.stderr


def mutate(data: bytes, changes: list[tuple[float, int]]) -> bytes:
    """Change bytes of the moov: (where in it, the new byte)."""
    out = bytearray(data)
    start, size = next(boxes(data, b"moov"))
    for where, value in changes:
        out[start + 8 + int(where * (size - 9))] = value
    return bytes(out)


BASE: dict[str, bytes] = {}
CHANGES = st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=12)


@settings(max_examples=250, deadline=2000, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=CHANGES, name=st.sampled_from(["moov_last", "fragmented", "edit_list", "hevc"]))
def test_mutated_index_is_read_or_refused_in_time_and_memory(
    folder: Path, changes: list[tuple[float, int]], name: str
) -> None:
    if name not in BASE:
        BASE[name] = make_clip(RECIPES[name], folder).read_bytes()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begun = time.process_time()
    try:
        index = index_of(mutate(BASE[name], changes))
    except MediaError:
        pass
    else:
        assert (index.offset > 0).all()
        assert int((index.offset + index.size).max()) <= index.size_bytes
        assert len(index.pts) <= MAX_SAMPLES
        assert isinstance(index.time_base, Fraction)
        assert all(len(index.byte_range(row)) > 0 for row in range(len(index.pts)))
    assert time.process_time() - begun < 1.0
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024


def test_byte_range_of_a_row_holds_its_sample(folder: Path) -> None:
    data = make_clip(RECIPES["moov_last"], folder).read_bytes()
    index = index_of(data)
    spans = [index.byte_range(row) for row in range(len(index.pts))]
    assert all(isinstance(span, ByteRange) for span in spans)
    # AVC samples are NAL units behind their lengths: the lengths fill each sample exactly.
    for span in spans:
        at = span.start
        while at < span.stop:
            at += 4 + struct.unpack_from(">I", data, at)[0]
        assert at == span.stop

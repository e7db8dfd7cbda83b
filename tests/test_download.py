"""The guide's partial download: a prefix that plays, from every kind of file and server."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path

import cv2
import pytest

from bench.origin import Fault, Origin
from firsttouch.download import download_video_partial
from firsttouch.errors import NotAVideo, SourceNotFound
from tests.clips import Recipe, make_clip, number_in
from tests.toy import toy_clip

FRAMES = 120


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("clips")
    first = toy_clip(folder, "first", frames=FRAMES).read_bytes()
    return {
        "first.mp4": first,
        "last.mp4": toy_clip(folder, "last", frames=FRAMES, faststart=False).read_bytes(),
        "clip.mkv": make_clip(Recipe("clip", frames=FRAMES, suffix="mkv"), folder).read_bytes(),
        "long.mp4": first + bytes(8_000_000),
        "moved.mp4": first,
        "page.mp4": b"<!doctype html><title>gone</title>" * 50,
        "empty.mp4": b"",
    }


@pytest.fixture(scope="module")
def running(clips: dict[str, bytes]) -> Iterator[Origin]:
    with Origin(clips, faults={"moved.mp4": Fault(redirect="/last.mp4")}) as origin:
        yield origin


@pytest.fixture(params=["ranges", "no ranges", "no length"])
def any_server(request: pytest.FixtureRequest, running: Origin, clips: dict[str, bytes]) -> Iterator[Origin]:
    """Honours Range; ignores it; ignores it and does not say how long the file is."""
    running.shape(ranges=request.param == "ranges")
    for name in ("first.mp4", "last.mp4", "clip.mkv"):
        running.fault(name, Fault(no_length=True) if request.param == "no length" else None)
    yield running
    running.shape(ranges=True)
    for name in ("first.mp4", "last.mp4", "clip.mkv"):
        running.fault(name, None)


@pytest.fixture
def origin(running: Origin) -> Origin:
    running.reset()
    return running


def numbers_of(path: Path) -> list[int]:
    """The numbers in the pictures that OpenCV can read."""
    video, numbers = cv2.VideoCapture(str(path)), []
    while True:
        there, picture = video.read()
        if not there:
            return numbers
        numbers.append(number_in(cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY)))


def download(origin: Origin, name: str, max_bytes: int, folder: Path) -> Path:
    return asyncio.run(download_video_partial(origin.url(name), max_bytes=max_bytes, folder=folder))


@pytest.mark.parametrize("name", ["first.mp4", "last.mp4", "clip.mkv"])
def test_half_of_a_clip_plays_about_half_of_its_frames(
    any_server: Origin, clips: dict[str, bytes], tmp_path: Path, name: str
) -> None:
    half = len(clips[name]) // 2
    path = download(any_server, name, half, tmp_path)
    numbers = numbers_of(path)
    assert FRAMES * 0.35 < len(numbers) < FRAMES * 0.65
    # where the prefix ends in the middle of a B-pyramid, its last pictures may be concealed ones
    assert numbers[:-4] == list(range(len(numbers) - 4))
    assert path.stat().st_size <= half + 8192  # an index moved to the front


@pytest.mark.parametrize("name", ["first.mp4", "last.mp4"])
def test_short_file_comes_whole(any_server: Origin, clips: dict[str, bytes], tmp_path: Path, name: str) -> None:
    assert download(any_server, name, 50_000_000, tmp_path).read_bytes() == clips[name]


def test_only_the_prefix_is_asked_for(origin: Origin, clips: dict[str, bytes], tmp_path: Path) -> None:
    whole = len(clips["first.mp4"])
    assert download(origin, "long.mp4", whole, tmp_path).read_bytes() == clips["first.mp4"]
    counts = origin.counts()
    assert counts.bytes <= whole + 65536
    assert f"bytes=0-{whole - 1}" in [asked for _, _, asked, _ in counts.log]


def test_a_server_that_ignores_range_is_stopped_after_enough(
    origin: Origin, clips: dict[str, bytes], tmp_path: Path
) -> None:
    origin.shape(ranges=False, bandwidth=40e6)
    try:
        path = download(origin, "long.mp4", len(clips["first.mp4"]), tmp_path)
    finally:
        origin.shape(ranges=True, bandwidth=0.0)
    assert path.read_bytes() == clips["first.mp4"]
    assert origin.counts().bytes < 6_000_000


def test_redirect_is_followed(origin: Origin, clips: dict[str, bytes], tmp_path: Path) -> None:
    assert download(origin, "moved.mp4", 50_000_000, tmp_path).read_bytes() == clips["last.mp4"]


def test_local_file_works_too(clips: dict[str, bytes], tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    clip = tmp_path / "in" / "clip.mp4"
    clip.write_bytes(clips["last.mp4"])
    path = asyncio.run(download_video_partial(clip, len(clips["last.mp4"]) // 2, folder=tmp_path))
    assert len(numbers_of(path)) > FRAMES * 0.35


@pytest.mark.parametrize(
    ("name", "error"), [("none.mp4", SourceNotFound), ("page.mp4", NotAVideo), ("empty.mp4", NotAVideo)]
)
def test_no_file_is_left_on_an_error(origin: Origin, tmp_path: Path, name: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        download(origin, name, 1_000_000, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_cancelled_download_leaves_nothing(origin: Origin, tmp_path: Path) -> None:
    origin.fault("long.mp4", Fault(drip_bytes_per_second=20_000))

    async def cancel() -> None:
        task = asyncio.ensure_future(download_video_partial(origin.url("long.mp4"), folder=tmp_path))
        await asyncio.sleep(0.3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    try:
        asyncio.run(cancel())
    finally:
        origin.fault("long.mp4", None)
    assert list(tmp_path.iterdir()) == []


def test_it_logs_the_guides_line(origin: Origin, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        download(origin, "first.mp4", 4 * 1024 * 1024, tmp_path)
    assert "Downloading first 4 MB" in caplog.text


def test_size_must_be_positive() -> None:
    with pytest.raises(ValueError, match="max_bytes"):
        asyncio.run(download_video_partial("http://127.0.0.1:9/x.mp4", max_bytes=0))

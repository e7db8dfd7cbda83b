"""The guide's partial download: a prefix that plays, from every kind of file and server."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path

import cv2
import pytest
from clip_origin import Origin, make_clip, serve

from firsttouch.download import download_video_partial
from firsttouch.errors import NotAVideo, SourceNotFound

FRAMES = 60


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("clips")
    return {
        "/first.mp4": make_clip(folder / "first.mp4", frames=FRAMES, faststart=True).read_bytes(),
        "/last.mp4": make_clip(folder / "last.mp4", frames=FRAMES, faststart=False).read_bytes(),
        "/clip.mkv": make_clip(folder / "clip.mkv", frames=FRAMES).read_bytes(),
        "/page.mp4": b"<!doctype html><title>gone</title>" * 50,
        "/empty.mp4": b"",
    }


@pytest.fixture
def origin(clips: dict[str, bytes]) -> Iterator[Origin]:
    with serve(Origin(clips, redirects={"/moved.mp4": "/last.mp4"})) as running:
        yield running


def frames_of(path: Path) -> int:
    """How many frames OpenCV can read."""
    video, count = cv2.VideoCapture(str(path)), 0
    while video.read()[0]:
        count += 1
    return count


def download(origin: Origin, name: str, max_bytes: int, folder: Path) -> Path:
    return asyncio.run(download_video_partial(f"{origin.url}{name}", max_bytes=max_bytes, folder=folder))


@pytest.mark.parametrize("ranges", ["honoured", "ignored", "no length"])
@pytest.mark.parametrize("name", ["/first.mp4", "/last.mp4", "/clip.mkv"])
def test_half_of_a_clip_plays_about_half_of_its_frames(
    origin: Origin, clips: dict[str, bytes], tmp_path: Path, name: str, ranges: str
) -> None:
    origin.ranges = ranges  # type: ignore[assignment]
    half = len(clips[name]) // 2
    path = download(origin, name, half, tmp_path)
    assert FRAMES * 0.35 < frames_of(path) < FRAMES * 0.65
    assert path.stat().st_size <= half + 8192  # an index moved to the front


def test_moved_index_gives_the_same_pictures(origin: Origin, clips: dict[str, bytes], tmp_path: Path) -> None:
    whole = tmp_path / "whole.mp4"
    whole.write_bytes(clips["/last.mp4"])
    part = download(origin, "/last.mp4", len(clips["/last.mp4"]) // 2, tmp_path)
    a, b = cv2.VideoCapture(str(whole)), cv2.VideoCapture(str(part))
    for _ in range(FRAMES // 3):
        assert (a.read()[1] == b.read()[1]).all()


@pytest.mark.parametrize("ranges", ["honoured", "ignored", "no length"])
@pytest.mark.parametrize("name", ["/first.mp4", "/last.mp4"])
def test_short_file_comes_whole(
    origin: Origin, clips: dict[str, bytes], tmp_path: Path, name: str, ranges: str
) -> None:
    origin.ranges = ranges  # type: ignore[assignment]
    path = download(origin, name, 50_000_000, tmp_path)
    assert path.read_bytes() == clips[name]


def test_only_the_prefix_is_asked_for(origin: Origin, clips: dict[str, bytes], tmp_path: Path) -> None:
    whole = len(clips["/first.mp4"])
    origin.files = {"/long.mp4": clips["/first.mp4"] + bytes(8_000_000)}
    download(origin, "/long.mp4", whole, tmp_path)
    assert origin.sent <= whole + 65536
    assert ("/long.mp4", f"bytes=0-{whole - 1}") in origin.asked


def test_a_server_that_ignores_range_is_stopped_after_enough(
    origin: Origin, clips: dict[str, bytes], tmp_path: Path
) -> None:
    origin.ranges = "ignored"
    origin.bytes_per_second = 20e6
    origin.files = {"/long.mp4": clips["/first.mp4"] + bytes(40_000_000)}
    path = download(origin, "/long.mp4", len(clips["/first.mp4"]), tmp_path)
    assert path.read_bytes() == clips["/first.mp4"]
    assert origin.sent < 20_000_000


def test_redirect_is_followed(origin: Origin, clips: dict[str, bytes], tmp_path: Path) -> None:
    assert download(origin, "/moved.mp4", 50_000_000, tmp_path).read_bytes() == clips["/last.mp4"]


def test_local_file_works_too(clips: dict[str, bytes], tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    clip = tmp_path / "in" / "clip.mp4"
    clip.write_bytes(clips["/last.mp4"])
    path = asyncio.run(download_video_partial(clip, len(clips["/last.mp4"]) // 2, folder=tmp_path))
    assert frames_of(path) > FRAMES * 0.35


@pytest.mark.parametrize(
    ("name", "error"), [("/none.mp4", SourceNotFound), ("/page.mp4", NotAVideo), ("/empty.mp4", NotAVideo)]
)
def test_no_file_is_left_on_an_error(
    origin: Origin, tmp_path: Path, name: str, error: type[Exception]
) -> None:
    with pytest.raises(error):
        download(origin, name, 1_000_000, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_cancelled_download_leaves_nothing(origin: Origin, clips: dict[str, bytes], tmp_path: Path) -> None:
    origin.bytes_per_second = 100_000

    async def cancel() -> None:
        url = f"{origin.url}/first.mp4"
        task = asyncio.ensure_future(download_video_partial(url, len(clips["/first.mp4"]), folder=tmp_path))
        await asyncio.to_thread(origin.began.wait, 10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel())
    assert list(tmp_path.iterdir()) == []


def test_it_logs_the_guides_line(origin: Origin, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        download(origin, "/first.mp4", 4 * 1024 * 1024, tmp_path)
    assert "Downloading first 4 MB" in caplog.text


def test_size_must_be_positive(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="max_bytes"):
        asyncio.run(download_video_partial("http://127.0.0.1:9/x.mp4", max_bytes=0))

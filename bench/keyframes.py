"""P4: 16 frames spread over a remote clip, by index-planned ranges and by every other way people do it.

Contestants: ours (ranges from the index, decoded as they come), PyAV on the URL (plain, and with `multiple_requests`
and `request_size`), OpenCV on the URL, torchcodec's approximate seek where it can be imported, and the whole download.
All must give the same 16 frame numbers; the pictures are compared with those of a local decode before the clock counts.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import av
import cv2
import numpy as np
import numpy.typing as npt

from bench.match import the_match
from bench.origin import Origin
from bench.report import print_report, spread, verdict
from firsttouch.clock import Deadline
from firsttouch.decode import GopDecoder
from firsttouch.opening import HEAD_BYTES, TAIL_BYTES, fetch_index
from firsttouch.plan import Rates, make_plan
from firsttouch.source import Connections, open_source

COUNT = 16
Luma = npt.NDArray[np.uint8]
Contestant = Callable[[str, list[int]], dict[int, Luma]]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench keyframes", description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--gops", type=int, nargs="+", default=[50])
    asked = parser.parse_args(arguments)
    rows: list[list[object]] = []
    body: dict[str, object] = {}
    for gop in asked.gops:
        clip = the_match(gop)
        wanted = _wanted(clip)
        truth = _local(clip, wanted)
        for name, contestant in _contestants().items():
            seconds, sent = _time(clip, contestant, wanted, truth, asked.runs)
            figure, megabytes = spread(seconds), round(float(np.median(sent)) / 1e6, 2)
            mark = ""
            if name == "firsttouch" and gop == 50:
                mark = f"time {verdict(figure['p50'], 0.5)}, bytes {verdict(megabytes, 2.7)}"
            rows.append([f"gop {gop}", name, figure["p50"], megabytes, mark])
            body[f"gop{gop} {name}"] = {"seconds": figure, "megabytes": megabytes}
    print_report("keyframes", ["clip", "contestant", "s (p50)", "MB sent", "<= 0.5 s, <= 2.7 MB"], rows, body)
    return 0


def _wanted(clip: Path) -> list[int]:
    """`COUNT` key frames spread evenly, or all of them where there are fewer, with frames between to make up."""
    keys, number = [], 0
    with av.open(str(clip)) as container:
        for frame in container.decode(video=0):
            if frame.key_frame:
                keys.append(number)
            number += 1
    if len(keys) < COUNT:
        keys = sorted({*keys, *np.linspace(0, number - 1, COUNT - len(keys) + 2).astype(int).tolist()})[:COUNT]
    return [keys[at] for at in np.linspace(0, len(keys) - 1, COUNT).round().astype(int)]


def _local(clip: Path, wanted: list[int]) -> dict[int, Luma]:
    with av.open(str(clip)) as container:
        return {n: _luma(f) for n, f in enumerate(container.decode(video=0)) if n in set(wanted)}


def _time(
    clip: Path, contestant: Contestant, wanted: list[int], truth: dict[int, Luma], runs: int
) -> tuple[list[float], list[int]]:
    seconds, sent = [], []
    with Origin({"clip.mp4": clip}, bandwidth=100e6, rtt=0.03, setup=0.03) as origin:
        for run in range(runs + 1):
            origin.reset()
            began = time.monotonic()
            found = contestant(origin.url("clip.mp4"), wanted)
            took = time.monotonic() - began
            assert sorted(found) == sorted(set(wanted)), f"frames {sorted(found)} instead of {sorted(set(wanted))}"
            for number, luma in found.items():
                difference = float(np.abs(luma.astype(np.int16) - truth[number]).mean())
                assert difference < 2.0, f"frame {number} is another picture: {difference:.1f} of 255 apart"
            if run:
                seconds.append(took)
                sent.append(origin.counts().bytes)
    return seconds, sent


def _contestants() -> dict[str, Contestant]:
    found: dict[str, Contestant] = {
        "firsttouch": lambda url, wanted: asyncio.run(_ours(url, wanted)),
        "PyAV on the URL": lambda url, wanted: _pyav(url, wanted, {}),
        "PyAV, multiple_requests": lambda url, wanted: _pyav(
            url, wanted, {"multiple_requests": "1", "request_size": "262144"}
        ),
        "OpenCV on the URL": _opencv,
        "whole download": _download,
    }
    try:
        importlib.import_module("torchcodec.decoders")
    except (ImportError, RuntimeError, OSError) as exc:  # installed, it may still miss an FFmpeg or a GPU's libraries
        print(f"torchcodec takes no part: {str(exc).strip().splitlines()[0]}", file=sys.stderr)
    else:
        found["torchcodec, approximate"] = _torchcodec
    return found


async def _ours(url: str, wanted: list[int]) -> dict[int, Luma]:
    """Index, then one range for each frame's GOP up to it; each decoded when its bytes are there."""
    async with Connections() as connections:
        source = open_source(url, connections=connections)
        _, sparse = await source.open(head=HEAD_BYTES, tail=TAIL_BYTES, deadline=Deadline.after(30.0))
        index = await fetch_index(source, sparse)
        plan = make_plan(index, Rates(), look_at=wanted)
        fetching = asyncio.create_task(source.fetch_all(plan.byte_ranges))
        found: dict[int, Luma] = {}

        def decode(step_at: int) -> None:
            step = plan.steps[step_at]
            for part in step.byte_ranges:
                sparse.wait(part, Deadline.after(30.0))
            decoder = GopDecoder(index, sparse.read, step.rows)
            found.update({f.frame_number: f.y.copy() for f in decoder.frames() if f.frame_number in set(wanted)})

        await asyncio.gather(*(asyncio.to_thread(decode, at) for at in range(len(plan.steps))))
        await fetching
        await source.close()
    return found


def _pyav(url: str, wanted: list[int], options: dict[str, str]) -> dict[int, Luma]:
    found: dict[int, Luma] = {}
    with av.open(url, options=options) as container:
        stream = container.streams.video[0]
        assert stream.average_rate is not None
        assert stream.time_base is not None
        first = stream.start_time or 0
        for number in sorted(set(wanted)):
            at = first + round(number / stream.average_rate / stream.time_base)
            container.seek(at, stream=stream, backward=True)
            for frame in container.decode(stream):
                if frame.pts is not None and frame.pts >= at:
                    found[number] = _luma(frame)
                    break
    return found


def _opencv(url: str, wanted: list[int]) -> dict[int, Luma]:
    capture = cv2.VideoCapture(url)
    found = {}
    for number in sorted(set(wanted)):
        capture.set(cv2.CAP_PROP_POS_FRAMES, number)
        there, picture = capture.read()
        assert there
        # BGR of full range back to luma of limited range, to compare with the others.
        luma = cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY).astype(np.float32)
        found[number] = (luma * 219 / 255 + 16).astype(np.uint8)
    capture.release()
    return found


def _torchcodec(url: str, wanted: list[int]) -> dict[int, Luma]:
    from torchcodec.decoders import VideoDecoder

    decoder = VideoDecoder(url, seek_mode="approximate")
    found = {}
    for number in sorted(set(wanted)):
        rgb = decoder[number].permute(1, 2, 0).numpy()
        luma = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY).astype(np.float32)
        found[number] = (luma * 219 / 255 + 16).astype(np.uint8)
    return found


def _download(url: str, wanted: list[int]) -> dict[int, Luma]:
    with tempfile.NamedTemporaryFile(suffix=".mp4") as file:
        with urllib.request.urlopen(url) as reply:
            file.write(reply.read())
        file.flush()
        return _pyav(file.name, wanted, {})


def _luma(frame: av.VideoFrame) -> Luma:
    return np.asarray(frame.to_ndarray(format="yuv420p")[: frame.height], np.uint8).copy()


if __name__ == "__main__":
    sys.exit(main())

"""P3: seconds until the first detections, against what a warm link itself needs; and until a cancel is done."""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from contextlib import aclosing

from bench.match import the_match
from bench.origin import Origin
from bench.report import print_report, spread, verdict
from firsttouch.clock import Deadline
from firsttouch.detect import Detector
from firsttouch.opening import fetch_index
from firsttouch.pipeline import Options, analyze, analyze_steps, detector_for
from firsttouch.settings import Settings
from firsttouch.source import Connections, open_source

LINKS = {"100 Mbit/s, 30 ms": (100e6, 0.03), "13.2 Mbit/s, 100 ms": (13.2e6, 0.1)}
ALLOWANCE = 0.06
CANCEL_LIMIT = 0.05


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench first-frame", description=__doc__)
    parser.add_argument("--runs", type=int, default=7)
    asked = parser.parse_args(arguments)
    detector = detector_for(Settings())
    rows: list[list[object]] = []
    body = {}
    for gop in (50, 250):
        clip = the_match(gop)
        for name, (bandwidth, rtt) in LINKS.items():
            with Origin({"clip.mp4": clip}, bandwidth=bandwidth, rtt=rtt) as origin:
                seconds, key_bytes = asyncio.run(_measure(origin.url("clip.mp4"), detector, asked.runs))
            limit = 2 * rtt + key_bytes * 8 / bandwidth + ALLOWANCE
            figure = spread(seconds)
            rows.append([f"gop {gop}", name, figure["p50"], round(limit, 3), verdict(figure["p50"], limit)])
            body[f"gop{gop}, {name}"] = {"seconds": figure, "limit": round(limit, 4)}
    with Origin({"clip.mp4": the_match(50)}, bandwidth=100e6, rtt=0.03) as origin:
        cancels = asyncio.run(_cancels(origin.url("clip.mp4"), detector, 4 * asked.runs))
    figure = spread(cancels)
    rows.append(
        ["gop 50", "cancelled at any moment", figure["p95"], CANCEL_LIMIT, verdict(figure["p95"], CANCEL_LIMIT)]
    )
    body["cancel"] = {"seconds": figure, "limit": CANCEL_LIMIT}
    print_report("first-frame", ["clip", "link", "seconds (p50; cancel p95)", "limit", ""], rows, body)
    return 0


async def _measure(url: str, detector: Detector, runs: int) -> tuple[list[float], int]:
    """Seconds of each run, and the size of the first key frame with all before it."""
    async with Connections() as connections:
        source = open_source(url, connections=connections)
        _, sparse = await source.open(deadline=Deadline.after(30.0))
        index = await fetch_index(source, sparse)
        await source.close()
        seconds = []
        for _ in range(runs + 1):
            began = time.monotonic()
            steps = analyze_steps(
                url, deadline=10.0, options=Options(), detector=detector, connections=connections, partial=True
            )
            async with aclosing(steps):
                async for step in steps:
                    assert step.frames_detected
                    seconds.append(time.monotonic() - began)
                    break
    return seconds[1:], int(index.offset[0] + index.size[0])


async def _cancels(url: str, detector: Detector, runs: int) -> list[float]:
    """Seconds from `cancel()` to the end of the task, at moments spread over a whole answer."""
    seconds = []
    async with Connections() as connections:
        for run in range(runs):
            call = analyze(url, deadline=10.0, options=Options(), detector=detector, connections=connections)
            task = asyncio.create_task(call)
            await asyncio.sleep(1.5 * (run + 1) / runs)
            began = time.monotonic()
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            seconds.append(time.monotonic() - began)
    return seconds


if __name__ == "__main__":
    sys.exit(main())

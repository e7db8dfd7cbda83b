"""A pipeline for the engine's tests: what it does is named in the URL's path. The real one has its own tests."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from typing import Any

import numpy as np

from firsttouch.carry import FrameAnswer
from firsttouch.clock import Deadline
from firsttouch.errors import DeadlineExceeded, ModelNotFound, NotAVideo
from firsttouch.pipeline import Analysis, Options

__all__ = ["Options", "analyze_steps", "detector_for"]


KEPT: list[Any] = []
"""What a job leaves behind in its process."""


class _Detector:
    name, device, runtime, precision = "standin", "cpu", "none", "fp32"

    def prepare(self, y: Any, u: Any, v: Any) -> Any:
        return y

    def detect(self, inputs: Any, numbers: Any, width: int, height: int, *, pitch: bool) -> list[Any]:
        return []


def detector_for(settings: Any) -> _Detector:
    if settings.wallet_name == "broken":
        raise RuntimeError("a bug")
    if settings.wallet_name == "no-model":
        raise ModelNotFound("no such model")
    return _Detector()


def frame(number: int, objects: int = 3) -> FrameAnswer:
    """A frame whose numbers can be told from its own number."""
    return FrameAnswer(
        frame_number=number,
        pts_seconds=number / 25,
        how="detected" if number % 5 == 0 else "carried",
        ids=np.arange(objects, dtype=np.int32) + number,
        class_ids=(np.arange(objects) % 4).astype(np.uint8),
        confidence=np.full(objects, 0.5, np.float32),
        xyxy=np.arange(objects * 4, dtype=np.float32).reshape(objects, 4) + np.float32(number / 4),
        keypoints=np.full((32, 3), number / 8, np.float32),
    )


def analysis(url: str, frames: list[FrameAnswer], **more: Any) -> Analysis:
    values: dict[str, Any] = {
        "source": url,
        "size_bytes": 1000,
        "width": 1280,
        "height": 720,
        "frame_count": len(frames),
        "frames_per_second": 25.0,
        "duration_seconds": len(frames) / 25,
        "stopped_by": "end",
        "fetch": "sparse",
        "runtime": "none fp32 on cpu",
        "hardware_decoding": False,
        "bytes_fetched": 900,
        "requests": 3,
        "frames_decoded": len(frames),
        "frames_detected": len(frames) // 5,
        "stage_seconds": {"total": 0.1, "decode": 0.05},
        "frames": frames,
        "warnings": ("a warning",),
    }
    return Analysis(**(values | more))


async def analyze_steps(url: str, *, deadline: Deadline, partial: bool, **options: Any) -> AsyncIterator[Analysis]:
    what = url.rsplit("/", 1)[-1].partition("?")[0]
    frames = [frame(number) for number in range(50)]
    if what == "pid":
        yield analysis(url, frames, requests=os.getpid())
    elif what == "steps":
        for count in (1, 10, 50):
            yield analysis(url, frames[:: 50 // count])
            await asyncio.sleep(0.01)
    elif what == "slow":
        await asyncio.sleep(0.3)
        yield analysis(url, frames)
    elif what == "until-deadline":
        await asyncio.sleep(max(0.0, deadline.remaining() - 0.05))
        yield analysis(url, frames[:25], stopped_by="deadline")
    elif what == "not-a-video":
        raise NotAVideo("an HTML page", hint="give a video\n")
    elif what == "nothing-in-time":
        await asyncio.sleep(deadline.remaining())
        raise DeadlineExceeded("no frame could be looked at")
    elif what == "late-bug":
        yield analysis(url, frames[:10])
        raise ZeroDivisionError("after the first answers")
    elif what == "bug":
        raise ZeroDivisionError("the secret path is /etc/passwd")
    elif what == "stuck":
        if partial:
            yield analysis(url, frames[:10])
        time.sleep(60)  # noqa: ASYNC251  (as a decoder that never comes back)
    elif what == "stuck-on-cancel":
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            time.sleep(60)  # noqa: ASYNC251
    elif what == "cancellable":
        await asyncio.sleep(60)
    elif what == "eats":
        hoard = []
        for _ in range(1000):
            hoard.append(np.ones(16_000_000, np.uint8))
            await asyncio.sleep(0.001)
    elif what == "keeps":
        KEPT.append(np.ones(300_000_000, np.uint8))
        yield analysis(url, frames, requests=os.getpid())
    elif what == "eats-shared":
        import mmap

        shared = mmap.mmap(-1, 3_000_000_000)
        for at in range(0, 3_000_000_000, 1_000_000):
            shared[at : at + 1_000_000] = b"\1" * 1_000_000
            await asyncio.sleep(0)
    elif what == "dies":
        os.kill(os.getpid(), signal.SIGSEGV)
    else:
        raise AssertionError(what)

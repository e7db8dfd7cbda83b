"""The service as its operator runs it, in small: the real command, signed callers, faults; and nothing left behind."""

from __future__ import annotations

import argparse
import asyncio
import time
from pathlib import Path

import pytest

from bench import service as bench
from bench.match import REAL
from bench.service import Reply, Running
from firsttouch.detect import BUNDLED_MODEL
from train.render import write_clip

CALLS = ("healthy", "bad-signature", "hostile", "html", "error", "cut", "gone", "healthy")


def test_a_bomb_is_small_and_declares_what_it_says() -> None:
    clip = REAL / "a_720p25_faststart.mp4"
    if not clip.exists():
        pytest.skip("the real clips are not there")
    bomb = bench.bomb(clip.read_bytes())
    assert len(bomb) < 40_000
    assert bench.SAMPLES_OF_A_BOMB.to_bytes(4, "big") in bomb


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.skipif(not BUNDLED_MODEL.is_file(), reason="the bundled model is not there")
def test_faults_cost_one_request_each_and_nothing_is_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = tmp_path / "clip.mp4"
    write_clip(clip, frames=50, size=(640, 360), gop=25)

    async def all_of(running: Running) -> list[Reply]:
        await bench.ask(running, "healthy")
        connections = running.origin.counts().connections
        await bench.ask(running, "healthy", "?again")
        assert running.origin.counts().connections == connections  # defect 11: kept from challenge to challenge
        before = await bench.settled(running)
        replies = [
            await bench.ask(running, kind, f"?n={number}", 0.05 if kind == "gone" else None)
            for number, kind in enumerate(CALLS)
        ]
        after = await bench.settled(running)
        assert (before.descriptors, before.children, before.files) == (
            after.descriptors,
            after.children,
            after.files,
        )
        return replies

    async def in_small(running: Running) -> None:
        wish = argparse.Namespace(count=3, seed=1, rate=36_000.0)
        soon = time.monotonic() + 60
        monkeypatch.setattr(bench, "TOGETHER", 3)
        for name, count in {"load": 3, "together": 3, "leaks": 6}.items():
            replies = await bench.RUNS[name](running, wish, soon)
            assert len(replies) == count
            assert all(reply.status == 200 for reply in replies if reply.kind == "healthy")
        assert await bench.RUNS["faults"](running, wish, until=0.0) == []  # its time is over

    async def drained(running: Running) -> Reply:
        """SIGTERM while a challenge is being answered."""
        asked = asyncio.create_task(bench.ask(running, "healthy", "?the=last"))
        async with asyncio.timeout(30):
            while await asyncio.to_thread(bench.metric, running.port, "firsttouch_running") < 1:
                assert not asked.done()
        running.process.terminate()
        return await asked

    with bench.service(clip, budget=15.0, ENGINE_MEMORY_MB="900") as running:
        replies = asyncio.run(all_of(running))
        asyncio.run(in_small(running))
        last = asyncio.run(drained(running))
    assert (last.status, last.frames) == (200, 50)
    by_kind = dict(zip(CALLS, replies, strict=True))
    assert (replies[0].status, replies[-1].status) == (200, 200)
    assert replies[0].frames == replies[-1].frames == 50
    assert by_kind["bad-signature"].status == 401
    assert by_kind["hostile"].status in (422, 500)
    assert by_kind["html"].status == 422
    assert by_kind["error"].status == 502
    assert by_kind["gone"].error == "left"
    assert running.process.poll() is not None

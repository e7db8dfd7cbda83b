"""The cage: answers come through unchanged, and no clip costs more than its own request."""

from __future__ import annotations

import asyncio
import gc
import os
import struct
import time
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import engine_standin
import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from firsttouch.clock import Deadline
from firsttouch.engine import Engine, Job, child, wire
from firsttouch.errors import DeadlineExceeded, EngineFailed, FirsttouchError, NotAVideo
from firsttouch.pipeline import Analysis
from firsttouch.settings import Settings

URL = "http://standin/"
FRAME_WITHOUT_OBJECTS = 4 + 8 + 1 + 4 + 32 * 3 * 4
FRAME_BYTES = FRAME_WITHOUT_OBJECTS + 3 * (4 + 1 + 4 + 16)


@pytest.fixture(autouse=True)
def _children_find_the_standin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))


@asynccontextmanager
async def engine(spares: int = 0, **given: Any) -> AsyncIterator[Engine]:
    async with Engine(Settings(**given), spares=spares, pipeline="engine_standin") as made:
        assert await made.wait_ready(Deadline.after(60))
        yield made


async def answers(made: Engine, what: str, seconds: float | None = 30.0, **job: Any) -> list[Analysis]:
    async with aclosing(made.run(Job(URL + what, Deadline.after(seconds), **job))) as steps:
        return [analysis async for analysis in steps]


async def both_warm(made: Engine) -> None:
    async with asyncio.timeout(60):
        while made.idle < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(test())  # type: ignore[arg-type]


def same(a: Analysis, b: Analysis) -> bool:
    scalars = all(
        getattr(a, name) == getattr(b, name)
        for name in (
            "source",
            "width",
            "frame_count",
            "stopped_by",
            "stage_seconds",
            "warnings",
            "size_bytes",
        )
    )
    return (
        scalars
        and len(a.frames) == len(b.frames)
        and all(
            x.frame_number == y.frame_number
            and x.how == y.how
            and x.pts_seconds == y.pts_seconds
            and all(
                np.array_equal(getattr(x, name), getattr(y, name)) and getattr(x, name).dtype == getattr(y, name).dtype
                for name in ("ids", "class_ids", "confidence", "xyxy", "keypoints")
            )
            for x, y in zip(a.frames, b.frames, strict=True)
        )
    )


# --- the wire


def _unpacked(message: bytes) -> tuple[dict[str, Any], memoryview]:
    header, payload = struct.unpack(">II", message[:8])
    assert len(message) == 8 + header + payload
    return orjson.loads(message[8 : 8 + header]), memoryview(message)[8 + header :]


@pytest.mark.parametrize("objects", [[], [0], [3, 0, 7], [1] * 100])
def test_an_answer_survives_the_wire(objects: list[int]) -> None:
    sent = engine_standin.analysis("http://a/b", [engine_standin.frame(n, k) for n, k in enumerate(objects)])
    assert same(sent, wire.read_analysis(*_unpacked(wire.pack_analysis(7, sent))))


@given(st.integers(0, 2000), st.integers(-2, 60))
@settings(max_examples=200, deadline=None)
def test_a_payload_of_another_length_is_refused(length: int, frames: int) -> None:
    header, payload = _unpacked(wire.pack_analysis(7, engine_standin.analysis("http://a/b", [engine_standin.frame(0)])))
    assert len(payload) == FRAME_BYTES
    for wrong in (payload[:length], memoryview(bytes(length))):
        fits = (frames, len(wrong)) in ((0, 0), (1, FRAME_BYTES)) or (
            not any(wrong) and len(wrong) == frames * FRAME_WITHOUT_OBJECTS
        )
        if not fits:
            with pytest.raises(EngineFailed):
                wire.read_analysis(header | {"frames": frames}, wrong)


def test_a_frame_with_a_negative_number_of_objects_is_refused() -> None:
    payload = bytearray(wire.pack_frames([engine_standin.frame(0), engine_standin.frame(1)]))
    at = payload.index(struct.pack("<ii", 3, 3))
    payload[at : at + 8] = struct.pack("<ii", -3, 9)
    with pytest.raises(ValueError, match="fewer"):
        wire.read_frames(2, memoryview(payload))


def test_errors_cross_by_name_and_only_ours_have_a_text() -> None:
    ours = wire.read_error(_unpacked(wire.pack_error(1, NotAVideo("a\nb\x1b[31m", hint="h")))[0])
    assert isinstance(ours, NotAVideo)
    assert (str(ours), ours.hint) == ("a?b?[31m", "h")
    other = wire.read_error(_unpacked(wire.pack_error(1, RuntimeError("secret")))[0])
    assert type(other) is EngineFailed
    assert "secret" not in str(other)
    for name in ("Exception", "os", "ClassVar", "annotations", "", None, 3):
        assert isinstance(wire.read_error({"error": {"name": name, "message": "x"}}), FirsttouchError)


@given(st.binary(max_size=200))
@settings(max_examples=200, deadline=None)
def test_no_bytes_make_the_reader_do_anything_but_refuse(noise: bytes) -> None:
    async def read() -> None:
        reader = asyncio.StreamReader()
        reader.feed_data(noise)
        reader.feed_eof()
        try:
            message = await wire.read(reader)
        except EngineFailed:
            return
        if message is not None:
            with pytest.raises(EngineFailed):
                wire.read_analysis(*message)

    asyncio.run(read())


# --- the cage


def test_answers_come_as_they_grow_and_the_child_stays_warm() -> None:
    async def test() -> None:
        async with engine() as made:
            steps = await answers(made, "steps", partial=True)
            assert [len(step.frames) for step in steps] == [1, 10, 50]
            assert same(
                steps[-1],
                engine_standin.analysis(URL + "steps", [engine_standin.frame(n) for n in range(50)]),
            )
            first, second = await answers(made, "pid"), await answers(made, "pid")
            assert first[0].requests == second[0].requests == made.pids[0] != os.getpid()

    run(test)


def test_errors_are_typed_and_cost_nothing() -> None:
    async def test() -> None:
        async with engine() as made:
            with pytest.raises(NotAVideo, match="HTML") as error:
                await answers(made, "not-a-video")
            assert error.value.hint == "give a video?"
            with pytest.raises(EngineFailed) as bug:
                await answers(made, "bug")
            assert "passwd" not in str(bug.value)
            with pytest.raises(DeadlineExceeded):
                await answers(made, "nothing-in-time", 0.1)
            survived = await answers(made, "late-bug", partial=True)
            assert (len(survived[-1].frames), survived[-1].stopped_by) == (10, "deadline")
            assert await answers(made, "pid")
            assert made.stats.restarts == {}

    run(test)


def test_a_stuck_child_is_killed_at_the_deadline_and_what_had_come_is_the_answer() -> None:
    async def test() -> None:
        async with engine(spares=1) as made:
            await both_warm(made)
            begun = time.monotonic()
            steps = await answers(made, "stuck", 0.5, partial=True)
            late = time.monotonic() - begun - 0.5
            assert steps[-1].stopped_by == "deadline"
            assert len(steps[-1].frames) == 10
            assert 0 <= late < 0.2
            begun = time.monotonic()
            assert await answers(made, "pid")  # by the spare, at once
            assert time.monotonic() - begun < 0.5
            begun = time.monotonic()
            with pytest.raises(DeadlineExceeded):
                await answers(made, "stuck", 0.3)
            assert time.monotonic() - begun - 0.3 < 0.25  # with nothing in hand it is not much later either
            assert await answers(made, "pid")
            async with asyncio.timeout(10):
                while made.stats.restarts != {"overstayed": 2}:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)

    run(test)


@pytest.mark.parametrize("what", ["eats", "eats-shared"])
def test_a_clip_that_eats_memory_costs_one_request(what: str) -> None:
    async def test() -> None:
        async with engine(engine_memory_mb=600) as made:
            with pytest.raises(EngineFailed, match="memory"):
                await answers(made, what)
            assert await answers(made, "pid")

    run(test)


def test_a_child_that_grew_is_replaced_between_requests_as_long_as_another_is_warm() -> None:
    async def test() -> None:
        async with engine(spares=1, engine_memory_mb=500) as made:
            await both_warm(made)
            grown = (await answers(made, "keeps"))[-1].requests
            async with asyncio.timeout(60):
                while grown in made.pids:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
            assert await answers(made, "pid")  # by the other one, at once
            await both_warm(made)
            assert made.stats.restarts == {"grew too large": 1}
        async with engine(engine_memory_mb=500) as made:
            only = (await answers(made, "keeps"))[-1].requests
            assert (await answers(made, "pid"))[-1].requests == only

    run(test)


def test_a_child_gives_memory_back_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    class Writer:
        sent = 0

        def write(self, message: bytes) -> None:
            self.sent += 1

        async def drain(self) -> None: ...

    tidied: list[int] = []
    writer = Writer()
    monkeypatch.setattr(child, "tidy", lambda: tidied.append(writer.sent))
    made = child.Child(None, writer, Settings(), engine_standin)  # type: ignore[arg-type]
    header = {"do": "analyze", "job": 1, "url": URL + "not-a-video", "partial": True, "moment": None}
    header["budget_seconds"] = None

    async def test() -> None:
        for _ in range(2 * child.JOBS_TO_TIDY):
            await made._do(header, memoryview(b""))

    run(test)
    assert tidied == [child.JOBS_TO_TIDY, 2 * child.JOBS_TO_TIDY]  # after the answer was sent


def test_tidying_collects_what_refers_to_itself() -> None:
    class Loop:
        pass

    loop = Loop()
    loop.me = loop  # type: ignore[attr-defined]
    seen = weakref.ref(loop)
    gc.disable()
    try:
        del loop
        assert seen() is not None
        child.tidy()
        assert seen() is None
    finally:
        gc.enable()


def test_a_child_that_dies_is_replaced() -> None:
    async def test() -> None:
        async with engine() as made:
            before = made.pids
            with pytest.raises(EngineFailed, match="died"):
                await answers(made, "dies")
            assert await answers(made, "pid")
            assert made.pids != before
            assert made.stats.restarts == {"died": 1}

    run(test)


def test_going_away_cancels_the_work_and_leaves_the_child_usable() -> None:
    async def test() -> None:
        async with engine() as made:
            pids = made.pids
            for _ in range(20):
                task = asyncio.create_task(answers(made, "cancellable"))
                await asyncio.sleep(0.01)
                task.cancel()
                begun = time.monotonic()
                with pytest.raises(asyncio.CancelledError):
                    await task
                assert time.monotonic() - begun < 0.3
            assert await answers(made, "pid")
            assert made.pids == pids

    run(test)


def test_a_child_that_does_not_stop_is_killed() -> None:
    async def test() -> None:
        async with engine() as made:
            task = asyncio.create_task(answers(made, "stuck-on-cancel"))
            await asyncio.sleep(0.2)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert await answers(made, "pid")  # by a new one
            assert made.stats.restarts == {"overstayed": 1}

    run(test)


def test_one_job_at_a_time_and_the_next_one_waits() -> None:
    async def test() -> None:
        async with engine() as made:
            begun = time.monotonic()
            await asyncio.gather(*(answers(made, "slow") for _ in range(3)))
            assert time.monotonic() - begun >= 0.9
            busy = asyncio.create_task(answers(made, "slow"))
            await asyncio.sleep(0.05)
            with pytest.raises(EngineFailed, match="no engine was ready"):
                await answers(made, "slow", 0.05)
            await busy

    run(test)


def test_closing_leaves_no_process_and_no_descriptor() -> None:
    async def test() -> list[int]:
        async with engine(spares=1) as made:
            await answers(made, "pid")
            pids = made.pids
            with pytest.raises(EngineFailed):
                await answers(made, "dies")
        return pids

    asyncio.run(test())
    before = len(os.listdir("/proc/self/fd"))
    for pid in asyncio.run(test()):
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize(
    ("given", "why"),
    [({"wallet_name": "broken"}, "ended while it started"), ({"wallet_name": "no-model"}, "no such model")],
)
def test_a_child_that_cannot_start_is_said_and_tried_again(given: dict[str, Any], why: str) -> None:
    async def test() -> None:
        async with (
            Engine(Settings(**given), spares=0, pipeline="engine_standin") as made,
            asyncio.timeout(60),
        ):
            while made.problem is None:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            assert why in made.problem
            assert not made.ready
            with pytest.raises(EngineFailed, match=why):
                await answers(made, "pid", 0.05)

    run(test)

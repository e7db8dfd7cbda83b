"""A service under a real uvicorn in a thread, and an engine that does what the URL says, for the server's tests."""

from __future__ import annotations

import asyncio
import http.client
import json
import threading
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from typing import Any

import engine_standin
import httpx
import uvicorn

from firsttouch.engine import EngineStats, Job
from firsttouch.errors import EngineFailed, NotAVideo
from firsttouch.pipeline import Analysis
from firsttouch.server import create_app
from firsttouch.settings import Settings

OPEN: dict[str, Any] = {"verify_enabled": False, "blacklist_enabled": False}
CLIP = "https://cdn.example.com/"


class FakeEngine:
    """The engine's contract without processes. `https://.../slow`, `/steps`, `/stuck`, `/not-a-video`, `/clip`."""

    def __init__(self, size: int = 1) -> None:
        self.size = size
        self.is_ready = True
        self.problem: str | None = None
        self.stats = EngineStats()
        self.jobs: list[Job] = []
        self.cancelled = 0
        self.at_work = self.most_at_work = 0
        self.closed = False
        self.released = False
        """Ends the jobs whose URL says `held`."""

    @property
    def ready(self) -> bool:
        return self.is_ready

    @property
    def idle(self) -> int:
        return self.size - self.at_work

    def start(self) -> None:
        self.stats.started += 1

    async def close(self) -> None:
        self.closed = True

    async def run(self, job: Job) -> AsyncGenerator[Analysis]:
        self.jobs.append(job)
        self.at_work += 1
        self.most_at_work = max(self.most_at_work, self.at_work)
        try:
            async for analysis in self._answers(job):
                yield analysis
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        finally:
            self.at_work -= 1

    async def _answers(self, job: Job) -> AsyncGenerator[Analysis]:
        what = job.url.rsplit("/", 1)[-1].partition("?")[0]
        frames = [engine_standin.frame(number) for number in range(50)]
        if what == "not-a-video":
            raise NotAVideo("an HTML page")
        if what == "dead":
            raise EngineFailed("the engine died while it read this clip")
        if what == "bug":
            raise ZeroDivisionError("secret")
        while what == "held" and not self.released:  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        if what == "slow":
            await asyncio.sleep(0.4)
        if what == "stuck":
            await asyncio.sleep(job.deadline.remaining())
            yield engine_standin.analysis(job.url, frames[:3], stopped_by="deadline")
            return
        if what == "steps":
            yield engine_standin.analysis(job.url, frames[:1])
            await asyncio.sleep(0.2)
            yield engine_standin.analysis(job.url, frames[:30:3])
        if what == "breaks":
            yield engine_standin.analysis(job.url, frames[:1])
            raise EngineFailed("the engine died while it read this clip")
        yield engine_standin.analysis(job.url, frames)


def post(client: httpx.Client, path: str, body: Any) -> tuple[int, dict[str, str], Any]:
    """A request on a connection of its own, without the cost of a new httpx client."""
    connection = http.client.HTTPConnection(client.base_url.host, client.base_url.port or 80, timeout=60)
    try:
        connection.request("POST", path, json.dumps(body))
        answer = connection.getresponse()
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, json.loads(answer.read())
    finally:
        connection.close()


@contextmanager
def serving(engine: Any = None, **given: Any) -> Iterator[httpx.Client]:
    """A client of a running service; `client.engine` and `client.service` are what is behind it."""
    engine = engine or FakeEngine()
    app = create_app(Settings(**(OPEN | given)), engine=engine)
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None, timeout_graceful_shutdown=5))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until = time.monotonic() + 30
    while not server.started:
        assert thread.is_alive(), "the server ended while it started"
        assert time.monotonic() < until
        time.sleep(0.005)
    port = server.servers[0].sockets[0].getsockname()[1]
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
        client.engine, client.service, client.server = engine, app.state.service, server  # type: ignore[attr-defined]
        try:
            yield client
        finally:
            server.should_exit = True
            thread.join(20)
            assert not thread.is_alive()

"""The same `analyze(url, deadline)` on a Ray cluster, where the operator has one: `pip install 'firsttouch[ray]'`.

Ray Serve, from the repository's root (settings come from the environment, as for `firsttouch serve`):

    serve run deploy.ray_serve:app
    curl -d '{"url": "https://example.org/clip.mp4", "deadline": 2}' http://localhost:8000

Ray Data, for many clips without a caller who waits:

    from deploy.ray_serve import answers
    answers(urls).write_json("answers")

Who may ask is not checked here: leave it inside your network, behind whatever checks. Tried with Ray 2.60 on one
machine; not on a cluster.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from typing import Any

import orjson

from firsttouch.answer import to_json
from firsttouch.engine.child import policy_of
from firsttouch.errors import FirsttouchError, RequestMalformed, RuntimeUnavailable
from firsttouch.pipeline import Options, analyze, detector_for
from firsttouch.server.problems import MEDIA_TYPE, body
from firsttouch.settings import load


class Answering:
    """One replica: the models loaded once, any number of clips. Knows nothing of Ray."""

    def __init__(self) -> None:
        settings = load()
        self._detector = detector_for(settings)
        self._options = Options.of(settings)
        self._policy = policy_of(settings)
        self._deadline = settings.deadline_seconds

    async def answer(self, url: str, deadline: float | None = None) -> bytes:
        """The JSON of `firsttouch analyze`. `deadline` is in seconds, TIME_BUDGET_S when None.

        Only http(s) URLs that may be fetched, never a file of this machine. Raises the errors of `errors`.
        """
        self._policy.judge_form(url)
        limit = self._deadline if deadline is None else deadline
        return to_json(
            await analyze(url, deadline=limit, options=self._options, detector=self._detector, policy=self._policy)
        )

    async def reply(self, request: bytes) -> tuple[int, str, bytes]:
        """Status, media type and body for a request's body; an error as problem+json."""
        try:
            return 200, "application/json", await self.answer(*asked(request))
        except FirsttouchError as exc:
            return exc.http_status, MEDIA_TYPE, orjson.dumps(body(exc))


def asked(request: bytes) -> tuple[str, float | None]:
    """URL and deadline of `{"url": ..., "deadline": ...}`. Raises RequestMalformed."""
    try:
        given = orjson.loads(request)
        url, deadline = given["url"], given.get("deadline")
        seconds = None if deadline is None else float(deadline)
    except (AttributeError, KeyError, TypeError, ValueError) as exc:
        raise RequestMalformed(f'the body is not {{"url": ..., "deadline": ...}}: {request[:80]!r}') from exc
    if not isinstance(url, str) or (seconds is not None and not 0 < seconds < math.inf):
        raise RequestMalformed(f"url must be text and deadline seconds above 0, got {url!r} and {deadline!r}")
    return url, seconds


def application() -> Any:
    """What `serve run` starts: a replica answers one clip at a time, on two cores. Raises RuntimeUnavailable."""
    serve = _ray("serve")
    from starlette.responses import Response

    class Clips(Answering):
        async def __call__(self, request: Any) -> Any:
            """A Starlette request, and its response."""
            status, media_type, content = await self.reply(await request.body())
            return Response(content, status, media_type=media_type)

    options = {"max_ongoing_requests": 1, "ray_actor_options": {"num_cpus": 2}}
    return serve.deployment(name="firsttouch", **options)(Clips).bind()


class AnsweringRows(Answering):
    """For Ray Data: a row with `url` gets `answer` (JSON text), or `error` (text); the other one is None."""

    def __init__(self, deadline: float | None = None) -> None:
        super().__init__()
        self._deadline = deadline

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        try:
            return {**row, "answer": asyncio.run(self.answer(row["url"])).decode(), "error": None}
        except FirsttouchError as exc:
            return {**row, "answer": None, "error": f"{exc.name}: {exc}"}


def answers(urls: Sequence[str], *, deadline: float | None = None, replicas: int = 1) -> Any:
    """A Ray dataset with a row for each URL; each replica takes two cores. Raises RuntimeUnavailable."""
    data = _ray("data")
    rows = data.from_items([{"url": url} for url in urls])
    pool = data.ActorPoolStrategy(size=replicas)
    return rows.map(AnsweringRows, fn_constructor_args=(deadline,), compute=pool, num_cpus=2)


def _ray(part: str) -> Any:
    import importlib

    try:
        return importlib.import_module(f"ray.{part}")
    except ImportError as exc:
        raise RuntimeUnavailable(f"Ray is not installed: {exc}", hint="pip install 'firsttouch[ray]'") from exc


def __getattr__(name: str) -> Any:
    """`app` is made when it is asked for: the rest of this module works without Ray."""
    if name == "app":
        return application()
    raise AttributeError(name)

"""The endpoints. Each reads raw bytes, checks who asks, reads the body, asks the desk, and writes the answer.

Nothing here blocks the event loop: media is read by the engine, JSON of an answer is written and compressed in a
thread, names are resolved in the engine, the chain is read by a child.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.responses import StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import BaseModel, ValidationError
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from firsttouch import __version__, logs
from firsttouch.answer import dumps
from firsttouch.clock import Stopwatch
from firsttouch.engine import Job
from firsttouch.errors import (
    DeadlineExceeded,
    FirsttouchError,
    NoActionModel,
    RequestMalformed,
    RequestTooLarge,
)
from firsttouch.pipeline import Analysis
from firsttouch.server import problems, schemas, writing
from firsttouch.server.desk import Cage
from firsttouch.server.service import Service
from firsttouch.settings import Settings, load

log = logging.getLogger(__name__)

MAX_BODY_BYTES = 64 * 1024
MAX_PICTURES_BYTES = 8 * 1024 * 1024
BODY_SECONDS = 10.0
"""A body that drips longer than this is given up: it would hold a connection for nothing."""

GONE = 499
"""Nobody reads it: the caller has gone. The number is the one that proxies write into their logs."""

BodyModel = TypeVar("BodyModel", bound=BaseModel)
NDJSON = "application/x-ndjson"


def create_app(settings: Settings | None = None, *, engine: Cage | None = None) -> FastAPI:
    """The whole service. `settings` None: those of the environment. `engine`: for tests.

    Raises SettingsError when requests are to be verified and our own hotkey is not known.
    """
    settings = settings or load()
    logs.set_up(settings.log_level)
    service = Service.of(settings, engine)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await service.start()
        try:
            yield
        finally:
            await service.stop()

    app = FastAPI(
        title="firsttouch",
        version=__version__,
        summary="Who is where on the pitch, in every frame of a remote clip, before it could have been downloaded",
        lifespan=lifespan,
    )
    app.state.service = service
    _add_challenges(app, service)
    _add_analysis(app, service)
    _add_subnet(app, service)
    _add_operations(app, service)
    problems.install(app, service.retry_after_seconds, service.metrics.refused)
    app.add_middleware(Arrival, service=service)
    return app


class Arrival:
    """Stamps each request with the moment it came, and counts it when its last byte is sent."""

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app, self._metrics = app, service.metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        arrived = scope["firsttouch.arrived"] = Stopwatch()
        status = 0

        async def counting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            elif message["type"] == "http.response.body":
                self._metrics.answer_bytes.inc(len(message.get("body", b"")))
            await send(message)

        try:
            await self._app(scope, receive, counting)
        finally:
            path = getattr(scope.get("route"), "path", "other")
            self._metrics.requests.labels(path, status).inc()
            self._metrics.request_seconds.labels(path).observe(arrived.elapsed)


def _add_challenges(app: FastAPI, service: Service) -> None:
    @app.post(
        "/soccer/challenge",
        tags=["challenge"],
        responses=schemas.responses(ok=schemas.answer_content(schemas.ChallengeAnswer)),
        openapi_extra=schemas.json_body(schemas.Challenge),
    )
    async def soccer_challenge(request: Request) -> Response:
        """Boxes, identities and 32 pitch key points for every frame of a clip. Signed as PROTOCOL says."""
        challenge = await _admitted(request, service, schemas.Challenge)
        logs.challenge.set(challenge.challenge_id)
        log.info("Challenge received: %s", challenge.challenge_id, extra={"video_url": challenge.video_url[:300]})
        arrived = _arrived(request)
        job = service.job(arrived, challenge.video_url, challenge_id=challenge.challenge_id)
        analysis = await _answer(request, service, job)
        return await _written(
            lambda compress: service.challenges.write(analysis, challenge.challenge_id, arrived, compress),
            request,
            service,
            job,
        )

    @app.get("/availability", tags=["challenge"], response_model=schemas.Availability)
    async def availability() -> dict[str, bool]:
        """Whether a challenge that comes now would be begun at once."""
        return {"available": service.available}


def _add_analysis(app: FastAPI, service: Service) -> None:
    @app.post(
        "/v1/analyze",
        tags=["analysis"],
        responses=schemas.responses(
            ok=schemas.answer_content(
                schemas.AnalysisAnswer,
                **{NDJSON: "a start line, a line for each frame as it is known, a summary line"},
            )
        ),
        openapi_extra=schemas.json_body(schemas.AnalyzeRequest),
    )
    async def analyze(request: Request) -> Response:
        """The full answer as one object, or with `Accept: application/x-ndjson` line by line as it is made."""
        wish = await _admitted(request, service, schemas.AnalyzeRequest)
        arrived = _arrived(request)
        streams = NDJSON in request.headers.get("accept", "")
        job = service.job(arrived, wish.url, seconds=wish.deadline_seconds, every_frame=wish.every_frame)
        if streams:
            return await _stream(request, service, job)
        analysis = await _answer(request, service, job)
        return await _written(_in_thread(lambda: writing.whole(analysis)), request, service, job)


def _add_subnet(app: FastAPI, service: Service) -> None:
    @app.post(
        "/predict",
        tags=["subnet"],
        responses=schemas.responses(ok=schemas.answer_content(schemas.PredictAnswer)),
        openapi_extra=schemas.json_body(schemas.PredictRequest),
    )
    async def predict(request: Request) -> Response:
        """The public track's shape: boxes and key points for a clip's URL, or for some pictures."""
        wish = await _admitted(request, service, schemas.PredictRequest, MAX_PICTURES_BYTES)
        count = wish.meta.get("n_keypoints", 32)
        if not isinstance(count, int) or not 0 <= count <= 200:
            raise RequestMalformed("meta.n_keypoints must be a number from 0 to 200")
        if (wish.url is None) == (wish.frames is None):
            raise RequestMalformed("give either url or frames", hint='send {"url": ...} or {"frames": [...]}')
        try:
            job = service.job(_arrived(request), wish.url or "pictures", pictures=await _pictures(wish, service))
            analysis = await _answer(request, service, job)
        except FirsttouchError as error:
            service.metrics.refused(error)
            return Response(writing.prediction_failed(error), media_type="application/json")
        return await _written(_in_thread(lambda: writing.prediction(analysis, count)), request, service, job)

    @app.post(
        "/challenge",
        tags=["subnet"],
        responses=schemas.responses(501),
        openapi_extra=schemas.json_body(schemas.ActionChallenge),
    )
    async def action_challenge(request: Request) -> Response:
        """The private track's shape. There is no action model yet, and the answer says so."""
        challenge = await _admitted(request, service, schemas.ActionChallenge)
        error = NoActionModel("there is no model for actions in this service")
        service.metrics.refused(error)
        body = writing.no_actions(error, challenge.challenge_id, _arrived(request).elapsed)
        return Response(body, error.http_status, media_type=problems.MEDIA_TYPE)


def _add_operations(app: FastAPI, service: Service) -> None:
    @app.get("/healthz", tags=["operations"], response_model=schemas.Health)
    async def healthz() -> dict[str, str]:
        """The process lives and its event loop turns."""
        return {"status": "ok"}

    @app.get(
        "/readyz",
        tags=["operations"],
        response_model=schemas.Health,
        responses={503: schemas.responses()[503]},
    )
    async def readyz() -> Any:
        """A warm engine is there."""
        if service.engine.ready and not service.draining:
            return {"status": "ready"}
        detail = service.engine.problem or ("draining" if service.draining else "the engine is warming up")
        body = {"type": "about:blank", "title": "NotReady", "status": 503, "detail": detail}
        return Response(dumps(body), 503, {"Retry-After": "5"}, problems.MEDIA_TYPE)

    @app.get(
        "/metrics",
        tags=["operations"],
        response_class=Response,
        responses={200: {"content": {"text/plain": {"schema": {"type": "string"}}}, "description": "Prometheus text"}},
    )
    async def metrics() -> Response:
        """Counts since the start, for Prometheus."""
        text = await asyncio.to_thread(service.metrics.text)
        return Response(text, headers={"content-type": CONTENT_TYPE_LATEST})


async def _admitted(
    request: Request, service: Service, model: type[BodyModel], max_bytes: int = MAX_BODY_BYTES
) -> BodyModel:
    """The body of a request whose caller may ask. Raises RequestTooLarge, RequestUnauthorized, RequestMalformed..."""
    body = await _read_body(request, max_bytes)
    service.gate.check(request.headers, body)
    try:
        return model.model_validate_json(body)
    except ValidationError as exc:
        first = exc.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "body"
        raise RequestMalformed(f"{where}: {first['msg']}", hint=_hint_for(model)) from exc


def _hint_for(model: type[BaseModel]) -> str:
    example = model.model_config.get("json_schema_extra")
    shown = example["examples"] if isinstance(example, dict) else [{}]
    return f"send for example {dumps(shown[0]).decode()}" if isinstance(shown, list) else ""


async def _read_body(request: Request, max_bytes: int) -> bytes:
    """The bytes as they arrived, no more of them than allowed, and not for ever."""
    declared = request.headers.get("content-length", "0")
    if declared.isdecimal() and int(declared) > max_bytes:
        raise RequestTooLarge(f"a body of {declared} bytes is more than {max_bytes}")
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.stream():
                body += chunk
                if len(body) > max_bytes:
                    raise RequestTooLarge(f"the body is more than {max_bytes} bytes")
    except TimeoutError as exc:
        raise RequestMalformed(f"the body did not arrive in {BODY_SECONDS:g} s") from exc
    return bytes(body)


async def _answer(request: Request, service: Service, job: Job) -> Analysis:
    """The final answer of the desk. A caller that goes away ends its wait, and the work when nobody else waits."""
    if not job.pictures:
        service.policy.judge_form(job.url)
    gone = asyncio.create_task(_until_gone(request))
    work = asyncio.create_task(_final(service, job))
    try:
        await asyncio.wait({gone, work}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise _Gone
        return work.result()
    finally:
        for task in (gone, work):
            task.cancel()
        await asyncio.gather(gone, work, return_exceptions=True)


class _Gone(FirsttouchError):
    """The caller has gone; nobody will read what is answered."""

    http_status = GONE

    def __init__(self) -> None:
        super().__init__("the caller has gone", hint="")


async def _until_gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _final(service: Service, job: Job) -> Analysis:
    latest: Analysis | None = None
    async with aclosing(service.desk.answers(_key(job), job)) as answers:
        async for analysis in answers:
            latest = analysis
    if latest is None:
        raise DeadlineExceeded("nothing could be answered before the deadline")
    return latest


def _key(job: Job) -> tuple[object, ...]:
    """Requests with the same key share one computation. Pictures are never shared.

    Nor are different budgets: who waits two seconds must not wait for another's twenty, nor the other way round.
    """
    return (id(job),) if job.pictures else (job.url, job.every_frame, job.budget_seconds)


Write = Callable[[bool], Awaitable[bytes]]
"""Writes an answer, compressed or not."""


def _in_thread(write: Callable[[], bytes]) -> Write:
    return lambda compress: asyncio.to_thread(lambda: writing.packed(write(), compress))


async def _written(write: Write, request: Request, service: Service, job: Job) -> Response:
    """The written answer, compressed when the caller accepts that."""
    compress = writing.accepts_gzip(request.headers.get("accept-encoding", ""))
    body = await write(compress)
    service.wrote(job)
    headers = {"Content-Encoding": "gzip", "Vary": "Accept-Encoding"} if compress else {"Vary": "Accept-Encoding"}
    log.info("answered", extra={"seconds": round(_arrived(request).elapsed, 4), "bytes": len(body)})
    return Response(body, headers=headers, media_type="application/json")


async def _stream(request: Request, service: Service, job: Job) -> Response:
    """Lines as they are known. What goes wrong before the first is an ordinary problem; after it, the last line."""
    service.policy.judge_form(job.url)
    compress = writing.accepts_gzip(request.headers.get("accept-encoding", ""))
    lines = writing.Lines(job.url, early=service.settings.early_flush_first_frame, compress=compress)

    async def body() -> AsyncGenerator[bytes]:
        yield lines.start()
        try:
            async with aclosing(service.desk.answers(_key(job), job)) as answers:
                latest: Analysis | None = None
                async for analysis in answers:
                    latest = analysis
                    if part := await asyncio.to_thread(lines.partial, analysis):
                        yield part
            if latest is None:
                raise DeadlineExceeded("nothing could be answered before the deadline")
            yield await asyncio.to_thread(lines.end, latest)
        except FirsttouchError as error:
            service.metrics.refused(error)
            yield lines.failed(error)

    headers = {"Vary": "Accept, Accept-Encoding", "X-Accel-Buffering": "no"}
    if compress:
        headers["Content-Encoding"] = "gzip"
    return StreamingResponse(body(), headers=headers, media_type=NDJSON)


async def _pictures(wish: schemas.PredictRequest, service: Service) -> tuple[tuple[int, str | None, bytes], ...]:
    """The pictures of a request, decoded from base64 in a thread; URLs are judged here and fetched in the cage."""
    for frame in wish.frames or []:
        if (frame.url is None) == (frame.data is None):
            raise RequestMalformed(f"frame {frame.frame_id}: give either url or data")
        if frame.url is not None:
            service.policy.judge_form(frame.url)

    def decode() -> tuple[tuple[int, str | None, bytes], ...]:
        try:
            return tuple(
                (frame.frame_id, frame.url, base64.b64decode(frame.data or "", validate=True))
                for frame in wish.frames or []
            )
        except (binascii.Error, ValueError) as exc:
            raise RequestMalformed(f"data is not base64: {exc}") from exc

    return await asyncio.to_thread(decode)


def _arrived(request: Request) -> Stopwatch:
    arrived = request.scope["firsttouch.arrived"]
    assert isinstance(arrived, Stopwatch)
    return arrived

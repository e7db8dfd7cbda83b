"""Errors as `application/problem+json` (RFC 9457): the error tree's names, messages and hints."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from firsttouch.errors import Busy, EngineFailed, FirsttouchError, RequestMalformed

log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"

SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string", "examples": ["urn:firsttouch:error:NotAVideo"]},
        "title": {"type": "string", "examples": ["NotAVideo"]},
        "status": {"type": "integer", "examples": [422]},
        "detail": {
            "type": "string",
            "examples": ["the bytes are an HTML page: https://example.org/clip.mp4"],
        },
        "hint": {"type": "string", "examples": ["check the file with ffprobe"]},
    },
}


def body(error: FirsttouchError) -> dict[str, Any]:
    return {
        "type": f"urn:firsttouch:error:{error.name}",
        "title": error.name,
        "status": error.http_status,
        "detail": str(error),
        "hint": error.hint,
    }


def response(error: FirsttouchError, retry_after_seconds: float) -> Response:
    """503 (and 429) say when to come again, in whole seconds, at least one."""
    headers = {}
    if isinstance(error, Busy):
        headers["Retry-After"] = str(max(1, math.ceil(retry_after_seconds)))
    return Response(orjson.dumps(body(error)), error.http_status, headers, MEDIA_TYPE)


def install(app: FastAPI, retry_after: Callable[[], float], refused: Callable[[FirsttouchError], None]) -> None:
    """One handler for each kind of error. `refused` is told of every error that is answered."""

    async def ours(request: Request, error: Exception) -> Response:
        assert isinstance(error, FirsttouchError)
        refused(error)
        log.info("refused: %s", error, extra={"error": error.name, "status": error.http_status})
        return response(error, retry_after())

    async def invalid(request: Request, error: Exception) -> Response:
        return await ours(request, RequestMalformed(str(error)[:300]))

    async def http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        problem = {
            "type": "about:blank",
            "title": HTTPStatus(error.status_code).phrase,
            "status": error.status_code,
            "detail": str(error.detail),
        }
        return Response(orjson.dumps(problem), error.status_code, dict(error.headers or {}), MEDIA_TYPE)

    async def unknown(request: Request, error: Exception) -> Response:
        log.error("a request failed", exc_info=error)
        return await ours(request, EngineFailed("the service failed on this request", hint="look at its log"))

    app.add_exception_handler(FirsttouchError, ours)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, http)
    app.add_exception_handler(Exception, unknown)

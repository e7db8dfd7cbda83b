"""The bodies of the wire, for reading requests and for the OpenAPI document."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from firsttouch.server import problems

EXAMPLE_URL = "https://cdn.example.org/clip.mp4"
MAX_ID = 200
MAX_URL = 4096
MAX_PICTURES = 64


class Body(BaseModel):
    """A request body: unknown members are ignored, as callers add them."""

    # pydantic would keep up to 16,384 strings of earlier requests: memory that looks like a leak, for no gain here.
    model_config = ConfigDict(extra="ignore", strict=True, cache_strings="none")


class Challenge(Body):
    """`POST /soccer/challenge`."""

    model_config = ConfigDict(
        extra="ignore",
        json_schema_extra={
            "examples": [
                {
                    "challenge_id": "1834",
                    "type": "gsr",
                    "video_url": EXAMPLE_URL,
                    "created_at": "2026-11-23T12:00:00Z",
                }
            ]
        },
    )
    challenge_id: str = Field(max_length=MAX_ID)
    type: Literal["gsr"] = "gsr"
    video_url: str = Field(min_length=1, max_length=MAX_URL)
    created_at: str = Field(default="", max_length=64, description="ISO 8601")


class ChallengeObject(BaseModel):
    id: int
    bbox: list[float] = Field(min_length=4, max_length=4, description="x1, y1, x2, y2 in source pixels")
    class_id: Literal[0, 1, 2, 3] = Field(description="0 ball, 1 goalkeeper, 2 player, 3 referee")


class ChallengeFrame(BaseModel):
    frame_number: int
    keypoints: list[list[float]] = Field(min_length=32, max_length=32)
    objects: list[ChallengeObject]


class ChallengeAnswer(BaseModel):
    challenge_id: str
    frames: list[ChallengeFrame]
    processing_time: float


class AnalyzeRequest(Body):
    """`POST /v1/analyze`."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"url": EXAMPLE_URL, "deadline_seconds": 2.0}]}
    )
    url: str = Field(min_length=1, max_length=MAX_URL)
    deadline_seconds: float | None = Field(
        default=None,
        ge=0.05,
        le=230,
        description="from the arrival of the request; the service's own when left out",
    )
    every_frame: bool = Field(default=False, description="look at every frame and carry nothing")


class SeenObject(BaseModel):
    id: int
    class_id: Literal[0, 1, 2, 3]
    confidence: float
    xyxy: list[float] = Field(min_length=4, max_length=4)


class SeenFrame(BaseModel):
    frame_number: int
    pts_seconds: float
    how: Literal["detected", "carried"]
    objects: list[SeenObject]
    keypoints: list[list[float]] = Field(min_length=32, max_length=32)


class AnalysisSource(BaseModel):
    url: str
    size_bytes: int | None
    width: int
    height: int
    frame_count: int
    frames_per_second: float
    duration_seconds: float


class AnalysisAnswer(BaseModel):
    schema_: Literal["firsttouch/1"] = Field(alias="schema")
    source: AnalysisSource
    stopped_by: Literal["end", "deadline"]
    stage_seconds: dict[str, float]
    frames: list[SeenFrame]


class PredictFrame(Body):
    frame_id: int = Field(ge=0, le=2_000_000_000)
    url: str | None = Field(default=None, max_length=MAX_URL)
    data: str | None = Field(default=None, description="base64 of a JPEG or PNG")


class PredictRequest(Body):
    """`POST /predict`: a clip's URL, or some pictures."""

    model_config = ConfigDict(extra="ignore", json_schema_extra={"examples": [{"url": EXAMPLE_URL, "meta": {}}]})
    url: str | None = Field(default=None, max_length=MAX_URL)
    frames: list[PredictFrame] | None = Field(default=None, max_length=MAX_PICTURES)
    meta: dict[str, Any] = Field(default_factory=dict)


class PredictBox(BaseModel):
    x1: int
    y1: int
    x2: int
    y2: int
    cls_id: int
    conf: float


class PredictedFrame(BaseModel):
    frame_id: int
    boxes: list[PredictBox]
    polygons: list[Any]
    keypoints: list[list[int]]


class Predictions(BaseModel):
    frames: list[PredictedFrame]


class PredictAnswer(BaseModel):
    success: bool
    predictions: Predictions | None
    error: str | None


class ActionChallenge(Body):
    """`POST /challenge` of the private track."""

    model_config = ConfigDict(
        extra="ignore", json_schema_extra={"examples": [{"challenge_id": "77", "video_url": EXAMPLE_URL}]}
    )
    challenge_id: str = Field(max_length=MAX_ID)
    video_url: str = Field(min_length=1, max_length=MAX_URL)


class Availability(BaseModel):
    available: bool


class Health(BaseModel):
    status: str


_REASONS = {
    401: "who asks is not known: headers, nonce or signature",
    403: "who asks may not, or the URL may not be fetched",
    404: "the origin has no such clip",
    413: "the request or the clip is too large",
    422: "the request is malformed, or the URL is no clip we can read",
    500: "the service or its engine failed",
    502: "the origin could not be read",
    503: "no engine can meet the deadline; see Retry-After",
    504: "the deadline came before anything could be answered",
}


def responses(*more: int, ok: dict[str, Any] | None = None) -> dict[int | str, dict[str, Any]]:
    """The answers of an endpoint for OpenAPI: its own, and the errors it may answer with."""
    reasons = _REASONS | dict.fromkeys(more, "not supported yet")
    content = {problems.MEDIA_TYPE: {"schema": problems.SCHEMA}}
    answers: dict[int | str, dict[str, Any]] = {
        status: {"description": reason, "content": content} for status, reason in reasons.items()
    }
    if ok is not None:
        answers[200] = ok
    return answers


def json_body(model: type[BaseModel]) -> dict[str, Any]:
    """The request body for OpenAPI; the endpoint reads the raw bytes itself, since they are what is signed."""
    schema = inlined(model)
    return {"requestBody": {"required": True, "content": {"application/json": {"schema": schema}}}}


def answer_content(model: type[BaseModel], **other: str) -> dict[str, Any]:
    """The 200 answer for OpenAPI, with its schema inline; `other`: description by further media type."""
    content: dict[str, Any] = {"application/json": {"schema": inlined(model)}}
    content |= {kind: {"schema": {"type": "string", "description": text}} for kind, text in other.items()}
    return {"description": (model.__doc__ or model.__name__).strip(), "content": content}


def inlined(model: type[BaseModel]) -> dict[str, Any]:
    """The schema of a model without references."""
    schema = model.model_json_schema(by_alias=True)
    definitions = schema.pop("$defs", {})

    def resolve(node: Any) -> Any:
        if isinstance(node, dict):
            if "$ref" in node:
                return resolve(definitions[node["$ref"].rsplit("/", 1)[-1]])
            return {key: resolve(value) for key, value in node.items()}
        return [resolve(item) for item in node] if isinstance(node, list) else node

    resolved: dict[str, Any] = resolve(schema)
    return resolved

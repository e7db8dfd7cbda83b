"""Every exception of the package, one tree, each with the HTTP status it suggests and a hint.

FirsttouchError                    500
├── SourceError                    502  the bytes could not be had
│   ├── SourceNotFound             404  no such file, 404 or 410 from the origin
│   ├── SourceRefused              502  connection refused, host unknown, 401, 403, 5xx
│   ├── SourceTimeout              504  the origin stalled
│   ├── RangeNotSupported          502  the origin ignored Range, or lied about what it sent
│   ├── SourceChanged              502  the file changed between two ranges
│   ├── SourceCutOff               502  fewer bytes than promised
│   ├── SourceTooLarge             413  larger than we are willing to read
│   ├── UnsupportedScheme          422  neither http(s) nor a file
│   └── AddressRefused             403  the net policy does not allow this address
├── MediaError                     422  the bytes are not a video we can answer
│   ├── NotAVideo                  422  empty, HTML, a picture, audio only
│   ├── IndexNotFound              422  no sample index in the ranges at hand
│   ├── IndexInvalid               422  an index that points outside the file or is absurdly large
│   └── DecodeFailed               422  the decoder made no frame of it
├── ModelError                     500
│   ├── ModelNotFound              500  no such ONNX file
│   ├── ModelMismatch              500  outputs or classes we cannot read
│   ├── RuntimeUnavailable         500  the runtime or device asked for does not work here
│   └── NoActionModel              501  the private track asks for actions, and there is no model for them yet
├── SettingsError                  500  a setting has a value that is not allowed
├── DeadlineExceeded               504  the deadline came before anything could be answered
├── EngineFailed                   500  the engine child died or was killed
└── RequestRefused                 403  who asked may not
    ├── RequestUnauthorized        401  headers, nonce or signature are wrong
    ├── RequestMalformed           422  the body is not a challenge
    ├── RequestTooLarge            413
    └── Busy                       503  no engine can meet the deadline
"""

from __future__ import annotations

from typing import ClassVar


class FirsttouchError(Exception):
    """What happened, to what; `hint` says what to try; `http_status` is what a server would answer."""

    http_status: ClassVar[int] = 500
    default_hint: ClassVar[str] = "run again with --help, or look at the log above"

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint if hint is not None else self.default_hint

    @property
    def name(self) -> str:
        """The class name, which is also the `type` of a problem+json answer."""
        return type(self).__name__


class SourceError(FirsttouchError):
    http_status = 502
    default_hint = "check that the origin is up: firsttouch doctor SOURCE"


class SourceNotFound(SourceError):
    http_status = 404
    default_hint = "check the spelling of the URL or path"


class SourceRefused(SourceError):
    default_hint = "open the URL in a browser: the origin may want credentials or be down"


class SourceTimeout(SourceError):
    http_status = 504
    default_hint = "the origin is slow or stalled: try again, or give a longer --deadline"


class RangeNotSupported(SourceError):
    default_hint = "pass --fetch stream to read it from the start"


class SourceChanged(SourceError):
    default_hint = "the file was replaced while it was read: run again"


class SourceCutOff(SourceError):
    default_hint = "the origin closed the connection early: run again"


class SourceTooLarge(SourceError):
    http_status = 413
    default_hint = "cut the clip, or raise MAX_CLIP_MB"


class UnsupportedScheme(SourceError):
    http_status = 422
    default_hint = "give an http:// or https:// URL, or a path"


class AddressRefused(SourceError):
    http_status = 403
    default_hint = "set ALLOW_PRIVATE_ORIGINS=1 for tests and closed networks"


class MediaError(FirsttouchError):
    http_status = 422
    default_hint = "check the file with ffprobe: it must be a video, best an H.264 MP4"


class NotAVideo(MediaError):
    pass


class IndexNotFound(MediaError):
    default_hint = "pass --fetch stream to read it from the start"


class IndexInvalid(MediaError):
    default_hint = "the file's index is damaged: remux it with ffmpeg -i IN -c copy OUT.mp4"


class DecodeFailed(MediaError):
    pass


class ModelError(FirsttouchError):
    default_hint = "firsttouch models lists what can be loaded"


class ModelNotFound(ModelError):
    pass


class ModelMismatch(ModelError):
    pass


class RuntimeUnavailable(ModelError):
    default_hint = "firsttouch doctor says which runtimes and devices work here"


class NoActionModel(ModelError):
    http_status = 501
    default_hint = "ask POST /soccer/challenge for boxes, identities and key points"


class SettingsError(FirsttouchError):
    default_hint = "firsttouch config prints every setting with what is allowed"


class DeadlineExceeded(FirsttouchError):
    http_status = 504
    default_hint = "give a longer --deadline"


class EngineFailed(FirsttouchError):
    default_hint = "a new engine is being started: try again"


class RequestRefused(FirsttouchError):
    http_status = 403
    default_hint = "the caller must be a registered validator with enough stake"


class RequestUnauthorized(RequestRefused):
    http_status = 401
    default_hint = "sign the raw body as PROTOCOL says: firsttouch sign makes an example"


class RequestMalformed(RequestRefused):
    http_status = 422
    default_hint = 'send {"challenge_id": ..., "type": "gsr", "video_url": ..., "created_at": ...}'


class RequestTooLarge(RequestRefused):
    http_status = 413
    default_hint = "a challenge is a few hundred bytes"


class Busy(RequestRefused):
    http_status = 503
    default_hint = "try again after Retry-After seconds"

"""What an HTTP answer means, as plain functions: status, Content-Range, validators, redirects (RFC 9110)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from urllib.parse import urljoin, urlsplit, urlunsplit

from firsttouch.errors import (
    RangeNotSupported,
    SourceChanged,
    SourceError,
    SourceNotFound,
    SourceRefused,
    SourceTooLarge,
    UnsupportedScheme,
)
from firsttouch.ranges import ByteRange

REDIRECTS = frozenset({301, 302, 303, 307, 308})
WORTH_ANOTHER_TRY = frozenset({408, 425, 429, 500, 502, 503, 504})

_CONTENT_RANGE = re.compile(r"bytes +(?:(\d{1,18})-(\d{1,18})|\*)/(?:(\d{1,18})|\*)", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Reply:
    """Status line and headers of one answer; names in lower case, the last of a repeated name kept."""

    url: str
    status: int
    headers: Mapping[str, str]

    @property
    def encoding(self) -> str:
        """The Content-Encoding, "" for bytes as they are."""
        name = self.headers.get("content-encoding", "").strip().lower()
        return "" if name == "identity" else name

    @property
    def length(self) -> int | None:
        """The Content-Length, where the answer has a sound one."""
        digits = self.headers.get("content-length", "")
        return int(digits) if digits.isascii() and digits.isdigit() and len(digits) <= 18 else None


@dataclass(frozen=True, slots=True)
class ContentRange:
    """`bytes start-stop/total` with a half-open range; None where the header has a star."""

    part: ByteRange | None
    total: int | None


@dataclass(frozen=True, slots=True)
class Identity:
    """What must stay the same while a file is read."""

    size: int | None
    etag: str | None
    last_modified: str | None
    if_range: str | None
    """What to send as If-Range: a strong ETag or a strong date, else nothing (RFC 9110, 13.1.5)."""


def parse_content_range(text: str | None) -> ContentRange | None:
    """The Content-Range header, None when there is none that makes sense."""
    found = _CONTENT_RANGE.fullmatch(text.strip()) if text else None
    if found is None:
        return None
    first, last, whole = (int(digits) if digits else None for digits in found.groups())
    if first is None or last is None:
        return ContentRange(None, whole)
    if last < first or (whole is not None and last >= whole):
        return None
    return ContentRange(ByteRange(first, last + 1), whole)


def identity_of(reply: Reply, size: int | None) -> Identity:
    """The validators of an answer."""
    etag = reply.headers.get("etag")
    modified = reply.headers.get("last-modified")
    strong = etag is not None and not etag.startswith("W/")
    if_range = etag if strong else (modified if etag is None and _strong_date(reply) else None)
    return Identity(size, etag, modified, if_range)


def _strong_date(reply: Reply) -> bool:
    """A Last-Modified at least a minute before Date cannot hide a second change (RFC 9110, 8.8.2.2)."""
    try:
        modified = parsedate_to_datetime(reply.headers["last-modified"])
        return (parsedate_to_datetime(reply.headers["date"]) - modified).total_seconds() >= 60
    except (KeyError, ValueError, TypeError):
        return False


def check_same(known: Identity, now: Identity, shown: str) -> None:
    """Raise SourceChanged when two answers cannot be parts of one file."""
    for what, before, after in (
        ("size", known.size, now.size),
        ("ETag", _opaque(known.etag), _opaque(now.etag)),
        ("Last-Modified", known.last_modified, now.last_modified),
    ):
        if before is not None and after is not None and before != after:
            raise SourceChanged(f"{what} went from {before} to {after} while it was read: {shown}")


def _opaque(etag: str | None) -> str | None:
    """Weak comparison: proxies that compress or log add the W/ (RFC 9110, 8.8.3.2)."""
    return etag.removeprefix("W/") if etag is not None else None


def judge_partial(reply: Reply, asked: ByteRange, shown: str) -> ContentRange:
    """The part and total of a 206, when it begins where `asked` does and its length adds up.

    A server may send less than was asked (the rest is asked for again), never more, nor from elsewhere.
    Raises RangeNotSupported.
    """
    sent = parse_content_range(reply.headers.get("content-range"))
    if sent is None or sent.part is None:
        header = reply.headers.get("content-range", reply.headers.get("content-type", "nothing"))
        raise RangeNotSupported(f"a 206 answer without a usable Content-Range ({header}): {shown}")
    if sent.part.start != asked.start or sent.part.stop > asked.stop:
        got = reply.headers["content-range"]
        raise RangeNotSupported(f"asked for {asked.http}, the server sent {got}: {shown}")
    if reply.length is not None and reply.length != len(sent.part):
        raise RangeNotSupported(f"Content-Length {reply.length} for {len(sent.part)} bytes of range: {shown}")
    return sent


def error_for_status(reply: Reply, shown: str) -> SourceError:
    """The typed error of a status that brings no bytes."""
    status = reply.status
    if status in (404, 410):
        return SourceNotFound(f"the origin answered {status}: {shown}")
    if status == 416:
        return RangeNotSupported(f"the origin answered 416 to a range inside the file: {shown}")
    if status == 413:
        return SourceTooLarge(f"the origin answered 413: {shown}")
    return SourceRefused(f"the origin answered {status}: {shown}")


def retry_after_seconds(reply: Reply) -> float | None:
    """Retry-After in seconds; its date form is left alone, back-off serves as well."""
    digits = reply.headers.get("retry-after", "").strip()
    return float(digits) if digits.isascii() and digits.isdigit() and len(digits) < 6 else None


def redirect_target(reply: Reply, shown: str) -> str:
    """Where a redirect leads, absolute. Raises SourceRefused or UnsupportedScheme."""
    location = reply.headers.get("location")
    if not location:
        raise SourceRefused(f"a {reply.status} answer without a Location: {shown}")
    target = urljoin(reply.url, location)
    if urlsplit(target).scheme not in ("http", "https"):
        raise UnsupportedScheme(f"redirected to {target!r}: {shown}")
    return urlunsplit(urlsplit(target)._replace(fragment=""))


def check_url(url: str) -> None:
    """Raise SourceRefused for what is no http(s) URL at all; whether it may be fetched is the policy's business."""
    try:
        parts = urlsplit(url)
        sound = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        sound = False
    if not sound:
        raise SourceRefused("not a URL with a host and a sound port", hint="check the spelling of the URL")


def fit_to_show(url: str) -> str:
    """The URL without user, password and query: the query of a signed URL is a secret."""
    parts = urlsplit(url)
    query = "..." if parts.query else ""
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, query, ""))

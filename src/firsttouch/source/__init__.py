"""Bytes of a URL, a file or memory, by range, streamed into a SparseBytes.

`base`: the contract. `replies`: what HTTP answers mean. `schedule`: what to ask next. `arrivals`: how fast
bytes come. `connections`: libcurl. `remote`: a URL. `local`: a file, or memory.
"""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote, urlsplit

from firsttouch.errors import SourceNotFound, UnsupportedScheme
from firsttouch.netpolicy import Policy
from firsttouch.source.base import DEFAULT_MAX_BYTES, Facts, Source
from firsttouch.source.connections import Connections
from firsttouch.source.local import FileSource, MemorySource
from firsttouch.source.remote import HttpSource

__all__ = [
    "DEFAULT_MAX_BYTES",
    "Connections",
    "Facts",
    "FileSource",
    "HttpSource",
    "MemorySource",
    "Source",
    "open_source",
]

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")


def open_source(
    name: str | Path,
    *,
    connections: Connections | None = None,
    policy: Policy | None = None,
    max_bytes: int = DEFAULT_MAX_BYTES,
) -> Source:
    """The source of what a user named: an http(s) URL, a file: URL, or a path. Reads nothing yet.

    Raises UnsupportedScheme for any other scheme, SourceNotFound for an empty name.
    """
    if isinstance(name, Path):
        return FileSource(name, max_bytes=max_bytes)
    if not name.strip():
        raise SourceNotFound("an empty name", hint="give a URL or the path of a video file")
    found = _SCHEME.match(name)
    if found is None:
        return FileSource(name, max_bytes=max_bytes)
    scheme = found[1].lower()
    if scheme in ("http", "https"):
        return HttpSource(name, connections=connections, policy=policy, max_bytes=max_bytes)
    if scheme == "file":
        return FileSource(unquote(urlsplit(name).path), max_bytes=max_bytes)
    raise UnsupportedScheme(f"{scheme}:// is not read: {name}")

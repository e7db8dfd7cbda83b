"""A small HTTP origin for tests, and clips for it: Range on or off, redirects, speed, what was asked."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Literal

import av
import numpy as np
from detect_graphs import native

RangeMode = Literal["honoured", "ignored", "no length"]


@dataclass
class Origin:
    """Serves `files` by path; `sent` counts body bytes, `asked` keeps (path, Range header)."""

    files: dict[str, bytes]
    ranges: RangeMode = "honoured"
    redirects: dict[str, str] = field(default_factory=dict)
    bytes_per_second: float | None = None
    url: str = ""
    sent: int = 0
    connections: int = 0
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    began: threading.Event = field(default_factory=threading.Event)


@contextmanager
def serve(origin: Origin) -> Iterator[Origin]:
    """Run the origin on a free loopback port."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 10

        def setup(self) -> None:
            origin.connections += 1
            super().setup()

        def log_message(self, *_: object) -> None: ...

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            asked = self.headers.get("Range")
            origin.asked.append((self.path, asked))
            origin.began.set()
            if self.path in origin.redirects:
                return self._head(302, {"Location": origin.redirects[self.path], "Content-Length": "0"})
            body = origin.files.get(self.path)
            if body is None:
                return self._head(404, {"Content-Length": "0"})
            part = re.fullmatch(r"bytes=(\d*)-(\d*)", asked or "")
            if part is None or origin.ranges != "honoured":
                length = (
                    {"Content-Length": str(len(body))}
                    if origin.ranges != "no length"
                    else {"Connection": "close"}
                )
                self._head(200, length)
                return self._body(body)
            first, last = part.groups()
            start = int(first) if first else max(0, len(body) - int(last))
            stop = min(len(body), int(last) + 1) if first and last else len(body)
            if start >= len(body):
                return self._head(416, {"Content-Range": f"bytes */{len(body)}", "Content-Length": "0"})
            span = f"bytes {start}-{stop - 1}/{len(body)}"
            self._head(206, {"Content-Range": span, "Content-Length": str(stop - start)})
            self._body(body[start:stop])

        def _head(self, status: int, headers: dict[str, str]) -> None:
            self.send_response(status)
            if origin.ranges == "honoured":
                self.send_header("Accept-Ranges", "bytes")
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()

        def _body(self, body: bytes) -> None:
            if self.command == "HEAD":
                return
            step = 64 * 1024
            try:
                for at in range(0, len(body), step):
                    self.wfile.write(body[at : at + step])
                    origin.sent += len(body[at : at + step])
                    if origin.bytes_per_second:
                        time.sleep(step / origin.bytes_per_second)
            except OSError:
                self.close_connection = True

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            """A caller that goes away in the middle is what some tests are about."""

    server = Server(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    origin.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield origin
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def make_clip(
    path: Path, *, frames: int = 60, gop: int = 12, faststart: bool = True, size: tuple[int, int] = (640, 360)
) -> Path:
    """An H.264 clip of moving noise at 25 frames a second, so that it has some weight; moov first or last."""
    width, height = size
    noise = np.random.default_rng(7).integers(0, 255, (height + frames, width + frames, 3), np.uint8)
    options = {"movflags": "+faststart"} if faststart else {}
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream("libx264", rate=25, options={"preset": "ultrafast", "crf": "30"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.gop_size = gop
        for number in range(frames):
            picture = noise[number : number + height, number : number + width]
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), "rgb24")))
        container.mux(stream.encode(None))
    return path


def toy_model(path: Path) -> Path:
    """A model in our own layout that sees three players, a referee and eight pitch points in every picture."""
    boxes = np.array(
        [[300, 300, 340, 380], [600, 400, 640, 480], [900, 350, 940, 430], [100, 200, 140, 280]], np.float32
    )
    scores = np.array([[0, 0, 0.9, 0], [0, 0, 0.8, 0], [0, 0.1, 0.7, 0], [0, 0, 0, 0.9]], np.float32)
    points = np.zeros((32, 3), np.float32)
    points[:8] = [(150 + 120 * n, 200 + 40 * (n % 3), 0.9) for n in range(8)]
    return native(path, boxes, scores, points)

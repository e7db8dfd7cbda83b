"""The shaped origin is honest: Python's own HTTP client finds what was asked for, at the speed that was asked for."""

from __future__ import annotations

import http.client
import json
import random
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.origin import Fault, Origin

DATA = random.Random(3).randbytes(200_000)
NAME = "clip.mp4"
ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def shared() -> Iterator[Origin]:
    with Origin({NAME: DATA}) as origin:
        yield origin


@pytest.fixture
def origin(shared: Origin) -> Iterator[Origin]:
    shared.fault(NAME, None)
    shared.reset()
    yield shared
    shared.shape(bandwidth=0.0, rtt=0.0, setup=0.0, ranges=True)


def connect(origin: Origin) -> http.client.HTTPConnection:
    return http.client.HTTPConnection("127.0.0.1", origin.port, timeout=20)


def get(
    origin: Origin, wanted: str | None = None, name: str = NAME, **headers: str
) -> tuple[http.client.HTTPResponse, bytes]:
    connection = connect(origin)
    try:
        fields = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request("GET", f"/{name}", headers=fields | ({"Range": wanted} if wanted else {}))
        response = connection.getresponse()
        return response, response.read()
    finally:
        connection.close()


def seconds(work: object) -> float:
    begun = time.monotonic()
    work()  # type: ignore[operator]
    return time.monotonic() - begun


@pytest.mark.parametrize(
    ("wanted", "body", "content_range"),
    [
        ("bytes=0-99", DATA[:100], "bytes 0-99/200000"),
        ("bytes=199990-", DATA[-10:], "bytes 199990-199999/200000"),
        ("bytes=-100", DATA[-100:], "bytes 199900-199999/200000"),
        ("bytes=199000-999999", DATA[199_000:], "bytes 199000-199999/200000"),
    ],
    ids=["start", "to the end", "suffix", "beyond the end"],
)
def test_a_range_is_obeyed(origin: Origin, wanted: str, body: bytes, content_range: str) -> None:
    response, got = get(origin, wanted)
    assert (response.status, response.headers["Content-Range"], got) == (206, content_range, body)


def test_no_range_is_the_whole_file(origin: Origin) -> None:
    response, got = get(origin)
    assert (response.status, got) == (200, DATA)
    assert get(origin, name="nothing")[0].status == 404


def test_ranges_can_be_turned_off(origin: Origin) -> None:
    origin.shape(ranges=False)
    response, got = get(origin, "bytes=0-99")
    assert (response.status, got) == (200, DATA)


def test_a_range_beyond_the_end_is_416(origin: Origin) -> None:
    response, _ = get(origin, "bytes=200000-")
    assert (response.status, response.headers["Content-Range"]) == (416, "bytes */200000")


def test_if_range_is_obeyed(origin: Origin) -> None:
    etag = get(origin, "bytes=0-0")[0].headers["ETag"]
    assert get(origin, "bytes=0-0", If_Range=etag)[0].status == 206
    assert get(origin, "bytes=0-0", If_Range='"other"')[0].status == 200
    origin.fault(NAME, Fault(change=True))
    assert get(origin, "bytes=0-0", If_Range=etag)[0].status == 200


def test_the_bandwidth_is_shared_by_all_connections(origin: Origin) -> None:
    origin.shape(bandwidth=8e6)  # 1 MB/s: 400 kB take 0.4 s

    def both() -> None:
        threads = [threading.Thread(target=get, args=(origin,)) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    assert 0.36 <= seconds(both) < 3.0


def test_each_answer_takes_a_round_trip_and_a_new_connection_its_setup(origin: Origin) -> None:
    origin.shape(rtt=0.1, setup=0.2)
    connection = connect(origin)

    def ask() -> None:
        connection.request("GET", f"/{NAME}", headers={"Range": "bytes=0-0"})
        connection.getresponse().read()

    first, later = seconds(ask), [seconds(ask) for _ in range(4)]
    connection.close()
    assert first >= 0.3
    assert 0.1 <= min(later) < 0.29


def test_everything_is_counted(origin: Origin) -> None:
    connection = connect(origin)
    for wanted in ("bytes=0-99", "bytes=100-299"):
        connection.request("GET", f"/{NAME}", headers={"Range": wanted})
        connection.getresponse().read()
    connection.request("HEAD", f"/{NAME}")
    assert connection.getresponse().headers["Content-Length"] == "200000"
    counts = origin.counts()
    connection.close()
    assert (counts.requests, counts.connections, counts.bytes) == (3, 1, 300)
    assert counts.log[1] == ("GET", f"/{NAME}", "bytes=100-299", 206)


def test_who_hangs_up_frees_the_link(origin: Origin) -> None:
    origin.shape(bandwidth=4e5)  # the whole file would take 4 s
    rude = socket.create_connection(("127.0.0.1", origin.port))
    rude.sendall(f"GET /{NAME} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    rude.recv(100)
    rude.close()
    assert seconds(lambda: get(origin, "bytes=0-9999")) < 3.0
    assert origin.counts().aborted == 1


def test_faults_are_what_they_say(origin: Origin) -> None:
    origin.fault(NAME, Fault(status=503, retry_after=7, times=2, after=1))
    answers = [get(origin, "bytes=0-9")[0] for _ in range(4)]
    assert [answer.status for answer in answers] == [206, 503, 503, 206]
    assert answers[1].headers["Retry-After"] == "7"

    origin.fault(NAME, Fault(range_shift=3, total_lie=5))
    assert get(origin, "bytes=0-9")[0].headers["Content-Range"] == "bytes 3-12/200005"

    origin.fault(NAME, Fault(cut_after=1000))
    with pytest.raises((http.client.IncompleteRead, ConnectionError)):
        get(origin)

    origin.fault(NAME, Fault(no_length=True))
    response, got = get(origin)
    assert (response.headers["Transfer-Encoding"], response.headers["Content-Length"], got) == ("chunked", None, DATA)

    origin.fault(NAME, Fault(drip_bytes_per_second=20_000))
    assert seconds(lambda: get(origin, "bytes=0-3999")) >= 0.19

    origin.fault(NAME, Fault(redirect="/elsewhere"))
    assert get(origin)[0].headers["Location"] == "/elsewhere"


def test_a_stalled_answer_ends_with_its_client(origin: Origin) -> None:
    origin.fault(NAME, Fault(stall_after=10))
    rude = socket.create_connection(("127.0.0.1", origin.port))
    rude.settimeout(0.2)
    rude.sendall(f"GET /{NAME} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    got = b""
    with pytest.raises(TimeoutError):  # noqa: PT012  it may come in any number of parts
        while True:
            got += rude.recv(10_000)
    assert got.partition(b"\r\n\r\n")[2] == DATA[:10]
    rude.close()
    for _ in range(100):
        if origin.counts().open_connections == 0:
            break
        time.sleep(0.02)
    assert origin.counts().open_connections == 0


def test_the_process_ends_with_the_context() -> None:
    with Origin({NAME: DATA}) as origin:
        port = origin.port
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=1)


def test_a_file_that_is_not_there_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), Origin({NAME: tmp_path / "nothing.mp4"}):
        pass


def test_the_command_serves_until_it_is_stopped(tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(DATA)
    command = [sys.executable, "-m", "bench.origin", str(tmp_path / NAME), "--rtt-ms", "1", "--no-range"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = json.loads(process.stdout.readline())["urls"][NAME]
        host = url.removeprefix("http://").partition("/")[0]
        connection = http.client.HTTPConnection(host, timeout=20)
        connection.request("GET", f"/{NAME}", headers={"Range": "bytes=0-9"})
        assert connection.getresponse().read() == DATA
        connection.close()
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0

"""`python -m bench service [load|together|faults|leaks|all]`: the service as its operator runs it, loaded and faulted.

A real `firsttouch serve` (signatures and stakes checked), a local origin with faults, signed callers over loopback that
accept gzip. Every run is bounded in count and in time: when `--seconds` are over, no new request is begun, and the
figures are those of what was asked. Reported: how late answers were after their deadline, which requests were lost,
what the service's processes held before and after, and how much of a core the callers themselves took.

    python -m bench service load --count 1800 --rate 1800 --seconds 3700  # challenges an hour, even pace
    python -m bench service together --count 600                          # sixty callers at once, the same clip
    python -m bench service faults --count 10000 --seconds 3600           # 5 % of them faulty
    python -m bench service leaks --count 10000 --seconds 3600            # as many requests, and as many that leave
    python -m bench service all --count 10000 --seconds 80                # each of them in a minute and a half

`load` and `together` ask for a whole clip under the product's own budget of 2 s. `faults` and `leaks` are about counts:
their healthy callers mostly ask for one second of small pictures, which is answered in a tenth of a second, under a
budget of 0.6 s that bounds what stalls. A twentieth of them asks for the whole clip, so that the deadline binds.
"""

from __future__ import annotations

import argparse
import asyncio
import gzip
import itertools
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bench.match import CACHE, real_clips, the_match
from bench.origin import Fault, Origin
from bench.report import machine, print_report, verdict
from firsttouch.auth import Key
from firsttouch.commands.sign import challenge_body
from firsttouch.metagraph import Metagraph
from train.render import write_clip

LATE_SECONDS = 0.05
FAULTY_SHARE = 0.05
START_SECONDS = 120.0
CALLER_SECONDS = 60.0
SETTLE_SECONDS = 1.0
TOGETHER = 60
"""Up to so many ask for the same clip at the same moment."""

SLOPE_SECONDS = 600.0
"""A shorter run says nothing about megabytes an hour."""

BUDGETS = {"load": 2.0, "together": 2.0, "faults": 0.6, "leaks": 0.6}
"""TIME_BUDGET_S of the service in each run, unless `--budget` says otherwise."""

SHORT_FRAMES, SHORT_SIZE, SHORT_STRIDE = 25, (640, 360), 12
"""The clip of most requests of `faults` and `leaks`, looked at three times: ten thousand must fit into half an hour."""

LONG_SHARE = 0.05
"""So many of the healthy ask for the whole clip there, and are answered at their deadline."""

AVAILABLE_SECONDS = 2.0
"""After a caller has gone, the place it had must be free again by then."""

SAMPLES_OF_A_BOMB = 75_000_000
"""24 bytes for each in FFmpeg's index: 1.8 GB from a file of a few kB."""

LOG_SHOWN = 4000

FAULTS: dict[str, Fault] = {
    "stalled": Fault(stall_after=50_000),
    "dripping": Fault(drip_bytes_per_second=2000),
    "cut": Fault(cut_after=200_000),
    "error": Fault(status=500),
    "changing": Fault(change=True),
}
KINDS = (*FAULTS, "hostile", "html", "bad-signature", "gone")
HEALTHY = ("healthy", "long")


@dataclass(frozen=True, slots=True)
class Reply:
    """One request as its caller saw it; `status` 0: no answer came."""

    kind: str
    status: int
    seconds: float
    frames: int = 0
    error: str = ""
    packed: bytes = b""
    """The answer, until its frames are counted."""


@dataclass(slots=True)
class Held:
    """What the service's processes hold at one moment."""

    descriptors: int
    connections: int
    children: int
    resident_mb: float
    server_mb: float
    files: int


@dataclass(slots=True)
class Running:
    """A running service, and the origin behind it."""

    process: subprocess.Popen[bytes]
    port: int
    origin: Origin
    folder: Path
    miner: str
    caller: Key
    budget: float
    memory: list[tuple[float, float, float]] = field(default_factory=list)
    asked: int = 0

    def held(self) -> Held:
        family = [self.process.pid, *_children(self.process.pid)]
        return Held(
            descriptors=len(_descriptors(self.process.pid)),
            connections=sum(link.startswith("socket:") for pid in family for link in _descriptors(pid)),
            children=len(family) - 1,
            resident_mb=round(sum(map(_resident, family)) / 1e6, 1),
            server_mb=round(_resident(self.process.pid) / 1e6, 1),
            files=sum(1 for path in self.folder.rglob("*") if path.is_file()),
        )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="bench service", description=__doc__.splitlines()[0])
    parser.add_argument("run", nargs="?", default="all", choices=(*RUNS, "all"))
    parser.add_argument("--count", type=int, default=60, help="requests of each run, at most 20000")
    parser.add_argument("--rate", type=float, default=1800.0, help="challenges an hour, for load")
    parser.add_argument("--budget", type=float, default=None, help=f"TIME_BUDGET_S of the service (default: {BUDGETS})")
    parser.add_argument("--seconds", type=float, default=600.0, help="no run begins a request later")
    parser.add_argument("--clip", type=Path, default=None, help="the whole clip (default: a real one, or the match)")
    parser.add_argument("--seed", type=int, default=1)
    wish = parser.parse_args(arguments)
    wish.count = min(wish.count, 20_000)
    clip = wish.clip or next(iter(real_clips()), None) or the_match(50)
    body: dict[str, Any] = {"clip": clip.name, "load_average": os.getloadavg()[0]}
    rows: list[list[object]] = []
    for name in RUNS if wish.run == "all" else (wish.run,):
        budget = wish.budget or BUDGETS[name]
        short, more = (short_clip(), {"FRAME_STRIDE": str(SHORT_STRIDE)}) if name in ("faults", "leaks") else (clip, {})
        with service(short, budget, long=clip, **more) as running:
            body[name] = {"budget_seconds": budget} | asyncio.run(_measured(name, running, wish))
        rows += [[name, figure, value] for figure, value in body[name].items() if not isinstance(value, dict)]
    print_report("service", ("run", "figure", "value"), rows, body)
    return 0


async def _measured(name: str, running: Running, wish: argparse.Namespace) -> dict[str, Any]:
    """Warm up, hold, run, hold again."""
    for _ in range(3):
        await ask(running, "healthy")
    before, begun = await settled(running), time.monotonic()
    watcher, computed = asyncio.create_task(_watch_memory(running)), time.process_time()
    try:
        replies = await RUNS[name](running, wish, begun + wish.seconds)
    finally:
        watcher.cancel()
    took = time.monotonic() - begun
    computed = time.process_time() - computed
    after = await settled(running)
    return _figures(replies, running, took) | {
        "callers_share_of_a_core": round(computed / took, 3),
        "descriptors_before_after": f"{before.descriptors} {after.descriptors}",
        "connections_before_after": f"{before.connections} {after.connections}",
        "children_before_after": f"{before.children} {after.children}",
        "files_before_after": f"{before.files} {after.files}",
        "resident_mb_before_after": f"{before.resident_mb} {after.resident_mb}",
        "server_mb_before_after": f"{before.server_mb} {after.server_mb}",
        "server_mb_an_hour": _slope([(at, server) for at, server, _ in running.memory]),
        "all_mb_an_hour": _slope([(at, resident) for at, _, resident in running.memory]),
    }


async def load(running: Running, wish: argparse.Namespace, until: float) -> list[Reply]:
    """Challenges at an even rate, each for a URL of its own so that none is shared."""
    pause, tasks = 3600.0 / wish.rate, []
    begun = time.monotonic()
    for number in range(wish.count):
        await asyncio.sleep(max(0.0, begun + number * pause - time.monotonic()))
        if time.monotonic() > until:
            break
        tasks.append(asyncio.create_task(ask(running, "healthy", f"?n={number}")))
    return list(await asyncio.gather(*tasks))


async def together(running: Running, wish: argparse.Namespace, until: float) -> list[Reply]:
    """Sixty callers at once for one clip, then sixty for the next."""
    replies: list[Reply] = []
    while len(replies) < wish.count and time.monotonic() < until:
        query = f"?n={len(replies)}"
        asked = await asyncio.gather(*(_ask(running, "healthy", query) for _ in range(TOGETHER)))
        replies += [counted(reply) for reply in asked]  # not before all are there: it would make the last ones late
    return replies


async def faults(running: Running, wish: argparse.Namespace, until: float) -> list[Reply]:
    """One request after another, a twentieth of them faulty in one of the ways."""
    draw = random.Random(wish.seed)
    kinds = itertools.cycle(draw.sample(KINDS, len(KINDS)))
    replies: list[Reply] = []
    while len(replies) < wish.count and time.monotonic() < until:
        kind = next(kinds) if draw.random() < FAULTY_SHARE else _healthy(draw)
        replies.append(await ask(running, kind, f"?n={len(replies)}"))
        if kind == "gone":
            await available(running)
    return replies


async def leaks(running: Running, wish: argparse.Namespace, until: float) -> list[Reply]:
    """In turn a caller that stays and one that goes away at a random moment: `count` of each."""
    draw = random.Random(wish.seed)
    replies: list[Reply] = []
    usual = (await ask(running, "healthy", "?usual")).seconds
    while len(replies) < 2 * wish.count and time.monotonic() < until:
        replies.append(await ask(running, _healthy(draw), f"?n={len(replies)}"))
        replies.append(await ask(running, "gone", f"?n={len(replies)}", draw.uniform(0.0, usual)))
        await available(running)
    return replies


def _healthy(draw: random.Random) -> str:
    return "long" if draw.random() < LONG_SHARE else "healthy"


async def available(running: Running) -> None:
    """Wait until the service says that it would begin a challenge at once, as it must soon after a caller has gone.

    Asking is what a careful caller does; one that comes in the same millisecond may find the place still taken. If it
    is not free in time, the next caller will be lost, and counted.
    """
    with suppress(OSError, EOFError):
        async with asyncio.timeout(AVAILABLE_SECONDS):
            free = False
            while not free:
                _, text = await _request(running.port, "GET /availability", b"", {})
                free = json.loads(text)["available"]


RUNS = {"load": load, "together": together, "faults": faults, "leaks": leaks}


async def ask(running: Running, kind: str, query: str = "", leave_after: float | None = None) -> Reply:
    """One signed challenge over a connection of its own."""
    return await asyncio.to_thread(counted, await _ask(running, kind, query, leave_after))


def counted(reply: Reply) -> Reply:
    """A reply with the number of its frames instead of its answer. Not parsed: that would take ten times as long."""
    if not reply.packed:
        return reply
    return replace(reply, frames=gzip.decompress(reply.packed).count(b'"frame_number"'), packed=b"")


async def _ask(running: Running, kind: str, query: str = "", leave_after: float | None = None) -> Reply:
    name = "long" if kind == "gone" else kind if kind in (*FAULTS, "hostile", "html", "long") else "healthy"
    body = challenge_body(running.origin.url(f"{name}.mp4") + query, f"{kind}{query}")
    headers = running.caller.headers(body, running.miner)
    if kind == "bad-signature":
        headers["signature"] = "0x" + "0" * 128
    if kind == "gone" and leave_after is None:
        leave_after = running.budget / 3
    running.asked += 1
    begun = time.monotonic()
    try:
        async with asyncio.timeout(leave_after if leave_after is not None else CALLER_SECONDS):
            status, text = await _request(running.port, "POST /soccer/challenge", body, headers)
    except TimeoutError:
        return Reply(kind, 0, time.monotonic() - begun, error="left" if leave_after is not None else "no answer")
    except (OSError, EOFError) as exc:
        return Reply(kind, 0, time.monotonic() - begun, error=type(exc).__name__)
    seconds = time.monotonic() - begun
    if status == 200:
        return Reply(kind, status, seconds, packed=text)
    return Reply(kind, status, seconds, error=json.loads(text)["title"])


async def _request(port: int, what: str, body: bytes, headers: dict[str, str]) -> tuple[int, bytes]:
    """`what`: method and path. The status and body of the answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 24)
    try:
        headers = {"host": "localhost", "connection": "close", "accept-encoding": "gzip"} | headers
        headers["content-length"] = str(len(body))
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        writer.write(f"{what} HTTP/1.1\r\n{lines}\r\n".encode() + body)
        await writer.drain()
        top = (await reader.readuntil(b"\r\n\r\n")).decode()
        length = next(
            int(line.split(":")[1]) for line in top.lower().split("\r\n") if line.startswith("content-length")
        )
        return int(top.split()[1]), await reader.readexactly(length)
    finally:
        writer.close()


def _figures(replies: Sequence[Reply], running: Running, seconds: float) -> dict[str, Any]:
    """Healthy requests must be answered with frames; all that are answered must be in time."""
    healthy = [reply for reply in replies if reply.kind in HEALTHY]
    answered = [reply for reply in replies if reply.status]
    late = sorted(max(0.0, reply.seconds - running.budget) for reply in answered) or [0.0]
    share = sum(value <= LATE_SECONDS for value in late) / len(late)
    lost = [reply for reply in healthy if reply.status != 200]
    outcomes = Counter(
        f"{reply.kind}: {reply.status or reply.error} {reply.error if reply.status else ''}".strip()
        for reply in replies
    )
    return {
        "requests": len(replies),
        "seconds": round(seconds, 1),
        "healthy_answered": sum(reply.status == 200 for reply in healthy),
        "healthy_lost": len(lost),
        "took_p50": round(statistics.median([reply.seconds for reply in answered] or [0.0]), 3),
        "late_p99.9": round(late[min(len(late) - 1, int(0.999 * len(late)))], 4),
        "late_max": round(late[-1], 4),
        "in_time": f"{share:.2%} within {LATE_SECONDS * 1000:.0f} ms ({verdict(late[-1], LATE_SECONDS)})",
        "frames_p50": {
            kind: statistics.median([r.frames for r in healthy if (r.kind, r.status) == (kind, 200)] or [0])
            for kind in HEALTHY
        },
        "outcomes": dict(sorted(outcomes.items())),
    }


@contextmanager
def service(clip: Path, budget: float, *, long: Path | None = None, **more: str) -> Iterator[Running]:
    """A service and its origin; both are gone afterwards. `long`: what the faulty and those in no hurry ask for."""
    caller, miner = Key.throw_away(), Key.throw_away().hotkey
    data = (long or clip).read_bytes()
    files: dict[str, str | Path | bytes] = dict.fromkeys(("long.mp4", *(f"{name}.mp4" for name in FAULTS)), data)
    files |= {
        "healthy.mp4": clip.read_bytes(),
        "hostile.mp4": bomb(data),
        "html.mp4": b"<html>" + b"no clip here " * 500,
    }
    names = {f"{name}.mp4": fault for name, fault in FAULTS.items()}
    with (
        tempfile.TemporaryDirectory(prefix="firsttouch-bench-") as text,
        Origin(files, faults=names) as origin,
    ):
        folder = Path(text)
        (folder / "metagraph-finney-44.json").write_bytes(Metagraph({caller.hotkey: 1e6}, time.time()).to_json())
        own = {
            "CACHE_DIR": text,
            "TMPDIR": text,
            "MINER_HOTKEY": miner,
            "REFRESH_NODES": "0",
            "LOAD_OLD_NODES": "1",
            "ALLOW_PRIVATE_ORIGINS": "1",
            "TIME_BUDGET_S": str(budget),
            "WARM_ORIGINS": origin.base,
            "LOG_LEVEL": "warning",
        }
        port = _free_port()
        command = [
            sys.executable,
            "-m",
            "firsttouch.cli",
            "serve",
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
        ]
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(command, env=os.environ | own | more, stderr=log)
        running = Running(process, port, origin, folder, miner, caller, budget)
        try:
            _wait_ready(running)
            yield running
        finally:
            sys.stderr.write((folder / "log").read_text()[-LOG_SHOWN:])
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                raise


def short_clip() -> Path:
    """A second of small pictures, rendered once and kept in the cache folder."""
    path = CACHE / f"short-{SHORT_FRAMES}.mp4"
    if not path.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".part.mp4")
        write_clip(partial, frames=SHORT_FRAMES, size=SHORT_SIZE, gop=SHORT_FRAMES)
        partial.rename(path)
    return path


def bomb(clip: bytes) -> bytes:
    """A few kB that declare 75 million samples of one byte, from the index of a real clip."""
    at = clip.find(b"stsz")
    if at < 0:
        return b"\0" * 5600
    start = clip.rfind(b"moov", 0, at) - 4
    moov = bytearray(clip[start : start + int.from_bytes(clip[start : start + 4], "big")])
    at = moov.find(b"stsz") + 8
    moov[at : at + 8] = (1).to_bytes(4, "big") + SAMPLES_OF_A_BOMB.to_bytes(4, "big")
    return b"\0\0\0\x18ftypisom\0\0\2\0isomavc1" + bytes(moov) + b"\0\0\0\x10mdat" + b"\0" * 8


def _wait_ready(running: Running) -> None:
    until = time.monotonic() + START_SECONDS
    while _ready_engines(running.port) < 2:
        if running.process.poll() is not None or time.monotonic() > until:
            raise RuntimeError("the service did not start:\n" + (running.folder / "log").read_text())
        time.sleep(0.1)


def metric(port: int, name: str) -> float:
    """A gauge of the service, 0 when it does not answer."""
    with suppress(OSError):
        text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5).read().decode()
        return float(text.partition(f"\n{name} ")[2].split()[0])
    return 0.0


def _ready_engines(port: int) -> int:
    return int(metric(port, "firsttouch_engines_idle"))


async def settled(running: Running) -> Held:
    """What is held once both engines are idle again and closed connections are gone: before and after are compared."""
    for _ in range(600):
        if await asyncio.to_thread(_ready_engines, running.port) >= 2:
            await asyncio.sleep(SETTLE_SECONDS)
            return running.held()
        await asyncio.sleep(0.1)
    raise RuntimeError("the service did not settle within a minute")


async def _watch_memory(running: Running) -> None:
    """Every second; and a word about it every minute, as runs may take an hour."""
    begun = told = time.monotonic()
    while True:
        held, now = running.held(), time.monotonic()
        running.memory.append((now - begun, held.server_mb, held.resident_mb))
        if now - told >= 60:
            told = now
            minutes = (now - begun) / 60
            print(f"{minutes:.0f} min: {running.asked} asked, {held.resident_mb:.0f} MB held", file=sys.stderr)
        await asyncio.sleep(1.0)


def _slope(memory: Sequence[tuple[float, float]]) -> float | None:
    """Megabytes an hour of growth, over the second half of the run: the first half fills pools. None: too short."""
    if not memory or memory[-1][0] < SLOPE_SECONDS:
        return None
    half = memory[len(memory) // 2 :]
    return round(statistics.linear_regression([row[0] for row in half], [row[1] for row in half]).slope * 3600, 2)


def _free_port() -> int:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def _children(pid: int) -> list[int]:
    with suppress(OSError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def _descriptors(pid: int) -> list[str]:
    """What each open descriptor of a process leads to."""
    found = []
    with suppress(OSError):
        for name in os.listdir(f"/proc/{pid}/fd"):
            with suppress(OSError):
                found.append(os.readlink(f"/proc/{pid}/fd/{name}"))
    return found


def _resident(pid: int) -> int:
    with suppress(OSError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


if __name__ == "__main__":
    print(machine(), file=sys.stderr)
    sys.exit(main())

"""P1 and P2: the complete answer over a shaped link, and the best answer a tight deadline allows.

P1: 750 frames, 720p, about 14.7 MB, 100 Mbit/s, 30 ms round trip; all frames, F1 against `--every-frame`, peak memory.
P2: 13.2 Mbit/s, 100 ms, 200 ms connection set-up, deadline 2.0 s, beside the guide's mode in the same run.
`--busy`: beside as many programs that never rest as there are cores, so that each thread gets half a core.
Runs are made in a process of their own, warm (model loaded, one answer given before the clock), with cold
connections (a new pool each) and warm ones (one pool).
"""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import orjson

from bench.match import the_match
from bench.origin import Origin
from bench.reference import every_frame, labels_of
from bench.report import print_report, spread, verdict
from firsttouch.labels import Labels
from firsttouch.measure import agreement
from firsttouch.pipeline import Analysis, Options, analyze, detector_for
from firsttouch.plan import Rates
from firsttouch.settings import Settings, load
from firsttouch.source import Connections


@dataclass(frozen=True, slots=True)
class Link:
    """Bits a second, and seconds."""

    bandwidth: float
    rtt: float
    setup: float

    def serve(self, clip: Path) -> Origin:
        return Origin({"clip.mp4": clip}, bandwidth=self.bandwidth, rtt=self.rtt, setup=self.setup)


P1 = Link(bandwidth=100e6, rtt=0.03, setup=0.03)
P2 = Link(bandwidth=13.2e6, rtt=0.1, setup=0.2)
DEADLINE = 2.0


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench complete", description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--gops", type=int, nargs="+", default=[50, 250])
    parser.add_argument("--busy", action="store_true", help="P1 alone, on a machine that others keep busy")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    if asked.worker:
        task = orjson.loads(asked.worker)
        asyncio.run(_worker(task, every_frame(Path(task["clip"]))))
        return 0
    rows: list[list[object]] = []
    body: dict[str, Any] = {"busy": asked.busy}
    for gop in asked.gops:
        clip = the_match(gop)
        every_frame(clip)
        with _others(asked.busy):
            body[f"gop{gop}"] = {"P1": _p1(clip, asked.runs, rows, gop)}
        if not asked.busy:
            body[f"gop{gop}"]["P2"] = _p2(clip, asked.runs, rows, gop)
    print_report("complete", ["work", "clip", "figure", "measured", "limit", ""], rows, body)
    return 0


@contextmanager
def _others(busy: bool) -> Iterator[None]:
    """One program that never rests for each core, where wished for."""
    count = (os.cpu_count() or 1) if busy else 0
    running = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for program in running:
            program.kill()
            program.wait()


def _p1(clip: Path, runs: int, rows: list[list[object]], gop: int) -> dict[str, Any]:
    with P1.serve(clip) as origin:
        done = _in_worker(origin.url("clip.mp4"), clip, runs, deadline=DEADLINE)
    name = f"gop {gop}"
    for kind in ("cold", "warm"):
        seconds = done[kind]["seconds"]
        rows.append(
            ["P1", name, f"seconds, {kind} connection (p50)", seconds["p50"], "<= 2.0", verdict(seconds["p50"], 2.0)]
        )
        f1 = done[kind]["f1"]["p50"]
        rows.append(["P1", name, f"F1 of every-frame, {kind}", f1, ">= 0.90", verdict(f1, 0.9, at_most=False)])
        answered = done[kind]["answered"]["min"]
        rows.append(
            ["P1", name, f"frames answered, {kind} (least)", answered, "750", verdict(answered, 750, at_most=False)]
        )
    warm = done["warm"]
    rows.append(
        [
            "P1",
            name,
            "overhead over the larger bound",
            warm["overhead"]["p50"],
            "<= 1.25",
            verdict(warm["overhead"]["p50"], 1.25),
        ]
    )
    rows.append(["P7", name, "peak memory, MB", done["peak_mb"], "<= 600", verdict(done["peak_mb"], 600)])
    return done


def _p2(clip: Path, runs: int, rows: list[list[object]], gop: int) -> dict[str, Any]:
    with P2.serve(clip) as origin:
        ours = _in_worker(origin.url("clip.mp4"), clip, runs, deadline=DEADLINE)
        guide = _in_worker(origin.url("clip.mp4"), clip, runs, deadline=DEADLINE, profile="guide")
    name, least = f"gop {gop}", 5.0 if gop == 50 else 2.5
    body: dict[str, Any] = {"ours": ours, "guide": guide}
    for kind in ("cold", "warm"):
        mine, theirs = ours[kind]["covered_f1"]["p50"], guide[kind]["covered_f1"]["p50"]
        ratio = mine / theirs if theirs else float("inf")
        body[f"ratio_{kind}"] = round(ratio, 2)
        shown = f"{mine:.3f} / {theirs:.3f} = {ratio:.1f}"
        rows.append(
            [
                "P2",
                name,
                f"covered F1, ours / guide, {kind}",
                shown,
                f">= {least}",
                verdict(ratio, least, at_most=False),
            ]
        )
    latest = max(ours["cold"]["seconds"]["max"], ours["warm"]["seconds"]["max"])
    rows.append(["P2", name, "latest answer, s", latest, "<= 2.05", verdict(latest, 2.05)])
    return body


def _in_worker(url: str, clip: Path, runs: int, *, deadline: float, profile: str = "complete") -> dict[str, Any]:
    task = orjson.dumps({"url": url, "clip": str(clip), "runs": runs, "deadline": deadline, "profile": profile})
    command = [sys.executable, "-m", "bench.complete", "--worker", task.decode()]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    done: dict[str, Any] = orjson.loads(printed.splitlines()[-1])
    return done


async def _worker(task: dict[str, Any], truth: Labels) -> None:
    """One warm process: `runs` answers on new connections, `runs` on kept ones."""
    settings = load(profile=task["profile"], env_file=None)
    options = Options.of(settings)
    if task["profile"] == "guide":
        # In the guide the download does not count and the deadline does; here both must fit the same two seconds.
        options = replace(options, start_budget_after_first_frame=False)
    detector = detector_for(settings if task["profile"] == "guide" else Settings())
    warm_up = await analyze(task["clip"], options=replace(options, fetch="sparse"), detector=detector)
    rates = warm_up.rates
    results: dict[str, Any] = {}
    for kind in ("cold", "warm"):
        runs = []
        async with Connections() as kept:
            if kind == "warm":
                await kept.warm(["/".join(task["url"].split("/")[:3])])
            for _ in range(task["runs"]):
                runs.append(await _one(task, options, detector, rates, kept if kind == "warm" else None))
        results[kind] = runs
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    body = {kind: _summary(runs, truth, task) for kind, runs in results.items()}
    print(orjson.dumps({**body, "peak_mb": round(peak, 1)}).decode())


async def _one(
    task: dict[str, Any], options: Options, detector: Any, rates: Rates | None, kept: Connections | None
) -> tuple[float, float, Analysis]:
    cpu, began = time.process_time(), time.monotonic()
    analysis = await analyze(
        task["url"], deadline=task["deadline"], options=options, detector=detector, connections=kept, rates=rates
    )
    return time.monotonic() - began, time.process_time() - cpu, analysis


def _summary(runs: list[tuple[float, float, Analysis]], truth: Labels, task: dict[str, Any]) -> dict[str, Any]:
    guide = task["profile"] == "guide"
    judged = [agreement(labels_of(analysis, only_detected=guide), truth) for _, _, analysis in runs]
    link = P1.bandwidth / 8
    bounds = [max(a.bytes_fetched / link, cpu / 2) for _, cpu, a in runs]
    stages = {name: spread([a.stage_seconds[name] for _, _, a in runs])["p50"] for name in runs[0][2].stage_seconds}
    return {
        "seconds": spread([seconds for seconds, _, _ in runs]),
        "cpu_seconds": spread([cpu for _, cpu, _ in runs]),
        "overhead": spread([seconds / bound for (seconds, _, _), bound in zip(runs, bounds, strict=True)]),
        "f1": spread([result.f1 for result in judged]),
        "covered_f1": spread([result.covered_f1 for result in judged]),
        "answered": spread([float(len(a.frames)) for _, _, a in runs]),
        "looked_at": spread([float(a.frames_detected) for _, _, a in runs]),
        "decoded": spread([float(a.frames_decoded) for _, _, a in runs]),
        "megabytes": spread([a.bytes_fetched / 1e6 for _, _, a in runs]),
        "first_frame": spread([a.stage_seconds["first_frame"] for _, _, a in runs]),
        "stride": runs[-1][2].plan.stride if runs[-1][2].plan else None,
        "share": runs[-1][2].plan.share if runs[-1][2].plan else None,
        "stage_seconds": stages,
    }


if __name__ == "__main__":
    sys.exit(main())

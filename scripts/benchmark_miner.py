"""The guide's benchmark: what a partial download saves, and what it costs.

    python scripts/benchmark_miner.py --video-url URL --device cuda --partial-download --partial-mb 4 --quick
    python scripts/benchmark_miner.py --video-url URL --device cuda --partial-download --partial-mb 3
    python scripts/benchmark_miner.py --video-url URL --device cuda

Without --quick the other ways of fetching run too, three times each, on a new connection every time. The clock
runs from the request, so the download counts. The settings come from the environment as for the service; a
budget is kept only when somebody set one. The last line on stdout is JSON.
"""

from __future__ import annotations

import asyncio
import logging
import platform
import statistics
import sys
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated

import orjson
import typer
from rich.console import Console
from rich.table import Table

from firsttouch.detect import Detector
from firsttouch.errors import DeadlineExceeded, FirsttouchError, SettingsError
from firsttouch.pipeline import Analysis, Options, analyze, detector_for
from firsttouch.predict import FASTEST_SECONDS, Fetch, carried, judged
from firsttouch.settings import Settings, load

RUNS = 3
STAGES = ("connect", "index", "fetch", "decode", "detect", "carry", "first_frame", "total")
NAMES: dict[Fetch, str] = {"head": "partial", "full": "full", "sparse": "ours (sparse)"}


@dataclass(frozen=True, slots=True)
class Run:
    """One way of fetching, the median run by total time. Seconds are from the request."""

    name: str
    seconds: dict[str, float]
    megabytes: float
    requests: int
    frames_decoded: int
    frames_looked_at: int
    frames_answered: int
    frame_count: int
    stopped_by: str
    predicted_score: float
    ran_on: str
    video: str


def main(
    video_url: Annotated[str | None, typer.Option(help="a clip on an HTTP server")] = None,
    video_path: Annotated[Path | None, typer.Option(help="a clip on this machine")] = None,
    device: Annotated[str | None, typer.Option(help="cuda, cpu, mps or auto")] = None,
    partial_download: Annotated[bool, typer.Option("--partial-download", help="fetch only the start")] = False,
    partial_mb: Annotated[float | None, typer.Option(help="how many MB of it")] = None,
    quick: Annotated[bool, typer.Option("--quick", help="one run, no comparison")] = False,
) -> None:
    """Measure one clip: download, stages, frames, frames answered, predicted score."""
    if (video_url is None) == (video_path is None):
        raise SettingsError("give either --video-url or --video-path", hint="--help shows the guide's commands")
    asked: Fetch = "head" if partial_download else "full"
    others: tuple[Fetch, ...] = () if quick else tuple(mode for mode in NAMES if mode != asked)
    source = video_url or str(video_path)
    settings = load({"device": device, "partial_download_mb": partial_mb, "fetch": asked})
    detector = detector_for(settings)
    if device not in (None, "auto", detector.device):
        logging.warning("asked for %s, running on %s (%s)", device, detector.device, detector.runtime)
    console = Console(stderr=True)
    runs = [asyncio.run(measure(source, settings, mode, detector, 1 if quick else RUNS)) for mode in (asked, *others)]
    console.print(source, highlight=False, soft_wrap=True)
    console.print(table_of(runs))
    if len(runs) > 1:
        console.print(verdict(runs))
    machine = f"{platform.machine()} {platform.system()}, Python {platform.python_version()}"
    print(orjson.dumps({"source": source, "machine": machine, "runs": [asdict(run) for run in runs]}).decode())


async def measure(source: str, settings: Settings, mode: Fetch, detector: Detector, count: int) -> Run:
    """The median of `count` runs by total time."""
    one_mode = settings.model_copy(update={"fetch": mode})
    answers = []
    for _ in range(count):
        options, budget = Options.of(one_mode), settings.deadline_if_set
        answers.append(await analyze(source, deadline=budget, options=options, detector=detector))
    middle = statistics.median_low([answer.stage_seconds["total"] for answer in answers])
    return run_of(next(a for a in answers if a.stage_seconds["total"] == middle), mode, one_mode, detector)


def run_of(analysis: Analysis, mode: Fetch, settings: Settings, detector: Detector) -> Run:
    with_objects = sum(len(frame.ids) > 0 for frame in analysis.frames)
    stride = round(len(analysis.frames) / max(1, analysis.frames_detected))
    f1, boxes = carried(replace(settings.choice, stride=stride))
    prediction = judged(
        coverage=with_objects / max(1, analysis.frame_count),
        f1=f1,
        boxes=boxes,
        seconds=analysis.stage_seconds["total"],
        pitch=not settings.skip_pitch,
        fastest=FASTEST_SECONDS,
    )
    return Run(
        name=f"partial, {settings.partial_download_mb:g} MB" if mode == "head" else NAMES[mode],
        seconds={name: analysis.stage_seconds[name] for name in STAGES if name in analysis.stage_seconds},
        megabytes=analysis.bytes_fetched / 1024 / 1024,
        requests=analysis.requests,
        frames_decoded=analysis.frames_decoded,
        frames_looked_at=analysis.frames_detected,
        frames_answered=len(analysis.frames),
        frame_count=analysis.frame_count,
        stopped_by=analysis.stopped_by,
        predicted_score=prediction.final,
        ran_on=f"{detector.runtime} {detector.precision} on {detector.device}",
        video="NVDEC" if analysis.hardware_decoding else "software",
    )


def table_of(runs: list[Run]) -> Table:
    table = Table("", *(run.name for run in runs))
    table.add_row("fetched", *(f"{run.megabytes:.2f} MB in {run.requests} requests" for run in runs))
    for stage in STAGES:
        table.add_row(stage, *(f"{run.seconds[stage]:.2f} s" if stage in run.seconds else "-" for run in runs))
    table.caption = "stages overlap: they need not add up to the total"
    table.add_row("decoded", *(f"{run.frames_decoded} frames ({run.video})" for run in runs))
    table.add_row("looked at", *(f"{run.frames_looked_at} frames" for run in runs))
    table.add_row("answered", *(f"{run.frames_answered} of {run.frame_count} frames" for run in runs))
    table.add_row("stopped by", *(run.stopped_by for run in runs))
    table.add_row("predicted score", *(f"{run.predicted_score:.2f}" for run in runs))
    table.add_row("networks", *(run.ran_on for run in runs))
    return table


def verdict(runs: list[Run]) -> str:
    fastest = min(runs, key=lambda run: run.seconds["total"])
    best = max(runs, key=lambda run: run.predicted_score)
    return f"fastest: {fastest.name}; best predicted score: {best.name} ({best.predicted_score:.2f})"


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        typer.run(main)
    except FirsttouchError as error:
        budget = " (raise or unset TIME_BUDGET_S)" if isinstance(error, DeadlineExceeded) else ""
        print(f"{error.name}: {error}{budget}\nhint: {error.hint}", file=sys.stderr)
        sys.exit(1)

"""The profiles side by side: time, coverage, F1 and what the judge's formula makes of them, on one clip and link.

The match, 100 Mbit/s, 30 ms round trip, connection kept, one warm process. Truth is our own answer with every frame
looked at, so the scores compare profiles with each other; they say nothing about how well the network sees.
"""

from __future__ import annotations

import argparse
import asyncio
from dataclasses import asdict
from typing import Any

from bench.complete import P1
from bench.match import the_match
from bench.reference import every_frame, labels_of
from bench.report import print_report, spread
from firsttouch.answer import to_challenge
from firsttouch.clock import Stopwatch
from firsttouch.detect import Detector
from firsttouch.errors import DeadlineExceeded
from firsttouch.labels import Labels
from firsttouch.measure import agreement
from firsttouch.pipeline import Analysis, Options, analyze, detector_for
from firsttouch.predict import FASTEST_SECONDS, Clip, predict
from firsttouch.score import judge
from firsttouch.settings import PROFILES, Settings, load
from firsttouch.source import Connections

COLUMNS = ("profile", "MB", "seconds", "looked at", "answered", "F1", "score", "predicted")
PREDECESSOR = "guide, looked-at frames only"
"""How the guide's predecessor answered: nothing is carried to the frames between."""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench profiles", description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--gop", type=int, default=50)
    asked = parser.parse_args(arguments)
    clip = the_match(asked.gop)
    truth = every_frame(clip)
    with P1.serve(clip) as origin:
        size = Clip(truth.frame_count / 25, 25.0, clip.stat().st_size / 1e6)
        found = asyncio.run(_all(origin.url("clip.mp4"), size, truth, asked.runs))
    rows = [
        [
            name,
            f"{one['megabytes']:.1f}",
            f"{one['seconds']['p50']:.2f}",
            one["looked_at"],
            f"{one['answered']} of {truth.frame_count}",
            f"{one['f1']:.2f}",
            f"{one['score']:.2f}",
            f"{one['predicted']:.2f}" if "predicted" in one else "",
        ]
        for name, one in found.items()
    ]
    print_report("profiles", COLUMNS, rows, {"gop": asked.gop, "link": asdict(P1), "profiles": found})
    return 0


async def _all(url: str, size: Clip, truth: Labels, runs: int) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    async with Connections() as connections:
        for name in PROFILES:
            settings = load(profile=name, env_file=None)
            detector = detector_for(settings)
            answers = [await _once(url, settings, detector, connections) for _ in range(runs + 1)][1:]
            found[name] = _judged(answers, truth) | {"predicted": round(predict(settings.choice, size).final, 4)}
            if name == "guide":
                found[PREDECESSOR] = _judged(answers, truth, only_detected=True)
    return found


async def _once(
    url: str, settings: Settings, detector: Detector, connections: Connections
) -> tuple[float, Analysis | None]:
    """Seconds from the request to the written answer; no answer where the deadline came before anything."""
    watch = Stopwatch()
    try:
        analysis = await analyze(
            url,
            deadline=settings.deadline_seconds,
            options=Options.of(settings),
            detector=detector,
            connections=connections,
        )
    except DeadlineExceeded:
        return watch.elapsed, None
    to_challenge(analysis, "bench", watch.elapsed)
    return watch.elapsed, analysis


def _judged(
    answers: list[tuple[float, Analysis | None]], truth: Labels, *, only_detected: bool = False
) -> dict[str, Any]:
    """The figures of the run with the median time."""
    seconds, analysis = sorted(answers, key=lambda answer: answer[0])[(len(answers) - 1) // 2]
    times = spread([one for one, _ in answers])
    if analysis is None:
        return {"seconds": times, "megabytes": 0.0, "looked_at": 0, "answered": 0, "f1": 0.0, "score": 0.0}
    labels = labels_of(analysis, only_detected=only_detected)
    score = judge(labels, truth, seconds, min(seconds, FASTEST_SECONDS))
    return {
        "seconds": times,
        "megabytes": round(analysis.bytes_fetched / 1e6, 2),
        "looked_at": analysis.frames_detected,
        "answered": int((labels.boxes_per_frame > 0).sum()),
        "f1": round(agreement(labels, truth).f1, 4),
        "bbox": score.bbox.value,
        "keypoints": round(score.keypoints.value, 4),
        "speed": round(score.speed, 4),
        "score": round(score.final, 4),
    }


if __name__ == "__main__":
    raise SystemExit(main())

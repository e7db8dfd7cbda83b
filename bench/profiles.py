"""The profiles side by side: time, coverage, F1 and what the judge's formula makes of them, on one clip and link.

The match, 100 Mbit/s, 30 ms round trip, connection kept, one warm process that plans with the rates of its last
answer, as the service does. Truth is our own answer with every frame looked at, so the scores compare profiles with
each other; they say nothing about how well the network sees. Pitch lines are looked for in the clip's pictures.
"""

from __future__ import annotations

import argparse
import asyncio
from dataclasses import asdict
from pathlib import Path
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
from firsttouch.plan import Rates
from firsttouch.predict import FASTEST_SECONDS, Clip, predict
from firsttouch.score import clip_pictures, judge
from firsttouch.settings import PROFILES, Settings, load
from firsttouch.source import Connections

COLUMNS = (
    "profile",
    "MB",
    "seconds",
    "looked at",
    "coverage",
    "F1",
    "bbox",
    "key points",
    "speed",
    "score",
    "predicted",
)
SHOWN_LOSSES = ("guide", "complete")
MOST_LOSSES = 5
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
        found = asyncio.run(_all(origin.url("clip.mp4"), size, truth, asked.runs, clip))
    rows = [
        [
            name,
            f"{one['megabytes']:.1f}",
            f"{one['seconds']['p50']:.2f}",
            one["looked_at"],
            f"{one['coverage']:.1%}",
            *(f"{one[name]:.2f}" for name in ("f1", "bbox", "keypoints", "speed", "score")),
            f"{one['predicted']:.2f}" if "predicted" in one else "",
        ]
        for name, one in found.items()
    ]
    for name in SHOWN_LOSSES:
        print(f"{name}: {found[name]['score']:.3f}, and what each term alone would give back")
        for points, why in found[name]["losses"][:MOST_LOSSES]:
            print(f"  {points:.3f}  {why}")
    print_report("profiles", COLUMNS, rows, {"gop": asked.gop, "link": asdict(P1), "profiles": found})
    return 0


async def _all(url: str, size: Clip, truth: Labels, runs: int, clip: Path) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    async with Connections() as connections:
        for name in PROFILES:
            settings = load(profile=name, env_file=None)
            detector = detector_for(settings)
            rates = Rates()
            answers = []
            for _ in range(runs + 1):
                answers.append(await _once(url, settings, detector, connections, rates))
                rates = getattr(answers[-1][1], "rates", None) or rates
            foretold = predict(settings.choice, size, rates)
            found[name] = _judged(answers[1:], truth, clip) | {"predicted": round(foretold.final, 4)}
            if name == "guide":
                found[PREDECESSOR] = _judged(answers[1:], truth, clip, only_detected=True)
    return found


async def _once(
    url: str, settings: Settings, detector: Detector, connections: Connections, rates: Rates
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
            rates=rates,
        )
    except DeadlineExceeded:
        return watch.elapsed, None
    to_challenge(analysis, "bench", watch.elapsed)
    return watch.elapsed, analysis


def _judged(
    answers: list[tuple[float, Analysis | None]], truth: Labels, clip: Path, *, only_detected: bool = False
) -> dict[str, Any]:
    """The figures of the run with the median time."""
    seconds, analysis = sorted(answers, key=lambda answer: answer[0])[(len(answers) - 1) // 2]
    times = spread([one for one, _ in answers])
    if analysis is None:
        nothing = dict.fromkeys(("megabytes", "coverage", "f1", "bbox", "keypoints", "speed", "score"), 0.0)
        return {"seconds": times, "looked_at": 0, **nothing, "losses": []}
    labels = labels_of(analysis, only_detected=only_detected)
    score = judge(labels, truth, seconds, min(seconds, FASTEST_SECONDS), pictures=clip_pictures(str(clip)))
    return {
        "seconds": times,
        "megabytes": round(analysis.bytes_fetched / 1e6, 2),
        "looked_at": analysis.frames_detected,
        "coverage": round(score.bbox.coverage, 4),
        "f1": round(agreement(labels, truth).f1, 4),
        "bbox": score.bbox.value,
        "keypoints": round(score.keypoints.value, 4),
        "speed": round(score.speed, 4),
        "score": round(score.final, 4),
        "losses": [(round(loss.points, 4), f"{loss.term}: {loss.why}") for loss in score.losses],
    }


if __name__ == "__main__":
    raise SystemExit(main())

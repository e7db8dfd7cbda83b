"""`firsttouch tune`: measure this machine and link, search settings, run the best, recommend one as a .env."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import typer
from rich.console import Console
from rich.table import Table

from firsttouch.answer import to_challenge
from firsttouch.clock import Deadline, Stopwatch
from firsttouch.detect import Detector
from firsttouch.download import download_video_partial
from firsttouch.errors import DeadlineExceeded, SettingsError
from firsttouch.index import Index
from firsttouch.labels import Labels, from_frames
from firsttouch.measure import agreement
from firsttouch.pipeline import Analysis, Options, analyze, detector_for
from firsttouch.plan import make_plan
from firsttouch.predict import ANSWER_SECONDS, FASTEST_SECONDS, Choice, Prediction, judged
from firsttouch.score import Lines, clip_lines, judge
from firsttouch.settings import env_text, load
from firsttouch.size import read_whole_index, settle
from firsttouch.source import Connections, open_source
from firsttouch.tune import (
    Candidate,
    Machine,
    best_budget,
    corrected,
    explore,
    mean,
    pareto,
    recommend,
    search,
    settings_of,
    sureness,
)

OPEN_SECONDS = 30.0
WARM_UP_SECONDS = 1.0
CALIBRATION_STRIDE = 12
LEAST_RUNNING_SHARE = 0.5
"""Of the minutes, for running settings, however long the measuring before has taken."""
DISK_BYTES_PER_SECOND = 1e9
"""A local file has no link to measure: taken to be no limit."""
MAX_CLIP_BYTES = 500_000_000
LINE_PICTURES = 50
"""Pictures of the clip in which pitch lines are looked for, at 20 ms each: the judge's key-point score needs them."""

console = Console(stderr=True, highlight=False)


@dataclass(frozen=True, slots=True)
class Measured:
    """One clip, what this machine and link did with it, and what its answers are judged by.

    `reference` is our own answer that looked at every frame, as in `python -m bench profiles`.
    """

    name: str
    index: Index
    cold_seconds: float
    machine: Machine
    reference: Labels
    lines: Lines


@dataclass(slots=True)
class Session:
    """What is known so far, also when it is interrupted."""

    clips: list[Measured] = field(default_factory=list)
    candidates: list[Candidate] = field(default_factory=list)
    ending: str = "Interrupted"


def register(app: typer.Typer) -> None:
    @app.command()
    def tune(
        sources: Annotated[list[str], typer.Argument(help="clips as the service will get them", show_default=False)],
        deadline: Annotated[float | None, typer.Option(min=0.1, help="no answer may be later")] = None,
        minutes: Annotated[
            float, typer.Option(min=0.05, help="how long to measure and run; at least half of it to run")
        ] = 1.0,
        fastest: Annotated[float, typer.Option(help="seconds of the fastest competitor")] = FASTEST_SECONDS,
        plot: Annotated[Path, typer.Option(help="draw time against score into this PNG")] = Path("tune.png"),
    ) -> None:
        """Measure, search, and print the best settings as a ready .env (on stdout: firsttouch tune URL > .env).

        Ctrl-C ends it early, with what is known by then.
        """
        _pyplot()  # before a minute of work, not after it
        found = Session()
        asyncio.run(_tune(found, sources, deadline, minutes * 60, fastest))
        shown, sure = corrected(found.candidates), str(sureness(found.candidates))
        front, best = pareto(shown), recommend(shown)
        console.print(_rates_table(found.clips))
        console.print(_front_table(front, best))
        console.print(f"{sure}. {found.ending}.", soft_wrap=True)
        draw(shown, front, plot)
        console.print(f"wrote {plot}", soft_wrap=True)
        comment = f"{_comment(best)}\n{sure}"
        typer.echo(env_text({"profile": "complete", **best.values, **_warm(sources)}, comment), nl=False)


async def _tune(found: Session, sources: Sequence[str], deadline: float | None, seconds: float, fastest: float) -> None:
    """Measure the clips, predict every candidate, then run them while there is time and one could still win."""
    detector, watch, until = detector_for(load()), Stopwatch(), Deadline.after(seconds)

    def say(text: str) -> None:
        console.print(f"{watch.elapsed:4.0f} s  {text}", soft_wrap=True)

    async with Connections() as connections:

        async def run(candidate: Candidate) -> Prediction:
            outcome = mean([await _run(candidate, clip, detector, connections, fastest) for clip in found.clips])
            foretold = candidate.predicted
            say(
                f"{candidate.name}: {outcome.seconds:.2f} s, score {outcome.final:.3f} "
                f"(predicted {foretold.seconds:.2f} s, {foretold.final:.3f})"
            )
            return outcome

        clips = [await _measure(name, detector, connections, say) for name in sources]
        found.clips, found.candidates = clips, search([(c.index, c.machine) for c in clips], deadline, fastest)
        say(f"running the best of {len(found.candidates)} settings; Ctrl-C ends it with what is known")
        try:
            at_least = Deadline.after(LEAST_RUNNING_SHARE * seconds)
            enough = await explore(found.candidates, run, lambda: max(until.remaining(), at_least.remaining()))
        except asyncio.CancelledError:  # what is known is worth having
            return
        found.ending = (
            "Nothing else that fits the time could beat them"
            if enough
            else "The time was over: more --minutes, more runs"
        )


async def _measure(name: str, detector: Detector, connections: Connections, say: Callable[[str], None]) -> Measured:
    """Connection cold and warm, the index, one calibrating run after one that warms up, and what judges answers."""
    say(f"measuring the link to {name}, and this machine")
    cold, index = await _open(name, connections)
    warm, _ = await _open(name, connections)
    options = Options(stride=CALIBRATION_STRIDE)
    with suppress(DeadlineExceeded):
        await analyze(name, deadline=WARM_UP_SECONDS, options=options, detector=detector, connections=connections)
    run = await analyze(name, options=options, detector=detector, connections=connections)
    if run.plan is None or run.rates is None:
        raise SettingsError(f"{name} cannot be planned ({run.fetch})", hint="tune with clips that have an index")
    rates = run.rates
    if "://" not in name:
        rates = replace(rates, bytes_per_second=DISK_BYTES_PER_SECOND, round_trip_seconds=0.0)
    planned = make_plan(index, rates, stride=CALIBRATION_STRIDE).expected_seconds
    slowdown = max(1.0, (run.stage_seconds["total"] - warm - ANSWER_SECONDS) / planned)
    say("looking at every frame, which is the truth the others are judged by")
    reference, lines = await _truth(name, index.frame_count, detector, connections)
    return Measured(name, index, cold, Machine(rates, warm, slowdown), reference, lines)


async def _truth(name: str, frame_count: int, detector: Detector, connections: Connections) -> tuple[Labels, Lines]:
    """The answer that looked at every frame, and the pitch lines, both from a copy on the disk."""
    local = "://" not in name
    path = Path(name) if local else await download_video_partial(name, MAX_CLIP_BYTES, connections=connections)
    try:
        every = await analyze(path, options=Options(every_frame=True), detector=detector)
        return labels_of(every), await asyncio.to_thread(clip_lines, str(path), frame_count, LINE_PICTURES)
    finally:
        if not local:
            path.unlink()


async def _open(name: str, connections: Connections) -> tuple[float, Index]:
    """Seconds until the first answer, and the index."""
    source = open_source(name, connections=connections)
    watch = Stopwatch()
    try:
        _, sparse = await source.open(deadline=Deadline.after(OPEN_SECONDS))
        seconds = watch.elapsed
        index = await read_whole_index(source, sparse)
        await settle(source, sparse)
        return seconds, index
    finally:
        await source.close()


async def _run(
    candidate: Candidate, clip: Measured, detector: Detector, connections: Connections, fastest: float
) -> Prediction:
    """The candidate run once on the clip, and judged."""
    settings = settings_of(candidate.values)
    watch = Stopwatch()
    try:
        analysis = await analyze(
            clip.name,
            deadline=settings.deadline_seconds,
            options=Options.of(settings),
            detector=detector,
            connections=connections,
            rates=clip.machine.rates,
        )
    except DeadlineExceeded:
        return judged(0.0, 0.0, watch.elapsed, pitch=True, fastest=fastest)
    await asyncio.to_thread(to_challenge, analysis, "tune", watch.elapsed)
    return await asyncio.to_thread(_judged, labels_of(analysis), clip, watch.elapsed, fastest)


def _judged(labels: Labels, clip: Measured, seconds: float, fastest: float) -> Prediction:
    """What the judge's formula makes of an answer, in the model's terms."""
    score = judge(labels, clip.reference, seconds, min(seconds, fastest), lines=clip.lines)
    f1 = agreement(labels, clip.reference).f1
    terms = (score.bbox.value, score.keypoints.value, score.speed, score.final)
    return Prediction(seconds, score.bbox.coverage, f1, *terms)


def labels_of(analysis: Analysis) -> Labels:
    return from_frames(analysis.frames, width=analysis.width, height=analysis.height, frame_count=analysis.frame_count)


def _rates_table(clips: Sequence[Measured]) -> Table:
    table = Table("measured", *(Path(urlsplit(clip.name).path).name for clip in clips))
    rows: tuple[tuple[str, Callable[[Measured], str]], ...] = (
        ("first answer, cold connection", lambda c: f"{c.cold_seconds * 1000:.0f} ms"),
        ("first answer, warm connection", lambda c: f"{c.machine.connect_seconds * 1000:.0f} ms"),
        ("round trip", lambda c: f"{c.machine.rates.round_trip_seconds * 1000:.0f} ms"),
        ("link", lambda c: f"{c.machine.rates.bytes_per_second * 8 / 1e6:.0f} Mbit/s"),
        ("decode", lambda c: f"{c.machine.rates.decode_reference_seconds * 1000:.1f} ms a frame"),
        ("detect", lambda c: f"{c.machine.rates.detect_seconds * 1000:.1f} ms a frame"),
        ("flow", lambda c: f"{c.machine.rates.flow_seconds * 1000:.1f} ms a frame"),
        ("TIME_BUDGET_S=auto stops at", lambda c: f"{best_budget(c.index, c.machine, Choice()):g} s"),
        ("a run against its plan", lambda c: f"{c.machine.slowdown:.2f} times as long"),
    )
    for name, show in rows:
        table.add_row(name, *(show(clip) for clip in clips))
    return table


def _front_table(front: Sequence[Candidate], best: Candidate) -> Table:
    """The front, and the recommended settings where they are not on it (only what was run is recommended)."""
    table = Table(title="Pareto front")
    table.add_column("settings", no_wrap=True)
    for name in ("seconds", "score", "answered", "F1", "predicted", "runs"):
        table.add_column(name)
    for candidate in front if best in front else [*front, best]:
        known, foretold = candidate.best_known, candidate.predicted
        table.add_row(
            candidate.name.replace(" ", "\n") + ("\n<- recommended" if candidate is best else ""),
            f"{known.seconds:.2f}",
            f"{known.final:.3f}",
            f"{known.coverage:.0%}",
            f"{known.f1:.2f}",
            f"{foretold.seconds:.2f} s, {foretold.final:.3f}" if candidate.runs else "not run",
            str(len(candidate.runs) or ""),
            style=None if candidate.runs else "dim",
        )
    table.caption = (
        "Dim: predicted, not run. Score: the judge's formula against our own answer with every frame looked at."
    )
    return table


def _comment(best: Candidate) -> str:
    known = best.best_known
    how = "measured" if best.runs else "predicted"
    return (
        f"firsttouch tune: {how} {known.seconds:.2f} s, {known.coverage:.0%} of the frames answered, "
        f"F1 {known.f1:.2f} of every frame looked at, score {known.final:.2f}"
    )


def _warm(sources: Sequence[str]) -> dict[str, str]:
    """WARM_ORIGINS for what was tuned: a challenge comes once an hour, and its connection would be cold."""
    parts = [urlsplit(name) for name in sources]
    origins = dict.fromkeys(f"{p.scheme}://{p.netloc.rpartition('@')[2]}" for p in parts if p.scheme.startswith("http"))
    return {"warm_origins": ",".join(origins)} if origins else {}


def _pyplot() -> Any:
    try:
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt
    except ImportError as exc:
        raise SettingsError("the plot needs matplotlib", hint="pip install firsttouch[plot]") from exc
    return plt


def draw(candidates: Sequence[Candidate], front: Sequence[Candidate], path: Path) -> None:
    """Time against score: every candidate a dot, filled where it was run; the front a line."""
    plt = _pyplot()
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    for candidate in candidates:
        known, run = candidate.best_known, bool(candidate.runs)
        axes.plot(known.seconds, known.final, "o", color="tab:blue", fillstyle="full" if run else "none")
    line = [candidate.best_known for candidate in front]
    axes.plot([p.seconds for p in line], [p.final for p in line], color="tab:orange", label="Pareto front")
    best = recommend(candidates)
    axes.annotate(
        best.name.replace(" ", "\n"),
        (best.best_known.seconds, best.best_known.final),
        xytext=(0.97, 0.25),
        textcoords="axes fraction",
        ha="right",
        fontsize=8,
        arrowprops={"arrowstyle": "->"},
    )
    axes.set_xlabel("seconds from the request to the answer")
    axes.set_ylabel("score")
    axes.set_title("filled: run; empty: predicted")
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=120)
    plt.close(figure)

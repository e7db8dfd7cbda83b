"""`firsttouch tune`: measure this machine and link, search settings, run the best, recommend one as a .env."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import typer
from rich.console import Console
from rich.table import Table

from firsttouch.clock import Deadline, Stopwatch
from firsttouch.detect import Detector
from firsttouch.errors import DeadlineExceeded, SettingsError
from firsttouch.index import Index
from firsttouch.labels import Labels, from_frames
from firsttouch.measure import agreement
from firsttouch.pipeline import Analysis, Options, analyze, detector_for
from firsttouch.plan import make_plan
from firsttouch.predict import ANSWER_SECONDS, FASTEST_SECONDS, Choice, Prediction, judged
from firsttouch.settings import env_text, load
from firsttouch.size import read_whole_index, settle
from firsttouch.source import Connections, open_source
from firsttouch.tune import (
    Candidate,
    Machine,
    best_budget,
    over_clips,
    pareto,
    recommend,
    search,
    settings_of,
    sureness,
)

OPEN_SECONDS = 30.0
CALIBRATION_STRIDE = 12
DISK_BYTES_PER_SECOND = 1e9
"""A local file has no link to measure: taken to be no limit."""
RUNS = 2

console = Console(stderr=True)


@dataclass(frozen=True, slots=True)
class Measured:
    """One clip, what this machine and link did with it, and the answer that looked at every frame."""

    name: str
    index: Index
    cold_seconds: float
    machine: Machine
    reference: Labels


def register(app: typer.Typer) -> None:
    @app.command()
    def tune(
        sources: Annotated[list[str], typer.Argument(help="clips as the service will get them", show_default=False)],
        deadline: Annotated[float | None, typer.Option(min=0.1, help="no answer may be later")] = None,
        minutes: Annotated[float, typer.Option(min=0.05, help="how long to measure")] = 1.0,
        fastest: Annotated[float, typer.Option(help="seconds of the fastest competitor")] = FASTEST_SECONDS,
        plot: Annotated[Path, typer.Option(help="draw time against score into this PNG")] = Path("tune.png"),
    ) -> None:
        """Measure, search, and print the best settings as a ready .env (on stdout: firsttouch tune URL > .env)."""
        _pyplot()  # before a minute of work, not after it
        clips, candidates = asyncio.run(_tune(sources, deadline, Deadline.after(minutes * 60), fastest))
        front, best, sure = pareto(candidates), recommend(candidates), str(sureness(candidates))
        console.print(_rates_table(clips))
        console.print(_front_table(front, best))
        console.print(sure, highlight=False)
        draw(candidates, front, plot)
        console.print(f"wrote {plot}", highlight=False, soft_wrap=True)
        comment = f"{_comment(best)}\n{sure}"
        typer.echo(env_text({"profile": "complete", **best.values, **_warm(sources)}, comment), nl=False)


async def _tune(
    sources: Sequence[str], deadline: float | None, until: Deadline, fastest: float
) -> tuple[list[Measured], list[Candidate]]:
    """Predict every candidate, then run the Pareto front for real, the most promising first, while there is time."""
    detector = detector_for(load())
    async with Connections() as connections:
        console.print("measuring the link, the machine and the answer that looks at every frame ...")
        clips = [await _measure(name, detector, connections) for name in sources]
        per_clip = [search(clip.index, clip.machine, deadline, fastest) for clip in clips]
        means = over_clips(per_clip)
        front = {candidate.name for candidate in pareto(means)}
        by_score = sorted(range(len(means)), key=lambda at: -means[at].predicted.final)
        for count, at in enumerate(at for at in by_score if means[at].name in front):
            if until.passed and count:
                break
            console.print(f"running {means[at].name}", highlight=False, soft_wrap=True)
            for clip, candidates in zip(clips, per_clip, strict=True):
                candidates[at] = await _run(candidates[at], clip, detector, connections, fastest)
    return clips, over_clips(per_clip)


async def _measure(name: str, detector: Detector, connections: Connections) -> Measured:
    """Connection cold and warm, the index, one calibrating run after one that warms up, and the reference."""
    cold, index = await _open(name, connections)
    warm, _ = await _open(name, connections)
    for _ in range(2):
        options = Options(stride=CALIBRATION_STRIDE)
        run = await analyze(name, options=options, detector=detector, connections=connections)
    if run.plan is None or run.rates is None:
        raise SettingsError(f"{name} cannot be planned ({run.fetch})", hint="tune with clips that have an index")
    every = await analyze(name, options=Options(every_frame=True), detector=detector, connections=connections)
    rates = run.rates
    if "://" not in name:
        rates = replace(rates, bytes_per_second=DISK_BYTES_PER_SECOND, round_trip_seconds=0.0)
    planned = make_plan(index, rates, stride=CALIBRATION_STRIDE).expected_seconds
    slowdown = max(1.0, (run.stage_seconds["total"] - warm - ANSWER_SECONDS) / planned)
    return Measured(name, index, cold, Machine(rates, warm, slowdown), labels_of(every))


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
) -> Candidate:
    """The candidate's median run on the clip; its boxes are compared with the answer that looked at every frame."""
    settings = settings_of(candidate.values)
    outcomes: list[Prediction] = []
    for _ in range(RUNS):
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
            outcomes.append(judged(0.0, 0.0, watch.elapsed, pitch=True, fastest=fastest))
            continue
        f1 = agreement(labels_of(analysis), clip.reference).f1
        coverage = len(analysis.frames) / max(1, analysis.frame_count)
        outcomes.append(judged(coverage, f1, watch.elapsed, pitch=not settings.skip_pitch, fastest=fastest))
    outcomes.sort(key=lambda outcome: outcome.seconds)
    spread = outcomes[-1].seconds - outcomes[0].seconds
    return replace(candidate, measured=outcomes[(len(outcomes) - 1) // 2], spread_seconds=spread)


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
    table = Table("settings", "seconds", "score", "answered", "F1", "predicted", title="Pareto front")
    for candidate in front if best in front else [*front, best]:
        known, foretold = candidate.best_known, candidate.predicted
        table.add_row(
            candidate.name.replace(" ", "\n") + ("\n<- recommended" if candidate is best else ""),
            f"{known.seconds:.2f}",
            f"{known.final:.3f}",
            f"{known.coverage:.0%}",
            f"{known.f1:.2f}",
            f"{foretold.seconds:.2f} s, {foretold.final:.3f}" if candidate.measured else "not run",
            style=None if candidate.measured else "dim",
        )
    table.caption = "dim: predicted, not run. Score: the judge's formula, F1 against our own answer on every frame."
    return table


def _comment(best: Candidate) -> str:
    known = best.best_known
    how = "measured" if best.measured else "predicted"
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
        known, run = candidate.best_known, candidate.measured is not None
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

"""`firsttouch analyze SOURCE`: the main job on the command line."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from firsttouch.answer import to_json
from firsttouch.clock import Deadline, Stopwatch
from firsttouch.detect import CLASS_NAMES
from firsttouch.errors import SettingsError
from firsttouch.pipeline import Analysis, Options, analyze_steps, detector_for
from firsttouch.ranges import ByteRange
from firsttouch.settings import Settings, load
from firsttouch.source import open_source
from firsttouch.video import write_overlay

err = Console(stderr=True)

EXAMPLES = """
Examples:

    firsttouch analyze clip.mp4 --output answer.json --video overlay.mp4

    firsttouch analyze https://example.org/clip.mp4 --deadline 2 > answer.json

    firsttouch analyze clip.mp4 --every-frame --output reference.json

Exit codes: 0 answered (also when the deadline stopped it), 2 wrong usage or setting, 3 the source could not be read,
4 not a video we can answer, 5 the deadline came before anything could be answered, 6 model or runtime, 130 interrupted.
"""


def register(app: typer.Typer) -> None:
    @app.command(epilog=EXAMPLES)
    def analyze(
        source: Annotated[str, typer.Argument(help="http(s) URL or file", show_default=False)],
        deadline: Annotated[
            str | None, typer.Option(help="seconds from now until the answer must be there, auto, or none")
        ] = None,
        stride: Annotated[str | None, typer.Option(help="look at every N-th frame; auto plans it")] = None,
        every_frame: Annotated[bool, typer.Option("--every-frame", help="look at every frame, carry nothing")] = False,
        fetch: Annotated[str | None, typer.Option(help="sparse, head, stream, direct or full")] = None,
        fetch_mb: Annotated[float | None, typer.Option(help="megabytes of the start, for --fetch head")] = None,
        output: Annotated[Path | None, typer.Option(help="write the JSON here instead of to stdout")] = None,
        video: Annotated[Path | None, typer.Option(help="write an overlay MP4 here")] = None,
        profile: Annotated[str | None, typer.Option(help="guide, extreme, balanced, complete or accurate")] = None,
        engine: Annotated[str | None, typer.Option(help="on or off: TensorRT engines, on a GPU that has them")] = None,
        quiet: Annotated[bool, typer.Option("--quiet", help="no progress and no table on stderr")] = False,
    ) -> None:
        """Answer every frame of a clip: boxes, identities and pitch key points, as JSON."""
        settings = load(
            {
                "time_budget_s": deadline,
                "frame_stride": stride,
                "fetch": fetch or ("head" if fetch_mb is not None else None),
                "partial_download_mb": fetch_mb,
                "tensorrt": engine,
            },
            profile=profile,
        )
        for path in (output, video):
            _check_writable(path)
        for note in settings.notes() if not quiet else ():
            err.print(f"{note.kind}: {note}", highlight=False, soft_wrap=True)
        analysis = asyncio.run(_analyze(source, settings, every_frame, quiet))
        watch = Stopwatch()
        body = to_json(analysis)
        analysis.stage_seconds["answer"] = watch.elapsed
        if output is None:
            sys.stdout.buffer.write(body + b"\n")
        else:
            output.write_bytes(body)
        if video is not None:
            asyncio.run(_write_video(source, settings, analysis, video, quiet))
        if not quiet:
            err.print(table_of(analysis))
            for path in (output, video):
                if path is not None:
                    err.print(f"wrote {path}", highlight=False, soft_wrap=True)


def _check_writable(path: Path | None) -> None:
    """Before a minute of work, not after it."""
    if path is None:
        return
    if path.is_dir():
        raise SettingsError(f"{path} is a directory", hint="name a file in it")
    if not path.parent.is_dir():
        raise SettingsError(f"there is no directory {path.parent}", hint=f"mkdir -p {path.parent}")


async def _analyze(source: str, settings: Settings, every_frame: bool, quiet: bool) -> Analysis:
    detector = detector_for(settings)
    columns = (TextColumn("[bold]{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err, disable=quiet or not err.is_terminal, transient=True) as progress:
        task = progress.add_task("frames answered", total=None)
        steps = analyze_steps(
            source,
            deadline=settings.deadline_if_set,
            options=Options.of(settings, every_frame=every_frame),
            detector=detector,
            partial=not progress.disable,
        )
        analysis: Analysis | None = None
        async for analysis in steps:
            progress.update(task, total=analysis.frame_count, completed=len(analysis.frames))
    assert analysis is not None
    return analysis


async def _write_video(source: str, settings: Settings, analysis: Analysis, video: Path, quiet: bool) -> None:
    """The overlay needs every picture: a remote clip is fetched whole, after the answer, and not kept."""
    columns = (TextColumn("[bold]{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    async with _local_copy(source) as clip:
        with Progress(*columns, console=err, disable=quiet or not err.is_terminal, transient=True) as progress:
            task = progress.add_task("overlay video", total=analysis.frame_count)
            await asyncio.to_thread(
                write_overlay,
                clip,
                analysis.frames,
                video,
                analysis.frames_per_second,
                lambda count: progress.update(task, completed=count),
            )


@asynccontextmanager
async def _local_copy(source: str) -> AsyncIterator[Path]:
    """The whole clip as a file: the path itself, or a download that is removed again."""
    if "://" not in source:
        yield Path(source)
        return
    origin = open_source(source)
    try:
        _, sparse = await origin.open(deadline=Deadline.after(None))
        await origin.stream()
        with tempfile.NamedTemporaryFile(prefix="firsttouch-", suffix=".mp4") as copy:
            copy.write(sparse.read(ByteRange(0, sparse.size or 0)))
            copy.flush()
            yield Path(copy.name)
    finally:
        await origin.close()


def table_of(analysis: Analysis) -> Table:
    """What was found and what it took."""
    table = Table(title=analysis.source, title_style="bold", show_header=False)
    table.add_row(
        "clip",
        f"{analysis.width}x{analysis.height}, {analysis.frame_count} frames, {analysis.duration_seconds:.1f} s",
    )
    detected = sum(frame.how == "detected" for frame in analysis.frames)
    table.add_row(
        "answered",
        f"{len(analysis.frames)} frames: {detected} looked at, {len(analysis.frames) - detected} carried",
    )
    table.add_row("stopped by", analysis.stopped_by)
    counts = Counter(CLASS_NAMES[c] for frame in analysis.frames for c in frame.class_ids.tolist())
    per_frame = ", ".join(f"{counts[name] / max(1, len(analysis.frames)):.1f} {name}" for name in CLASS_NAMES)
    table.add_row("per frame", per_frame)
    ids = {int(id_) for frame in analysis.frames for id_ in frame.ids}
    pitch = sum(bool((frame.keypoints[:, 2] > 0).sum() >= 4) for frame in analysis.frames)
    table.add_row("identities", str(len(ids)))
    table.add_row("pitch found", f"{pitch} frames")
    of = f" of {analysis.size_bytes / 1e6:.1f} MB" if analysis.size_bytes else ""
    table.add_row(
        "fetched",
        f"{analysis.bytes_fetched / 1e6:.1f} MB{of}, {analysis.requests} requests ({analysis.fetch})",
    )
    table.add_row(
        "decoded",
        f"{analysis.frames_decoded} frames ({'NVDEC' if analysis.hardware_decoding else 'software'})",
    )
    table.add_row("detector", analysis.runtime)
    for name, seconds in analysis.stage_seconds.items():
        table.add_row(name, f"{seconds:.3f} s")
    for warning in analysis.warnings:
        table.add_row("warning", warning)
    return table

"""`firsttouch size`: how many megabytes of a clip's start a stride and a budget need."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Annotated

import orjson
import typer
from rich.console import Console
from rich.table import Table

from firsttouch.clock import Deadline
from firsttouch.index import Index
from firsttouch.ranges import MEGABYTE
from firsttouch.size import ClipSize, Size, estimate, fetch_index, from_index
from firsttouch.source import open_source

SAFE_DEFAULTS = ((5, 2.0), (3, 2.0), (2, 3.0))
"""The rows of the guide's table."""

INDEX_TIMEOUT_SECONDS = 30.0


def register(app: typer.Typer) -> None:
    @app.command()
    def size(
        source: Annotated[str | None, typer.Argument(help="a URL or a file: use its own index")] = None,
        stride: Annotated[int, typer.Option(min=1, help="look at every k-th frame")] = 5,
        budget: Annotated[float, typer.Option(min=0.01, help="TIME_BUDGET_S")] = 2.0,
        as_json: Annotated[bool, typer.Option("--json", help="one JSON object instead of tables")] = False,
    ) -> None:
        """Print how many MB of the start the guide's prefix fetch needs, and what the guide says."""
        general = estimate(stride, budget)
        index = asyncio.run(_read(source)) if source is not None else None
        of_clip = from_index(index, stride, budget) if index is not None else None
        if as_json:
            body = {"estimate": asdict(general), "clip": asdict(of_clip) if of_clip else None}
            typer.echo(orjson.dumps(body, option=orjson.OPT_INDENT_2).decode())
            return
        console = Console()
        console.print(_table(general))
        console.print(
            f"The guide says {general.guide_megabytes:.1f} MB: it takes the frames for consecutive ones, "
            f"but they lie {stride} apart. Put right: {general.megabytes:.1f} MB."
        )
        if of_clip is not None and index is not None:
            console.print(_clip_line(of_clip, index, stride))


async def _read(name: str) -> Index:
    source = open_source(name)
    try:
        return (await fetch_index(source, Deadline.after(INDEX_TIMEOUT_SECONDS)))[1]
    finally:
        await source.close()


def _table(asked: Size) -> Table:
    table = Table(
        "stride",
        "budget",
        "frames needed",
        "video",
        "needed",
        "guide's formula",
        "guide's default",
        "which reaches",
    )
    rows = [estimate(*row) for row in SAFE_DEFAULTS]
    for row in [
        asked,
        *(row for row in rows if (row.stride, row.budget_seconds) != (asked.stride, asked.budget_seconds)),
    ]:
        table.add_row(
            str(row.stride),
            f"{row.budget_seconds:g} s",
            str(row.frames_needed),
            f"{row.video_seconds:.1f} s",
            f"{row.megabytes:.1f} MB",
            f"{row.guide_megabytes:.1f} MB",
            f"{row.guide_default_megabytes} MB",
            f"{row.guide_default_frames} frames",
        )
    return table


def _clip_line(clip: ClipSize, index: Index, stride: int) -> str:
    size = f"{(index.size_bytes or 0) / MEGABYTE:.1f} MB"
    share = f"{clip.coverage:.0%} of the clip's frames; the judge wants objects in 70 %"
    where = "the whole clip" if clip.whole_clip else f"up to frame {clip.last_frame_number}"
    return (
        f"This clip ({size}): PARTIAL_DOWNLOAD_MB={clip.megabytes:.2f} holds {clip.frames_needed} frames, "
        f"{stride} apart, {where}: {share}."
    )

"""`firsttouch plan SOURCE`: what would be fetched, decoded, looked at and carried, as a map of the file."""

from __future__ import annotations

import asyncio
from typing import Annotated

import numpy as np
import orjson
import typer
from rich.console import Console
from rich.table import Table

from firsttouch.clock import Deadline
from firsttouch.index import Index
from firsttouch.opening import HEAD_BYTES, TAIL_BYTES, fetch_index
from firsttouch.pipeline import ANSWER_RESERVE_SECONDS
from firsttouch.plan import Plan, Rates, make_plan
from firsttouch.ranges import MEGABYTE
from firsttouch.settings import load
from firsttouch.source import open_source

Bools = np.typing.NDArray[np.bool_]

EXAMPLES = """
Examples:

    firsttouch plan clip.mp4

    firsttouch plan https://example.org/clip.mp4 --deadline 2 --mbit 13.2
"""


def register(app: typer.Typer) -> None:
    @app.command(epilog=EXAMPLES)
    def plan(
        source: Annotated[str, typer.Argument(help="http(s) URL or file", show_default=False)],
        deadline: Annotated[str | None, typer.Option(help="seconds, or none")] = None,
        stride: Annotated[str | None, typer.Option(help="look at every N-th frame; auto plans it")] = None,
        fetch_mb: Annotated[float | None, typer.Option(help="only the first MB megabytes, as the guide does")] = None,
        key_frames: Annotated[bool, typer.Option("--key-frames", help="only key frames")] = False,
        mbit: Annotated[float, typer.Option(help="assumed link, Mbit/s")] = 100.0,
        as_json: Annotated[bool, typer.Option("--json", help="one JSON object instead of a map")] = False,
    ) -> None:
        """Show the plan for a clip: a map of the file and of the frames, with the expected cost and quality."""
        settings = load({"time_budget_s": deadline, "frame_stride": stride})
        index = asyncio.run(_index_of(source))
        budget = settings.deadline_seconds
        rates = Rates(bytes_per_second=mbit * 1e6 / 8)
        made = make_plan(
            index,
            rates,
            np.inf if budget is None else budget - ANSWER_RESERVE_SECONDS,
            stride=settings.stride,
            key_frames_only=key_frames,
            until_byte=None if fetch_mb is None else round(fetch_mb * MEGABYTE),
        )
        if as_json:
            typer.echo(orjson.dumps(_body(made), option=orjson.OPT_INDENT_2))
        else:
            console = Console()
            console.print(_table(source, index, made, min(120, max(20, console.width - 18))))


async def _index_of(source: str) -> Index:
    opened = open_source(source)
    try:
        _, sparse = await opened.open(head=HEAD_BYTES, tail=TAIL_BYTES, deadline=Deadline.after(60.0))
        return await fetch_index(opened, sparse)
    finally:
        await opened.close()


def _body(plan: Plan) -> dict[str, object]:
    return {
        "stride": plan.stride,
        "share": plan.share,
        "expected_seconds": round(plan.expected_seconds, 3),
        "expected_quality": round(plan.expected_quality, 4),
        "bytes": plan.size_bytes,
        "looked_at": len(plan.look_at),
        "steps": [
            {
                "rows": [step.first_row, step.stop_row],
                "byte_ranges": [[part.start, part.stop] for part in step.byte_ranges],
                "look_at": list(step.look_at),
                "cost_seconds": round(step.cost_seconds, 4),
            }
            for step in plan.steps
        ],
    }


def _table(source: str, index: Index, plan: Plan, columns: int) -> Table:
    frames = index.frame_count
    looked = np.zeros(frames, bool)
    looked[list(plan.look_at)] = True
    decoded = np.zeros(frames, bool)
    for step in plan.steps:
        numbers = index.frame_number[step.first_row : step.stop_row]
        decoded[numbers[numbers >= 0]] = True
    fetched = np.zeros(columns, bool)
    for part in plan.byte_ranges:
        scale = columns / index.size_bytes
        fetched[int(part.start * scale) : int(np.ceil(part.stop * scale))] = True
    order = np.full(columns, " ", dtype="<U1")
    for position, step in enumerate(plan.steps[:36]):
        first = int(index.frame_number[step.first_row]) * columns // max(1, frames)
        order[min(columns - 1, max(0, first))] = "123456789abcdefghijklmnopqrstuvwxyz+"[position]
    table = Table(title=f"plan for {source}", show_header=False)
    table.add_row("bytes", "".join("█" if here else "·" for here in fetched))
    table.add_row("order", "".join(order))
    table.add_row("frames", "".join(_cell(looked, decoded, column, columns) for column in range(columns)))
    table.add_row("", "█ looked at, ▒ carried by flow, · interpolated or absent")
    amount = f"{plan.size_bytes / 1e6:.2f} of {index.size_bytes / 1e6:.2f} MB"
    table.add_row("fetched", f"{amount} in {len(plan.steps)} steps")
    table.add_row("decoded", f"{int(decoded.sum())} of {frames} frames ({plan.share:.0%} of each GOP chosen)")
    table.add_row("looked at", f"{len(plan.look_at)} frames, every {plan.stride}")
    table.add_row("expected", f"{plan.expected_seconds:.2f} s, quality {plan.expected_quality:.3f}")
    return table


def _cell(looked: Bools, decoded: Bools, column: int, columns: int) -> str:
    here = slice(column * len(looked) // columns, max(1, (column + 1) * len(looked) // columns))
    return "█" if looked[here].any() else "▒" if decoded[here].mean() > 0.5 else "·"

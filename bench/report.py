"""What every benchmark prints: the machine, a table, and one last line of JSON."""

from __future__ import annotations

import platform
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import av
import cv2
import onnxruntime
import orjson
from rich.console import Console
from rich.table import Table

console = Console(highlight=False, width=140)


def machine() -> dict[str, Any]:
    """The machine and the versions a figure depends on."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    models = [line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.processor(),
        "cores": len(models) or None,
        "python": platform.python_version(),
        "av": av.__version__,
        "opencv": cv2.__version__,
        "onnxruntime": onnxruntime.__version__,
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, 95th percentile (nearest rank), least and most."""
    ranked = sorted(values)
    return {
        "p50": round(statistics.median(ranked), 4),
        "p95": round(ranked[min(len(ranked) - 1, round(0.95 * (len(ranked) - 1)))], 4),
        "min": round(ranked[0], 4),
        "max": round(ranked[-1], 4),
        "runs": len(ranked),
    }


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    table = Table(*columns, title=title)
    for row in rows:
        table.add_row(*(f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in row))
    console.print(table)


def print_report(name: str, columns: Sequence[str], rows: Sequence[Sequence[object]], body: Mapping[str, Any]) -> None:
    """A table for people, then `body` as the last line for programs."""
    print_table(f"bench {name}", columns, rows)
    line = {"bench": name, **machine(), **body}
    print(orjson.dumps(line, option=orjson.OPT_SERIALIZE_NUMPY).decode(), flush=True)


def verdict(figure: float, limit: float, *, at_most: bool = True) -> str:
    """Whether a figure is reached, as a word beside it."""
    return "reached" if (figure <= limit if at_most else figure >= limit) else "not reached"

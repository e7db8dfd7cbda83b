"""`firsttouch evaluate --data DIR`: how well a model sees labelled pictures, and how fast it is here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table


def register(app: typer.Typer) -> None:
    @app.command()
    def evaluate(
        data: Annotated[Path, typer.Option(help="folder of labelled pictures, or of several such folders")],
        model: Annotated[Path | None, typer.Option(help="an ONNX file; the bundled one by default")] = None,
        split: Annotated[str, typer.Option(help="where there are several: val, train, test or all")] = "val",
        clips: Annotated[Path | None, typer.Option(help="the clips whose frames labels without pictures name")] = None,
        precision: Annotated[str, typer.Option(help="auto, fp32, int8 or bf16")] = "auto",
        img_size: Annotated[int | None, typer.Option(help="width of the model's input")] = None,
        as_json: Annotated[bool, typer.Option("--json", help="one JSON object instead of a table")] = False,
    ) -> None:
        """COCO's AP per class and size, key-point error, homographies found, milliseconds per frame."""
        from firsttouch import evaluate as evaluation
        from firsttouch.detect import load_detector

        detector = load_detector(model=model, precision=precision, img_size=img_size, confidence=0.01)
        with Progress(console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task("looking", total=None)
            result = evaluation.evaluate(
                detector,
                data,
                split=split,
                clips=clips,
                progress=lambda name: progress.update(task, advance=1, description=name),
            )
        if as_json:
            typer.echo(orjson.dumps(result, option=orjson.OPT_INDENT_2).decode())
            return
        console = Console()
        for table in _tables(result):
            console.print(table)


def _tables(result: dict[str, Any]) -> list[Table]:
    groups = {"all": result, **(result["groups"] if len(result["groups"]) > 1 else {})}
    boxes = Table(title="boxes: AP at IoU 0.5 (and averaged over 0.5..0.95)", title_justify="left")
    points = Table(title="pitch", title_justify="left")
    for column in ("group", "frames", "player", "goalkeeper", "referee", "ball"):
        boxes.add_column(column, justify="left" if column == "group" else "right")
    for column in ("group", "frames", "error, % of width", "within 1 %", "found", "right homography"):
        points.add_column(column, justify="left" if column == "group" else "right")
    for name, figures in groups.items():
        if figures["box_frames"]:
            boxes.add_row(name, str(figures["box_frames"]), *(_ap(figures, c) for c in _CLASSES))
        if figures["pitch_frames"]:
            points.add_row(
                name,
                str(figures["pitch_frames"]),
                _percent(figures["keypoint_error_share_of_width"], 2),
                _percent(figures["keypoints_within_1_percent"]),
                _percent(figures["keypoint_recall"]),
                _percent(figures["homography_found"]),
            )
    return [boxes, _sizes(result), points, _speed(result)]


_CLASSES = ("player", "goalkeeper", "referee", "ball")


def _sizes(result: dict[str, Any]) -> Table:
    table = Table(title="AP at IoU 0.5 by size (COCO's bands: 32 and 96 px square)", title_justify="left")
    table.add_column("size")
    for name in _CLASSES:
        table.add_column(name, justify="right")
    for size, figures in result["by_size"].items():
        table.add_row(size, *(_number(figures[name]) for name in _CLASSES))
    return table


def _speed(result: dict[str, Any]) -> Table:
    table = Table(title=f"{result['model']}: {result['runtime']}, {result['device']}, {result['precision']}")
    table.add_column("milliseconds a frame", justify="right")
    table.add_column("on one thread", justify="right")
    table.add_column("workers", justify="right")
    one = result["milliseconds_per_frame_one_thread"]
    table.add_row(f"{result['milliseconds_per_frame']:.2f}", f"{one:.2f}", str(result["workers"]))
    return table


def _ap(figures: dict[str, Any], name: str) -> str:
    return f"{_number(figures['map50'][name])} ({_number(figures['map50_95'][name])})"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _percent(value: float | None, digits: int = 1) -> str:
    return "-" if value is None else f"{100 * value:.{digits}f} %"

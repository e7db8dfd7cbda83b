"""`firsttouch score ANSWER.json`: what the judge would say, and plain F1, mAP and HOTA beside it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import orjson
import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from firsttouch.labels import Labels
    from firsttouch.score import Score

LATEST = "score-vision-2025-08"


def register(app: typer.Typer) -> None:
    @app.command()
    def score(
        answer: Annotated[Path, typer.Argument(help="what analyze wrote with --output, or a challenge's answer")],
        truth: Annotated[
            Path | None, typer.Option(help="labels: a JSON of the same schema, or a folder of YOLO labels")
        ] = None,
        every_frame: Annotated[
            Path | None, typer.Option(help="the answer of --every-frame, taken as the truth")
        ] = None,
        video: Annotated[Path | None, typer.Option(help="the clip: needed to find pitch lines")] = None,
        seconds: Annotated[float, typer.Option(min=0, help="from request to the last byte of the answer")] = 0.0,
        fastest: Annotated[float | None, typer.Option(min=0, help="the fastest other answer")] = None,
        version: Annotated[str, typer.Option(help="which judge")] = LATEST,
        as_json: Annotated[bool, typer.Option("--json", help="one JSON object instead of tables")] = False,
    ) -> None:
        """Score an answer as the subnet's judge would, and say what each term lost and why."""
        from firsttouch.labels import read_answer, read_truth
        from firsttouch.score import clip_pictures, judge

        if (truth is None) == (every_frame is None):
            raise typer.BadParameter("give either --truth or --every-frame")
        mine = read_answer(answer)
        labels = read_truth(truth or every_frame or answer, width=mine.width, height=mine.height)
        pictures = clip_pictures(str(video)) if video else None
        result = judge(mine, labels, seconds, fastest, pictures=pictures, version=version)
        plain = plain_measures(mine, labels)
        if as_json:
            typer.echo(orjson.dumps(asdict(result) | {"plain": plain}, option=orjson.OPT_INDENT_2).decode())
            return
        console = Console()
        for table in _tables(result, plain):
            console.print(table)


def plain_measures(answer: Labels, truth: Labels) -> dict[str, Any]:
    """F1, mAP and HOTA as one JSON-able object; what cannot be known is None."""
    from firsttouch.measure import agreement, average_precision, hota, mean_of_known

    found = agreement(answer, truth)
    precision = average_precision(answer, truth)
    return {
        "precision": found.precision,
        "recall": found.recall,
        "f1": found.f1,
        "covered_f1": found.covered_f1,
        "map50": mean_of_known(list(precision.map50.values())),
        "map50_95": mean_of_known(list(precision.map50_95.values())),
        "by_class": {"map50": precision.map50, "map50_95": precision.map50_95},
        "by_size": precision.by_size,
        "hota": hota(answer, truth),
    }


def _tables(result: Score, plain: dict[str, Any]) -> list[Table]:
    from firsttouch.measure import HOTA_HINT

    bbox, points = result.bbox, result.keypoints
    judged = Table(title=f"{result.version}: {result.final:.3f}", title_justify="left")
    judged.add_column("term")
    judged.add_column("value", justify="right")
    judged.add_column("made of")
    judged.add_row(
        "bbox", f"{bbox.value:.2f}", f"quality {bbox.quality:.2f}, coverage {bbox.coverage:.0%} (70 % is enough)"
    )
    lines = "unknown" if points.lines is None else f"{points.lines:.2f}"
    judged.add_row(
        "key points",
        f"{points.value:.3f}",
        f"fit {points.homography:.0f}, lines {lines}, inside {points.inside:.2f}, stability {points.stability:.2f}, "
        f"moves {points.plausibility:.2f}/{points.jumps:.0f}, continuity {points.continuity:.2f}, "
        f"scale {points.scale:.2f}, homographies {points.homography_share:.2f}",
    )
    judged.add_row("speed", f"{result.speed:.3f}", "")
    lost = Table(title="what each term alone would give back", title_justify="left")
    for column in ("term", "points", "why"):
        lost.add_column(column, justify="right" if column == "points" else "left")
    for loss in result.losses:
        lost.add_row(loss.term, f"{loss.points:.3f}", loss.why)
    measures = Table(title="plain measures (IoU 0.5)", title_justify="left")
    measures.add_column("measure")
    measures.add_column("value", justify="right")
    for name in ("precision", "recall", "f1", "covered_f1", "map50", "map50_95"):
        value = plain[name]
        measures.add_row(name, "-" if value is None else f"{value:.3f}")
    hota = plain["hota"]
    measures.add_row("HOTA", f"{hota['HOTA']:.3f}" if hota else f"unknown: needs identities in both, and {HOTA_HINT}")
    return [judged, lost, measures]

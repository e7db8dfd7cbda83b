"""`firsttouch models`: what is loaded for these settings, how large it is and how fast here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import orjson
import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from firsttouch.settings import Settings

ROLES = (("boxes and pitch", None), ("player", "model_player"), ("ball", "model_ball"), ("pitch", "model_pitch"))


def register(app: typer.Typer) -> None:
    @app.command()
    def models(
        as_json: Annotated[bool, typer.Option("--json", help="one JSON object instead of a table")] = False,
    ) -> None:
        """List the models these settings load, with runtime, size and milliseconds a frame on this machine."""
        from firsttouch.settings import load

        rows = describe(load())
        if as_json:
            typer.echo(orjson.dumps({"models": rows}, option=orjson.OPT_INDENT_2).decode())
            return
        table = Table()
        for column in ("model", "for", "MB", "input", "runs on", "ms a frame"):
            numeric = column in ("MB", "ms a frame")
            table.add_column(column, justify="right" if numeric else "left", no_wrap=column != "for")
        for row in rows:
            runs_on = f"{row['runtime']} {row['device']} {row['precision']}"
            speed = f"{row['milliseconds_per_frame']:.1f}"
            table.add_row(row["name"], row["role"], f"{row['megabytes']:.1f}", row["input"], runs_on, speed)
        Console().print(table)


def describe(settings: Settings) -> list[dict[str, Any]]:
    """One row for each model that these settings load: what runs it, and how long a frame takes on one thread."""
    from firsttouch.detect import BUNDLED_MODEL
    from firsttouch.options import wish_for

    wish = wish_for(settings)
    rows = []
    for role, field in ROLES:
        path = getattr(settings, field) if field else BUNDLED_MODEL
        if path is not None:
            rows.append(_row(role, path, wish, settings.input_width))
    return rows


def _row(role: str, path: Any, wish: Any, img_size: int | None) -> dict[str, Any]:
    import numpy as np

    from firsttouch.detect.choose import choose
    from firsttouch.detect.native import NativeLayout, is_native
    from firsttouch.detect.session import ModelFile, milliseconds_per_run
    from firsttouch.detect.yolo import YoloLayout

    own = is_native(ModelFile.read(path))
    layout = NativeLayout(img_size) if own else YoloLayout(role, img_size)  # type: ignore[arg-type]
    choice = choose(path, wish, layout)
    model = ModelFile.read(choice.file)
    outputs, shape = layout(model)
    session = choice.open(model, outputs, shape)
    values = np.zeros(shape, model.facts.inputs[0].element_type)
    return {
        "name": choice.file.stem,
        "role": role,
        "file": str(choice.file),
        "megabytes": len(model.data) / 1e6,
        "input": "x".join(map(str, shape[1:])),
        "outputs": list(outputs),
        "runtime": session.runtime,
        "device": session.device,
        "precision": session.precision,
        "milliseconds_per_frame": milliseconds_per_run(session, values),
        "sha256": model.sha256,
    }

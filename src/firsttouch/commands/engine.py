"""`firsttouch engine build` and `engine compare`: TensorRT engines, and runtimes side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import orjson
import typer
from rich.console import Console
from rich.table import Table

from firsttouch.errors import RuntimeUnavailable, SettingsError

if TYPE_CHECKING:
    from firsttouch.detect.session import Runtime

PICTURES = 16
"""Pictures compared: enough to see a difference in boxes, a second of work."""


def register(app: typer.Typer) -> None:
    engine = typer.Typer(help="build TensorRT engines, compare runtimes", no_args_is_help=True)

    @engine.command()
    def build(
        model: Annotated[Path | None, typer.Option(help="an ONNX file; the bundled one by default")] = None,
        batch: Annotated[int, typer.Option(min=1, help="frames in a batch")] = 32,
        img_size: Annotated[int | None, typer.Option(help="width of the model's input")] = None,
        cache_dir: Annotated[Path, typer.Option(help="where engines are kept")] = Path("~/.cache/firsttouch"),
    ) -> None:
        """Build the TensorRT FP16 engines once, with and without the pitch; takes minutes."""
        from firsttouch.detect.ort import OrtTensorRt

        runtime = OrtTensorRt(cache_dir.expanduser(), build=True)
        problem = runtime.problem("fp16")
        if problem is not None:
            raise RuntimeUnavailable(f"no engine can be built here: {problem.reason}", hint=problem.remedy)
        for folder in build_engines(runtime, model, batch, img_size):
            typer.echo(str(folder))

    @engine.command()
    def compare(
        data: Annotated[Path, typer.Option(help="a folder of pictures")],
        model: Annotated[Path | None, typer.Option(help="an ONNX file of our own network")] = None,
        as_json: Annotated[bool, typer.Option("--json", help="one JSON object instead of a table")] = False,
    ) -> None:
        """Run the same pictures on every runtime that works here; print time, and how far boxes differ from fp32."""
        rows = compare_runtimes(data, model)
        if as_json:
            typer.echo(orjson.dumps({"runtimes": rows}, option=orjson.OPT_INDENT_2).decode())
            return
        table = Table(title="each against ONNX Runtime fp32 on the CPU", title_justify="left")
        for column in ("runs on", "ms a frame", "boxes", "F1 at IoU 0.5", "median px", "why not"):
            table.add_column(column, justify="left" if column in ("runs on", "why not") else "right")
        for row in rows:
            table.add_row(row["name"], *_cells(row), row["problem"] or "")
        Console().print(table)

    app.add_typer(engine, name="engine")


def _cells(row: dict[str, Any]) -> tuple[str, str, str, str]:
    if row["problem"]:
        return "-", "-", "-", "-"
    return (
        f"{row['milliseconds_per_frame']:.1f}",
        str(row["boxes"]),
        f"{row['f1']:.3f}",
        f"{row['median_pixels']:.2f}",
    )


def build_engines(runtime: Any, model: Path | None, batch: int, img_size: int | None) -> list[Path]:
    """Open the model for one frame (the self-test) and for a batch with and without the pitch: opening is what builds.

    Gives the folders, whose names are the keys.
    """
    from firsttouch.detect import BUNDLED_MODEL
    from firsttouch.detect.native import ALL_OUTPUTS, BOX_OUTPUTS, native_canvas
    from firsttouch.detect.ort import engine_folder
    from firsttouch.detect.session import ModelFile

    file = ModelFile.read(model or BUNDLED_MODEL)
    canvas = native_canvas(file, img_size).shape
    folders = []
    for frames, outputs in ((1, ALL_OUTPUTS), (batch, ALL_OUTPUTS), (batch, BOX_OUTPUTS)):
        shape = (frames, *canvas)
        runtime.open(file, outputs, shape, "fp16")
        folders.append(engine_folder(runtime.cache_dir, file, outputs, shape, "fp16"))
    return folders


def compare_runtimes(data: Path, model: Path | None = None) -> list[dict[str, Any]]:
    """One row for each runtime and precision: time and agreement, or why it does not work here."""
    from firsttouch.detect import BUNDLED_MODEL
    from firsttouch.detect.openvino import OpenVino
    from firsttouch.detect.ort import OrtCpu, OrtCuda, OrtTensorRt, OrtTensorRtRtx
    from firsttouch.detect.planes import read_picture
    from firsttouch.detect.pytorch import Torch

    path = model or BUNDLED_MODEL
    files = sorted(f for f in data.rglob("*") if f.suffix.lower() in (".jpg", ".jpeg", ".png"))[:PICTURES]
    pictures = [p for f in files if (p := read_picture(f)) is not None]
    if not pictures:
        raise SettingsError(f"no pictures under {data}", hint="give a folder of JPEG or PNG files")
    cache_dir = Path("~/.cache/firsttouch").expanduser()
    tried: list[tuple[Runtime, str, str]] = [
        (OrtCpu(), "fp32", ".onnx"),
        (OrtCpu(), "int8", ".int8.onnx"),
        (OpenVino(), "fp32", ".onnx"),
        (OpenVino(), "int8", ".int8.onnx"),
        (OpenVino(), "bf16", ".onnx"),
        (OrtCuda(), "fp32", ".onnx"),
        (OrtCuda(), "fp16", ".fp16.onnx"),
        (OrtTensorRt(cache_dir), "fp16", ".onnx"),
        (OrtTensorRtRtx(cache_dir), "fp32", ".onnx"),
        (OrtTensorRtRtx(cache_dir), "fp16", ".fp16.onnx"),
        (Torch("cpu"), "fp32", ".onnx"),
        (Torch("cuda"), "fp16", ".onnx"),
    ]
    rows: list[dict[str, Any]] = []
    reference = None
    for runtime, precision, suffix in tried:
        row, found = _try(runtime, precision, path.with_suffix(suffix), pictures, reference)
        reference = reference if reference is not None else found
        rows.append(row)
    return rows


def _try(
    runtime: Runtime, precision: str, path: Path, pictures: list[Any], reference: Any
) -> tuple[dict[str, Any], Any]:
    import numpy as np

    from firsttouch.detect.native import NativeDetector
    from firsttouch.detect.planes import planes_of_picture
    from firsttouch.detect.session import ModelFile, milliseconds_per_run
    from firsttouch.errors import FirsttouchError
    from firsttouch.evaluate import labels_of
    from firsttouch.measure import agreement, match

    row: dict[str, Any] = {"name": f"{runtime.name} {runtime.device} {precision}", "problem": None}
    problem = runtime.problem(precision)
    if problem is None and not path.exists():
        return row | {"problem": f"no file {path.name}"}, None
    if problem is not None:
        return row | {"problem": problem.reason}, None
    try:
        detector = NativeDetector(
            ModelFile.read(path), lambda m, o, s: runtime.open(m, o, s, precision), confidence=0.3
        )
        looks = []
        for number, picture in enumerate(pictures):
            made = detector.prepare(*planes_of_picture(picture))
            height, width = picture.shape[:2]
            looks += detector.detect([made], [number], width, height, pitch=True)
        session, _ = detector.opened(pitch=True)
        milliseconds = milliseconds_per_run(session, made[None], runs=8)
    except FirsttouchError as exc:
        return row | {"problem": str(exc)}, None
    found = labels_of([(d.class_id, d.xyxy, d.confidence) for d in looks])
    against = found if reference is None else reference
    pairs = match(found, against)
    distance = np.abs(found.xyxy[pairs[:, 0]] - against.xyxy[pairs[:, 1]]).max(axis=1, initial=0)
    return (
        row
        | {
            "milliseconds_per_frame": milliseconds,
            "boxes": len(found.row),
            "f1": agreement(found, against).f1,
            "median_pixels": float(np.median(distance)) if len(distance) else 0.0,
        },
        found,
    )

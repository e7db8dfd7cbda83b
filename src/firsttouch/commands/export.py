"""`firsttouch export`: the package of the subnet's public track, one file and one model."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import typer

from firsttouch import subnet
from firsttouch.errors import ModelMismatch, ModelNotFound, SettingsError
from firsttouch.settings import load

MAX_PACKAGE_BYTES = 30 * 1024 * 1024
"""The judge refuses a repository that is larger."""


def register(app: typer.Typer) -> None:
    @app.command()
    def export(
        directory: Annotated[Path, typer.Argument(help="made when it is not there")],
        model: Annotated[Path | None, typer.Option(help="an ONNX file of our own layout; the bundled one")] = None,
    ) -> None:
        """Write miner.py and its ONNX model: the package that the public track wants, ready to push."""
        for path in export_package(directory, model or load().model_player):
            typer.echo(f"wrote {path} ({path.stat().st_size / 1e6:.2f} MB)")


def export_package(directory: Path, model: Path | None = None) -> list[Path]:
    """The files written. Raises ModelNotFound, ModelMismatch (the Miner cannot run it, or it is too large)."""
    from firsttouch.detect import BUNDLED_MODEL

    source = model or BUNDLED_MODEL
    if not source.is_file():
        raise ModelNotFound(f"there is no model {source}")
    code = Path(subnet.__file__)
    size = source.stat().st_size + code.stat().st_size
    if size > MAX_PACKAGE_BYTES:
        raise ModelMismatch(f"{source.name}: a package of {size} bytes is more than {MAX_PACKAGE_BYTES}")
    if directory.exists() and not directory.is_dir():
        raise SettingsError(f"{directory} is not a directory", hint="name a new one")
    directory.mkdir(parents=True, exist_ok=True)
    written = [directory / "miner.py", directory / subnet.MODEL_FILE]
    shutil.copyfile(code, written[0])
    shutil.copyfile(source, written[1])
    try:
        subnet.Miner(directory)
    except Exception as exc:  # the runtime's exceptions have no common base but Exception
        written[1].unlink()
        raise ModelMismatch(f"{source.name} is not a model the Miner can run: {exc}") from exc
    return written

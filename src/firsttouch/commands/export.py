"""`firsttouch export`: the package of the subnet's public track, one file and one model."""

from __future__ import annotations

import ast
import shutil
from pathlib import Path
from typing import Annotated

import typer

from firsttouch import camera, homography, pitch, subnet
from firsttouch.detect import roles
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
    code = miner_source()
    size = source.stat().st_size + len(code.encode())
    if size > MAX_PACKAGE_BYTES:
        raise ModelMismatch(f"{source.name}: a package of {size} bytes is more than {MAX_PACKAGE_BYTES}")
    if directory.exists() and not directory.is_dir():
        raise SettingsError(f"{directory} is not a directory", hint="name a new one")
    directory.mkdir(parents=True, exist_ok=True)
    written = [directory / "miner.py", directory / subnet.MODEL_FILE]
    written[0].write_text(code)
    shutil.copyfile(source, written[1])
    try:
        subnet.Miner(directory)
    except Exception as exc:  # the runtime's exceptions have no common base but Exception
        written[1].unlink()
        raise ModelMismatch(f"{source.name} is not a model the Miner can run: {exc}") from exc
    return written


PARTS = (homography, camera, pitch, roles, subnet)
"""What `subnet` needs of ours, each after what it imports itself."""
ALONE = """from __future__ import annotations

import sys
import types

# whoever loads this file need not have named it in sys.modules, where dataclasses look for it
sys.modules.setdefault(__name__, types.ModuleType(__name__))
"""


def miner_source() -> str:
    """All parts as one file: their sources without the imports of one another."""
    return "\n\n".join([f'"""{subnet.__doc__}"""', ALONE, *(_alone(Path(str(part.__file__))) for part in PARTS)])


def _alone(file: Path) -> str:
    source = file.read_text()
    lines = source.splitlines(keepends=True)
    for node in ast.parse(source).body:
        ours = isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("firsttouch", "__future__")
        if ours or (isinstance(node, ast.Expr) and node.lineno == 1):  # the module's own docstring
            lines[node.lineno - 1 : node.end_lineno] = [""] * ((node.end_lineno or node.lineno) - node.lineno + 1)
    return "".join(lines).strip() + "\n"

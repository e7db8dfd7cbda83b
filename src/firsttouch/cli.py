"""The `firsttouch` command: arguments in; text, JSON, video or report out."""

from __future__ import annotations

import importlib
import logging
import pkgutil
import sys

import typer

from . import __version__, commands
from .errors import DeadlineExceeded, FirsttouchError, MediaError, ModelError, SettingsError, SourceError

EXIT_CODES: tuple[tuple[type[FirsttouchError], int], ...] = (
    (SettingsError, 2),
    (SourceError, 3),
    (MediaError, 4),
    (DeadlineExceeded, 5),
    (ModelError, 6),
)

app = typer.Typer(
    help="Answers a remote football clip before it could have been downloaded.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"firsttouch {__version__}")
        raise typer.Exit


@app.callback()
def common(
    version: bool = typer.Option(False, "--version", callback=_show_version, is_eager=True, help="print the version"),
    verbose: bool = typer.Option(False, "--verbose", "-v", help="log what happens, to stderr"),
) -> None:
    """What every command takes."""
    logging.basicConfig(
        level=logging.DEBUG if verbose else logging.WARNING,
        format="%(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )


for _module in sorted(pkgutil.iter_modules(commands.__path__), key=lambda module: module.name):
    importlib.import_module(f"{commands.__name__}.{_module.name}").register(app)


def main() -> None:
    """Run; errors end in a hint line and an exit code of their own."""
    try:
        app()
    except FirsttouchError as error:
        print(f"{error.name}: {error}\nhint: {error.hint}", file=sys.stderr)
        sys.exit(next((code for kind, code in EXIT_CODES if isinstance(error, kind)), 1))
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()

"""`firsttouch serve`: the service."""

from __future__ import annotations

from typing import Annotated

import typer

from firsttouch.settings import Settings, load

LOOPBACK = "127.0.0.1"
EVERYWHERE = "0.0.0.0"
DRAIN_SECONDS = 30
KEEP_ALIVE_SECONDS = 75

EXAMPLES = """
Examples:

    VERIFY_ENABLED=0 BLACKLIST_ENABLED=0 firsttouch serve

    WALLET_NAME=miner HOTKEY_NAME=default firsttouch serve --host 0.0.0.0 --port 7999

    firsttouch sign http://127.0.0.1:7999 --url https://example.org/clip.mp4
"""


def register(app: typer.Typer) -> None:
    @app.command(epilog=EXAMPLES)
    def serve(
        host: Annotated[
            str | None,
            typer.Option(help="address to bind to; when strangers may ask, loopback unless given", show_default=False),
        ] = None,
        port: Annotated[int, typer.Option(min=0, max=65535)] = 7999,
        profile: Annotated[str | None, typer.Option(help="guide, extreme, balanced, complete or accurate")] = None,
        engine: Annotated[str | None, typer.Option(help="on or off: TensorRT engines, on a GPU that has them")] = None,
    ) -> None:
        """Answer challenges over HTTP until SIGTERM; then finish what was begun."""
        settings = load({"tensorrt": engine}, profile=profile)
        run(settings, host or default_host(settings), port)


def default_host(settings: Settings) -> str:
    """Everywhere only when nobody can ask who may not."""
    return EVERYWHERE if settings.verify_enabled and settings.blacklist_enabled else LOOPBACK


def run(settings: Settings, host: str, port: int) -> None:
    """Serve until a signal. Raises SettingsError before anything is bound."""
    import uvicorn

    from firsttouch.server import create_app

    app = create_app(settings)
    uvicorn.run(
        app,
        host=host,
        port=port,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=DRAIN_SECONDS,
    )

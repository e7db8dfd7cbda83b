"""`firsttouch sign`: a signed challenge, for trying a service out."""

from __future__ import annotations

import shlex
from datetime import UTC, datetime
from typing import Annotated

import orjson
import typer

from firsttouch.auth import Key, Scheme
from firsttouch.clock import wall_ns
from firsttouch.errors import SettingsError
from firsttouch.settings import load
from firsttouch.wallet import own_hotkey

EXAMPLES = """
Examples:

    firsttouch sign http://127.0.0.1:7999 --url https://example.org/clip.mp4 | sh

    firsttouch sign http://127.0.0.1:7999 --url https://example.org/clip.mp4 --miner 5F... --scheme blake2b

The key is made for this one request and thrown away, so the service must have BLACKLIST_ENABLED=0 to accept it: no
metagraph knows it. With --seed the same key comes again, and can be put into a test's metagraph.
"""


def register(app: typer.Typer) -> None:
    @app.command(epilog=EXAMPLES)
    def sign(
        service: Annotated[str, typer.Argument(help="where the service is")] = "http://127.0.0.1:7999",
        url: Annotated[str, typer.Option(help="the clip")] = "https://example.org/clip.mp4",
        challenge_id: Annotated[str, typer.Option()] = "test-1",
        miner: Annotated[
            str | None, typer.Option(help="the miner's hotkey; ours when left out", show_default=False)
        ] = None,
        scheme: Annotated[str, typer.Option(help="fiber or blake2b")] = "fiber",
        seed: Annotated[
            str | None, typer.Option(help="64 hex digits of the caller's key; a throw-away one when left out")
        ] = None,
    ) -> None:
        """Print a curl command that sends a challenge signed now; it is good for two minutes, once."""
        typer.echo(curl_command(service, url, challenge_id, miner or _our_hotkey(), scheme, seed))


def curl_command(service: str, url: str, challenge_id: str, miner: str, scheme: str, seed: str | None = None) -> str:
    """The command, one line, quoted for sh. Raises SettingsError for an unknown scheme or a malformed seed."""
    schemes: dict[str, Scheme] = {"fiber": "fiber", "blake2b": "blake2b"}
    if scheme not in schemes:
        raise SettingsError(f"--scheme {scheme}: must be fiber or blake2b")
    body = challenge_body(url, challenge_id)
    headers = _key(seed).headers(body, miner, scheme=schemes[scheme]) | {"content-type": "application/json"}
    words = ["curl", "-sS", "--compressed", f"{service.rstrip('/')}/soccer/challenge"]
    for name, value in headers.items():
        words += ["-H", f"{name}: {value}"]
    return shlex.join([*words, "--data-binary", body.decode()])


def challenge_body(url: str, challenge_id: str) -> bytes:
    created = datetime.fromtimestamp(wall_ns() / 1e9, UTC).isoformat(timespec="milliseconds")
    return orjson.dumps({"challenge_id": challenge_id, "type": "gsr", "video_url": url, "created_at": created})


def _key(seed: str | None) -> Key:
    if seed is None:
        return Key.throw_away()
    try:
        raw = bytes.fromhex(seed.removeprefix("0x"))
    except ValueError:
        raw = b""
    if len(raw) != 32:
        raise SettingsError("--seed must be 64 hex digits")
    return Key.from_seed(raw)


def _our_hotkey() -> str:
    found = own_hotkey(load())
    if found is None:
        raise SettingsError("our own hotkey is not known", hint="give --miner, or set MINER_HOTKEY or WALLET_NAME")
    return found

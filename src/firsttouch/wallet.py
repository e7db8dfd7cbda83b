"""Our own hotkey's address. The secret in a wallet is never read."""

from __future__ import annotations

import re
from pathlib import Path

import orjson

from firsttouch.auth import decode_ss58
from firsttouch.errors import RequestUnauthorized, SettingsError
from firsttouch.settings import Settings

WALLETS = Path("~/.bittensor/wallets")
_NAME = re.compile(r"[^/\0]+")


def own_hotkey(settings: Settings, wallets: Path = WALLETS) -> str | None:
    """MINER_HOTKEY, or the address in the wallet's hotkey file; None when neither is there.

    Raises SettingsError for an address that is none, or a hotkey file that cannot be read.
    """
    if settings.miner_hotkey is not None:
        return _checked(settings.miner_hotkey, "MINER_HOTKEY")
    folder = wallets.expanduser() / settings.wallet_name / "hotkeys"
    for name in (f"{settings.hotkey_name}pub.txt", settings.hotkey_name):
        path = folder / name
        if not (_NAME.fullmatch(settings.hotkey_name) and path.is_file()):
            continue
        try:
            found = orjson.loads(path.read_bytes())
            return _checked(str(found["ss58Address"]), str(path))
        except (OSError, KeyError, TypeError, orjson.JSONDecodeError) as exc:
            raise SettingsError(
                f"the hotkey file {path} cannot be read: {type(exc).__name__}",
                hint="set MINER_HOTKEY to the hotkey's address",
            ) from exc
    return None


def _checked(address: str, where: str) -> str:
    try:
        decode_ss58(address)
    except RequestUnauthorized as exc:
        raise SettingsError(f"{where}: {exc}", hint="it must be an SS58 address of format 42") from exc
    return address

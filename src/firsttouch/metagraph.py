"""Stakes from the chain: a metagraph kept in memory and on disk, read again in the background.

The chain is read by a child process (`python -m firsttouch.metagraph`), so that neither the client's decoding
nor a chain that hangs is ever felt by a request; the child is killed when it overstays. A chain that is down
changes nothing: the metagraph read last, or the one on disk, is used on. The client is
`async-substrate-interface` (MIT, kept by the chain's own makers), an extra: `pip install firsttouch[chain]`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
import tempfile
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson

from firsttouch.auth import decode_ss58, encode_ss58
from firsttouch.clock import wall_ns
from firsttouch.errors import FirsttouchError, RuntimeUnavailable, SettingsError, SourceRefused, SourceTimeout

log = logging.getLogger(__name__)

NETWORKS = {
    "finney": "wss://entrypoint-finney.opentensor.ai:443",
    "archive": "wss://archive.chain.opentensor.ai:443",
    "test": "wss://test.finney.opentensor.ai:443",
    "local": "ws://127.0.0.1:9944",
}
REFRESH_SECONDS = 600.0  # an epoch is 360 blocks of 12 s; stakes that matter change by the hour
RETRY_SECONDS = 30.0
READ_TIMEOUT_SECONDS = 120.0
RAO_PER_TAO = 1_000_000_000
MAX_ANSWER_BYTES = 16_000_000
EXIT_NO_CLIENT = 3

ReadStakes = Callable[[], Awaitable[Mapping[str, float]]]


@dataclass(frozen=True, slots=True)
class Metagraph:
    """Stake by hotkey, and when it was read (seconds since 1970)."""

    stakes: Mapping[str, float]
    read_at: float

    def to_json(self) -> bytes:
        return orjson.dumps({"read_at": self.read_at, "stakes": dict(self.stakes)})

    @classmethod
    def from_json(cls, text: bytes) -> Metagraph:
        """Raises ValueError when the text is not one of ours."""
        try:
            found = orjson.loads(text)
            return cls({str(k): float(v) for k, v in found["stakes"].items()}, float(found["read_at"]))
        except (KeyError, TypeError, AttributeError, ValueError) as exc:
            raise ValueError("not a kept metagraph") from exc


@dataclass(slots=True)
class Stakes:
    """What requests are checked against: `stakes(hotkey)`; `await stakes.keep_fresh()` runs for ever."""

    read: ReadStakes
    path: Path | None = None
    refresh_seconds: float = REFRESH_SECONDS
    retry_seconds: float = RETRY_SECONDS
    metagraph: Metagraph | None = None
    failures: int = 0

    def __call__(self, hotkey: str) -> float | None:
        return None if self.metagraph is None else self.metagraph.stakes.get(hotkey)

    @property
    def age_seconds(self) -> float | None:
        return None if self.metagraph is None else wall_ns() / 1e9 - self.metagraph.read_at

    def load(self) -> bool:
        """Begin with the metagraph on disk, when there is a readable one."""
        try:
            self.metagraph = Metagraph.from_json(self.path.read_bytes()) if self.path else None
        except (OSError, ValueError) as exc:
            log.warning("no metagraph on disk: %s", exc)
        return self.metagraph is not None

    async def refresh(self) -> bool:
        """Read the chain once; on failure the old metagraph stays."""
        try:
            stakes = await self.read()
        except FirsttouchError as exc:
            self.failures += 1
            log.warning("the chain could not be read, the old metagraph stays: %s (%s)", exc, exc.hint)
            return False
        self.metagraph = Metagraph(stakes, wall_ns() / 1e9)
        self.failures = 0
        if self.path is not None:
            try:
                await asyncio.to_thread(_write_whole, self.path, self.metagraph.to_json())
            except OSError as exc:
                log.warning("the metagraph could not be kept on disk: %s", exc)
        return True

    async def keep_fresh(self) -> None:
        while True:
            pause = self.refresh_seconds if await self.refresh() else self.retry_seconds
            await asyncio.sleep(pause)


def chain_url(network: str, address: str | None) -> str:
    """SUBTENSOR_ADDRESS, or the address of SUBTENSOR_NETWORK."""
    if address:
        return address
    if network not in NETWORKS:
        raise SettingsError(f"SUBTENSOR_NETWORK={network}: must be {', '.join(NETWORKS)}, or set SUBTENSOR_ADDRESS")
    return NETWORKS[network]


async def read_in_child(url: str, netuid: int, timeout_seconds: float = READ_TIMEOUT_SECONDS) -> Mapping[str, float]:
    """A subnet's stakes, read by a child. Raises SourceRefused, SourceTimeout, RuntimeUnavailable."""
    command = (sys.executable, "-m", "firsttouch.metagraph", url, str(netuid))
    pipe, nothing = asyncio.subprocess.PIPE, asyncio.subprocess.DEVNULL
    child = await asyncio.create_subprocess_exec(*command, stdin=nothing, stdout=pipe, stderr=pipe)
    try:
        async with asyncio.timeout(timeout_seconds):
            out, err = await child.communicate()
    except TimeoutError as exc:
        raise SourceTimeout(f"the chain did not answer in {timeout_seconds:g} s: {url}") from exc
    finally:
        if child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            await child.wait()
    if child.returncode == EXIT_NO_CLIENT:
        raise RuntimeUnavailable("no chain client is installed", hint="pip install 'firsttouch[chain]'")
    if child.returncode != 0 or len(out) > MAX_ANSWER_BYTES:
        last = " ".join(err.decode(errors="replace").strip().splitlines()[-1:])
        raise SourceRefused(f"the chain could not be read at {url}: {last}", hint="check SUBTENSOR_ADDRESS")
    return Metagraph.from_json(out).stakes


def stakes_of(answer: Mapping[str, object]) -> dict[str, float]:
    """Stake in tao by hotkey, from the answer of the runtime call SubnetInfoRuntimeApi.get_metagraph."""
    hotkeys, stakes = answer["hotkeys"], answer["total_stake"]
    if not isinstance(hotkeys, Sequence) or not isinstance(stakes, Sequence) or len(hotkeys) != len(stakes):
        raise ValueError("the metagraph's columns do not fit")
    return {_hotkey(key): _rao(stake) / RAO_PER_TAO for key, stake in zip(hotkeys, stakes, strict=True)}


def _hotkey(key: object) -> str:
    """Clients decode an account id as an address, as hex, or as 32 numbers (sometimes inside a tuple)."""
    if isinstance(key, str) and key.startswith("0x"):
        return encode_ss58(bytes.fromhex(key[2:]))
    if isinstance(key, str):
        return encode_ss58(decode_ss58(key))
    if isinstance(key, tuple | list) and len(key) == 1:
        return _hotkey(key[0])
    raw = bytes(key)  # type: ignore[call-overload]
    if len(raw) != 32:
        raise ValueError(f"an account id has 32 bytes, got {len(raw)}")
    return encode_ss58(raw)


def _rao(stake: object) -> int:
    return int(stake) if isinstance(stake, int | str) else int(getattr(stake, "value", 0))


def _write_whole(path: Path, data: bytes) -> None:
    """All of it or nothing: a crash in between leaves the old file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.name, delete=False) as new:
        try:
            new.write(data)
            new.flush()
            os.fsync(new.fileno())
            os.replace(new.name, path)
        except BaseException:
            os.unlink(new.name)
            raise


def main(url: str, netuid: int) -> int:
    """The child: read once, print one JSON line."""
    try:
        from async_substrate_interface import SubstrateInterface  # type: ignore[import-not-found,unused-ignore]
    except ImportError:
        return EXIT_NO_CLIENT
    with SubstrateInterface(url, ss58_format=42, max_retries=2, retry_timeout=30.0) as chain:
        answer = chain.runtime_call("SubnetInfoRuntimeApi", "get_metagraph", [netuid])
    answer = getattr(answer, "value", answer)
    if answer is None:
        print(f"there is no subnet {netuid}", file=sys.stderr)
        return 1
    sys.stdout.buffer.write(Metagraph(stakes_of(answer), wall_ns() / 1e9).to_json())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2])))

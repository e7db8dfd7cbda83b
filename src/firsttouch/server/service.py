"""What lives as long as the app: the engine, the desk, the gate and the metagraph, made from the settings."""

from __future__ import annotations

import asyncio
import functools
import gc
import logging
from dataclasses import dataclass, field

from firsttouch import metagraph
from firsttouch.auth import Gate, Nonces, Scheme
from firsttouch.clock import Deadline, Stopwatch
from firsttouch.engine import Engine, Job
from firsttouch.errors import SettingsError
from firsttouch.metagraph import Stakes
from firsttouch.netpolicy import Policy
from firsttouch.pipeline import Analysis
from firsttouch.server.desk import Cage, Desk
from firsttouch.server.metrics import Metrics
from firsttouch.server.writing import Challenges
from firsttouch.settings import Settings
from firsttouch.wallet import own_hotkey

log = logging.getLogger(__name__)

LEAST_RESERVE_SECONDS = 0.05
"""Kept at least, for crossing the process border and writing and compressing 750 frames (35 ms on an idle core)."""

FIRST_RESERVE_SECONDS = 0.1
"""Kept until this machine has shown how long it takes."""

LONGEST_RESERVE_SECONDS = 0.25
RESERVE_DECAY = 0.95
"""The slowest answer of late is what the next one must reckon with: it is forgotten by a twentieth a computation, for
however many callers that is written."""

LONGEST_SECONDS = 230.0
"""A caller waits 240 s at most."""

FIRST_FRAME_SECONDS = 30.0
NONCE_SWEEP_SECONDS = 60.0


@dataclass(slots=True)
class Service:
    """One service. `start` and `stop` are called by the app's lifespan."""

    settings: Settings
    gate: Gate
    engine: Cage
    desk: Desk
    policy: Policy
    stakes: Stakes | None
    metrics: Metrics = field(default_factory=Metrics)
    draining: bool = False
    challenges: Challenges = field(default_factory=Challenges)
    reserve_seconds: float = FIRST_RESERVE_SECONDS
    """What is kept of each budget for writing the answer."""
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)

    @classmethod
    def of(cls, settings: Settings, engine: Cage | None = None) -> Service:
        """Raises SettingsError when requests are to be verified and our own hotkey is not known."""
        stakes = stakes_of(settings) if settings.blacklist_enabled else None
        engine = engine or Engine(settings)
        service = cls(
            settings=settings,
            gate=gate_of(settings, stakes),
            engine=engine,
            desk=Desk(engine, queue_length=settings.queue_length),
            policy=Policy(allow_private=settings.allow_private_origins, allowed_hosts=settings.allowed_origins),
            stakes=stakes,
        )
        service._watch()
        return service

    async def start(self) -> None:
        for line in warnings_of(self.settings):
            log.warning(line)
        gc.collect()
        gc.freeze()  # what was imported stays: the collector would walk over it while an answer is written
        self.engine.start()
        self._tasks.append(asyncio.create_task(self._sweep()))
        if self.stakes is not None:
            if self.settings.load_old_nodes:
                await asyncio.to_thread(self.stakes.load)
            if self.settings.refresh_nodes:
                self._tasks.append(asyncio.create_task(self.stakes.keep_fresh()))

    async def stop(self) -> None:
        self.draining = True
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.engine.close()

    @property
    def available(self) -> bool:
        return not self.draining and self.desk.available

    def retry_after_seconds(self) -> float:
        """When the next engine is free, as far as we know; a start takes some seconds."""
        return self.desk.wait_seconds if self.engine.ready else 5.0

    def job(
        self,
        arrived: Stopwatch,
        url: str,
        *,
        seconds: float | None = None,
        partial: bool = True,
        every_frame: bool = False,
        challenge_id: str | None = None,
        pictures: tuple[tuple[int, str | None, bytes], ...] = (),
    ) -> Job:
        """A job whose deadline counts from the arrival of its request."""
        budget = seconds if seconds is not None else self.settings.deadline_seconds
        total = LONGEST_SECONDS if budget is None else budget - self.reserve_seconds
        if budget is not None and self.settings.start_budget_after_first_frame:
            total = min(LONGEST_SECONDS, FIRST_FRAME_SECONDS + budget)
        deadline = Deadline(arrived.started + total, arrived.clock)
        return Job(url, deadline, partial, every_frame, challenge_id, pictures, seconds, self.reserve_seconds)

    def wrote(self, job: Job) -> None:
        """The answer to a job is written. What passed since its deadline is what the next jobs keep for that.

        Not the time until it is sent: a caller that reads slowly must not shorten everybody's budget.
        """
        after = job.deadline.clock() - job.deadline.moment
        self.metrics.late_seconds.observe(max(0.0, after - job.reserve_seconds))
        self.reserve_seconds = min(max(after, self.reserve_seconds), LONGEST_RESERVE_SECONDS)

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(NONCE_SWEEP_SECONDS)
            self.gate.nonces.forget_expired()

    def _done(self, analysis: Analysis) -> None:
        self.reserve_seconds = max(self.reserve_seconds * RESERVE_DECAY, LEAST_RESERVE_SECONDS)
        self.metrics.analyzed(analysis)
        stages = {name: round(seconds, 4) for name, seconds in analysis.stage_seconds.items()}
        log.info(
            "computed",
            extra={
                "stage_seconds": stages,
                "frames": len(analysis.frames),
                "frames_detected": analysis.frames_detected,
                "bytes_fetched": analysis.bytes_fetched,
                "stopped_by": analysis.stopped_by,
            },
        )

    def _watch(self) -> None:
        watch, engine, desk = self.metrics.watch, self.engine, self.desk
        desk.on_done = self._done
        watch("firsttouch_queue_length", "Challenges that wait", lambda: desk.queued)
        watch("firsttouch_running", "Challenges being computed", lambda: desk.running)
        watch("firsttouch_ready", "1 when a warm engine is there", lambda: engine.ready)
        watch("firsttouch_engines_idle", "Warm engines without a job", lambda: engine.idle)
        watch("firsttouch_engine_starts", "Engines started so far", lambda: engine.stats.started)
        watch("firsttouch_shared", "Requests that shared another's computation", lambda: desk.joined)
        watch("firsttouch_reserve_seconds", "Kept for writing the answer", lambda: self.reserve_seconds)
        watch("firsttouch_nonces", "Nonces remembered", lambda: len(self.gate.nonces))
        for ending in ("overstayed", "ate too much memory", "grew too large", "died"):
            name = f"firsttouch_engine_restarts_{ending.replace(' ', '_')}"
            read = functools.partial(_restarts, engine, ending)
            watch(name, f"Engines replaced because they {ending}", read)
        if self.stakes is not None:
            stakes = self.stakes
            watch("firsttouch_metagraph_age_seconds", "Age of the stakes", lambda: stakes.age_seconds or -1.0)


def _restarts(engine: Cage, ending: str) -> float:
    return engine.stats.restarts.get(ending, 0)


def gate_of(settings: Settings, stakes: Stakes | None) -> Gate:
    own = own_hotkey(settings)
    if settings.verify_enabled and own is None:
        raise SettingsError(
            "VERIFY_ENABLED=1 and our own hotkey is not known: "
            f"there is no wallet {settings.wallet_name!r} with a hotkey {settings.hotkey_name!r}",
            hint="set WALLET_NAME and HOTKEY_NAME, or MINER_HOTKEY; "
            "for local work VERIFY_ENABLED=0 and BLACKLIST_ENABLED=0",
        )
    schemes: tuple[Scheme, ...] = ("fiber", "blake2b")
    if settings.signature_scheme != "both":
        schemes = (settings.signature_scheme,)
    return Gate(own, stakes, settings.min_stake_threshold, schemes, settings.verify_enabled, Nonces())


def stakes_of(settings: Settings) -> Stakes:
    url = metagraph.chain_url(settings.subtensor_network, settings.subtensor_address)
    name = f"metagraph-{settings.subtensor_network}-{settings.netuid}.json".replace("/", "_")
    path = settings.cache_dir.expanduser() / name
    return Stakes(functools.partial(metagraph.read_in_child, url, settings.netuid), path)


def warnings_of(settings: Settings) -> list[str]:
    """What an operator must see at the start."""
    lines = [str(note) for note in settings.notes()]
    if not settings.verify_enabled:
        lines.append("VERIFY_ENABLED=0: ANYONE WHO REACHES THIS PORT CAN GIVE IT WORK")
    if not settings.blacklist_enabled:
        lines.append("BLACKLIST_ENABLED=0: CALLERS NEED NO STAKE")
    if settings.allow_private_origins:
        lines.append("ALLOW_PRIVATE_ORIGINS=1: CALLERS CAN MAKE THIS SERVICE FETCH FROM YOUR OWN NETWORK")
    return lines


def is_open(settings: Settings) -> bool:
    """Whether a stranger may ask: then the service binds to loopback unless it is told otherwise."""
    return not (settings.verify_enabled and settings.blacklist_enabled)

"""Time: the deadline and the stage stopwatch. No other module reads a clock."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

Clock = Callable[[], float]
"""A monotonic clock in seconds; tests hand in their own."""

THREAD_CLOCK: Clock = time.thread_time
"""Seconds this thread has computed: a short test is not disturbed by what else the machine does."""


def wall_ns() -> int:
    """Nanoseconds since 1970, for what other machines also date: nonces, created_at, files. It may jump."""
    return time.time_ns()


@dataclass(frozen=True, slots=True)
class Deadline:
    """An absolute moment on a monotonic clock; `math.inf` when there is none."""

    moment: float
    clock: Clock = time.monotonic

    @classmethod
    def after(cls, seconds: float | None, clock: Clock = time.monotonic) -> Deadline:
        """The deadline `seconds` from now; None means never."""
        return cls(math.inf if seconds is None else clock() + seconds, clock)

    def remaining(self) -> float:
        """Seconds left, never negative, `math.inf` without a deadline."""
        return max(0.0, self.moment - self.clock())

    @property
    def passed(self) -> bool:
        return self.clock() >= self.moment

    def earlier(self, seconds: float) -> Deadline:
        """The same deadline, `seconds` sooner: a reserve for what comes after."""
        return Deadline(self.moment - seconds, self.clock)


@dataclass(slots=True)
class Stopwatch:
    """Seconds per stage, summed over threads, and moments since the start."""

    clock: Clock = time.monotonic
    started: float = field(init=False)
    seconds: dict[str, float] = field(default_factory=dict)
    cpu_seconds: dict[str, float] = field(default_factory=dict)
    """What the threads inside the stages have computed, without what they waited."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self.started = self.clock()

    @property
    def elapsed(self) -> float:
        """Seconds since the stopwatch was made."""
        return self.clock() - self.started

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time spent inside to stage `name`; any thread may call it."""
        begun, computed = self.clock(), time.thread_time()
        try:
            yield
        finally:
            with self._lock:
                self.cpu_seconds[name] = self.cpu_seconds.get(name, 0.0) + time.thread_time() - computed
            self.add(name, self.clock() - begun)

    def add(self, name: str, seconds: float) -> None:
        with self._lock:
            self.seconds[name] = self.seconds.get(name, 0.0) + seconds

    def mark(self, name: str) -> None:
        """Keep the moment of the first call for `name`, as seconds since the start."""
        with self._lock:
            self.seconds.setdefault(name, self.clock() - self.started)

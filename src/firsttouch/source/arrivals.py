"""How fast bytes have come lately: a plain value of moments and counts, without a clock."""

from __future__ import annotations

from collections import deque
from itertools import islice

RATE_WINDOW_SECONDS = 0.5
LEAST_SECONDS = 0.005
"""Over less time the counts say how the system hands bytes over, not how the link brings them."""


class Arrivals:
    """Counts of bytes by the moment they came, within the last half second in which any came. Moments in seconds."""

    def __init__(self) -> None:
        self._counts: deque[tuple[float, int]] = deque()

    def add(self, now: float, count: int) -> None:
        if self._counts and now - self._counts[-1][0] > RATE_WINDOW_SECONDS / 2:
            self._counts.clear()  # the link was idle: that time says nothing about it
        self._counts.append((now, count))
        while now - self._counts[0][0] > RATE_WINDOW_SECONDS:
            self._counts.popleft()

    def leave_out_silence(self, now: float) -> None:
        """The time since the last byte was a round trip, not the link's pace."""
        if self._counts:
            silence = now - self._counts[-1][0]
            self._counts = deque((moment + silence, count) for moment, count in self._counts)

    def flowing(self, now: float, within_seconds: float) -> bool:
        """Bytes have come within the last so many seconds."""
        return bool(self._counts) and now - self._counts[-1][0] < within_seconds

    @property
    def bytes_per_second(self) -> float | None:
        """None before there is enough to tell."""
        if len(self._counts) < 2:
            return None
        span = self._counts[-1][0] - self._counts[0][0]
        # The first entry only marks where the time begins.
        came = sum(count for _, count in islice(self._counts, 1, None))
        return came / span if span > LEAST_SECONDS else None

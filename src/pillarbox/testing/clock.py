"""A clock that stands still until a test moves it."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable


class ManualTimer:
    """A timer of a ManualClock."""

    def __init__(self) -> None:
        self.is_cancelled = False

    def cancel(self) -> None:
        """It will not fire."""
        self.is_cancelled = True


class ManualClock:
    """See pillarbox.clock.Clock. `advance(seconds)` moves both clocks and fires what came due, in order."""

    def __init__(self, now: float = 1_800_000_000.0) -> None:
        self._now = now
        self._elapsed = 1000.0
        self._timers: list[tuple[float, int, ManualTimer, Callable[[], None]]] = []
        self._numbers = itertools.count()

    def time(self) -> float:
        """Unix seconds."""
        return self._now

    def monotonic(self) -> float:
        """Seconds that only grow."""
        return self._elapsed

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> ManualTimer:
        """Fires when the clock has been advanced that far."""
        timer = ManualTimer()
        heapq.heappush(self._timers, (self._elapsed + delay_s, next(self._numbers), timer, callback))
        return timer

    def advance(self, seconds: float) -> None:
        """Moves on; timers fire at their time, also those that other timers arm meanwhile."""
        end = self._elapsed + seconds
        while self._timers and self._timers[0][0] <= end:
            due, _, timer, callback = heapq.heappop(self._timers)
            self._now += due - self._elapsed
            self._elapsed = due
            if not timer.is_cancelled:
                callback()
        self._now += end - self._elapsed
        self._elapsed = end

    def step_wall(self, seconds: float) -> None:
        """Steps the wall clock alone, as NTP or an operator would."""
        self._now += seconds

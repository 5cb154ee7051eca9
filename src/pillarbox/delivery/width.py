"""How many connections a lane may have: more while deliveries succeed, fewer where the next hop refuses one; and when those
that work are enough for what waits.

Begins small and grows with each success, as TCP's slow start does, so that a few messages do not open as many connections,
and a fast next hop has all it may have within a few round trips. Where a further connection is refused while others work,
their number is what the next hop wants to give: one more is tried after a pause that grows. Must not know connections.
"""

from __future__ import annotations

from collections.abc import Callable

from ..clock import Clock, Timer

FIRST = 2
# Where what waits will have begun within this on the connections that work, further ones do not pay: a message that follows
# another on its connection shares writes, reads and turns of the loop with it, on both sides.
SOON_S = 0.006
# Nothing takes less than this; and before anything is known, so long.
SHORTEST_S = 0.0005
UNKNOWN_S = 1.0
# Longer than this is a stall. Where there was one, a quick next hop is as any other for the time behind it: what goes ahead
# of another message's final reply would wait for it, too.
STALLED_S = 0.25
STALL_PAUSE_S = 60.0
# One more than the next hop gave is tried after this; twice as long each time that it refuses, up to the longest.
PAUSE_FIRST_S = 60.0
PAUSE_LONGEST_S = 960.0


class Width:
    """One lane's. `go_on` is called where waiting was in vain."""

    __slots__ = (
        "_ceiling", "_clock", "_go_on", "_is_trying", "_late", "_pause_s", "_quick_from", "_until", "_width", "_worked_at",
        "_works_s",
    )  # fmt: skip

    def __init__(self, clock: Clock, go_on: Callable[[], None]) -> None:
        self._clock = clock
        self._go_on = go_on
        self._width = FIRST
        self._ceiling: int | None = None
        self._pause_s = PAUSE_FIRST_S
        self._until = 0.0
        # One beyond what the next hop gave may be tried, or is there.
        self._is_trying = False
        # How long a transaction takes, about, and when the last one ended.
        self._works_s = UNKNOWN_S
        self._worked_at = 0.0
        self._quick_from = 0.0
        self._late: Timer | None = None

    def now(self, limit: int) -> int:
        """Connections that the lane may have at this moment, of `limit` by its settings; one at least."""
        width = min(limit, self._width)
        if self._ceiling is None:
            return width
        now = self._clock.monotonic()
        if now >= self._until:
            if self._ceiling >= limit:
                self._forget()
                return width
            if self._is_trying:
                # The last one was not refused: the next hop gives more than it did.
                self._pause_s = PAUSE_FIRST_S
            self._ceiling += 1
            self._is_trying = True
            self._until = now + self._pause_s
        return min(width, self._ceiling)

    @property
    def is_waiting(self) -> bool:
        """True while one more must not be tried yet: what is known of the next hop is worth keeping."""
        return self._ceiling is not None and self._clock.monotonic() < self._until

    def is_enough(self, waiting: int, working: int) -> bool:
        """True when `waiting` messages will have begun soon on the `working` connections, as things went until just now.

        Where nothing has come to its end just now nothing is known: perhaps those that work hang. So it is asked again soon.
        """
        if waiting * self._works_s > working * SOON_S:
            return False
        now = self._clock.monotonic()
        if now - self._worked_at >= SOON_S or now < self._quick_from:
            return False
        if self._late is None:
            self._late = self._clock.call_later(SOON_S, self._look_again)
        return True

    def _look_again(self) -> None:
        self._late = None
        self._go_on()

    def worked(self, limit: int, began: float, ended: float) -> bool:
        """A transaction came to its end (both monotonic); True when there may be one connection more for it."""
        # The mean of the last eight or so.
        self._works_s += (ended - began + SHORTEST_S - self._works_s) * 0.125
        self._worked_at = ended
        if ended - began > STALLED_S:
            self.stalled(ended)
        if self._width >= limit:
            return False
        self._width += 1
        return True

    def stalled(self, at: float) -> bool:
        """A transaction takes longer than those of a quick next hop do. `at` monotonic. True when this is one otherwise."""
        self._quick_from = at + STALL_PAUSE_S
        return self._works_s < STALLED_S / 10

    def refused(self, working: int) -> None:
        """A connection was refused, and `working` others go on, or are on their way."""
        if self._is_trying:
            self._pause_s = min(self._pause_s * 2, PAUSE_LONGEST_S)
        self._is_trying = False
        self._ceiling = max(1, working)
        self._until = self._clock.monotonic() + self._pause_s

    def begin_anew(self) -> None:
        """The next hop was in trouble: carefully, as at first."""
        self._width = FIRST
        self._works_s = UNKNOWN_S
        self._forget()

    def _forget(self) -> None:
        self._ceiling, self._pause_s, self._is_trying = None, PAUSE_FIRST_S, False

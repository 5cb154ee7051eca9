"""How many connections a lane may have: more while deliveries succeed, fewer where the next hop refuses one.

Begins small and grows with each success, as TCP's slow start does, so that a few messages do not open as many connections,
and a fast next hop has all it may have within a few round trips. Where a further connection is refused while others work,
their number is what the next hop wants to give: one more is tried after a pause that grows. Must not know connections.
"""

from __future__ import annotations

from ..clock import Clock

FIRST = 2
# One more than the next hop gave is tried after this; twice as long each time that it refuses, up to the longest.
PAUSE_FIRST_S = 60.0
PAUSE_LONGEST_S = 960.0


class Width:
    """One lane's."""

    __slots__ = ("_ceiling", "_clock", "_is_trying", "_pause_s", "_until", "_width")

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._width = FIRST
        self._ceiling: int | None = None
        self._pause_s = PAUSE_FIRST_S
        self._until = 0.0
        # One beyond what the next hop gave may be tried, or is there.
        self._is_trying = False

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

    def worked(self, limit: int) -> bool:
        """A transaction came to its end; True when there may be one connection more for it."""
        if self._width >= limit:
            return False
        self._width += 1
        return True

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
        self._forget()

    def _forget(self) -> None:
        self._ceiling, self._pause_s, self._is_trying = None, PAUSE_FIRST_S, False

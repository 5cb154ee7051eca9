"""A next hop in trouble: when it is probed next, and what people are told of it. Must not know connections, nor work."""

from __future__ import annotations

import random

from ..clock import Clock
from ..smtp.reply import Reply

# Without one success between them, so many faults of the connection mean that the next hop is in trouble.
TROUBLE = 5
FIRST_S = 5.0
LONGEST_S = 300.0
# So many probes of a next hop that nothing is queued for; then it is forgotten.
EMPTY_PROBES = 24


class BackOff:
    """One next hop's. `is_on` from the moment it is found to be in trouble until a probe has worked.

    `retry_at` is the time of the next probe (monotonic, seconds), None while there is no trouble; `fault` the last reply
    that spoke of it.
    """

    __slots__ = ("_clock", "_downs", "_empty_probes", "_faults", "_rng", "fault", "is_on", "is_worried", "retry_at")

    def __init__(self, clock: Clock, rng: random.Random) -> None:
        self._clock = clock
        self._rng = rng
        self._faults = self._downs = self._empty_probes = 0
        self.retry_at: float | None = None
        # While the next hop is in trouble, for all that is known; asked several times for each message.
        self.is_on = False
        # While `is_over` has anything to do.
        self.is_worried = False
        self.fault: Reply | None = None

    @property
    def is_down(self) -> bool:
        """True while the next probe is not due."""
        return self.retry_at is not None and self._clock.monotonic() < self.retry_at

    def retry_at_wall(self) -> float | None:
        """Unix time of the next probe; None when it is due, or not needed."""
        if self.retry_at is None or not self.is_down:
            return None
        return self._clock.time() + self.retry_at - self._clock.monotonic()

    def why(self, key: str) -> str | None:
        """For people."""
        if self.retry_at is None:
            return None
        seconds = max(0, round(self.retry_at - self._clock.monotonic()))
        return f"{key} is in back-off, next try in {seconds} s; last: {self.fault}"

    def is_one_more(self, fault: Reply) -> bool:
        """A connection was lost with work on it; True when that, after the ones before, means trouble."""
        self.fault, self.is_worried = fault, True
        self._faults += 1
        return self.is_on or self._faults >= TROUBLE

    def begin(self) -> float | None:
        """It is in trouble: the pause until the next probe, longer each time; None for the rest of the same incident."""
        if self.is_down:
            return None
        pause: float = min(FIRST_S * 2**self._downs, LONGEST_S) * (0.9 + 0.2 * self._rng.random())
        self._downs = min(self._downs + 1, 16)
        self.retry_at, self.is_on = self._clock.monotonic() + pause, True
        self._faults = 0
        self.is_worried = True
        return pause

    def forget_pause(self) -> None:
        """Somebody wants it probed now."""
        if self.retry_at is not None:
            self.retry_at = self._clock.monotonic()

    def wants_empty_probe(self) -> bool:
        """Asked when a probe is due and there is nothing to probe with; after too many of them it is forgotten."""
        self._empty_probes += 1
        if self._empty_probes > EMPTY_PROBES:
            self.pass_over()
            self._downs = 0
            return False
        return True

    def has_work(self) -> None:
        """Somebody wants to go there."""
        self._empty_probes = 0

    def pass_over(self) -> None:
        """Nothing is known to be wrong any more, nor has anything been shown to work: another trouble goes on from here."""
        self.retry_at, self.is_on = None, False

    def is_over(self) -> bool:
        """A message got its answer: no trouble. True when there was some."""
        self._faults = 0
        self.is_worried = False
        if not self.is_on:
            return False
        self.pass_over()
        self._downs = 0
        return True

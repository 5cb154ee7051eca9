"""Bounds for the times that a queue keeps, for the case that the wall clock was wrong when they were written.

A board without a battery starts in 1970 or in the future; a wrong NTP answer moves the clock by years. Retries are
measured from now, so no due time may lie beyond the longest pause; the age of a message cannot be negative.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..clock import Clock

# A message that was received before 2020 was received with a wrong clock: no release of this software is that old.
EARLIEST = 1_577_836_800.0
# A clock that was ahead by less than this does no harm to an age; other nodes' clocks may differ as much.
AHEAD_S = 3600.0
# A step of the wall clock that is reported; smaller ones are NTP at work.
STEP_S = 60.0


@dataclass(frozen=True, slots=True)
class Bounds:
    """`latest_due_at`: now plus the longest pause. `forward_s`: by how much the wall clock has been set forward just now."""

    now: float
    latest_due_at: float
    forward_s: float = 0.0

    @property
    def latest_received_at(self) -> float:
        """A message that was received later was received with a clock that was ahead."""
        return self.now + AHEAD_S

    @property
    def earliest_received_at(self) -> float:
        """A message that was received earlier was received with a clock that was behind."""
        return EARLIEST if self.now > EARLIEST else 0.0

    def mended(self, received_at: float, expires_at: float) -> tuple[float, float]:
        """Both times as they should be.

        An age that cannot be right begins anew, with the same time to live. Seconds that the clock has jumped over do not
        count towards the expiry: nothing was tried in them.
        """
        if not self.earliest_received_at <= received_at <= self.latest_received_at:
            return self.now, self.now + (expires_at - received_at)
        return received_at, expires_at + self.forward_s


class StepWatch:
    """Finds steps of the wall clock: it is compared with the monotonic clock, which has none."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._offset = self._now()

    def _now(self) -> float:
        return self._clock.time() - self._clock.monotonic()

    def step_s(self) -> float:
        """The step since the last call, in seconds; 0.0 for one that does not matter."""
        offset = self._now()
        step = offset - self._offset
        if abs(step) < STEP_S:
            return 0.0
        self._offset = offset
        return step

"""Time and identity, passed in so that tests need neither wait nor guess.

`time()` is the wall clock (unix seconds: what is stored), `monotonic()` measures (what time-outs use, so that a step of
the wall clock expires nothing), `call_later` arms a timer.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Callable
from typing import Protocol


class Timer(Protocol):
    """What call_later gives back."""

    def cancel(self) -> None: ...


class Clock(Protocol):
    """The clock that everything in this package is given."""

    def time(self) -> float: ...

    def monotonic(self) -> float: ...

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Timer: ...


class SystemClock:
    """The machine's clocks, and the running loop's timers."""

    monotonic = staticmethod(time.monotonic)
    time = staticmethod(time.time)

    def call_later(self, delay_s: float, callback: Callable[[], None]) -> Timer:
        """Runs the callback in the running loop, after `delay_s` seconds."""
        return asyncio.get_running_loop().call_later(delay_s, callback)


_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


# Two digits at a time.
_PAIRS = [a + b for a in _ALPHABET for b in _ALPHABET]


def _base32(number: int, digits: int) -> str:
    out = ""
    for _ in range((digits + 1) // 2):
        out = _PAIRS[number & 1023] + out
        number >>= 10
    return out[-digits:]


class UidSource:
    """Makes queue ids: 9 characters of time (milliseconds), 7 of a random start that counts up; sorts by time.

    Crockford's base 32 has no letters that are taken for digits, so that an id can be read out on the telephone.
    """

    def __init__(self, clock: Clock, rng: random.Random | None = None) -> None:
        self._clock = clock
        self._counter = (rng or random.SystemRandom()).getrandbits(35)
        # What the next ids have in common: seven digits of the time, and three of the counter.
        self._second = self._upper = -1
        self._time = self._count = ""

    def __call__(self) -> str:
        now = int(self._clock.time() * 1000)
        self._counter = counter = (self._counter + 1) & 0x7FFFFFFFF
        if now >> 10 != self._second:
            self._second, self._time = now >> 10, _base32(now >> 10, 7)
        if counter >> 20 != self._upper:
            self._upper, self._count = counter >> 20, _base32(counter >> 20, 3)
        return self._time + _PAIRS[now & 1023] + self._count + _PAIRS[counter >> 10 & 1023] + _PAIRS[counter & 1023]


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    """What makes event loops here: uvloop where it is installed, else asyncio's own."""
    with contextlib.suppress(ImportError):
        import uvloop

        return uvloop.new_event_loop
    return asyncio.new_event_loop

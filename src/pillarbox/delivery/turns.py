"""When the next message may go to a next hop, where the operator has set a rate. Of one server alone; where several share
a queue, queue.slots leases turns from it. Must not know lanes."""

from __future__ import annotations

from collections.abc import Callable

from ..clock import Clock, Timer

# What the rate allows within this may go in one go: timers and turns of the loop are not finer than that.
TOGETHER_S = 0.1


class Turns:
    """Evenly: between two messages to the same next hop the interval goes by (the generic cell rate algorithm)."""

    def __init__(self) -> None:
        self._next: dict[str, float] = {}

    def take(self, next_hop: str, interval_s: float, now: float) -> float:
        """0.0, and a turn is taken; or after how many seconds to ask again. `now` monotonic."""
        # What was noted at a slower rate than today's binds nobody.
        due = min(max(self._next.get(next_hop, 0.0), now), now + interval_s + TOGETHER_S)
        early = due - now - (TOGETHER_S if interval_s < TOGETHER_S else 0.0)
        if early > 0.0:
            return early
        self._next[next_hop] = due + interval_s
        return 0.0

    def forget(self, now: float) -> None:
        """Of those that may go at once there is nothing to be known."""
        self._next = {hop: at for hop, at in self._next.items() if at > now}


class Patience:
    """One lane's: its turns, and whether it waits for the next one. One timer, however much mail waits in the lane.

    `ask`, with the number of messages that wait, gives 0.0 for a turn, or after how many seconds to ask again. A turn that
    is had is kept until it is used: a connection may have to be opened first. `interval_s` is 0.0 where no rate is set:
    then there are always turns.
    """

    __slots__ = ("_ask", "_clock", "_on_turn", "_timer", "_turns", "interval_s", "is_waiting")

    def __init__(self, clock: Clock, ask: Callable[[int], float], on_turn: Callable[[], None]) -> None:
        self._clock = clock
        self._ask = ask
        self._on_turn = on_turn
        self._timer: Timer | None = None
        self._turns = 0
        self.interval_s = 0.0
        # While there is no turn to be had.
        self.is_waiting = False

    def has_turn(self, waiting: int) -> bool:
        """False while the next hop has had as many messages as the operator wants it to have."""
        if not self._turns and self._timer is None:
            pause_s = self._ask(waiting)
            if pause_s <= 0.0:
                self._turns = 1
            else:
                self._timer, self.is_waiting = self._clock.call_later(pause_s, self.end), True
        return self._turns > 0

    def take_turn(self, waiting: int) -> bool:
        """The same, and it is used."""
        if not self.interval_s:
            return True
        has_turn = self.has_turn(waiting)
        self._turns -= has_turn
        return has_turn

    def give_back(self) -> None:
        """Nothing was sent in it."""
        self._turns = 1

    def why(self, key: str) -> str | None:
        """For people."""
        if self._timer is None:
            return None
        return f"{key} gets a message each {self.interval_s:g} s at most (rate_per_next_hop)"

    def end(self) -> None:
        """There may be one now."""
        self.stop()
        self._on_turn()

    def stop(self) -> None:
        """Nobody waits any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer, self.is_waiting = None, False

"""What a node may have of a next hop, over all nodes of a shared queue: connections, and turns to send a message.

A lane may open as many connections as it has slots; the sum over the nodes stays within the limit. They are asked for
when mail waits, refreshed once a second, given back when nothing uses them, and gone with a node that is dead. Where the
operator has set a rate, turns are leased with them, a little ahead of their time; without the database there are soon
none left. Must not know lanes: they say what they want and have.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from typing import Protocol

from ..clock import Clock, Timer
from ..errors import StoreError
from .commit import GroupCommit

_log = logging.getLogger("pillarbox.queue")
REFRESH_S = 1.0
# A node that was given none takes no mail for that next hop meanwhile: those that have some get on with it.
DENIED_S = 2.0
# Turns are leased so long ahead of their time; and a turn that was not used is gone so long behind it.
HORIZON_S = 2.0
STALE_S = 0.25
Wants = dict[str, tuple[int, int]]


class Lender(Protocol):
    """A store that lends slots."""

    def lease_slots(self, wants: Wants, limit: int) -> dict[str, int]:
        """next hop -> (wanted, in use) to next hop -> slots of this node from now on. Within a transaction."""

    def lease_turns(self, wants: dict[str, int], interval_s: float) -> dict[str, tuple[float, int]]:
        """next hop -> turns wanted to next hop -> (seconds until the first one, how many). Behind `lease_slots`."""


class Slots:
    """One node's. `in_use(next_hop)` tells its connections, `on_grant` that there are slots, `on_denied` that there are none."""

    def __init__(
        self,
        commit: GroupCommit,
        clock: Clock,
        limit: int,
        in_use: Callable[[str], int],
        on_grant: Callable[[str], None],
        on_denied: Callable[[str], None],
    ) -> None:
        self.limit = limit
        # Between two messages to one next hop, seconds; 0.0: no rate is set.
        self._interval_s = 0.0
        self._turns: dict[str, deque[float]] = {}
        # When the next turn comes that nobody has, where all were given.
        self._next_turn: dict[str, float] = {}
        self._wanted_turns: dict[str, int] = {}
        self._commit = commit
        self._clock = clock
        self._in_use = in_use
        self._on_grant = on_grant
        self._on_denied = on_denied
        self._granted: dict[str, int] = {}
        self._wanted: dict[str, int] = {}
        self._denied: dict[str, float] = {}
        # Where the others see us as hungry, and leave room: until we have asked again, or said that we want no more.
        self._hungry: set[str] = set()
        # What the running request said: until its answer, a lane keeps to that. The store may give the rest to another node.
        self._in_flight: dict[str, int] = {}
        # Lanes that were kept to it.
        self._kept_to: set[str] = set()
        self._timer: Timer | None = None
        self._asking: asyncio.Task[None] | None = None
        self._is_stopped = False

    def allowed(self, next_hop: str, wanted: int) -> int:
        """How many connections a lane may have; asks for more when it wants more."""
        granted = self._granted.get(next_hop, 0)
        if (said := self._in_flight.get(next_hop, granted)) < granted:
            if wanted > said:
                self._kept_to.add(next_hop)
            return said
        if wanted > granted and wanted > self._wanted.get(next_hop, 0):
            is_new = next_hop not in self._wanted
            self._wanted[next_hop] = min(wanted, self.limit)
            if is_new and granted < self.limit:
                self._ask()
        return granted

    def change(self, limit: int, interval_s: float) -> None:
        """Other limits, from now on."""
        self.limit = limit
        if interval_s != self._interval_s:
            self._interval_s = interval_s
            self._turns.clear()
            self._next_turn.clear()

    def take_turn(self, next_hop: str, waiting: int) -> float:
        """0.0, and a turn is taken; or after how many seconds to ask again (`on_grant` may come before)."""
        now, turns = self._clock.monotonic(), self._turns.get(next_hop)
        while turns and turns[0] < now - STALE_S:
            turns.popleft()
        next_turn = self._next_turn.get(next_hop, now) - HORIZON_S
        if not turns and next_turn > now + REFRESH_S:
            # It is not given so early to anybody.
            return next_turn - now
        if len(turns or ()) < waiting:
            is_new = next_hop not in self._wanted_turns
            self._wanted_turns[next_hop] = waiting
            if is_new and (not turns or self._timer is None):
                self._ask()
        if not turns:
            return REFRESH_S
        if turns[0] > now:
            return turns[0] - now
        turns.popleft()
        return 0.0

    def is_denied(self, next_hop: str) -> bool:
        """True while other nodes have all there are."""
        until = self._denied.get(next_hop)
        return until is not None and self._clock.monotonic() < until

    async def stop(self) -> None:
        """No more questions; the node's end gives all back."""
        self._is_stopped = True
        if self._timer is not None:
            self._timer.cancel()
        if self._asking is not None:
            await asyncio.wait([self._asking])

    def _ask(self) -> None:
        if self._asking is None and not self._is_stopped:
            self._asking = asyncio.get_running_loop().create_task(self._refresh())
            self._asking.add_done_callback(self._asked)

    def _asked(self, task: asyncio.Task[None]) -> None:
        self._asking = None
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None
        if (self._granted or self._wanted or self._hungry or self._wanted_turns) and not self._is_stopped:
            self._timer = self._clock.call_later(REFRESH_S, self._ask)

    async def _refresh(self) -> None:
        wanted, self._wanted = self._wanted, {}
        wants = {
            hop: (max(wanted.get(hop, 0), used), used)
            for hop in {*wanted, *self._granted, *(hop for hop in self._hungry if not self.is_denied(hop))}
            for used in (self._in_use(hop),)
        }

        wanted_turns, self._wanted_turns = self._wanted_turns, {}
        missing = {hop: count - len(self._turns.get(hop, ())) for hop, count in wanted_turns.items()}
        limit, interval_s = self.limit, self._interval_s

        def work(store: Lender) -> tuple[dict[str, int], dict[str, tuple[float, int]]]:
            slots = store.lease_slots(wants, limit)
            return slots, store.lease_turns(missing, interval_s) if missing and interval_s else {}

        self._in_flight = {hop: want for hop, (want, _) in wants.items()}
        try:
            granted, turns = await self._commit.run(work)  # type: ignore[arg-type]
        except StoreError as error:
            _log.debug("no slots were leased: %s", error)
            self._wanted = {**wanted, **self._wanted}
            self._wanted_turns = {**wanted_turns, **self._wanted_turns}
            return
        finally:
            self._in_flight = {}
        self._take_slots(wants, wanted, granted)
        kept_to, self._kept_to = self._kept_to, set()
        for hop in kept_to:
            self._on_grant(hop)
        if interval_s == self._interval_s:
            self._take_turns(turns)

    def _take_turns(self, leased: dict[str, tuple[float, int]]) -> None:
        # Counted from the answer, a little behind the database's clock: never too early.
        now = self._clock.monotonic()
        self._next_turn = {hop: at for hop, at in self._next_turn.items() if at > now}
        for hop, (early_s, count) in leased.items():
            first = now + early_s
            self._next_turn[hop] = first + count * self._interval_s
            if count > 0:
                self._turns.setdefault(hop, deque()).extend(first + n * self._interval_s for n in range(count))
                self._on_grant(hop)
        self._turns = {hop: turns for hop, turns in self._turns.items() if turns and turns[-1] > now - STALE_S}

    def _take_slots(self, wants: Wants, wanted: dict[str, int], granted: dict[str, int]) -> None:
        now = self._clock.monotonic()
        self._denied = {hop: until for hop, until in self._denied.items() if until > now}
        before, self._granted = self._granted, {hop: slots for hop, slots in granted.items() if slots}
        self._hungry = {hop for hop in self._hungry if hop not in granted}
        for hop, slots in granted.items():
            if wants[hop][0] > slots == 0:
                self._hungry.add(hop)
            if slots > before.get(hop, 0):
                self._denied.pop(hop, None)
                self._on_grant(hop)
            elif not slots and wanted.get(hop):
                self._denied[hop] = now + DENIED_S
                self._on_denied(hop)

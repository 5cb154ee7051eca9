"""Outgoing connections over all lanes: how many there may be, and which lane has the next one.

A stranger chooses the next hops of mail, so slow next hops must not take every connection. Three ranks share the total:

- next hops that took mail lately (PROVEN) may use all of it, and a quarter is for them alone;
- next hops of which nothing is known (FRESH) use the rest;
- next hops that once gave way (SLOW) have a quarter of the total at most.

While lanes wait for a connection, one that has got no mail through within its rank's time gives way: a FRESH one after a
second, and its message is tried again as SLOW. The server at one address has a bound over all lanes as well. Must not know
messages, and what lanes do with a connection.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
from collections.abc import Callable
from enum import IntEnum
from typing import Protocol

from ..clock import Clock, Timer

# Connections to one address over all lanes, unless one lane may have more.
PER_ADDRESS = 20
# Parts of the total: for PROVEN next hops alone, and the most that SLOW ones may have.
RESERVED = SLOW_SHARE = 4
# While lanes wait: seconds until a connection that has got no mail through gives way.
PATIENCE_S = {0: 10.0, 1: 1.0, 2: 30.0}
# A next hop is known as PROVEN or SLOW for this long, and so many are.
KNOWN_S = 3600.0
MOST_KNOWN = 10_000


class Rank(IntEnum):
    """What is known of a next hop, in the order in which waiting lanes are served."""

    PROVEN = 0
    FRESH = 1
    SLOW = 2


class Seeker(Protocol):
    """A lane, as the pool sees it."""

    key: str

    def wants_place(self) -> bool:
        """False when what it waited for is gone."""

    def spare_place(self, place: Place) -> bool:
        """Closes the idle connection that holds the place, unless it will be used soon."""


class Place:
    """The right to one connection.

    `give_way` ends the connection and returns True, or returns False when that would leave a message in doubt; None while
    there is nothing to end.
    """

    __slots__ = ("address", "give_way", "is_idle", "lane", "rank", "since")

    def __init__(self, lane: Seeker, address: str, rank: Rank, since: float) -> None:
        self.lane = lane
        self.address = address
        self.rank = rank
        self.since = since
        self.is_idle = False
        self.give_way: Callable[[], bool] | None = None


class _Waiter:
    __slots__ = ("address", "future", "lane")

    def __init__(self, lane: Seeker, address: str, future: asyncio.Future[Place | None]) -> None:
        self.lane, self.address, self.future = lane, address, future


class Pool:
    """See the module's text. `total` and `per_address` are bounds; 0 for no bound by address."""

    def __init__(self, clock: Clock, total: int, per_address: int) -> None:
        self._clock = clock
        self._total, self._per_address = total, per_address
        self._places: dict[Place, None] = {}
        self._by_address: Counter[str] = Counter()
        self._waiters: list[_Waiter] = []
        # Next hop -> (rank, until when).
        self._known: OrderedDict[str, tuple[Rank, float]] = OrderedDict()
        self._timer: Timer | None = None
        self._is_serving = False

    def __len__(self) -> int:
        return len(self._places)

    @property
    def is_short(self) -> bool:
        """True while a lane waits for a connection."""
        return bool(self._waiters)

    def change(self, total: int, per_address: int) -> None:
        """Sets other bounds, for connections from now on."""
        self._total, self._per_address = total, per_address
        self._serve_soon()

    def held_by(self, lane: Seeker) -> int:
        """Connections of one lane."""
        return sum(place.lane is lane for place in self._places)

    # ------------------------------------------------------------------- ranks

    def rank(self, key: str) -> Rank:
        """What is known of a next hop."""
        rank, until = self._known.get(key, (Rank.FRESH, 0.0))
        return rank if until > self._clock.monotonic() else Rank.FRESH

    def worked(self, key: str) -> None:
        """The next hop has taken a message."""
        was = self.rank(key)
        self._know(key, Rank.PROVEN)
        if was is not Rank.PROVEN:
            for place in self._places:
                if place.lane.key == key:
                    place.rank = Rank.PROVEN
            self._serve_soon()

    def was_slow(self, key: str) -> None:
        """A connection of the next hop has given way."""
        self._know(key, Rank.SLOW)

    def trust(self, key: str) -> None:
        """The operator has chosen this next hop: it is PROVEN as long as nothing else is known."""
        self._known.setdefault(key, (Rank.PROVEN, float("inf")))

    def _know(self, key: str, rank: Rank) -> None:
        self._known[key] = (rank, self._clock.monotonic() + KNOWN_S)
        self._known.move_to_end(key)
        if len(self._known) > MOST_KNOWN:
            self._known.popitem(last=False)

    # ------------------------------------------------------------------ places

    async def take(self, lane: Seeker, address: str) -> Place | None:
        """Waits for a place. None when the lane does not want it any more."""
        if not self._waiters or self.rank(lane.key) is Rank.PROVEN:
            place = self._place(lane, address)
            if place is not None:
                return place
        waiter = _Waiter(lane, address, asyncio.get_running_loop().create_future())
        self._waiters.append(waiter)
        self._serve_soon()
        try:
            return await waiter.future
        except asyncio.CancelledError:
            if waiter.future.done() and not waiter.future.cancelled() and (granted := waiter.future.result()):
                self.free(granted)
            raise
        finally:
            if waiter in self._waiters:
                self._waiters.remove(waiter)

    def free(self, place: Place) -> None:
        """The connection has ended."""
        if place in self._places:
            del self._places[place]
            self._by_address[place.address] -= 1
            if not self._by_address[place.address]:
                del self._by_address[place.address]
            self._serve_soon()

    def idles(self, place: Place) -> None:
        """The connection has nothing to do: another lane may want one in its place."""
        place.is_idle, place.give_way = True, None
        self._serve_soon()

    def _is_capped(self, address: str) -> bool:
        return 0 < self._per_address <= self._by_address[address]

    def _place(self, lane: Seeker, address: str) -> Place | None:
        """A place, if there may be one more now."""
        rank = self.rank(lane.key)
        if len(self._places) >= self._total or self._is_capped(address) or not self._has_room(rank):
            return None
        place = Place(lane, address, rank, self._clock.monotonic())
        self._places[place] = None
        self._by_address[address] += 1
        return place

    def _has_room(self, rank: Rank) -> bool:
        """True when the rank's part of the total is not used up."""
        if rank is Rank.PROVEN:
            return True
        unproven = [place.rank for place in self._places if place.rank is not Rank.PROVEN]
        if len(unproven) >= self._total - self._total // RESERVED:
            return False
        return rank is Rank.FRESH or unproven.count(Rank.SLOW) < max(1, self._total // SLOW_SHARE)

    # ------------------------------------------------------------------ waiting

    def _serve_soon(self) -> None:
        """Once for all that happens in this iteration of the event loop."""
        if self._waiters and not self._is_serving:
            self._is_serving = True
            asyncio.get_running_loop().call_soon(self._serve)

    def _serve(self) -> None:
        """Gives places to lanes that wait, in the order of ranks, and among equals first to lanes that have none."""
        held = {place.lane.key for place in self._places}
        order = sorted(self._waiters, key=lambda one: (self.rank(one.lane.key), one.lane.key in held))
        for waiter in order:
            if waiter.future.done():
                continue
            if not waiter.lane.wants_place():
                self._answer(waiter, None)
                continue
            place = self._place(waiter.lane, waiter.address) or self._make_room(waiter)
            if place is not None:
                self._answer(waiter, place)
            elif not self._is_capped(waiter.address):
                # Lanes of this rank and of those behind it find no room, either.
                break
        self._is_serving = False
        self._arm()

    def _answer(self, waiter: _Waiter, place: Place | None) -> None:
        self._waiters.remove(waiter)
        waiter.future.set_result(place)

    def _make_room(self, waiter: _Waiter) -> Place | None:
        """Ends a connection that idles, or one that has had its time, and gives its place."""
        is_capped, rank = self._is_capped(waiter.address), self.rank(waiter.lane.key)
        for place in [p for p in self._places if p.is_idle and p.lane is not waiter.lane]:
            if (not is_capped or place.address == waiter.address) and place.lane.spare_place(place):
                self.free(place)
                return self._place(waiter.lane, waiter.address)
        if is_capped:
            return None
        now = self._clock.monotonic()
        others = [p for p in self._places if p.give_way is not None and p.lane is not waiter.lane]
        for place in [p for p in others if now - p.since >= PATIENCE_S[p.rank]]:
            # A FRESH lane finds no room where the SLOW ones have too many, and the other way round.
            if rank is Rank.PROVEN or place.rank is rank or (rank is Rank.FRESH and place.rank is Rank.SLOW):
                give_way, place.give_way = place.give_way, None
                if give_way is not None and give_way():
                    self.free(place)
                    return self._place(waiter.lane, waiter.address)
        return None

    def _arm(self) -> None:
        """Comes back when the next connection has had its time."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._waiters:
            now = self._clock.monotonic()
            ends = [p.since + PATIENCE_S[p.rank] - now for p in self._places if p.give_way is not None]
            self._timer = self._clock.call_later(max(min(ends, default=1.0), 0.05), self._serve_soon)

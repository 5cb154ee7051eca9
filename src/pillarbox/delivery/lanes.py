"""All lanes of a server: one per next hop, made when mail is there for it, gone when it is not. The scheduler's Deliverer.

Bounds connections over all next hops; what waits in one lane never holds up another. Must not know the store.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from ..clock import Clock, Timer
from ..places import is_fully_qualified
from ..queue.model import CAPTURED
from ..queue.slots import Slots
from ..queue.work import Result, Work
from ..smtp.reply import Reply
from .client import ClientSettings
from .handlerlane import HandlerLane
from .handlers import Handlers
from .lane import Lane
from .mx import MxLookup
from .pool import Pool
from .relayhosts import resolve_targets
from .released import without_bcc
from .route import HANDLER, MX, NOWHERE, UNMATCHED, WHY_UNMATCHED, Router, Target
from .terms import REACHING_STAGES, LaneSettings
from .turns import Turns

_log = logging.getLogger("pillarbox.delivery")
SWEEP_S = 1.0
# Messages that may wait in memory: for the smart hosts, that all mail goes to; for one domain among many.
RELAY_WAITING = 2500
RELAY_WAITING_BYTES = 32 << 20
MX_WAITING = 200
MX_WAITING_BYTES = 4 << 20
# Mail without a route is looked at again after this.
NOWHERE_S = 3600.0
# Mail that no handler matches is looked at again after a quarter of its age, within these bounds: of a shared queue another
# node may have the handler. A change of this server's handlers makes it due immediately.
UNMATCHED_S = (10.0, NOWHERE_S)
_log = logging.getLogger("pillarbox.delivery")
_NO_HANDLER = Reply(451, "4.3.5", "No handler matches: waits for a handler")
# Where a rate is set, as much waits in memory as goes within this.
LINE_S = 60.0
_UNLIMITED = 1 << 30


@dataclass(frozen=True, slots=True)
class LaneLimits:
    """Connections at once, of the whole server and of one lane; and how fast a lane may go."""

    total: int
    per_lane: int
    # Seconds between two messages to one next hop; 0.0: no rate is set.
    interval_s: float = 0.0
    # Connections to one address over all lanes; 0: no bound.
    per_address: int = 0


@dataclass(frozen=True, slots=True)
class Ways:
    """How mail leaves: where to, and by what settings. `mx` is None where direct delivery is off."""

    router: Router
    handlers: Handlers
    limits: LaneLimits
    relay_client: ClientSettings
    mx_client: ClientSettings
    mx: MxLookup | None


def _line(most: int, interval_s: float) -> int:
    """How many messages may wait for a next hop: with a rate only those whose turn comes soon. The queue keeps the others."""
    return min(most, max(2, int(LINE_S / interval_s))) if interval_s else most


class Lanes:
    """See the module's text."""

    def __init__(self, ways: Ways, clock: Clock, rng: random.Random) -> None:
        self._ways = ways
        self._clock = clock
        self._rng = rng
        self.finished: Callable[[Work], None] = lambda work: None
        self.wake: Callable[[], None] = lambda: None
        self.is_back: Callable[[str, Collection[str]], None] = lambda key, stages: None
        self.may_begin: Callable[[], bool] = lambda: True
        # Where other servers send to the same next hops: what this one may have of the connections.
        self.slots: Slots | None = None
        self.paused: set[str] = set()
        self._turns = Turns()
        self._lanes: dict[str, Lane] = {}
        self._handler_lanes: dict[str, HandlerLane] = {}
        self._timer: Timer | None = None
        self.pool = Pool(clock, ways.limits.total, ways.limits.per_address)
        # Mail that no handler matches is in the queue, as far as is known.
        self._has_unmatched = False

    @property
    def ways(self) -> Ways:
        """How mail leaves now."""
        return self._ways

    def change(self, ways: Ways) -> None:
        """Other servers and settings, for connections that are opened from now on."""
        self._ways = ways
        self.pool.change(ways.limits.total, ways.limits.per_address)
        lanes = list(self._lanes.items())
        for key, lane in lanes:
            if (ways.router.relay is not None) if not key.startswith(MX) else (ways.mx is not None):
                lane.change(self._settings(key))
        if self.slots is not None:
            self.slots.change(ways.limits.per_lane, ways.limits.interval_s)
        for _, lane in lanes:
            lane.go_on()

    def start(self) -> None:
        """Begins to sweep."""
        router, hostname = self._ways.router, self._ways.mx_client.hello_name
        if (router.relay is not None or router.is_direct) and not is_fully_qualified(hostname):
            _log.warning(
                "option 'hostname': %r is not a fully qualified domain name; EHLO gives the local address instead,"
                " which some servers refuse: set hostname",
                hostname,
            )
        self._timer = self._clock.call_later(SWEEP_S, self._sweep)

    def _sweep(self) -> None:
        self._timer = self._clock.call_later(SWEEP_S, self._sweep)
        now = self._clock.monotonic()
        self._turns.forget(now)
        for lane in list(self._lanes.values()):
            lane.sweep(now)
            if lane.is_idle:
                self._lanes.pop(lane.key, None)
        for key, handler_lane in list(self._handler_lanes.items()):
            if handler_lane.is_idle:
                del self._handler_lanes[key]

    async def stop(self, grace_s: float) -> None:
        """Lets running transactions and handlers finish within the grace, then closes all connections."""
        if self._timer is not None:
            self._timer.cancel()
        everyone: list[Lane | HandlerLane] = [*self._lanes.values(), *self._handler_lanes.values()]
        # One grace for all of them.
        await asyncio.gather(*(lane.stop(grace_s) for lane in everyone))

    # ------------------------------------------------------------- for a lane

    def allowed(self, key: str, wanted: int) -> int:
        """See lane.Lanes."""
        return self.slots.allowed(key, wanted) if self.slots is not None else _UNLIMITED

    def turn(self, key: str, waiting: int) -> float:
        """See lane.Lanes."""
        if self.slots is not None:
            return self.slots.take_turn(key, waiting)
        return self._turns.take(key, self._ways.limits.interval_s, self._clock.monotonic())

    def in_use(self, key: str) -> int:
        """Connections to a next hop that are open, being opened, or about to be."""
        lane = self._lanes.get(key)
        return lane.wanted if lane is not None else 0

    def feed(self, key: str) -> None:
        """There are slots for it, or turns."""
        lane = self._lanes.get(key)
        if lane is not None:
            lane.go_on()

    def describe(self) -> list[dict[str, Any]]:
        """Every lane as JSON."""
        everyone: list[Lane | HandlerLane] = [*self._lanes.values(), *self._handler_lanes.values()]
        return [
            {**found, "paused": found["next_hop"] in self.paused} for lane in everyone if (found := lane.describe())
        ]

    @property
    def connections(self) -> int:
        """Outgoing connections that are open or being opened."""
        return len(self.pool)

    # ------------------------------------------------------- for the scheduler

    def next_hop(self, address: str, queued: str | None = None) -> str:
        """See queue.work.Deliverer."""
        return self._ways.router.next_hop(address, queued)

    def deliver(self, work: Work) -> None:
        """See queue.work.Deliverer."""
        key = work.next_hop
        if work.message.facts.get("held_for") == CAPTURED:
            work.message = without_bcc(work.message)
        if key in self.paused:
            self._return(work, Reply(451, "4.3.2", "The operator has paused this next hop"))
        elif key == UNMATCHED:
            self._return_unmatched(work)
        elif key.startswith(HANDLER):
            self._handler_lane(key).push(work)
        elif key == NOWHERE or (key.startswith(MX) and self._ways.mx is None):
            self._return(work, Reply(451, "4.4.4", "There is no way to go: " + self._ways.router.why_nowhere))
        else:
            self._lane(key).push(work)

    def _return(self, work: Work, why: Reply) -> None:
        """Nothing was tried: the queue keeps it."""
        retry_at = self._clock.time() + NOWHERE_S
        work.results = [Result(r, why, "lookup", is_attempt=False, retry_at=retry_at) for r in work.recipients]
        self.finished(work)

    def _return_unmatched(self, work: Work) -> None:
        """No handler matches: the queue keeps the recipients. No attempt is counted."""
        if not self._has_unmatched:
            self._has_unmatched = True
            told = {"queue_id": work.message.uid, "next_hop": UNMATCHED, "reason": WHY_UNMATCHED}
            to = ",".join(r.address for r in work.recipients[:5])
            _log.warning("%s to=%s: %s; other mail may wait, too", work.message.uid, to, WHY_UNMATCHED, extra=told)
        retry_at = now = self._clock.time()
        if self._ways.handlers.list():
            least, most = UNMATCHED_S
            retry_at += min(max((now - work.message.received_at) / 4, least), most)
        # Without any handler this server does not claim it again (`blocked`), and a node that has handlers may.
        work.results = [Result(r, _NO_HANDLER, "lookup", is_attempt=False, retry_at=retry_at) for r in work.recipients]
        self.finished(work)

    def _handler_lane(self, key: str) -> HandlerLane:
        lane = self._handler_lanes.get(key)
        if lane is None:
            match, handlers = key.removeprefix(HANDLER), self._ways.handlers
            lane = HandlerLane(
                key, lambda: handlers.get(match), self._clock, self.finished, self.wake, self.may_begin, handlers.match
            )
            self._handler_lanes[key] = lane
        return lane

    def _lane(self, key: str) -> Lane:
        lane = self._lanes.get(key)
        if lane is None:
            lane = self._lanes[key] = Lane(self, key, self._settings(key), self._clock, self._rng)
        return lane

    def _settings(self, key: str) -> LaneSettings:
        ways = self._ways
        limit, interval = min(ways.limits.total, ways.limits.per_lane), ways.limits.interval_s
        if key.startswith(MX):
            mx, domain = ways.mx, key.removeprefix(MX)
            assert mx is not None
            settings, line = ways.mx_client, _line(MX_WAITING, interval)
            return LaneSettings(limit, line, MX_WAITING_BYTES, settings, lambda: mx.targets(domain), interval)
        relay = ways.router.relay
        assert relay is not None

        async def targets() -> list[Target] | Reply:
            return await resolve_targets(relay.targets)

        self.pool.trust(key)
        line = _line(RELAY_WAITING, interval)
        return LaneSettings(limit, line, RELAY_WAITING_BYTES, ways.relay_client, targets, interval)

    def has_room(self, next_hop: str, *, is_memory_full: bool = False) -> bool:
        """See queue.work.Deliverer."""
        if (
            next_hop in (NOWHERE, UNMATCHED)
            or next_hop in self.paused
            or (self.slots is not None and self.slots.is_denied(next_hop))
        ):
            return False
        lane = self._handler_lanes.get(next_hop) or self._lanes.get(next_hop)
        return lane is None or (lane.has_room() and not (is_memory_full and lane.waiting))

    def room(self) -> int:
        """See queue.work.Deliverer."""
        router = self._ways.router
        if router.relay is None and not router.is_direct and not self._ways.handlers.list():
            return 0
        if router.relay is not None and not self._ways.handlers.list():
            # One lane for all there is. Paused it takes nothing, and nothing is given up for that.
            if router.relay.key in self.paused:
                return _UNLIMITED
            return _UNLIMITED if self.has_room(router.relay.key) else 0
        return _UNLIMITED

    def blocked(self, *, is_memory_full: bool = False) -> list[str]:
        """See queue.work.Deliverer."""
        keys = (*self._lanes, *self._handler_lanes)
        blocked = [key for key in keys if not self.has_room(key, is_memory_full=is_memory_full)]
        if self._waits_for_any_handler and UNMATCHED not in self.paused:
            blocked.append(UNMATCHED)
        return [*blocked, *(key for key in self.paused if key not in keys)]

    @property
    def _waits_for_any_handler(self) -> bool:
        return self._has_unmatched and not self._ways.handlers.list()

    def down(self) -> list[str]:
        """See queue.work.Deliverer."""
        down = [key for key, lane in self._lanes.items() if lane.is_down and key not in self.paused]
        if self._waits_for_any_handler and UNMATCHED not in self.paused:
            down.append(UNMATCHED)
        router = self._ways.router
        return down if router.relay is not None or router.is_direct else [*down, NOWHERE]

    def retry_at(self, next_hop: str) -> float | None:
        """See queue.work.Deliverer."""
        lane = self._lanes.get(next_hop)
        return None if lane is None else lane.retry_at_wall()

    def next_try(self, next_hop: str, due_at: float | None, last_stage: str | None = None) -> float | None:
        """See queue.work.Deliverer."""
        probe_at = self.retry_at(next_hop)
        if probe_at is None or due_at is None:
            return due_at
        # What could not reach the next hop is due as soon as a probe does.
        return probe_at if last_stage in REACHING_STAGES else max(due_at, probe_at)

    def room_at(self) -> float | None:
        """See queue.work.Deliverer."""
        return min((at for lane in self._lanes.values() if (at := lane.retry_at_wall()) is not None), default=None)

    def withdraw_from(self, next_hop: str) -> list[Work]:
        """See queue.work.Deliverer."""
        lane = self._handler_lanes.get(next_hop) or self._lanes.get(next_hop)
        return [] if lane is None else lane.withdraw(None)

    def withdraw(self, uids: Collection[str] | None) -> list[Work]:
        """See queue.work.Deliverer."""
        everyone: list[Lane | HandlerLane] = [*self._lanes.values(), *self._handler_lanes.values()]
        return [work for lane in everyone for work in lane.withdraw(uids)]

    def retry_now(self) -> None:
        """See queue.work.Deliverer."""
        for lane in self._lanes.values():
            lane.forget_backoff()

    def _is_unmatched(self, key: str) -> bool:
        """True for the key of a handler that this server does not have."""
        return key.startswith(HANDLER) and self._ways.handlers.get(key.removeprefix(HANDLER)) is None

    def why_waiting(self, next_hops: Collection[str] | None = None) -> str | None:
        """See queue.work.Deliverer."""
        if next_hops is None:
            if self.room() == 0 and not self._lanes and not self.paused:
                return self._ways.router.why_nowhere
            next_hops = {*self._lanes, *self.paused}
        elif NOWHERE in next_hops:
            return self._ways.router.why_nowhere
        elif any(self._is_unmatched(key) for key in next_hops):
            return WHY_UNMATCHED
        reasons = [
            f"the next hop {key} is paused: pillarbox queue resume --next-hop {key}"
            for key in sorted(self.paused)
            if key in next_hops
        ]
        lanes = [lane for key, lane in self._lanes.items() if key in next_hops and key not in self.paused]
        reasons += [reason for lane in lanes if (reason := lane.why_waiting()) is not None]
        more = f" (and {len(reasons) - 3} more)" if len(reasons) > 3 else ""
        return "; ".join(reasons[:3]) + more if reasons else None

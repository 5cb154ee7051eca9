"""Connections to a next hop, over all nodes of a shared queue: each node leases its slots, the sum stays within the limit.

A lane may open as many connections as it has slots. They are asked for when mail waits, refreshed once a second, given
back when nothing uses them, and gone with a node that is dead. Must not know lanes: they say what they want and have.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

from ..clock import Clock, Timer
from ..errors import StoreError
from .commit import GroupCommit

_log = logging.getLogger("pillarbox.queue")
REFRESH_S = 1.0
# A node that was given none takes no mail for that next hop meanwhile: those that have some get on with it.
DENIED_S = 2.0
Wants = dict[str, tuple[int, int]]


class Lender(Protocol):
    """A store that lends slots."""

    def lease_slots(self, wants: Wants, limit: int) -> dict[str, int]:
        """next hop -> (wanted, in use) to next hop -> slots of this node from now on. Within a transaction."""


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
        self._timer: Timer | None = None
        self._asking: asyncio.Task[None] | None = None
        self._is_stopped = False

    def allowed(self, next_hop: str, wanted: int) -> int:
        """How many connections a lane may have; asks for more when it wants more."""
        granted = self._granted.get(next_hop, 0)
        if wanted > granted and wanted > self._wanted.get(next_hop, 0):
            is_new = next_hop not in self._wanted
            self._wanted[next_hop] = min(wanted, self.limit)
            if is_new and granted < self.limit:
                self._ask()
        return granted

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
        if (self._granted or self._wanted or self._hungry) and not self._is_stopped:
            self._timer = self._clock.call_later(REFRESH_S, self._ask)

    async def _refresh(self) -> None:
        wanted, self._wanted = self._wanted, {}
        wants = {
            hop: (max(wanted.get(hop, 0), used), used)
            for hop in {*wanted, *self._granted, *(hop for hop in self._hungry if not self.is_denied(hop))}
            for used in (self._in_use(hop),)
        }

        def work(store: Lender) -> dict[str, int]:
            return store.lease_slots(wants, self.limit)

        try:
            granted = await self._commit.run(work)  # type: ignore[arg-type]
        except StoreError as error:
            _log.debug("no slots were leased: %s", error)
            self._wanted = {**wanted, **self._wanted}
            return
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

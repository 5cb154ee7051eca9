"""Opens one lane's connections: which of a next hop's servers, in which order, with TLS or in clear.

Each server has a time-out of its own and its turn in the same attempt (RFC 5321 section 5.1). Must not know work.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection
from typing import Protocol

from ..clock import Clock
from ..smtp.client import Stage
from ..smtp.reply import Reply
from .client import ClientConnection, ConnectFault, Owner, open_optional_tls
from .pool import Pool, Rank, Seeker
from .route import MX, Target
from .terms import LaneSettings

_log = logging.getLogger("pillarbox.delivery")
# A host whose TLS failed under "may" gets mail in clear for this long.
NO_TLS_S = 3600.0
# A server that could not be reached, or took no mail, stands behind the others of its next hop for this long.
BAD_S = 300.0
# Until one server has taken a connection, all steps together.
OPEN_S = 900.0


class NotOpenedError(Exception):
    """No connection. `fault` says why; None when another lane had the place, or the work is gone: nothing was tried.

    `is_final`: no server of this next hop ever takes mail, or there is none.
    """

    def __init__(self, fault: ConnectFault | None = None, *, is_final: bool = False) -> None:
        super().__init__(str(fault))
        self.fault = fault
        self.is_final = is_final


class _GaveWayError(Exception):
    """The connection that was being opened has given way to another lane's."""


class LaneOwner(Owner, Seeker, Protocol):
    """The lane: owner of connections, seeker of places."""


class Opener:
    """One lane's. `servers` is the last list of targets."""

    def __init__(self, lane: LaneOwner, settings: LaneSettings, pool: Pool, clock: Clock) -> None:
        self._lane = lane
        self._pool = pool
        self._clock = clock
        self._settings = settings
        self.servers: list[Target] = []
        self._bad: dict[Target, float] = {}
        self._no_tls: dict[Target, float] = {}

    def change(self, settings: LaneSettings) -> None:
        """Other settings, for connections that are opened from now on."""
        self._settings = settings

    # ---------------------------------------------------------------- servers

    @property
    def knows_anything(self) -> bool:
        """True while a new lane would not know what is known here."""
        return bool(self._no_tls)

    def forget_old(self, now: float) -> None:
        """What is too old. `now` monotonic."""
        if self._no_tls:
            self._no_tls = {target: until for target, until in self._no_tls.items() if until > now}

    def mark_bad(self, target: Target) -> None:
        """The server takes no mail at the moment: others of the next hop are tried first."""
        self._bad[target] = self._clock.monotonic() + BAD_S

    def may_leave_out_tls(self, connection: ClientConnection) -> bool:
        """True when TLS is on, no mail has gone through it yet, and it is optional."""
        return connection.smtp.is_tls and not connection.taken and connection.may_go_in_clear

    def has_other(self, tried: Collection[Target]) -> bool:
        """True when the next hop has a server that is not among these."""
        return any(server not in tried for server in self.servers)

    def note_broken_tls(self, target: Target) -> None:
        """TLS with this server does not work: mail goes in clear for a while."""
        self._no_tls[target] = self._clock.monotonic() + NO_TLS_S

    def forget_broken_tls(self, target: Target) -> None:
        """TLS is tried again."""
        self._no_tls.pop(target, None)

    async def _targets(self, avoid: Collection[Target]) -> list[Target] | Reply:
        """The servers, best first; those that have failed lately, or are to be avoided, stand behind the others."""
        try:
            found = await self._settings.find_targets()
        except Exception as error:
            _log.exception("looking up %s failed", self._lane.key)
            found = Reply(451, "4.3.0", f"Internal fault: {type(error).__name__}")
        if isinstance(found, Reply):
            return found
        now = self._clock.monotonic()
        self._bad = {target: until for target, until in self._bad.items() if until > now}
        self.servers = found
        return sorted(found, key=lambda target: target in self._bad or target in avoid)

    # ---------------------------------------------------------------- opening

    async def open(self, avoid: Collection[Target]) -> ClientConnection:
        """A connection to the best server that takes one. Raises NotOpenedError. No place is held while names are looked up."""
        targets = await self._targets(avoid)
        if isinstance(targets, Reply):
            raise NotOpenedError(ConnectFault(targets, Stage.LOOKUP), is_final=targets.is_permanent)
        faults: list[ConnectFault] = []
        gave_way = False
        key = self._lane.key
        for target in targets:
            try:
                connection = await self._open_at(target)
            except ConnectFault as fault:
                faults.append(fault)
                _log.info("%s: %s", key, fault, extra={"next_hop": key, "reason": str(fault)})
            except _GaveWayError:
                gave_way = True
                self._pool.was_slow(key)
            except NotOpenedError:
                raise
            except Exception as error:
                _log.exception("connecting to %s failed", target.name)
                faults.append(
                    ConnectFault(Reply(451, "4.3.0", f"Internal fault: {type(error).__name__}"), Stage.CONNECT)
                )
            else:
                if faults:
                    _log.warning("%s: using %s", key, target.name)
                connection.avoided = frozenset(avoid)
                return connection
            self.mark_bad(target)
        # None works: next time the order begins anew.
        self._bad.clear()
        if gave_way:
            raise NotOpenedError
        refusals = [fault.takes_no_mail for fault in faults if fault.takes_no_mail is not None]
        if refusals and len(refusals) == len(targets) and key.startswith(MX):
            raise NotOpenedError(ConnectFault(refusals[-1], Stage.GREETING), is_final=True)
        nothing = ConnectFault(Reply(451, "4.4.4", "There is no server to try"), Stage.LOOKUP)
        raise NotOpenedError(faults[-1] if faults else nothing)

    async def _open_at(self, target: Target) -> ClientConnection:
        """A connection to this server, once there is a place for it."""
        place = await self._pool.take(self._lane, f"{target.address or target.host}:{target.port}")
        if place is None:
            raise NotOpenedError
        task = asyncio.current_task()
        assert task is not None
        has_to_go = False

        def give_way() -> bool:
            nonlocal has_to_go
            has_to_go = True
            task.cancel()
            return True

        place.give_way = give_way
        try:
            async with asyncio.timeout(OPEN_S):
                connection = await self._open_to(target)
        except TimeoutError:
            self._pool.free(place)
            raise ConnectFault(Reply(451, "4.4.1", f"No session with {target.name} in time"), Stage.CONNECT) from None
        except asyncio.CancelledError:
            self._pool.free(place)
            if not has_to_go:
                raise
            task.uncancel()
            if place.rank is Rank.SLOW:
                text = f"No session with {target.name} in time, while other mail waits for a connection"
                raise ConnectFault(Reply(451, "4.4.1", text), Stage.CONNECT) from None
            raise _GaveWayError from None
        except BaseException:
            self._pool.free(place)
            raise
        place.give_way = None
        connection.place = place
        return connection

    async def _open_to(self, target: Target) -> ClientConnection:
        with_tls = self._no_tls.get(target, 0.0) <= self._clock.monotonic()
        connection = await open_optional_tls(lambda: self._new(target), with_tls=with_tls)
        if with_tls and connection.is_fallback:
            self.note_broken_tls(target)
        return connection

    def _new(self, target: Target) -> ClientConnection:
        return ClientConnection(self._lane, target, self._settings.client, self._clock)

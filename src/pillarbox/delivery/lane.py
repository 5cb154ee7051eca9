"""A lane: one next hop's waiting work, its connections and its back-off.

A lane feeds connections as they become free (also ahead of a final reply, under PIPELINING), opens more while work
waits, and stops when its next hop is in trouble: then one message probes it, at growing pauses, and all others stay in
the queue. Must not know the store, nor other lanes.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Collection
from typing import Any

from ..clock import Clock
from ..queue.work import Result, Work, give_back
from ..smtp.client import ClientFault, Stage, Transaction
from ..smtp.reply import Reply
from ..smtp.state import ClientState
from .backoff import BackOff
from .client import ClientConnection, ConnectFault
from .route import Target
from .terms import Lanes, LaneSettings
from .tlspolicy import TlsPolicy
from .transaction import build_transaction, result_of
from .turns import Patience
from .waiting import WaitingLine
from .width import Width

_log = logging.getLogger("pillarbox.delivery")
IDLE_S = 5.0
# A host whose TLS handshake failed under "may" gets mail in clear for this long.
NO_TLS_S = 3600.0
# A server that could not be reached stands behind the others of its next hop for this long.
BAD_S = 300.0
# Stages that are about the next hop as a whole: what was deferred there is due at once when it is back.
REACHING_STAGES = frozenset(("lookup", "connect", "greeting", "ehlo", "starttls", "auth"))
WHOLE_STAGES = REACHING_STAGES | {"connection"}
_NOT_REACHABLE = Reply(451, "4.4.1", "The next hop is not reachable")
# So long may it take until one of a next hop's servers takes a connection.
OPEN_S = 900.0


class Lane:
    """One next hop."""

    def __init__(self, lanes: Lanes, key: str, settings: LaneSettings, clock: Clock, rng: random.Random) -> None:
        self.key = key
        self._lanes = lanes
        self._settings = settings.client
        self._find_targets = settings.find_targets
        self._limit = settings.limit
        self._patience = Patience(clock, lambda waiting: lanes.turn(key, waiting), self.feed)
        self._patience.interval_s = settings.interval_s
        # `lanes.wake` is looked up when it is called: app.py connects it last.
        self._waiting = WaitingLine(settings.waiting, settings.waiting_bytes, lambda: lanes.wake())
        # Few at first: who never answers must not have all of the server's connections.
        self._width = Width(clock, self.feed)
        self._has_grown = False
        self._back_off = BackOff(clock, rng)
        self._clock = clock
        self._connections: set[ClientConnection] = set()
        self._idle: list[ClientConnection] = []
        self._opening: set[asyncio.Task[Any]] = set()
        self._busy = 0
        self._bad: dict[Target, float] = {}
        self._no_tls: dict[Target, float] = {}
        self._calm: asyncio.Future[None] | None = None
        self._is_stopping = False

    def change(self, settings: LaneSettings) -> None:
        """Other settings, for connections that are opened from now on."""
        self._settings, self._limit = settings.client, settings.limit
        self._find_targets, self._patience.interval_s = settings.find_targets, settings.interval_s
        self._waiting.change(settings.waiting)

    # -------------------------------------------------------------------- work

    @property
    def is_down(self) -> bool:
        """True while the next hop is in trouble and the next probe is not due."""
        return self._back_off.is_down

    def has_room(self) -> bool:
        """For one message while it is probed, for none while it is down or enough waits."""
        if self._is_stopping:
            return False
        if self._back_off.is_on:
            if self.is_down:
                return False
            return not self._waiting and not self._busy
        return self._waiting.has_room()

    @property
    def waiting(self) -> int:
        """Messages that wait for a connection."""
        return len(self._waiting)

    @property
    def connections(self) -> int:
        """Open, or being opened."""
        return len(self._connections) + len(self._opening)

    @property
    def is_idle(self) -> bool:
        """True when nothing is known or done here that a new lane would not know or do."""
        is_doing = self._waiting or self._connections or self._opening or self._busy
        return not (is_doing or self._back_off.is_on or self._no_tls or self._width.is_waiting)

    @property
    def is_hungry(self) -> bool:
        """True while work waits that a further connection could take."""
        there = len(self._connections) + len(self._opening)
        if not self._waiting or self._idle or self._patience.is_waiting:
            return False
        return there < self._width.now(self._limit) and not self._width.is_enough(len(self._waiting), there)

    def spare(self) -> bool:
        """Closes an idle connection, for another lane to have one; False when there is none."""
        if not self._idle:
            return False
        if self._waiting and not self._patience.is_waiting:
            working = len(self._connections) - len(self._idle)
            if not self._width.is_enough(len(self._waiting), working):
                return False
        self._idle[0].quit()
        return True

    def retry_at_wall(self) -> float | None:
        """Unix time of the next probe."""
        return self._back_off.retry_at_wall()

    def why_waiting(self) -> str | None:
        """For people."""
        return self._back_off.why(self.key) or (self._patience.why(self.key) if self._waiting else None)

    def describe(self) -> dict[str, Any]:
        """The lane as JSON, for people who watch: its state is idle, busy, probing or down."""
        state = "down" if self.is_down else "probing" if self._back_off.is_on else "busy" if self._busy else "idle"
        return {
            "next_hop": self.key,
            "state": state,
            "waiting": len(self._waiting),
            "busy": self._busy,
            "connections": len(self._connections) + len(self._opening),
            "retry_at": self.retry_at_wall(),
            "reason": self.why_waiting(),
        }

    def push(self, work: Work) -> None:
        """Takes work."""
        if self._is_stopping or (self._back_off.is_on and self.is_down):
            self._return(work)
            return
        self._waiting.push(work)
        self._back_off.has_work()
        self.feed()

    def withdraw(self, uids: Collection[str] | None) -> list[Work]:
        """Work that has not begun."""
        return self._waiting.take(uids)

    def forget_backoff(self) -> None:
        """Probe now."""
        self._back_off.forget_pause()

    def _return(self, work: Work) -> None:
        """Nothing was tried: the queue keeps it until the next probe."""
        retry_at = self.retry_at_wall() or self._clock.time()
        fault = self._back_off.fault or _NOT_REACHABLE
        work.results = [Result(r, fault, "connect", is_attempt=False, retry_at=retry_at) for r in work.recipients]
        self._lanes.finished(work)

    def feed(self) -> None:
        """Work to idle connections, and to new ones while there may be more."""
        works, idle = self._waiting.works, self._idle
        while works and idle and not self._patience.is_waiting:
            if self._width.is_enough(len(works), len(self._connections) - len(idle)):
                return
            if idle[-1].smtp.can_start:
                self.may_send_more(idle[-1])
            else:
                idle.pop()
        if not works or self._is_stopping or self._patience.is_waiting:
            return
        limit = 1 if self._back_off.is_on else self._width.now(self._limit)
        there = len(self._connections) + len(self._opening)
        if there >= limit or self._width.is_enough(len(works), len(self._connections)):
            return
        if self._patience.interval_s:
            # One for each turn that none of those has time for.
            if self._opening or not self._patience.has_turn(len(works)):
                return
            limit = min(limit, there + 1)
        room = min(limit, self._lanes.allowed(self.key, min(limit, there + len(works)))) - there
        for _ in range(min(room, len(works) - len(self._opening))):
            if not self._spawn_open():
                return

    def go_on(self) -> None:
        """There may be turns, or connections may be opened."""
        self._patience.end()

    def _spawn_open(self) -> bool:
        if not self._lanes.may_open(self):
            return False
        task: asyncio.Task[bool] = asyncio.get_running_loop().create_task(self._open())
        self._opening.add(task)
        task.add_done_callback(self._opened)
        return True

    def _opened(self, task: asyncio.Task[bool]) -> None:
        self._opening.discard(task)
        if task.cancelled() or task.exception() is not None or not task.result():
            self._lanes.has_closed()
        if not task.cancelled() and task.exception() is not None:
            _log.error("%s: opening a connection failed", self.key, exc_info=task.exception())

    async def _targets(self) -> list[Target] | Reply:
        """The servers, best first; those that have failed lately stand behind the others."""
        try:
            found = await self._find_targets()
        except Exception as error:
            _log.exception("looking up %s failed", self.key)
            found = Reply(451, "4.3.0", f"Internal fault: {type(error).__name__}")
        if isinstance(found, Reply):
            return found
        now = self._clock.monotonic()
        self._bad = {target: until for target, until in self._bad.items() if until > now}
        return sorted(found, key=lambda target: target in self._bad)

    # -------------------------------------------------------------- connections

    async def _open(self) -> bool:
        """True when there is a connection: it is counted until it closes."""
        try:
            async with asyncio.timeout(OPEN_S):
                return await self._open_one()
        except TimeoutError:
            return self._not_opened(ConnectFault(Reply(451, "4.4.1", "No server answered in time"), Stage.CONNECT))

    def _not_opened(self, fault: ConnectFault) -> bool:
        self._opening.discard(asyncio.current_task())
        self._connect_failed(fault)
        return False

    async def _open_one(self) -> bool:
        targets = await self._targets()
        if isinstance(targets, Reply):
            self._opening.discard(asyncio.current_task())
            self._no_targets(targets)
            return False
        fault: ConnectFault | None = None
        for target in targets:
            try:
                connection = await self._open_to(target)
            except ConnectFault as caught:
                fault = caught
                _log.info("%s: %s", self.key, caught, extra={"next_hop": self.key, "reason": str(caught)})
            except Exception as error:
                _log.exception("connecting to %s failed", target.name)
                fault = ConnectFault(Reply(451, "4.3.0", f"Internal fault: {type(error).__name__}"), Stage.CONNECT)
            else:
                if fault is not None:
                    _log.warning("%s: using %s", self.key, target.name)
                self._take(connection)
                return True
            self._bad[target] = self._clock.monotonic() + BAD_S
        # None works: next time the order begins anew.
        self._bad.clear()
        return self._not_opened(fault or ConnectFault(Reply(451, "4.4.4", "There is no server to try"), Stage.LOOKUP))

    def _take(self, connection: ClientConnection) -> None:
        self._connections.add(connection)
        self._idle.append(connection)
        if self._back_off.is_on and not self._waiting:
            # It answers again: what could not reach it is due now, and the first message decides whether that lasts.
            self._lanes.is_back(self.key, REACHING_STAGES)
        self._opening.discard(asyncio.current_task())
        self.feed()

    def _no_targets(self, verdict: Reply) -> None:
        """No server may be tried: for ever (5yz), and all that waits is given up; or for now."""
        if verdict.is_transient:
            self._connect_failed(ConnectFault(verdict, Stage.LOOKUP))
            return
        self._back_off.pass_over()
        for work in self._waiting.take():
            work.started_at, work.started_clock = self._clock.time(), self._clock.monotonic()
            work.results = [Result(r, verdict, Stage.LOOKUP.value, is_permanent=True) for r in work.recipients]
            self._lanes.finished(work)

    async def _open_to(self, target: Target) -> ClientConnection:
        now = self._clock.monotonic()
        with_tls = self._no_tls.get(target, 0.0) <= now
        connection = ClientConnection(self, target, self._settings, self._clock)
        try:
            await connection.open(with_tls=with_tls)
        except ConnectFault as fault:
            may = self._settings.policy is TlsPolicy.MAY and not target.is_tls and self._settings.credentials is None
            if not (fault.is_handshake and may and with_tls):
                raise
            # RFC 7435: opportunistic means that a broken TLS is no worse than none. Remembered, said, never with AUTH.
            _log.warning("%s: TLS failed, sending in clear: %s", target.name, fault)
            self._no_tls[target] = now + NO_TLS_S
            connection = ClientConnection(self, target, self._settings, self._clock)
            await connection.open(with_tls=False)
        return connection

    def _connect_failed(self, fault: ConnectFault) -> None:
        self._back_off.fault = fault.reply
        if others := len(self._connections) + len(self._opening):
            # It serves us on other connections, or is about to: perhaps it wants no more of them.
            self._width.refused(others)
            return
        stage = fault.stage.value
        work = self._waiting.pop() if self._waiting else None
        self._go_down()
        if work is not None:
            # The one that asked for the connection has had an attempt; the others have not.
            work.started_at, work.started_clock = self._clock.time(), self._clock.monotonic()
            work.results = [Result(r, fault.reply, stage) for r in work.recipients]
            self._lanes.finished(work)
        self._return_all()

    def _go_down(self) -> None:
        pause = self._back_off.begin()
        if pause is None:
            return
        self._width.begin_anew()
        told = {"next_hop": self.key, "reason": str(self._back_off.fault)}
        _log.warning("%s is in trouble, next try in %.0f s: %s", self.key, pause, self._back_off.fault, extra=told)

    def _return_all(self) -> None:
        for work in self._waiting.take():
            self._return(work)
        self._lanes.wake()

    def _alive(self) -> None:
        """The next hop answers for single messages: no trouble."""
        if self._back_off.is_over():
            self._lanes.is_back(self.key, WHOLE_STAGES)

    # -------------------------------------------------------- from a connection

    def may_send_more(self, connection: ClientConnection) -> None:
        """See client.Owner."""
        works, idle = self._waiting.works, self._idle
        is_idle = connection.smtp.is_idle
        if self._is_stopping or len(self._connections) > self._lanes.allowed(self.key, 0):
            if is_idle:
                connection.quit()
            return
        while works and connection.smtp.can_start and self._patience.take_turn(len(works)):
            if self._begin(connection, self._waiting.pop()):
                if connection in idle:
                    idle.remove(connection)
                if self._has_grown and works:
                    self._has_grown = False
                    self.feed()
                return
            self._patience.give_back()
        if is_idle and connection not in idle and connection in self._connections:
            self._idle.append(connection)
            self._lanes.has_idle(self)

    def _begin(self, connection: ClientConnection, work: Work) -> bool:
        if not self._lanes.may_begin():
            give_back(work, self._clock.time())
            self._lanes.finished(work)
            return False
        work.started_at, work.started_clock = self._clock.time(), self._clock.monotonic()
        try:
            built = build_transaction(work, connection.smtp)
            if isinstance(built, Transaction):
                connection.send(built)
                self._busy += 1
                return True
            refusal = built
        except ClientFault as fault:
            refusal = Reply(553, "5.1.3", str(fault))
        except OSError as error:
            _log.error("%s: the content cannot be read: %s", work.message.uid, error)
            refusal = Reply(451, "4.3.0", "The content cannot be read from the spool")
        work.results = [Result(r, refusal, "mail", is_permanent=refusal.is_permanent) for r in work.recipients]
        self._lanes.finished(work)
        return False

    def transaction_done(self, connection: ClientConnection, transaction: Transaction) -> None:
        """See client.Owner."""
        work = transaction.tag
        assert isinstance(work, Work)
        self._busy -= 1
        work.tls, work.connect_s, connection.connect_s = connection.tls, connection.connect_s, 0.0
        if self._calm is not None and not self._busy and not self._calm.done():
            self._calm.set_result(None)
        smtp, remote = connection.smtp, connection.remote
        is_lost = smtp.state is ClientState.CLOSED
        for recipient, outcome in zip(work.recipients, transaction.outcomes, strict=True):
            assert outcome is not None
            work.results.append(result_of(smtp, remote, recipient, outcome, is_lost=is_lost))
        self._lanes.finished(work)
        if is_lost and any(result.stage == "connection" or result.is_ambiguous for result in work.results):
            if self._back_off.is_one_more(work.results[0].reply):
                self._go_down()
                self._return_all()
        else:
            self._has_grown |= self._width.worked(self._limit, work.started_clock, connection.progress)
            if self._back_off.is_worried:
                self._alive()

    def connection_closed(self, connection: ClientConnection) -> None:
        """See client.Owner."""
        self._connections.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        self._lanes.has_closed()
        self.feed()

    # ------------------------------------------------------------------ upkeep

    def sweep(self, now: float) -> None:
        """Idle connections are closed, slow steps given up, a due probe begun."""
        if self._no_tls:
            self._no_tls = {target: until for target, until in self._no_tls.items() if until > now}
        if not self._waiting:
            self._patience.stop()
        for connection in list(self._connections):
            connection.sweep(now)
            if connection.is_stalled(now):
                self._stalled(connection, now)
        for connection in list(self._idle):
            if now - connection.idle_since > IDLE_S:
                connection.quit()
                if not self._busy and not self._waiting:
                    # A probe that worked, and nothing came to use it: there is no trouble that anybody has.
                    self._back_off.pass_over()
        if self._back_off.is_on and not self.is_down and not self._busy and not self._opening:
            self._lanes.wake()
            has_nothing = not self._waiting and not self._idle and not self._is_stopping
            if has_nothing and self._back_off.wants_empty_probe() and self._lanes.allowed(self.key, 1):
                # Nothing is due that could probe: a connection alone does it.
                self._spawn_open()
        elif self._waiting and not self.is_down and not self._is_stopping:
            # Whatever made nobody open a connection for it.
            self.feed()

    def _stalled(self, connection: ClientConnection, now: float) -> None:
        """What has gone ahead on it, and could go on another one at once, does: where the others are quick."""
        is_odd = self._width.stalled(now)
        if is_odd and self._idle and not self._is_stopping and (ahead := connection.smtp.take_back()) is not None:
            work = ahead.tag
            assert isinstance(work, Work)
            self._busy -= 1
            self._waiting.push_first(work)
            self.feed()

    async def stop(self, grace_s: float) -> None:
        """See Lanes.stop."""
        self._is_stopping = True
        self._patience.stop()
        for connection in list(self._idle):
            connection.quit()
        for task in list(self._opening):
            task.cancel()
        self._calm = asyncio.get_running_loop().create_future()
        if self._busy:
            await asyncio.wait([self._calm], timeout=grace_s)
        for connection in list(self._connections):
            # What is cut off here is deferred: an attempt that may have succeeded is recorded as ambiguous.
            connection.smtp.receive_eof()
            connection.data_received(b"")
            connection.abort()

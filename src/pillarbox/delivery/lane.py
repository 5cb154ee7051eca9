"""A lane: one next hop's waiting work, its connections and its back-off.

A lane feeds connections as they become free (also ahead of a final reply, under PIPELINING) and opens more while work
waits. In trouble one message probes the next hop; all others stay in the queue. Must not know the store, nor other lanes.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Collection
from typing import Any

from ..clock import Clock
from ..queue.work import Result, Work, give_back, part_of
from ..smtp.client import ClientFault, Transaction
from ..smtp.reply import Reply
from ..smtp.state import ClientState
from .backoff import BackOff
from .client import ClientConnection, ConnectFault
from .course import Course, Ended, Way, most_recipients, way_on
from .opener import NotOpenedError, Opener
from .pool import Place, Rank
from .route import RELAY
from .terms import REACHING_STAGES, WHOLE_STAGES, Lanes, LaneSettings
from .transaction import Session, build_transaction, results_of
from .turns import Patience
from .waiting import WaitingLine
from .width import Width

_log = logging.getLogger("pillarbox.delivery")
IDLE_S = 5.0
_NOT_REACHABLE = Reply(451, "4.4.1", "The next hop is not reachable")


class Lane:
    """One next hop."""

    def __init__(self, lanes: Lanes, key: str, settings: LaneSettings, clock: Clock, rng: random.Random) -> None:
        self.key = key
        self._is_relay = key.startswith(RELAY)
        self._lanes = lanes
        self._opener = Opener(self, settings, lanes.pool, clock)
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
        self._calm: asyncio.Future[None] | None = None
        self._is_stopping = False

    def change(self, settings: LaneSettings) -> None:
        """Other settings, for connections that are opened from now on."""
        self._limit = settings.limit
        self._opener.change(settings)
        self._patience.interval_s = settings.interval_s
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
        return self._lanes.pool.held_by(self)

    @property
    def wanted(self) -> int:
        """As `connections`, with those that wait for a place: the limit over all nodes counts them."""
        return len(self._connections) + len(self._opening)

    @property
    def is_idle(self) -> bool:
        """True when nothing is known or done here that a new lane would not know or do."""
        is_doing = self._waiting or self._connections or self._opening or self._busy
        return not (is_doing or self._back_off.is_on or self._opener.knows_anything or self._width.is_waiting)

    def wants_place(self) -> bool:
        """See pool.Seeker: while work waits that a further connection could take, or the next hop is probed."""
        if self._back_off.is_on:
            return True
        return bool(self._waiting) and not self._width.is_enough(len(self._waiting), len(self._connections))

    def spare_place(self, place: Place) -> bool:
        """See pool.Seeker."""
        if self._waiting and not self._patience.is_waiting:
            working = len(self._connections) - len(self._idle)
            if not self._width.is_enough(len(self._waiting), working):
                return False
        for connection in self._idle:
            if connection.place is place:
                connection.quit()
                return True
        return False

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
            "connections": self.connections,
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
        """Probes the next hop now."""
        self._back_off.forget_pause()

    def _return(self, work: Work) -> None:
        """Nothing was tried: the queue keeps it until the next probe."""
        retry_at = self.retry_at_wall() or self._clock.time()
        fault = self._back_off.fault or _NOT_REACHABLE
        work.results = [Result(r, fault, "connect", is_attempt=False, retry_at=retry_at) for r in work.recipients]
        self._finish_kept(work)

    def _finish_kept(self, work: Work) -> None:
        """Finishes work that goes no further: what servers said to it in this attempt stands before all else."""
        course: Course | None = work.course
        if course is not None and (known := course.results_for(work.recipients)) is not None:
            work.results = known
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
        there = self.wanted
        if there >= limit or self._width.is_enough(len(works), len(self._connections)):
            return
        if self._patience.interval_s:
            # One for each turn that none of those has time for.
            if self._opening or not self._patience.has_turn(len(works)):
                return
            limit = min(limit, there + 1)
        room = min(limit, self._lanes.allowed(self.key, min(limit, there + len(works)))) - there
        for _ in range(min(room, len(works) - len(self._opening))):
            self._spawn_open()

    def go_on(self) -> None:
        """There may be turns, or connections may be opened."""
        self._patience.end()

    def _spawn_open(self) -> None:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(self._open())
        self._opening.add(task)
        task.add_done_callback(self._opened)

    def _opened(self, task: asyncio.Task[Any]) -> None:
        self._opening.discard(task)
        if not task.cancelled() and task.exception() is not None:
            _log.error("%s: opening a connection failed", self.key, exc_info=task.exception())

    async def _open(self) -> None:
        first: Course | None = self._waiting.works[0].course if self._waiting else None
        try:
            connection = await self._opener.open(first.tried if first is not None else ())
        except NotOpenedError as error:
            self._opening.discard(asyncio.current_task())
            if error.fault is None:
                # Nothing was tried. What waits, waits for a place behind the others.
                self.feed()
            elif error.is_final:
                self._no_targets(error.fault)
            else:
                self._connect_failed(error.fault)
        else:
            self._take(connection)

    def _take(self, connection: ClientConnection) -> None:
        self._connections.add(connection)
        self._idle.append(connection)
        if self._back_off.is_on and not self._waiting:
            # It answers again: what could not reach it is due now, and the first message decides whether that lasts.
            self._lanes.is_back(self.key, REACHING_STAGES)
        self._opening.discard(asyncio.current_task())
        self.feed()
        if connection in self._idle and connection.place is not None:
            self._lanes.pool.idles(connection.place)

    def _no_targets(self, fault: ConnectFault) -> None:
        """No server may ever be tried: all that waits is given up."""
        self._back_off.pass_over()
        for work in self._waiting.take():
            work.started_at, work.started_clock = self._clock.time(), self._clock.monotonic()
            work.results = [Result(r, fault.reply, fault.stage.value, is_permanent=True) for r in work.recipients]
            self._lanes.finished(work)

    def _connect_failed(self, fault: ConnectFault) -> None:
        self._back_off.fault = fault.reply
        if others := self.wanted:
            # It serves us on other connections, or is about to: perhaps it wants no more of them.
            self._width.refused(others)
            return
        work = self._waiting.pop() if self._waiting else None
        self._go_down()
        if work is not None:
            # The one that asked for the connection has had an attempt; the others have not.
            work.started_at, work.started_clock = self._clock.time(), self._clock.monotonic()
            work.results = [Result(r, fault.reply, fault.stage.value) for r in work.recipients]
            self._finish_kept(work)
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
        while works and connection.smtp.can_start:
            if works[0].course is not None and not self._is_for(connection, works[0].course):
                return
            if not self._patience.take_turn(len(works)):
                break
            if self._begin(connection, self._waiting.pop()):
                if connection in idle:
                    idle.remove(connection)
                if self._has_grown and works:
                    self._has_grown = False
                    self.feed()
                return
            self._patience.give_back()
        if is_idle and not connection.smtp.can_start:
            # The server takes no more in this session (RFC 9422).
            connection.quit()
        elif is_idle and connection in self._connections:
            if connection not in idle:
                self._idle.append(connection)
            if connection.place is not None:
                self._lanes.pool.idles(connection.place)

    def _is_for(self, connection: ClientConnection, course: Course) -> bool:
        """False when the first message that waits has been at this server, and another may be reached."""
        if connection.target not in course.tried or connection.target in connection.avoided:
            return True
        connection.quit_when_idle()
        return False

    def _begin(self, connection: ClientConnection, work: Work) -> bool:
        if not self._lanes.may_begin():
            give_back(work, self._clock.time())
            self._lanes.finished(work)
            return False
        course: Course | None = work.course
        if course is not None and connection.target in course.tried:
            self._finish_kept(work)
            return False
        now = self._clock.monotonic()
        work.started_at, work.started_clock = self._clock.time(), now
        most = 0
        if course is not None or connection.smtp.limits:
            most = most_recipients(connection.smtp.limits, course, work.recipients)
        try:
            built = build_transaction(work, connection.smtp, most)
            if isinstance(built, Transaction):
                connection.send(built)
                self._busy += 1
                if (place := connection.place) is not None:
                    place.is_idle, place.give_way = False, connection.give_way
                    if place.rank is Rank.PROVEN:
                        place.since = now
                return True
            refusal = built
            if connection.smtp.used_helo:
                # The next session may have what this one lacks.
                connection.quit()
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
        smtp = connection.smtp
        is_lost = smtp.state is ClientState.CLOSED
        session = Session(smtp, connection.remote, is_lost, connection.is_fallback, self._is_relay)
        results = results_of(session, work.recipients, transaction)
        if any(result.is_delivered for result in results):
            connection.taken += 1
            self._lanes.pool.worked(self.key)
        elif connection.is_fallback or smtp.used_helo:
            self._forget_fallback(connection, transaction)
        work.results = results
        way = Way.ENDS
        if len(results) < len(work.recipients) or not all(result.is_delivered for result in results):
            way = self._go_on(connection, work, transaction)
        if way is Way.ENDS:
            self._lanes.finished(work)
        if way not in (Way.ENDS, Way.AGAIN):
            return
        if is_lost and any(result.stage == "connection" or result.is_ambiguous for result in results):
            if self._back_off.is_one_more(results[0].reply):
                self._go_down()
                self._return_all()
        else:
            self._has_grown |= self._width.worked(self._limit, work.started_clock, connection.progress)
            if self._back_off.is_worried:
                self._alive()

    def _go_on(self, connection: ClientConnection, work: Work, transaction: Transaction) -> Way:
        """What of the work goes on within this attempt is put in front of what waits; the rest of it is finished."""
        results, recipients, smtp = work.results, work.recipients, connection.smtp
        course: Course = work.course or Course()
        has_other = self._opener.has_other(course.tried | {connection.target})
        is_lost, may_clear = smtp.state is ClientState.CLOSED, self._opener.may_leave_out_tls(connection)
        ended = Ended(transaction, results, is_lost, smtp.was_cut, connection.taken, may_clear, connection.gave_way)
        way, places = way_on(ended, course, has_other)
        rest = [recipients[n] for n in places] + recipients[len(results) :]
        if not rest:
            return Way.ENDS
        if way is Way.ENDS:
            way = Way.AGAIN
        going = {recipient.number for recipient in rest}
        if done := [result for result in results if result.recipient.number not in going]:
            self._lanes.finished(part_of(work, done))
        if way is Way.AGAIN and places:
            # As many as it has taken: it would refuse the others again.
            course.most_recipients = len(results) - len(places)
        elif way is Way.NEXT_SERVER:
            course.tried.add(connection.target)
            course.keep(results)
            self._opener.mark_bad(connection.target)
            _log.info("%s: %s takes no mail, trying the next server: %s", self.key, connection.remote, results[0].reply)
        elif way is not Way.AGAIN:
            course.moves += 1
            if way is Way.IN_CLEAR:
                _log.warning("%s: hangs up under TLS, sending in clear", connection.remote)
                self._opener.note_broken_tls(connection.target)
        if connection.gave_way:
            self._lanes.pool.was_slow(self.key)
        work.course, work.recipients, work.results = course, rest, []
        self._waiting.push_first(work)
        if way is not Way.AGAIN:
            connection.quit_when_idle()
        self.feed()
        return way

    def _forget_fallback(self, connection: ClientConnection, transaction: Transaction) -> None:
        """A refusal may come of the session's lack of TLS or EHLO: the next one has both, if they work."""
        if any(outcome is not None and outcome.is_permanent for outcome in transaction.outcomes):
            self._opener.forget_broken_tls(connection.target)
            connection.quit_when_idle()

    def connection_closed(self, connection: ClientConnection) -> None:
        """See client.Owner."""
        self._connections.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)
        if connection.place is not None:
            self._lanes.pool.free(connection.place)
        self.feed()

    # ------------------------------------------------------------------ upkeep

    def sweep(self, now: float) -> None:
        """Idle connections are closed, slow steps given up, a due probe begun."""
        self._opener.forget_old(now)
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

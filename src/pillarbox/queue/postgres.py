"""The store of many nodes: PostgreSQL. One transaction for what a group commit brings, 250 after its commit.

A claim is a lease with an owner and an epoch: what is settled with another is refused, and counted. The database's clock
rules; times that a caller passes in count as so long from now. Contents are in the database: no mail is bound to a host.
Needs `pillarbox[postgres]`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
import weakref
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, TypeVar

import psycopg
from psycopg_pool import ConnectionPool, PoolTimeout

from ..mail.content import Content
from ..mail.envelope import Envelope
from . import postgres_steer, shards
from .clocks import Bounds
from .folder import make_folder, make_spool, take_lock
from .model import Action, Message, Query, Recipient, Settlement, View
from .pgconnect import CONNECT_S, Connection, StoreAwayError, reason_of, translated, warn_of_clear_text
from .pgnode import LEASE_S, SQL, Heart, check_tables, node_name
from .pgwork import Lease, Numbers, Session, Work
from .postgres_read import PIECE_BYTES, WITHIN, PostgresReader
from .postgres_rows import (
    attempt_columns,
    history_columns,
    kept_columns,
    message_columns,
    pieces_of,
    recipient_columns,
    settled_columns,
)
from .slots import Wants

_log = logging.getLogger("pillarbox.queue")
T = TypeVar("T")
Cursor = psycopg.Cursor[tuple[Any, ...]]
# A message whose content found no room in this node's spool is due again after so long.
NO_ROOM_S = 60.0


class PostgresStore:
    """See queue.store.Store. `folder` is this worker's data directory: its lock, and a spool for what is on its way.

    `is_node` False only looks and steers: nothing can be accepted or claimed. With `has_own_clock` False the times that
    callers pass in are taken as they are (tests).
    """

    is_inline = suits_loop = False
    wants_maintenance = wants_preparing = is_behind = maintains_beside = False

    def __init__(
        self,
        url: str,
        folder: str = "",
        worker: int = 0,
        *,
        lease_s: float = LEASE_S,
        is_node: bool = True,
        has_own_clock: bool = True,
        wall: Callable[[], float] = time.time,
    ) -> None:
        # The clock of those who call: their times count as so long from now.
        self._wall = wall
        self.url = url
        self.folder = folder
        self.spool = shards.spool_folder(folder, worker) if folder else ""
        self.heart = Heart(url, node_name(worker), lease_s)
        self._lock_path = shards.lock_file(folder, worker)
        self._lock: int | None = None
        self._is_node, self._has_own_clock = is_node, has_own_clock
        self._session = Session(url, self.heart.name)
        self._hands = self._session.hands
        self._pool: ConnectionPool[Connection] | None = None
        self._read = PostgresReader(self._session.lent, self.spool)
        self._ids, self._epochs = Numbers("message_id"), Numbers("lease_epoch")
        # The next hop that had its turn last, where those that are skipped are first in line.
        self._behind = ""

    # ------------------------------------------------------------ open and close

    def open(self) -> None:
        """Connects, makes or checks the tables, registers this node. StoreError says what is in the way."""
        if not self._is_node:
            check_tables(self._session.connected(), self.url)
            return
        make_folder(self.folder)
        self._lock = take_lock(self._lock_path, self.folder)
        try:
            make_spool(self.spool)
            warn_of_clear_text(self.url)
            self.heart.start()
            self._session.me, self._session.writes = self.heart.me, True
            self._session.connected()
            self.heart.run()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """What is still in hand becomes anybody's; nothing is lost."""
        if self._pool is not None:
            self._pool.close()
            self._pool = None
        self._session.disconnect()
        self.heart.stop()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def reader(self) -> PostgresReader:
        """A reader for other threads, with connections from a pool."""
        generations: weakref.WeakKeyDictionary[Connection, int] = weakref.WeakKeyDictionary()

        def check(connection: Connection) -> None:
            # The heart had to look for the database since: after a fail-over this may be the former primary.
            if generations.get(connection) != self.heart.generation:
                connection.close()
                raise psycopg.OperationalError("the connection is from before the database was lost")

        if self._pool is None:
            self._pool = ConnectionPool(
                self.url,
                min_size=0,
                max_size=4,
                timeout=CONNECT_S,
                kwargs={"autocommit": True, "application_name": f"pillarbox {self.heart.name} reader"},
                open=True,
                configure=lambda connection: generations.update({connection: self.heart.generation}),
                check=check,
                reconnect_timeout=CONNECT_S,
            )
            logging.getLogger("psycopg.pool").setLevel(logging.CRITICAL)
        pool = self._pool

        @contextlib.contextmanager
        def lent() -> Iterator[Connection]:
            try:
                with pool.connection() as connection:
                    yield connection
            except PoolTimeout as error:
                raise StoreAwayError(f"the queue's database does not answer: {reason_of(error)}") from None
            except psycopg.Error as error:
                raise translated(error, self.url) from error

        return PostgresReader(lent, self.spool)

    @property
    def is_in_doubt(self) -> bool:
        """Whether what became of a commit is not known yet: the next transaction finds out."""
        return self._session.is_in_doubt

    @property
    def late_settles(self) -> int:
        """Outcomes that were refused: others had taken over what this node had in hand."""
        return self.heart.counters["late_settles"]

    def maintain(self) -> None:
        """Nothing to do: the database looks after itself."""

    prepare = maintain

    # ------------------------------------------------------------------- writing

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """One durable commit for what is done inside."""
        with self._session.transaction() as (_, work):
            yield
        self._count_late(work.late)

    def try_commit(self, accepts: Sequence[Message], settles: Sequence[Settlement]) -> bool:
        """Not in the loop."""
        return False

    def commit(self, accepts: Sequence[Message], settles: Sequence[Settlement]) -> None:
        """Messages and outcomes in one transaction, and in one turn to the database and back."""
        try:
            self._commit(accepts, settles)
        except StoreAwayError:
            if self.heart.is_away:
                raise
            # The connection was lost, nothing of it came through, and the database is there again.
            self._commit(accepts, settles)

    def _commit(self, accepts: Sequence[Message], settles: Sequence[Settlement]) -> None:
        try:
            epoch = self._number(self._session.connected(), accepts)
        except psycopg.Error as error:
            self._session.disconnect()
            raise translated(error, self.url) from error
        late = None
        with self._session.transaction(is_pipelined=True) as (db, work):
            if accepts:
                self._accept(db, accepts, epoch, work)
            if settles:
                late = self._settle(db, settles, work)
        if work.is_answered and late is not None:
            self._count_late(len(work.settled) - late.rowcount)

    def _number(self, db: Connection, batch: Sequence[Message]) -> int:
        """The keys of new messages, and the epoch of their leases. Asks the database once for very many of them."""
        for message in batch:
            message.key = self._ids.take(db)
        return self._epochs.take(db) if any(message.leased_until is not None for message in batch) else 0

    def _from_now(self, at: float | None, now: float) -> float | None:
        """A time of the caller's as the database takes it: so long from now."""
        if at is None or not self._has_own_clock:
            return at
        return max(at - now, 0.0)

    def _now(self, now: float) -> float | None:
        return None if self._has_own_clock else now

    @property
    def _zero(self) -> float | None:
        """What "so long from now" counts from, where the caller's times are taken as they are."""
        return None if self._has_own_clock else 0.0

    def accept(self, batch: Sequence[Message]) -> None:
        """Within transaction()."""
        db, work = self._session.current
        self._accept(db, batch, self._number(db, batch), work)

    def _accept(self, db: Connection, batch: Sequence[Message], epoch: int, work: Work) -> None:
        recipients = [(m, r) for m in batch for r in m.recipients]
        due = [(m, r) for m, r in recipients if not m.is_held]
        db.execute(SQL["insert_messages"], message_columns(batch))
        for pieces in pieces_of(batch):
            db.execute(SQL["insert_contents"], pieces)
        db.execute(SQL["insert_recipients"], recipient_columns(recipients))
        if due:
            given = {
                "id": [m.key for m, _ in due],
                "number": [r.number for _, r in due],
                "next_hop": [r.next_hop or "" for _, r in due],
                "after": [self._from_now(m.due_at or m.received_at, m.received_at) for m, _ in due],
                "lease": [self._from_now(m.leased_until, m.received_at) for m, _ in due],
                "epoch": [epoch if m.leased_until is not None else 0 for m, _ in due],
                "expires_at": [m.expires_at for m, _ in due],
            }
            db.execute(SQL["insert_due"], {**given, "me": self.heart.me, "now": self._zero})
        if any(m.leased_until is None for m, _ in due):
            db.execute(SQL["notify"], {"what": "due"})
        work.accepted += len(batch)
        work.taken |= {(m.key, r.number): epoch for m, r in due if m.leased_until is not None}
        for m in batch:
            if m.content.path and m.leased_until is not None and not m.is_held:
                work.files[m.key] = os.path.basename(m.content.path)
            elif m.content.path:
                work.dropped.append(os.path.basename(m.content.path))

    def restore(self, batch: Sequence[Message], now: float) -> None:
        """As another queue had them. Within transaction()."""
        db, work = self._session.current
        for message in batch:
            message.key = self._ids.take(db)
        recipients = [(m, r) for m in batch for r in m.recipients]
        db.execute(SQL["insert_messages"], message_columns(batch))
        for pieces in pieces_of(batch):
            db.execute(SQL["insert_contents"], pieces)
        db.execute(SQL["insert_recipients"], recipient_columns(recipients))
        db.execute(SQL["restore_recipients"], kept_columns(recipients))
        due = [(m, r) for m, r in recipients if r.due_at is not None]
        given: dict[str, Any] = {
            "id": [m.key for m, _ in due],
            "number": [r.number for _, r in due],
            "next_hop": [r.next_hop or "" for _, r in due],
            "after": [self._from_now(r.due_at, now) for _, r in due],
            "lease": [None for _ in due],
            "epoch": [0 for _ in due],
            "expires_at": [m.expires_at for m, _ in due],
        }
        db.execute(SQL["insert_due"], {**given, "me": self.heart.me, "now": self._zero})
        db.execute(SQL["restore_attempts"], {**history_columns(batch), "me": self.heart.me})
        db.execute(SQL["notify"], {"what": "due"})
        work.accepted += len(batch)
        work.dropped += [os.path.basename(m.content.path) for m in batch if m.content.path]

    def settle(self, batch: Sequence[Settlement]) -> set[Lease]:
        """Within transaction()."""
        db, work = self._session.current
        cursor = self._settle(db, batch, work)
        mine = set(cursor.fetchall()) if cursor is not None else set()
        late = {(one.key, s.number) for one in batch for s in one.recipients} - mine
        work.late += len(late)
        return late

    def _settle(self, db: Connection, batch: Sequence[Settlement], work: Work) -> Cursor | None:
        """Outcomes, their history, and what becomes final by them: the cursor that tells which were still ours."""
        rows = [(one, s) for one in batch for s in one.recipients]
        if not rows:
            return None
        leases: list[Lease] = [(one.key, s.number) for one, s in rows]
        for one in batch:
            if one.epochs is None:
                mine = [(one.key, s.number) for s in one.recipients]
                one.epochs = [work.taken.get(lease, self._hands.epoch(lease)) for lease in mine]
        epochs = [epoch for one in batch for epoch in one.epochs or ()]
        ids = sorted({key for key, _ in leases})
        those = {
            "me": self.heart.me,
            "id": [key for key, _ in leases],
            "number": [n for _, n in leases],
            "epoch": epochs,
        }
        db.execute(SQL["lock_messages"], {"ids": ids})
        db.execute(SQL["lock_due"], those)
        tried = [(one, s, epoch) for (one, s), epoch in zip(rows, epochs, strict=True) if s.is_attempt]
        if tried:
            db.execute(SQL["insert_attempts"], {**attempt_columns(tried), "me": self.heart.me})
        after = [self._from_now(s.due_at, one.at) for one, s in rows]
        cursor = db.execute(SQL["settle"], {**those, **settled_columns(rows), "after": after, "now": self._zero})
        if any(not s.is_attempt and s.due_at is not None and s.due_at - one.at < 1.0 for one, s in rows):
            # Given back: it is for whoever has room.
            db.execute(SQL["notify"], {"what": "due"})
        db.execute(SQL["finish"], {"ids": ids, "now": self._now(max(one.at for one in batch))})
        work.settled += zip(leases, epochs, strict=True)
        return cursor

    def _count_late(self, late: int) -> None:
        if late:
            self.heart.counters["late_settles"] += late
            _log.warning(
                "%d outcomes came too late: others had taken over what was in hand here, it may be sent twice", late
            )

    def claim(
        self, limit: int, now: float, lease_until: float, max_content_bytes: int, skip: Collection[str] = ()
    ) -> list[Message]:
        """The messages that are due first; stops when their contents pass the bound (but gives one at least)."""
        given = {"skip": list(skip), "max_bytes": max_content_bytes, "small": PIECE_BYTES}
        within = {"within": max(WITHIN, limit) if skip else None}
        found = self._claim("claim", {**given, **within}, limit, now, lease_until)
        if skip and not found:
            # The first in line are all skipped: next hop by next hop, and each has its turn.
            for after in dict.fromkeys((self._behind, "")):
                if found := self._claim("claim_behind", {**given, **within, "from": after}, limit, now, lease_until):
                    break
            self._behind = max((f"{r.next_hop or ''}\1" for m in found for r in m.recipients), default="")
        return found

    def claim_expired(
        self, limit: int, now: float, lease_until: float, only: Collection[str] | None = None
    ) -> list[Message]:
        """Messages past their time, whose next hop may be down for ever."""
        return self._claim("claim_expired", {"only": None if only is None else list(only)}, limit, now, lease_until)

    def _claim(self, name: str, given: dict[str, Any], limit: int, now: float, lease_until: float) -> list[Message]:
        db, work = self._session.current
        if not self.heart.is_alive:
            # The others may be about to bury us.
            return []
        epoch = self._epochs.take(db)
        lease = self._from_now(lease_until, now) if self._has_own_clock else lease_until - now
        own = {"me": self.heart.me, "epoch": epoch, "now": self._now(now), "lease": lease, "limit": limit}
        recipients: dict[int, list[Recipient]] = {}
        rows = db.execute(SQL[name], {**given, **own}).fetchall()
        rows.sort(key=lambda row: (row[2], row[0], row[1]))
        for key, number, _, until, address, state, attempts, notify, orcpt, hop, reply, stage, delayed in rows:
            words = tuple(notify.split(",")) if notify else ()
            found = Recipient(number, address, state, words, orcpt, attempts, until, hop, reply, stage, delayed, True)
            recipients.setdefault(key, []).append(found)
        for found_here in recipients.values():
            found_here.sort(key=lambda r: r.number)
        # Nothing but the head is wanted of what is given up: no spool need have room for the rest.
        heads_only = name == "claim_expired"
        messages, unwritten = self._read.messages(recipients, lease_until, str(epoch), heads_only=heads_only)
        work.fetched |= {m.key: os.path.basename(m.content.path) for m in messages if m.content.path}
        for key in recipients.keys() - {message.key for message in messages}:
            those = {"id": key, "numbers": [r.number for r in recipients[key]]}
            if key in unwritten:
                # Others may have room for it, and this node later; the rest goes on.
                db.execute(SQL["put_off"], {**those, "now": self._now(now), "after": NO_ROOM_S})
                continue
            # A message without its content cannot be sent; it is held, visible, and the rest goes on (hostile row 115).
            db.execute(SQL["quarantine"], those)
            db.execute(SQL["drop_due"], those)
        for message in messages:
            for r in message.recipients:
                work.taken[(message.key, r.number)] = epoch
        return messages

    def renew(self, keys: Collection[int], lease_until: float) -> None:
        """Moves the end of the leases; that this node lives, its heart says."""
        db, _ = self._session.current
        lease = lease_until - self._wall() if self._has_own_clock else lease_until
        given = {"me": self.heart.me, "ids": list(keys), "lease": lease, "now": self._zero}
        db.execute(SQL["renew"], given)

    def recover(self, now: float) -> int:
        """What the dead had in hand is due again; the heart has seen to it at the start, and does at each beat."""
        return self.heart.counters["takeovers"]

    def lost(self, keys: Collection[int]) -> tuple[set[Lease], set[Lease]]:
        """Of what this node has in hand of these messages: what is not its own any more, and what is not to be sent."""
        db, _ = self._session.current
        rows = db.execute(SQL["in_hand"], {"me": self.heart.me, "ids": list(keys)}).fetchall()
        lost = self._hands.of(keys) - {(row[0], row[1]) for row in rows}
        self._hands.leave(lost)
        return lost, {(row[0], row[1]) for row in rows if not row[2]}

    def bound_times(self, bounds: Bounds) -> int:
        """See Store."""
        return postgres_steer.bound_times(self._session.current[0], bounds, self._now(bounds.now))

    def change(self, action: Action, query: Query, now: float) -> list[str]:
        """Steers what the query means, and tells the nodes that have it in hand."""
        return postgres_steer.change(self._session.current[0], self._read.ids(query), action, self._now(now))

    def wake(self, next_hop: str, stages: Collection[str], now: float) -> int:
        """Due now: the next hop is back."""
        given = {"next_hop": next_hop, "stages": sorted(stages), "now": self._now(now)}
        return self._session.current[0].execute(SQL["wake"], given).rowcount

    def lease_slots(self, wants: Wants, limit: int) -> dict[str, int]:
        """See queue.slots.Lender."""
        return postgres_steer.lease_slots(self._session.current[0], self.heart.me, wants, limit)

    def lease_turns(self, wants: dict[str, int], interval_s: float) -> dict[str, tuple[float, int]]:
        """See queue.slots.Lender; behind lease_slots, whose lock it needs."""
        return postgres_steer.lease_turns(self._session.current[0], self.heart.me, wants, interval_s)

    def set_flag(self, name: str, value: str | None) -> None:
        """Sets or removes, and tells all nodes."""
        db, _ = self._session.current
        db.execute(SQL["delete_flag" if value is None else "set_flag"], {"name": name, "value": value})
        db.execute(SQL["notify"], {"what": "changed"})

    def purge(self, finished_before: float, keep: int, limit: int) -> list[str]:
        """Forgets old history, a bounded piece at a time; gives the names of spool files to unlink."""
        db, _ = self._session.current
        db.execute(SQL["purge"], {"before": finished_before, "keep": keep, "limit": limit})
        return self._hands.take_dropped()

    # ------------------------------------------------------------------- reading

    def _look(self, look: Callable[[], T]) -> T:
        try:
            return look()
        except psycopg.Error as error:
            raise translated(error, self.url) from error

    def get(self, uid: str) -> View | None:
        """One message."""
        return self._look(lambda: self._read.get(uid))

    def content(self, uid: str) -> Content | None:
        """Its content."""
        return self._look(lambda: self._read.content(uid))

    def envelope(self, uid: str) -> Envelope | None:
        """Its reverse-path and parameters."""
        return self._look(lambda: self._read.envelope(uid))

    def search(self, query: Query) -> list[View]:
        """Messages."""
        return self._look(lambda: self._read.search(query))

    def counts(self) -> dict[str, int]:
        """Recipients by state."""
        return self._look(self._read.counts)

    def next_hops(self, limit: int) -> list[tuple[str, str, int, float | None]]:
        """What waits for whom."""
        return self._look(lambda: self._read.next_hops(limit))

    def next_due(self, skip: Collection[str] = ()) -> float | None:
        """When, by the caller's clock."""
        found = self._look(lambda: self._read.next_due(skip))
        if found is None:
            return None
        return self._wall() + found[1] if self._has_own_clock else found[0]

    def flag(self, name: str) -> str | None:
        """A control flag."""
        return self._look(lambda: self._read.flag(name))

    def nodes(self) -> list[dict[str, Any]]:
        """Who works on this queue."""
        return self._look(self._read.nodes)

    def spool_names(self) -> set[str]:
        """None: see PostgresReader."""
        return set()

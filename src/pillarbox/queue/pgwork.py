"""Transactions of a node, and what it has in hand: true when they are committed, also when the answer was lost.

A connection that breaks at COMMIT leaves it open what became of the transaction. Each has a number, which it leaves in the
database: when the old connection's process is gone the number is there or it is not. Must not know what is in a message.
"""

from __future__ import annotations

import contextlib
import logging
import random
import threading
import time
from collections.abc import Collection, Iterator
from typing import Any, NamedTuple

import psycopg

from ..errors import CommitInDoubtError, StoreError
from .pgconnect import Connection, StoreAwayError, connect, shown, translated
from .pgnode import SQL

_log = logging.getLogger("pillarbox.queue")
_BLOCK = 1000
# So long is the database asked what became of a commit whose answer was lost.
DOUBT_S = 60.0
_ASK_AGAIN_S = 0.1
_MARKS = 1000
Lease = tuple[int, int]


class Numbers:
    """Numbers of a sequence, a block at a time."""

    def __init__(self, name: str) -> None:
        self._sql = f"SELECT nextval('{name}')".encode()
        self._next = self._end = 0

    def take(self, connection: Connection) -> int:
        """The next one."""
        if self._next >= self._end:
            row = connection.execute(self._sql).fetchone()
            assert row is not None
            self._next, self._end = row[0], row[0] + _BLOCK
        self._next += 1
        return self._next - 1


class _Doubtful(NamedTuple):
    """A transaction whose end is not known: the backend that had it, its mark and number, what it was to take."""

    pid: int
    since: Any
    mark: int
    number: int
    taken: dict[Lease, int]


class Work:
    """What a transaction does to what this node has in hand; a lease is (message id, recipient's number)."""

    __slots__ = ("accepted", "dropped", "fetched", "files", "is_answered", "late", "settled", "taken")

    def __init__(self) -> None:
        self.accepted = 0
        self.taken: dict[Lease, int] = {}
        # With the epochs of the leases that are settled: what was claimed anew stays in hand.
        self.settled: list[tuple[Lease, int]] = []
        # Spool files, by message: such as a message was accepted with, and such as a claim has fetched.
        self.files: dict[int, str] = {}
        self.fetched: dict[int, str] = {}
        self.dropped: list[str] = []
        # Outcomes of what was somebody else's already.
        self.late = 0
        # False when it is known to be committed, but its results were lost with the connection.
        self.is_answered = True

    @property
    def matters(self) -> bool:
        """Whether somebody goes by it that this was done, or was not."""
        return bool(self.accepted or self.taken or self.settled)


class Hands:
    """What this node has in hand: leases with their epochs, and the spool files that go with them."""

    def __init__(self) -> None:
        self._held: dict[int, dict[int, int]] = {}
        # Several, where one recipient was claimed while another of the same message was in hand still.
        self._files: dict[int, list[str]] = {}
        self._dropped: list[str] = []
        self._guard = threading.Lock()

    def epoch(self, lease: Lease) -> int:
        """Of a lease; -1 where there is none."""
        return self._held.get(lease[0], {}).get(lease[1], -1)

    def of(self, keys: Collection[int]) -> set[Lease]:
        """The leases of these messages."""
        with self._guard:
            return {(key, number) for key in keys for number in self._held.get(key, ())}

    def done(self, work: Work) -> None:
        """It is committed."""
        with self._guard:
            for (key, number), epoch in work.taken.items():
                self._held.setdefault(key, {})[number] = epoch
            for key, name in (*work.files.items(), *work.fetched.items()):
                self._files.setdefault(key, []).append(name)
            for (key, number), epoch in work.settled:
                if self._held.get(key, {}).get(number, -1) == epoch:
                    self._leave(key, number)
            self._dropped += work.dropped

    def _leave(self, key: int, number: int) -> None:
        held = self._held.get(key, {})
        held.pop(number, None)
        if not held:
            self._held.pop(key, None)
            self._dropped += self._files.pop(key, ())

    def leave(self, leases: Collection[Lease]) -> None:
        """They are somebody else's."""
        with self._guard:
            for key, number in leases:
                self._leave(key, number)

    def failed(self, work: Work) -> None:
        """It is not committed: what a claim had fetched is of no use. A message that was not accepted is its sender's."""
        with self._guard:
            self._dropped += work.fetched.values()

    def take_dropped(self) -> list[str]:
        """Spool files that nothing needs any longer, since the last call."""
        with self._guard:
            dropped, self._dropped = self._dropped, []
            return dropped


class Session:
    """The writer's connection, made again where it was lost, and its transactions."""

    def __init__(self, url: str, name: str) -> None:
        self.url = url
        # False: a reader, to whom a standby is good enough.
        self.writes = False
        self.hands = Hands()
        self.me = 0
        self._name = name
        # Transactions of this session are told from all others by this, and from each other by their number.
        self._mark = random.SystemRandom().getrandbits(62)
        self._number = 0
        # What nobody could tell of yet.
        self._doubtful: list[_Doubtful] = []
        self._db: Connection | None = None
        self._backend: tuple[int, Any] = (0, None)
        self._work: Work | None = None

    @contextlib.contextmanager
    def lent(self) -> Iterator[Connection]:
        """The connection."""
        yield self.connected()

    def connected(self) -> Connection:
        """The connection; StoreAwayError when there is none to be had."""
        if self._db is None or self._db.closed:
            self._db = connect(self.url, self._name, writes=self.writes)
            row = self._db.execute(
                "SELECT pid, backend_start FROM pg_stat_activity WHERE pid = pg_backend_pid()"
            ).fetchone()
            self._backend = (row[0], row[1]) if row else (0, None)
        return self._db

    def disconnect(self) -> None:
        """Gives the connection up."""
        connection, self._db = self._db, None
        if connection is not None:
            with contextlib.suppress(psycopg.Error):
                connection.close()

    @property
    def current(self) -> tuple[Connection, Work]:
        """The connection, and what the transaction that is open does."""
        assert self._db is not None and self._work is not None, "not within a transaction"
        return self._db, self._work

    @contextlib.contextmanager
    def transaction(self, *, is_pipelined: bool = False) -> Iterator[tuple[Connection, Work]]:
        """BEGIN to COMMIT; durable when the block is left, or undone when it is left by an exception.

        What is pipelined is sent as a whole, and read as a whole: results can be fetched when the block is left.
        """
        work = self._work = Work()
        is_sent = False
        try:
            db = self._begun(is_pipelined=is_pipelined)
            with db.pipeline() if is_pipelined else contextlib.nullcontext():
                if is_pipelined:
                    db.execute("BEGIN")
                yield db, work
                is_sent = True
                if work.matters:
                    self._number += 1
                    if self._number % _MARKS == 0:
                        # A row that is changed for ever is a long way to walk while somebody holds a snapshot open.
                        self._mark = random.SystemRandom().getrandbits(62)
                    db.execute(SQL["mark"], {"session": self._mark, "number": self._number})
                db.execute("COMMIT")
        except psycopg.Error as error:
            found = translated(error, self.url)
            is_read_only = isinstance(error, psycopg.errors.ReadOnlySqlTransaction)
            is_in_doubt = is_sent and work.matters and isinstance(found, StoreAwayError) and not is_read_only
            if is_read_only:
                # After a fail-over the session of the former primary stays open: another server is wanted.
                self.disconnect()
            elif not is_in_doubt:
                self._roll_back()
            if not is_in_doubt or not self._told(work):
                self.hands.failed(work)
                raise found from error
            work.is_answered = not is_pipelined
        except BaseException:
            self._roll_back()
            self.hands.failed(work)
            raise
        finally:
            self._work = None
        self.hands.done(work)

    @property
    def is_in_doubt(self) -> bool:
        """Whether there are transactions that nobody could tell of yet."""
        return bool(self._doubtful)

    @staticmethod
    def _ask(db: Connection, doubtful: _Doubtful) -> bool | None:
        """Whether it was committed; None: it may still be at it."""
        # Behind a broken network it may wait for hours for the rest of what it was sent: it is ended.
        sql = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid = %s AND backend_start = %s"
        if db.execute(sql, (doubtful.pid, doubtful.since)).fetchone() is not None:
            return None
        row = db.execute(SQL["marked"], {"session": doubtful.mark}).fetchone()
        return row is not None and row[0] == doubtful.number

    def _free_doubtful(self, db: Connection) -> None:
        """What was taken by transactions that nobody could tell of, and nobody here knows: it is free, and was not tried."""
        while self._doubtful:
            doubtful = self._doubtful[0]
            found = self._ask(db, doubtful)
            if found is None:
                return
            if found:
                those = {
                    "id": [key for key, _ in doubtful.taken],
                    "number": [number for _, number in doubtful.taken],
                    "epoch": list(doubtful.taken.values()),
                }
                db.execute(SQL["release_unknown"], {**those, "me": self.me})
                db.execute(SQL["notify"], {"what": "due"})
            self._doubtful.pop(0)

    def _begun(self, *, is_pipelined: bool) -> Connection:
        """The connection, with a transaction begun; a new one if the old one was lost while nobody used it."""
        db = self.connected()
        if self._doubtful:
            self._free_doubtful(db)
        if is_pipelined:
            return db
        try:
            db.execute("BEGIN")
        except psycopg.OperationalError:
            self.disconnect()
            db = self.connected()
            db.execute("BEGIN")
        return db

    def _roll_back(self) -> None:
        if self._db is not None and not self._db.closed:
            try:
                self._db.execute("ROLLBACK")
            except psycopg.Error:
                self.disconnect()

    def _told(self, work: Work) -> bool:
        """The connection broke at the commit: did it come through? CommitInDoubtError when the database does not tell."""
        doubtful = _Doubtful(*self._backend, self._mark, self._number, work.taken)
        self.disconnect()
        deadline = time.monotonic() + DOUBT_S
        why: object = "the old connection's process does not end"
        while True:
            try:
                found = self._ask(self.connected(), doubtful)
                if found is not None:
                    return found
            except (psycopg.Error, StoreError) as error:
                self.disconnect()
                why = error
            if time.monotonic() > deadline:
                break
            # The old connection's process may still be at it.
            time.sleep(_ASK_AGAIN_S)
        self.hands.failed(work)
        if work.taken:
            # Its mark stays as it is, to be asked about.
            self._doubtful.append(doubtful)
            self._mark = random.SystemRandom().getrandbits(62)
        raise CommitInDoubtError(f"what became of a commit at {shown(self.url)} cannot be told: {why}")

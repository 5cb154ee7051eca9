"""A node of a queue on PostgreSQL: its connections, its heart-beat, and what it hears of the others.

The heart has a thread and a connection of its own. It says that this node lives, takes the leases of those that do not,
and tells when something changed; NOTIFY only makes it look sooner. Must not know messages.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import socket
import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import psycopg
from psycopg import errors

from .. import __version__
from ..errors import StoreError
from .paused import PAUSED, PAUSED_HOPS
from .pgconnect import CONNECT_S, Connection, StoreAwayError, check_sessions, connect, reason_of, shown, translated
from .sql import migrations, named_queries

SQL = named_queries("postgres")
_log = logging.getLogger("pillarbox.queue")
# A node that has not been heard of for so long is dead. It beats three times as often.
LEASE_S = 30.0
# Of a lease: between two beats, and how long a node may be silent before it is held for dead. Together they are one: so
# long after its last beat, at most, somebody has looked, and what it had in hand is the others'.
BEAT = 0.25
SILENCE = 0.75
# A database that is away is looked for so often.
AGAIN_S = 0.5
CHANNEL = "pillarbox"
# The tables of an installation are made, and changed, by one node at a time.
_MIGRATION_LOCK = 0x70696C6C
_REAP = 1000


class News(NamedTuple):
    """What a heart-beat found: flags as they are now, and whether leases of ours may have been lost."""

    is_paused: bool
    paused_next_hops: str | None
    has_lost: bool


def migrate(connection: Connection, url: str) -> None:
    """Brings the tables to what this version knows, also beside nodes that know less. StoreError: too old, or too new."""
    steps = migrations("postgres")
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (_MIGRATION_LOCK,))
        version, oldest = _schema(connection)
        if version >= len(steps):
            check_schema(version, oldest, url)
            return
        for number, script in enumerate(steps[version:], version + 1):
            connection.execute(script.encode())
            found = re.search(r"^-- oldest: (\d+)", script, re.M)
            oldest = int(found[1]) if found else oldest or 1
            connection.execute("DELETE FROM schema_version")
            connection.execute("INSERT INTO schema_version (version, oldest) VALUES (%s, %s)", (number, oldest))
            _log.info("the queue's tables at %s are of version %d now", shown(url), number)


def _schema(connection: Connection) -> tuple[int, int]:
    if connection.execute("SELECT to_regclass('schema_version')").fetchone() == (None,):
        return 0, 0
    row = connection.execute("SELECT version, oldest FROM schema_version").fetchone()
    return (row[0], row[1]) if row else (0, 0)


def check_schema(version: int, oldest: int, url: str) -> None:
    """StoreError when this node does not know enough of tables of that version."""
    known = len(migrations("postgres"))
    if oldest > known:
        raise StoreError(
            f"the queue at {shown(url)} has tables of version {version}, which want nodes that know version {oldest}; "
            f"this Pillarbox ({__version__}) knows {known}: it is too old, install a newer one"
        )
    if version < known:
        raise StoreError(
            f"the queue at {shown(url)} has tables of version {version}, this Pillarbox ({__version__}) wants {known}: "
            "it is too new for them; start `pillarbox serve`, which brings them up to date"
        )


def check_tables(connection: Connection, url: str) -> None:
    """StoreError when there is no queue, or one that this version does not know."""
    version, oldest = _schema(connection)
    if not version:
        raise StoreError(f"there is no queue at {shown(url)}: `pillarbox serve --queue` makes it")
    check_schema(version, oldest, url)


def node_name(worker: int) -> str:
    """What people call this node."""
    return f"{socket.gethostname()}:{os.getpid()}" + (f":{worker}" if worker else "")


class Heart:
    """See the module's text. `tell` is called in the heart's thread, with what a beat found; with None: there may be work."""

    def __init__(self, url: str, name: str, lease_s: float = LEASE_S) -> None:
        self.url = url
        self.name = name
        self.lease_s = lease_s
        self._silence_s = lease_s * SILENCE
        self.me = 0
        self.tell: Callable[[News | None], None] = lambda news: None
        self.on_unfit: Callable[[str], None] = lambda why: None
        self.on_away: Callable[[bool], None] = lambda is_away: None
        self.is_away = False
        # By how much the database's clock is ahead of ours.
        self.offset_s = 0.0
        # How often this connection was made anew: those of others may lead to a server that is not the primary any more.
        self.generation = 0
        self.counters = {"takeovers": 0, "late_settles": 0}
        self._alive_until = 0.0
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._connection: Connection | None = None
        self._was_dead = False
        self._next_day = 0.0

    # ------------------------------------------------------------------- life

    def start(self) -> None:
        """Registers this node, and takes what the dead have left. StoreError says why that cannot be."""
        connection = connect(self.url, self.name, writes=True)
        try:
            check_sessions(connection, self.url)
            migrate(connection, self.url)
            self.me = self._one(connection, "SELECT nextval('node_id')")[0]
            self._register(connection)
            self._prepare_days(connection)
            self._reap(connection)
            self._listen(connection)
        except psycopg.Error as error:
            connection.close()
            raise translated(error, self.url) from None
        except BaseException:
            connection.close()
            raise
        self._connection = connection

    def run(self) -> None:
        """Begins to beat, in a thread."""
        self._thread = threading.Thread(target=self._live, name="pillarbox-heart", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """This node leaves: what it still has is anybody's."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(CONNECT_S + 2.0)
        self._close()
        if not self.me:
            return
        with contextlib.suppress(StoreError, psycopg.Error):
            connection = connect(self.url, self.name)
            try:
                free(connection, [self.me], self.me, None)
                connection.execute(SQL["forget_nodes"], {"nodes": [self.me]})
                connection.execute(SQL["forget_slots"], {"nodes": [self.me]})
                connection.execute(SQL["notify"], {"what": "due"})
            finally:
                connection.close()

    @property
    def is_alive(self) -> bool:
        """False when others may hold this node for dead: what has not begun must not begin."""
        return time.monotonic() < self._alive_until

    def _live(self) -> None:
        while not self._stop.is_set():
            try:
                connection = self._connection or self._connect_again()
                self._beat(connection)
                self._wait(connection)
            except (psycopg.Error, StoreError) as error:
                if isinstance(error, StoreError) and not isinstance(error, StoreAwayError):
                    _log.error("%s", error)
                    self.on_unfit(str(error))
                    return
                self._lost(error)
            except Exception:
                _log.exception("the heart of this node missed a beat")
                self._stop.wait(AGAIN_S)

    def _connect_again(self) -> Connection:
        connection = connect(self.url, self.name, writes=True)
        self._connection = connection
        self.generation += 1
        self._listen(connection)
        return connection

    def _listen(self, connection: Connection) -> None:
        connection.execute(f"LISTEN {CHANNEL}")
        # A beat that waits for something is as good as none: the others must not take this node for alive, nor it itself.
        connection.execute(f"SET statement_timeout = {max(int(self.lease_s * BEAT * 1000), 1000)}")

    def _lost(self, error: BaseException) -> None:
        if self._stop.is_set():
            return
        if not self.is_away:
            _log.error(
                "queue database %s unreachable; refusing mail with 451 until it recovers: %s",
                shown(self.url),
                reason_of(translated(error, self.url) if isinstance(error, errors.ReadOnlySqlTransaction) else error),
            )
            self.on_away(True)
        self.is_away = True
        self._close()
        self._stop.wait(AGAIN_S)

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(psycopg.Error):
                connection.close()

    # ------------------------------------------------------------------ a beat

    def _beat(self, connection: Connection) -> None:
        # Judged before it is told: a beat that took long to arrive counts from when it was sent.
        began, wall = time.monotonic(), time.time()
        was_dead = not self.is_alive
        row = connection.execute(SQL["beat"], {"me": self.me, "lease": self._silence_s}).fetchone()
        if row is None:
            # Somebody has buried us: what we had is lost, what we take from now on is ours.
            _log.warning("this node (%s) was held for dead: the others have taken what it had in hand", self.name)
            was_dead = True
            row = (self._register(connection),)
        self.offset_s = row[0] - (wall + (time.monotonic() - began) / 2)
        self._alive_until = began + self._silence_s
        version, oldest = _schema(connection)
        check_schema(version, oldest, self.url)
        freed = self._reap(connection)
        if time.monotonic() > self._next_day:
            self._prepare_days(connection)
        if self.is_away:
            _log.warning("the queue at %s is back", shown(self.url))
            self.is_away = False
            self.on_away(False)
        flags: dict[str, str] = dict(connection.execute("SELECT name, value FROM flag").fetchall())
        if freed:
            connection.execute(SQL["notify"], {"what": "due"})
        self.tell(News(PAUSED in flags, flags.get(PAUSED_HOPS), was_dead))

    def _wait(self, connection: Connection) -> None:
        """Until the next beat, or until somebody has changed something that we should look at now."""
        deadline = time.monotonic() + self.lease_s * BEAT
        while not self._stop.is_set() and (left := deadline - time.monotonic()) > 0:
            # All of them, before anything else is asked: the connection is the generator's until it ends.
            for notice in list(connection.notifies(timeout=min(left, 0.25), stop_after=1)):
                if notice.payload == "changed":
                    flags: dict[str, str] = dict(connection.execute("SELECT name, value FROM flag").fetchall())
                    self.tell(News(PAUSED in flags, flags.get(PAUSED_HOPS), has_lost=True))
                elif notice.pid != connection.info.backend_pid:
                    self.tell(None)

    def _register(self, connection: Connection) -> float:
        began = time.monotonic()
        facts = {"me": self.me, "name": self.name, "version": __version__, "schema": len(migrations("postgres"))}
        (at,) = self._one(connection, SQL["new_node"], {**facts, "lease": self._silence_s})
        self._alive_until = began + self._silence_s
        return float(at)

    def _reap(self, connection: Connection) -> int:
        with connection.transaction():
            dead = connection.execute(SQL["dead_nodes"], {"me": self.me}).fetchall()
            nodes = [node for node, _ in dead]
            freed = free(connection, nodes, self.me, None)
            if nodes:
                connection.execute(SQL["forget_nodes"], {"nodes": nodes})
            connection.execute(SQL["forget_slots"], {"nodes": nodes})
        if nodes or freed:
            names = ", ".join(name for _, name in dead) or "a node that is gone"
            self.counters["takeovers"] += freed
            _log.warning("%s is dead: %d deliveries that it had in hand are due again", names, freed)
        return freed

    def _prepare_days(self, connection: Connection) -> None:
        """Partitions for today and the next days, and away with those that nobody wants any more."""
        self._next_day = time.monotonic() + 3600.0
        self._drop_days(connection)
        connection.execute(SQL["forget_marks"])
        connection.execute(SQL["forget_pace"])
        (today,) = self._one(connection, "SELECT floor(extract(epoch FROM clock_timestamp()) / 86400)::bigint")
        for day in range(today, today + 3):
            name = time.strftime("attempt_%Y%m%d", time.gmtime(day * 86400))
            if connection.execute("SELECT to_regclass(%s)", (name,)).fetchone() != (None,):
                continue
            missed = (errors.DuplicateTable, errors.CheckViolation, errors.UniqueViolation, errors.LockNotAvailable)
            with contextlib.suppress(*missed), connection.transaction():
                # It waits for whoever reads there, and everybody would wait behind it: not for long, it is tried again.
                connection.execute("SET LOCAL lock_timeout = '2s'")
                connection.execute(
                    f"CREATE TABLE {name} PARTITION OF attempt FOR VALUES FROM ({day * 86400}) TO ({(day + 1) * 86400})"
                )

    def _drop_days(self, connection: Connection) -> None:
        """An attempt is never older than its message: days before the oldest one are of messages that are forgotten."""
        sql = "SELECT coalesce(min(received_at), extract(epoch FROM clock_timestamp())::float8) FROM message"
        (oldest,) = self._one(connection, sql)
        # A day of grace, for clocks that are wrong.
        last = time.strftime("attempt_%Y%m%d", time.gmtime(oldest - 2 * 86400))
        sql = "SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid WHERE i.inhparent = 'attempt'::regclass"
        for (name,) in connection.execute(sql.encode()).fetchall():
            if name != "attempt_other" and name < last:
                # It waits for whoever reads there, and everybody would wait behind it: not for long.
                with contextlib.suppress(errors.LockNotAvailable, errors.UndefinedTable), connection.transaction():
                    connection.execute("SET LOCAL lock_timeout = '2s'")
                    connection.execute(f"DROP TABLE {name}".encode())

    @staticmethod
    def _one(connection: Connection, sql: str, parameters: Any = None) -> tuple[Any, ...]:
        row = connection.execute(sql.encode(), parameters).fetchone()
        assert row is not None
        return row


def free(connection: Connection, nodes: list[int], me: int, now: float | None) -> int:
    """Leases of these nodes, and such as have run out, are nobody's: ambiguous, and due at once. How many."""
    total = 0
    while True:
        with connection.transaction():
            given = {"nodes": nodes, "me": me, "now": now}
            found = connection.execute(SQL["lost_messages"], {**given, "limit": _REAP}).fetchall()
            messages = {"ids": [row[0] for row in found]}
            rows = connection.execute(SQL["lost_leases"], {**given, **messages}).fetchall()
            if not rows:
                return total
            ids = [row[0] for row in rows]
            those = {"id": ids, "number": [row[1] for row in rows], "now": now}
            connection.execute(SQL["free_attempts"], those)
            # Those that were held or cancelled meanwhile are not due again, and not counted.
            total += connection.execute(SQL["free_recipients"], those).rowcount
            connection.execute(SQL["free_due"], those)
            connection.execute(SQL["finish"], {"ids": sorted(set(ids)), "now": now})

"""The default store: SQLite, one file per worker (WAL, synchronous=FULL), owned by one process through a lock.

Only this connection writes and checkpoints. The driver is apsw for the SQLite that it brings: releases before 3.51.3 can
corrupt a WAL file when two connections write or checkpoint at once.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import logging
import os
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import apsw

from ..errors import DuplicateUidError, StoreError, StoreFullError
from ..mail.content import Content
from ..mail.envelope import Envelope
from . import shards
from .folder import make_folder, make_spool, take_lock
from .model import IN_HAND, Action, Message, Query, Recipient, Settlement, View
from .sql import migrations
from .sqlite_read import SQL, SqliteReader, connect

# The WAL is written back when it has this many pages of 4 KB; between batches, so that no commit waits inside.
CHECKPOINT_PAGES = 4000
# Room for the batch that passes that mark.
SPARE_PAGES = 1000
# Rows of one statement: each number of them is a text of its own, and the driver keeps so many compiled.
MOST_VALUES = 32
# A compiled statement holds on to what it was last given.
MOST_HELD_BYTES = 1 << 17
_log = logging.getLogger("pillarbox.queue")
_STEERING = {Action.HOLD: "hold", Action.RELEASE: "release", Action.RETRY: "retry", Action.CANCEL: "cancel"}


# Text of messages is Unicode without surrogates: it is judged where it enters.
_json = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


def _translated(error: apsw.Error, path: str) -> StoreError:
    if isinstance(error, apsw.FullError):
        return StoreFullError(f"no room left for the queue at {path}: make room on that disk")
    if isinstance(error, apsw.ConstraintError) and "message.uid" in str(error):
        return DuplicateUidError("a message with this queue id is queued already: choose another uid")
    return StoreError(f"the queue at {path} failed: {error}")


@functools.cache
def _with_values(name: str, rows: int, columns: int) -> str:
    """The query of that name with VALUES of that shape: (?,?),(?,?)

    A statement for each row would give the interpreter's lock away as often, and wait for it where other threads are busy.
    """
    row = f"({','.join('?' * columns)})"
    return SQL[name].replace(":rows", ",".join([row] * rows))


class SqliteStore:
    """See queue.store.Store. `folder` is the data directory; the file in it is queue-<shard>.db, the lock beside it."""

    is_inline = False
    suits_loop = True

    def __init__(self, folder: str, shard: int = 0) -> None:
        self.folder = folder
        self.path = shards.database(folder, shard)
        self.spool = shards.spool_folder(folder, shard)
        self._lock_path = shards.lock_file(folder, shard)
        self._lock: int | None = None
        self._db: apsw.Connection
        self._read: SqliteReader
        self._last_id = 0
        self._wal_pages = 0

    # ------------------------------------------------------------ open and close

    def open(self, *, is_new_allowed: bool = True) -> None:
        """Locks, opens, migrates. StoreLockedError names the lock when a server runs on this folder.

        FileNotFoundError for a shard that is not there, unless a new one `is_new_allowed`.
        """
        make_folder(self.folder)
        self._lock = take_lock(self._lock_path, self.folder)
        try:
            if not is_new_allowed and not os.path.exists(self.path):
                raise FileNotFoundError(self.path)
            make_spool(self.spool)
            self._db = connect(self.path, is_read_only=False)
            self._prepare()
            self._db.execute(SQL["dropped_table"])
            self._lengthen_wal()
            self._read = SqliteReader(self._db, self.spool)
            self._last_id = next(iter(self._read.rows(SQL["highest_id"])))[0]
        except BaseException as error:
            self._release_lock()
            if isinstance(error, apsw.Error):
                raise _translated(error, self.path) from error
            raise

    def _release_lock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _prepare(self) -> None:
        db = self._db
        os.chmod(self.path, 0o600)
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA wal_autocheckpoint = 0")
        db.execute("PRAGMA journal_size_limit = 67108864")
        db.execute("PRAGMA cache_size = -32768")
        db.execute("PRAGMA temp_store = MEMORY")
        db.set_wal_hook(self._count_wal)
        version = next(iter(db.execute("PRAGMA user_version")))[0]
        steps = migrations("sqlite")
        if version > len(steps):
            raise apsw.SchemaChangeError(f"made by a newer Pillarbox (schema {version}, this one knows {len(steps)})")
        for number, script in enumerate(steps[version:], version + 1):
            with self.transaction():
                db.execute(script)
                db.execute(f"PRAGMA user_version = {number}")

    def _lengthen_wal(self) -> None:
        """Gives the empty WAL its full length, in zeroes, on the disk.

        A commit that overwrites is synced in a fraction of the time of one that makes the file longer, for the file
        system has nothing to note in its own journal. SQLite takes only frames that carry the salt of the WAL's
        header; zeroes are none, and before the first commit there is no header either.
        """
        length = (CHECKPOINT_PAGES + SPARE_PAGES) * (4096 + 24)
        try:
            self._db.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
            handle = os.open(f"{self.path}-wal", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                if os.fstat(handle).st_size == 0:
                    for _ in range(0, length, 1 << 20):
                        os.write(handle, bytes(1 << 20))
                    os.fsync(handle)
            finally:
                os.close(handle)
        except (OSError, apsw.Error) as error:
            # A full disk: the queue can still be looked at, and what it accepts it still syncs.
            _log.warning("the write-ahead log of %s keeps its length: %s", self.path, error)

    def _count_wal(self, connection: apsw.Connection, name: str, pages: int) -> int:
        self._wal_pages = pages
        return apsw.SQLITE_OK

    def rows(self, name: str, bindings: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """What a named query gives."""
        return list(self._read.rows(SQL[name], bindings))

    def take_ids(self, count: int) -> int:
        """The first of so many ids that no message has."""
        first = self._last_id + 1
        self._last_id += count
        return first

    def destroy(self) -> None:
        """Removes the shard's files, under its lock, and gives that up; whoever had to have them has taken them over."""
        self._db.close()
        for suffix in ("", "-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.path + suffix)
        self._release_lock()

    def close(self) -> None:
        """Writes the WAL back and gives the lock up."""
        if self._lock is None:
            return
        with contextlib.suppress(apsw.Error):
            self._db.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
        self._db.close()
        self._release_lock()

    def reader(self) -> SqliteReader:
        """A reader with a connection of its own, for another thread."""
        return SqliteReader(connect(self.path, is_read_only=True), self.spool)

    @property
    def wants_maintenance(self) -> bool:
        """True when `maintain` has work to do."""
        return self._wal_pages >= CHECKPOINT_PAGES

    def maintain(self) -> None:
        """To be called between two batches: writes the WAL back when it has grown."""
        if self._wal_pages >= CHECKPOINT_PAGES:
            self._wal_pages = 0
            # PASSIVE never waits for a reader; what it could not do, the next one does.
            with contextlib.suppress(apsw.Error):
                self._db.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """BEGIN to COMMIT: with synchronous=FULL the commit returns after the WAL's fsync."""
        db = self._db
        try:
            db.execute("BEGIN IMMEDIATE")
            yield
            db.execute("COMMIT")
        except BaseException as error:
            if db.in_transaction:
                with contextlib.suppress(apsw.Error):
                    db.execute("ROLLBACK")
            if isinstance(error, apsw.Error):
                raise _translated(error, self.path) from error
            raise

    # ------------------------------------------------------------------- writing

    def commit(self, accepts: Sequence[Message], settles: Sequence[Settlement]) -> None:
        """Messages and outcomes in one transaction."""
        with self.transaction():
            if accepts:
                self.accept(accepts)
            if settles:
                self.settle(settles)

    def accept(self, batch: Sequence[Message]) -> None:
        """Three statements for a whole batch of small messages."""
        messages, recipients = [], []
        contents: list[tuple[int, bytes]] = []
        held_bytes = 0
        for message in batch:
            self._last_id += 1
            key = message.key = self._last_id
            messages.append(self._message_row(message))
            prefix = message.content.prefix
            held_bytes += len(prefix)
            if held_bytes > MOST_HELD_BYTES and contents:
                self.write("insert_contents", contents)
                contents, held_bytes = [], len(prefix)
            contents.append((key, prefix))
            leased = message.leased_until is not None
            due_at = message.leased_until if leased else message.due_at or message.received_at
            if message.is_held:
                due_at = None
            for r in message.recipients:
                notify = ",".join(r.notify) or None
                row = (key, r.number, r.address, r.state, due_at, leased, r.attempts, notify, r.orcpt, r.next_hop)
                recipients.append(row)
        self.write("insert_messages", messages)
        self.write("insert_contents", contents)
        self.write("insert_recipients", recipients)

    def restore(self, batch: Sequence[Message], now: float) -> None:
        """As another queue had them."""
        for message in batch:
            self._last_id += 1
            key = message.key = self._last_id
            recipients = []
            for r in message.recipients:
                row = (key, r.number, r.address, r.state, r.due_at, False, r.attempts, r.next_hop, r.last_reply)
                recipients.append((*row, r.last_stage, ",".join(r.notify) or None, r.orcpt, r.is_delay_reported))
            attempts = [
                (key, a.number, a.at, a.seconds, a.outcome, a.next_hop, a.remote, a.stage, a.reply)
                for a in message.attempts
            ]
            self.write("insert_messages", [self._message_row(message)])
            self.write("insert_contents", [(key, message.content.prefix)])
            self.write("import_recipients", recipients)
            self.write("insert_attempts", attempts)

    def settle(self, batch: Sequence[Settlement]) -> set[tuple[int, int]]:
        """Outcomes, their history, and what becomes final by them."""
        rows, attempts, finished = [], [], []
        for settlement in batch:
            key = settlement.key
            for s in settlement.recipients:
                delayed = s.is_delay_reported
                rows.append((key, s.number, s.state, s.due_at, s.is_attempt, s.next_hop, s.reply, s.stage, delayed))
                if s.is_attempt:
                    tried = (key, s.number, s.started_at, s.seconds, s.outcome, s.next_hop, s.remote, s.stage)
                    attempts.append((*tried, s.reply))
            # Also after a mere deferral: the message may have been cancelled meanwhile.
            finished.append((key, settlement.at))
        changed, _ = self.write("settle_recipients", rows)
        if changed < len(rows):
            self.write("settle_steered", rows)
        self.write("insert_attempts", attempts)
        self._finish(finished)
        return set()

    def write(self, name: str, rows: Sequence[tuple[Any, ...]]) -> tuple[int, list[tuple[Any, ...]]]:
        """A named query with the rows for its VALUES: how many rows it changed, and what it gave back. In a transaction."""
        changed = 0
        given: list[tuple[Any, ...]] = []
        for start in range(0, len(rows), MOST_VALUES):
            some = rows[start : start + MOST_VALUES]
            bindings = tuple(itertools.chain.from_iterable(some))
            given += self._db.execute(_with_values(name, len(some), len(some[0])), bindings)
            changed += self._db.changes()
        return changed, given

    @staticmethod
    def _message_row(message: Message) -> tuple[Any, ...]:
        envelope, content = message.envelope, message.content
        return (
            message.key,
            message.uid,
            envelope.reverse_path,
            envelope.body,
            int(envelope.is_smtputf8),
            envelope.ret,
            envelope.envid,
            message.subject,
            content.size_bytes,
            message.received_at,
            message.expires_at,
            _json(message.facts),
            os.path.basename(content.path) if content.path else None,
            content.offset,
            content.file_bytes,
        )

    def claim(
        self, limit: int, now: float, lease_until: float, max_content_bytes: int, skip: Collection[str] = ()
    ) -> list[Message]:
        """The messages that are due first; stops when their contents pass the bound (but gives one at least)."""
        return self._lease(self._read.due(limit, now, skip), now, lease_until, max_content_bytes, skip=skip)

    def claim_expired(
        self, limit: int, now: float, lease_until: float, only: Collection[str] | None = None
    ) -> list[Message]:
        """Messages past their time, whose next hop may be down for ever."""
        # The query takes what is in the list, or not in it: of one next hop, or of all.
        wanted = _json(list(only or ()))
        keys = list(self._read.rows(SQL["expired_messages"], (now, limit, int(only is None), wanted)))
        return self._lease([key for key, _ in keys], now, lease_until, 1 << 26, only=only)

    def _lease(
        self,
        keys: Sequence[int],
        now: float,
        lease_until: float,
        max_content_bytes: int,
        *,
        skip: Collection[str] = (),
        only: Collection[str] | None = None,
    ) -> list[Message]:
        claimed: list[Message] = []
        size = 0
        skipped, wanted = _json(list(skip)), _json(list(only or ()))
        for key in keys:
            bindings = (lease_until, key, now, skipped, int(only is None), wanted)
            rows = self._db.execute(SQL["lease_recipients"], bindings)
            recipients = [
                Recipient(
                    n,
                    a,
                    s,
                    tuple(notify.split(",")) if notify else (),
                    o,
                    t,
                    lease_until,
                    hop,
                    reply,
                    stage,
                    bool(d),
                    True,
                )
                for n, a, s, t, notify, o, hop, reply, stage, d in rows
            ]
            recipients.sort(key=lambda r: r.number)
            message = self._read.message(key, recipients, lease_until)
            if message is None:
                self._quarantine(key, recipients)
                continue
            claimed.append(message)
            size += len(message.content.prefix)
            if size > max_content_bytes:
                break
        return claimed

    def _quarantine(self, key: int, recipients: list[Recipient]) -> None:
        """A message without its content cannot be sent; it is held, visible, and the rest goes on (hostile row 115)."""
        for r in recipients:
            self._db.execute(SQL["quarantine"], ("451 4.3.0 the content is missing from the queue", key, r.number))

    def _finish(self, rows: list[tuple[int, float]]) -> None:
        """Messages whose recipients are all final lose their content."""
        _, finished = self.write("finish_messages", rows)
        self.write("drop_contents", [(key,) for key, _ in finished])
        self.write("note_dropped", [(spool,) for _, spool in finished if spool is not None])

    def renew(self, keys: Collection[int], lease_until: float) -> None:
        """Moves the end of the leases."""
        self._db.executemany(SQL["renew"], [(lease_until, key) for key in keys])

    def lost(self, keys: Collection[int]) -> tuple[set[tuple[int, int]], set[tuple[int, int]]]:
        """Nothing: nobody else works here."""
        return set(), set()

    def recover(self, now: float) -> int:
        """The lock proves that whoever leased these is dead."""
        db = self._db
        db.execute(SQL["recover_attempts"], (now,))
        db.execute(SQL["recover_leases"], (now,))
        count = db.changes()
        steered = list(db.execute(SQL["recover_steered"]))
        self.write(
            "insert_attempts", [(key, n, now, 0, "ambiguous", hop, None, None, IN_HAND) for key, n, hop in steered]
        )
        self._finish([(key, now) for key, _, _ in steered])
        return count

    def change(self, action: Action, query: Query, now: float) -> list[str]:
        """Steers what the query means."""
        sql = SQL[_STEERING[action]]
        changed: list[str] = []
        for key, uid in self._read.ids(query):
            self._db.execute(sql, (now, key) if action in (Action.RELEASE, Action.RETRY) else (key,))
            if self._db.changes():
                changed.append(uid)
                if action is Action.CANCEL:
                    self._finish([(key, now)])
        return changed

    def wake(self, next_hop: str, stages: Collection[str], now: float) -> int:
        """Due now: the next hop is back."""
        self._db.execute(SQL["wake"], (now, next_hop, json.dumps(sorted(stages))))
        return self._db.changes()

    def set_flag(self, name: str, value: str | None) -> None:
        """Sets or removes."""
        if value is None:
            self._db.execute(SQL["delete_flag"], (name,))
        else:
            self._db.execute(SQL["set_flag"], (name, value))

    def purge(self, finished_before: float, keep: int, limit: int) -> list[str]:
        """Forgets old history, a bounded piece at a time; gives the names of spool files to unlink."""
        keys = [row[0] for row in self._read.rows(SQL["purge_old"], (finished_before, limit))]
        keys += [row[0] for row in self._read.rows(SQL["purge_many"], (limit, keep))]
        for key in dict.fromkeys(keys):
            for name in ("forget_recipients", "forget_attempts", "forget_message"):
                self._db.execute(SQL[name], (key,))
        dropped = [spool for (spool,) in self._read.rows(SQL["dropped"])]
        self._db.execute(SQL["forget_dropped"])
        return dropped

    # ------------------------------------------------------------------- reading

    def get(self, uid: str) -> View | None:
        """One message."""
        return self._read.get(uid)

    def content(self, uid: str) -> Content | None:
        """Its content."""
        return self._read.content(uid)

    def envelope(self, uid: str) -> Envelope | None:
        """Its reverse-path and parameters."""
        return self._read.envelope(uid)

    def search(self, query: Query) -> list[View]:
        """Messages."""
        return self._read.search(query)

    def counts(self) -> dict[str, int]:
        """Recipients by state."""
        return self._read.counts()

    def next_hops(self, limit: int) -> list[tuple[str, str, int, float | None]]:
        """What waits for whom."""
        return self._read.next_hops(limit)

    def next_due(self, skip: Collection[str] = ()) -> float | None:
        """The next due time."""
        return self._read.next_due(skip)

    def flag(self, name: str) -> str | None:
        """A control flag."""
        return self._read.flag(name)

    def nodes(self) -> list[dict[str, Any]]:
        """A file has one owner."""
        return []

    def spool_names(self) -> set[str]:
        """Spool files in need."""
        return self._read.spool_names()

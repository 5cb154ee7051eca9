"""The default store: SQLite, one file per worker (WAL, synchronous=FULL), owned by one process through a lock.

Only this connection writes and checkpoints. The driver is apsw for the SQLite that it brings: releases before 3.51.3 can
corrupt a WAL file when two connections write or checkpoint at once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import threading
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import apsw

from ..errors import DuplicateUidError, StoreError, StoreFullError
from ..mail.content import Content
from ..mail.envelope import Envelope
from . import shards, sqlite_rows
from .ahead import Ahead
from .clocks import Bounds
from .folder import make_folder, make_private_file, make_spool, take_lock
from .journal import Journal
from .model import IN_HAND, Action, Message, Query, Settlement, View
from .sql import migrations
from .sqlite_claim import Claims, Terms
from .sqlite_read import BUSY_MS, SQL, SqliteReader, connect
from .sqlite_rows import Rows, as_json
from .sqlite_write import bound_times, finish, write, write_commits, write_rows
from .wal import lengthen, scrub

# The WAL is written back when it has this many pages of 4 KB; between batches, so that no commit waits inside.
CHECKPOINT_PAGES = 4000
# Room for the batch that passes that mark.
SPARE_PAGES = 1000
WAL_BYTES = (CHECKPOINT_PAGES + SPARE_PAGES) * (4096 + 24)
# The page cache of the writer. 32 MB were not faster with 15,000 messages of 4 KB, and took 30 MB more memory.
CACHE_KB = 8192
# How long a commit in the loop's thread waits for another process's lock before the writer thread goes on with it.
LOOP_WAIT_MS = 20
# The flag that says up to which record of the journal this database has.
JOURNAL = "journal"
_log = logging.getLogger("pillarbox.queue")


def _translated(error: apsw.Error, path: str) -> StoreError:
    if isinstance(error, apsw.FullError):
        return StoreFullError(f"no room left for the queue at {path}: make room on that disk")
    if isinstance(error, apsw.ConstraintError) and "message.uid" in str(error):
        return DuplicateUidError("a message with this queue id is queued already: choose another uid")
    return StoreError(f"the queue at {path} failed: {error}")


class SqliteStore:
    """See queue.store.Store. `folder` is the data directory; the file in it is queue-<shard>.db, the lock beside it.

    `has_journal_ready`: the journal's file is wanted from the start, and not when the shard is about to be busy.
    `forgets`: what is deleted is overwritten on the disk, at the cost of further writes, and there is no journal.
    """

    is_inline = False
    suits_loop = True

    def __init__(self, folder: str, shard: int = 0, *, has_journal_ready: bool = False, forgets: bool = False) -> None:
        self.folder = folder
        self.path = shards.database(folder, shard)
        self.spool = shards.spool_folder(folder, shard)
        self._lock_path = shards.lock_file(folder, shard)
        self._lock: int | None = None
        self._db: apsw.Connection
        self._read: SqliteReader
        self._claims: Claims
        self._ahead = Ahead(shards.journal(folder, shard))
        self._has_journal_ready = has_journal_ready
        self._caught_up = 0
        self._told = ""
        self._last_id = 0
        # The loop takes ids for the journal, the writer thread for the database.
        self._ids = threading.Lock()
        self._wal_pages = 0
        self._forgets = forgets
        self._has_forgotten = False
        if forgets:
            self._ahead.forbid()

    # ------------------------------------------------------------ open and close

    def open(self, *, is_new_allowed: bool = True) -> None:
        """Locks, opens, migrates. StoreLockedError names the lock when a server runs on this folder.

        FileNotFoundError for a shard that is not there, unless a new one `is_new_allowed`.
        """
        make_folder(self.folder)
        self._lock = take_lock(self._lock_path, self.folder)
        try:
            make_private_file(self.path, is_new_allowed=is_new_allowed)
            make_spool(self.spool)
            self._db = connect(self.path, is_read_only=False)
            self._prepare()
            self._db.execute(SQL["dropped_table"])
            if not self._forgets:
                lengthen(self._db, self.path, WAL_BYTES)
            self._read = SqliteReader(self._db, self.spool)
            self._claims = Claims(self._db, self._read)
            self._replay()
            self._last_id = next(iter(self._read.rows(SQL["highest_id"])))[0]
            self._ahead.wants_file = self._has_journal_ready and not self._forgets and Journal.is_possible()
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
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = FULL")
        db.execute("PRAGMA wal_autocheckpoint = 0")
        db.execute("PRAGMA journal_size_limit = 67108864")
        db.execute(f"PRAGMA cache_size = -{CACHE_KB}")
        # FAST: deleted octets are overwritten where the page is written anyway; pages that become free keep theirs.
        db.execute(f"PRAGMA secure_delete = {'ON' if self._forgets else 'FAST'}")
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

    def _replay(self) -> None:
        """What a crash left in the journal and not here."""
        journal = self._ahead.journal
        number, _, key = (self.flag(JOURNAL) or "0").partition(" ")
        self._caught_up = journal.number = int(number)
        try:
            journal.key, records = journal.read()
            if records and journal.key.hex() != key:
                raise ValueError(
                    "it is of another queue, or of another state of this one; move it away if it is not needed"
                )
            records = [record for record in records if record[0] > self._caught_up]
            if records:
                last = records[-1][0]
                if missing := last - self._caught_up - len(records):
                    _log.error("%s: %d of the commits that a crash had left are damaged", journal.path, missing)
                with self.transaction():
                    self._bring([sqlite_rows.parse_rows(head, octets) for _, head, octets in records], last)
                journal.number = self._caught_up = last
                _log.warning("%s: %d commits that a crash had left in the journal are back", self.path, len(records))
        except (OSError, ValueError, LookupError, TypeError, StoreError) as error:
            text = f"the mail in {journal.path} cannot be brought to {self.path}, nothing was changed: {error}"
            raise StoreError(text) from error
        journal.close()

    def _count_wal(self, connection: apsw.Connection, name: str, pages: int) -> int:
        self._wal_pages = pages
        return apsw.SQLITE_OK

    def rows(self, name: str, bindings: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """What a named query gives."""
        return list(self._read.rows(SQL[name], bindings))

    def take_ids(self, count: int) -> int:
        """The first of so many ids that no message has."""
        with self._ids:
            first = self._last_id + 1
            self._last_id += count
            return first

    def destroy(self) -> None:
        """Removes the shard's files, under its lock, and gives that up; whoever had to have them has taken them over."""
        self._db.close()
        self._ahead.journal.close()
        for suffix in ("", "-wal", "-shm"):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.path + suffix)
        self._release_lock()

    def close(self) -> None:
        """Writes the WAL back and gives the lock up."""
        if self._lock is None:
            return
        if self.is_behind:
            self._catch_up()
        self._ahead.journal.close(is_needed=self.is_behind)
        with contextlib.suppress(apsw.Error):
            self._db.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
        self._db.close()
        self._release_lock()

    def reader(self) -> SqliteReader:
        """A reader with a connection of its own, for another thread."""
        return SqliteReader(connect(self.path, is_read_only=True), self.spool)

    @property
    def is_behind(self) -> bool:
        """True when there are commits that readers do not see yet: the next transaction, or `maintain`, brings them."""
        return self._ahead.is_behind

    @property
    def maintains_beside(self) -> bool:
        """True when `maintain` may run while others commit."""
        return self._ahead.is_on

    @property
    def wants_maintenance(self) -> bool:
        """True when `maintain` has work to do."""
        return self._wal_pages >= CHECKPOINT_PAGES or self._ahead.is_due or self._ahead.is_wanted or self._has_forgotten

    def maintain(self) -> None:
        """To be called between two batches: catches up with the journal, writes the WAL back when it has grown."""
        if self._ahead.is_wanted:
            self._begin_journal()
        if self._ahead.is_due:
            self._catch_up()
        if self._has_forgotten:
            self._has_forgotten = not scrub(self._db)
        if self._wal_pages >= CHECKPOINT_PAGES:
            self._wal_pages = 0
            # PASSIVE never waits for a reader; what it could not do, the next one does.
            with contextlib.suppress(apsw.Error):
                self._db.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)

    @property
    def wants_preparing(self) -> bool:
        """True when the shard is about to be busy, and its journal has no file yet."""
        return self._ahead.wants_file

    def prepare(self) -> None:
        """Makes the journal's file: nothing of the database's."""
        self._ahead.make()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """BEGIN to COMMIT: with synchronous=FULL the commit returns after the WAL's fsync."""
        db = self._db
        taken, number = self._ahead.pending()
        try:
            db.execute("BEGIN IMMEDIATE")
            self._bring(taken, number)
            yield
            db.execute("COMMIT")
            self._ahead.done(taken)
            self._caught_up = number
        except BaseException as error:
            self._ahead.undone(taken)
            if db.in_transaction:
                with contextlib.suppress(apsw.Error):
                    db.execute("ROLLBACK")
            if isinstance(error, apsw.Error):
                raise _translated(error, self.path) from error
            raise

    def _begin_journal(self) -> None:
        def note() -> None:
            with self.transaction():
                self._note_journal(self._caught_up)

        self._ahead.begin(note)

    def _catch_up(self) -> None:
        try:
            with self.transaction():
                pass
        except StoreError as error:
            if str(error) != self._told:
                _log.error("%s; until that is mended the mail is safe in %s", error, self._ahead.journal.path)
            self._told = str(error)
        else:
            self._told = ""

    def _bring(self, taken: Sequence[Rows], number: int) -> None:
        """What the journal has, and how far that goes: from now on the database has it."""
        if taken:
            try:
                with self._db:
                    write_commits(self._db, taken)
            except apsw.ConstraintError:
                # The only thing that the journal could not know. Their 250 stands, under another name.
                uids = [(row[1],) for rows in taken for row in rows.messages]
                known = {uid for (uid,) in self.write("known_uids", uids)[1]}
                _log.error("messages with these queue ids are here already: %s", sqlite_rows.rename(taken, known))
                write_commits(self._db, taken)
        if number != self._caught_up:
            self._note_journal(number)

    def _note_journal(self, number: int) -> None:
        self.set_flag(JOURNAL, f"{number} {self._ahead.journal.key.hex()}")

    # ------------------------------------------------------------------- writing

    def commit(self, accepts: Sequence[Message], settles: Sequence[Settlement]) -> None:
        """Messages and outcomes in one transaction."""
        with self.transaction():
            write_rows(self._db, self._rows(accepts, settles))

    def try_commit(self, accepts: Sequence[Message], settles: Sequence[Settlement]) -> bool:
        """To the journal, once there is one: the database is the writer thread's from then on."""
        ahead = self._ahead
        if ahead.is_on:
            return ahead.takes(self._rows(accepts, settles))
        if ahead.has_failed:
            return False
        self._db.set_busy_timeout(LOOP_WAIT_MS)
        try:
            self.commit(accepts, settles)
        except StoreError as error:
            if not isinstance(error.__cause__, apsw.BusyError):
                raise
            # Another process has locked the database: the writer thread waits for it, and the loop goes on.
            return False
        finally:
            self._db.set_busy_timeout(BUSY_MS)
        ahead.count(len(accepts), len(settles))
        return True

    def accept(self, batch: Sequence[Message]) -> None:
        """Three statements for a whole batch of small messages."""
        write_rows(self._db, self._rows(batch, ()))

    def _rows(self, accepts: Sequence[Message], settles: Sequence[Settlement]) -> Rows:
        rows = Rows()
        if accepts:
            for key, message in enumerate(accepts, self.take_ids(len(accepts))):
                message.key = key
            sqlite_rows.take_messages(rows, accepts)
        if settles:
            sqlite_rows.take_outcomes(rows, settles)
        return rows

    def restore(self, batch: Sequence[Message], now: float) -> None:
        """As another queue had them."""
        for message in batch:
            key = message.key = self.take_ids(1)
            self.write("insert_messages", [sqlite_rows.message_row(message)])
            self.write("insert_contents", [(key, message.content.prefix)])
            self.write(
                "import_recipients",
                [sqlite_rows.recipient_row(key, r, r.due_at, is_leased=False) for r in message.recipients],
            )
            self.write("insert_attempts", [(key, *dataclasses.astuple(a)) for a in message.attempts])

    def settle(self, batch: Sequence[Settlement]) -> set[tuple[int, int]]:
        """Outcomes, their history, and what becomes final by them."""
        write_rows(self._db, self._rows((), batch))
        return set()

    def write(self, name: str, rows: Sequence[tuple[Any, ...]]) -> tuple[int, list[tuple[Any, ...]]]:
        """A named query with the rows for its VALUES: how many rows it changed, and what it gave back. In a transaction."""
        return write(self._db, name, rows)

    def claim(
        self, limit: int, now: float, lease_until: float, max_content_bytes: int, skip: Collection[str] = ()
    ) -> list[Message]:
        """The messages that are due first; stops when their contents pass the bound (but gives one at least)."""
        terms = Terms(now, lease_until, max_content_bytes, skip)
        return self._claims.lease(self._claims.due(limit, terms), terms)

    def claim_expired(
        self, limit: int, now: float, lease_until: float, only: Collection[str] | None = None
    ) -> list[Message]:
        """Messages past their time, whose next hop may be down for ever."""
        # The query takes what is in the list, or not in it: of one next hop, or of all.
        wanted = as_json(list(only or ()))
        keys = list(self._read.rows(SQL["expired_messages"], (now, limit, int(only is None), wanted)))
        return self._claims.lease([key for key, _ in keys], Terms(now, lease_until, 1 << 26, only=only, is_expiry=True))

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
        finish(self._db, [(key, now) for key, _, _ in steered])
        return count

    def bound_times(self, bounds: Bounds) -> int:
        """See Store."""
        return bound_times(self._db, bounds)

    def change(self, action: Action, query: Query, now: float) -> list[str]:
        """Steers what the query means."""
        sql = SQL[action.value]
        changed: list[str] = []
        for key, uid in self._read.ids(query):
            self._db.execute(sql, (now, key) if action in (Action.RELEASE, Action.RETRY, Action.REROUTE) else (key,))
            if self._db.changes():
                changed.append(uid)
                if action is Action.CANCEL:
                    finish(self._db, [(key, now)])
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
        self._has_forgotten = self._has_forgotten or (self._forgets and bool(keys))
        if keys:
            # A statement for each message would give the interpreter's lock away, and wait for it, thousands of times.
            for name in ("forget_recipients", "forget_attempts", "forget_messages"):
                self._db.execute(SQL[name], (as_json(keys),))
        dropped = [spool for (spool,) in self._read.rows(SQL["dropped"])]
        self._db.execute(SQL["forget_dropped"])
        return dropped

    # ------------------------------------------------------------------- reading

    @property
    def _seen(self) -> SqliteReader:
        """Sees everything that was committed."""
        if self.is_behind and not self._db.in_transaction:
            self._catch_up()
        return self._read

    def get(self, uid: str) -> View | None:
        """One message."""
        return self._seen.get(uid)

    def content(self, uid: str) -> Content | None:
        """Its content."""
        return self._seen.content(uid)

    def envelope(self, uid: str) -> Envelope | None:
        """Its reverse-path and parameters."""
        return self._seen.envelope(uid)

    def search(self, query: Query) -> list[View]:
        """Messages."""
        return self._seen.search(query)

    def counts(self) -> dict[str, int]:
        """Recipients by state."""
        return self._seen.counts()

    def next_hops(self, limit: int) -> list[tuple[str, str, int, float | None]]:
        """What waits for whom."""
        return self._seen.next_hops(limit)

    def next_due(self, skip: Collection[str] = ()) -> float | None:
        """The next due time."""
        return self._seen.next_due(skip)

    def flag(self, name: str) -> str | None:
        """A control flag."""
        return self._seen.flag(name)

    def nodes(self) -> list[dict[str, Any]]:
        """A file has one owner."""
        return []

    def spool_names(self) -> set[str]:
        """Spool files in need."""
        return self._seen.spool_names()

"""Ahead of the database: commits that are durable in the journal, and whose rows the database gets later, many at once.

Begins when a shard is busy, and not before (its file may be there): until then each commit is the database's own, and
readers see it at once.
From then on the commits are the loop's, and the database is the writer thread's alone; each transaction there brings
what is in the journal first (`pending` to `done`). Must not know SQL.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from ..errors import StoreError
from .journal import HALF_BYTES, Journal
from .sqlite_rows import Rows
from .wal import has_room

_log = logging.getLogger("pillarbox.queue")
# So many messages and outcomes within a second make a shard a busy one.
BUSY_COMMITTED = 300
# After so many it is about to be one, and the file is made: some 40 ms of writing and syncing, beside the commits.
SOON_COMMITTED = 100
# Commits that share so many messages anyway are cheaper at once: with 100 sessions the journal cost a tenth of their rate.
LARGE_COMMIT = 24
# The database is so far behind at most, while there is time for it.
BEHIND_S = 0.25
# Larger commits are the database's own: their contents would only be written twice.
MOST_BYTES = 512 << 10


class Ahead:
    """Of one shard. `number` of its journal and `pending` belong together: who changes both has the mutex."""

    def __init__(self, path: str) -> None:
        self.journal = Journal(path)
        self.is_on = False
        # It was on, and failed: from then on all is the database's again, in the writer thread.
        self.has_failed = False
        self._is_impossible = not Journal.is_possible()
        # Set in the loop's thread, until `make` has been here.
        self.wants_file = False
        self._pending: list[Rows] = []
        self._since = 0.0
        self._mutex = threading.Lock()
        self._is_taken = False
        # The journal's other half holds nothing that the database does not have.
        self._can_turn = True
        self._counted_from = 0.0
        self._counted = 0
        # (commits, messages) within that second
        self._shape = (0, 0)

    # ------------------------------------------------------------ whether it is worth it

    def count(self, messages: int, outcomes: int) -> None:
        """The database has committed so many, at once."""
        now = time.monotonic()
        if now - self._counted_from > 1.0:
            self._counted_from, self._counted, self._shape = now, 0, (0, 0)
        self._counted += messages + outcomes
        self._shape = (self._shape[0] + 1, self._shape[1] + messages)
        if not self.journal.is_open and self._is_worth_it(SOON_COMMITTED):
            self.wants_file = True

    def _is_worth_it(self, committed: int) -> bool:
        commits, messages = self._shape
        if self._counted < committed or messages > commits * LARGE_COMMIT:
            return False
        return not (self.is_on or self._is_impossible or self.has_failed)

    @property
    def is_wanted(self) -> bool:
        """The shard is busy, and could have a journal; not while its file is being made."""
        return not self.wants_file and self._is_worth_it(BUSY_COMMITTED)

    def make(self) -> None:
        """Makes the file, before it is needed; others may commit meanwhile. Where it cannot be, there is no journal."""
        try:
            if not self.journal.is_open:
                if not has_room(self.journal.path, 2 * HALF_BYTES):
                    raise OSError("the disk is small or nearly full")
                self.journal.make()
        except OSError as error:
            self._give_up(error)
        finally:
            self.wants_file = False

    def begin(self, note: Callable[[], None]) -> None:
        """From now on there is a journal: `note` tells the database its key, before anything is in it.

        Where one of them cannot be, for want of room say, commits stay the database's own.
        """
        try:
            if not self.journal.is_in_place:
                # Or it was made long ago, and somebody has tidied it away since.
                self.journal.close()
                if not has_room(self.journal.path, 2 * HALF_BYTES):
                    raise OSError("the disk is small or nearly full")
                self.journal.make()
            note()
        except (OSError, StoreError) as error:
            self._give_up(error)
        else:
            self.is_on = True

    def forbid(self) -> None:
        """There will be no journal: it keeps mail that was deleted until its half is used again."""
        self._is_impossible = True

    def _give_up(self, error: Exception) -> None:
        self._is_impossible = True
        self.journal.close()
        _log.warning("the queue goes on without its journal %s: %s", self.journal.path, error)

    # ------------------------------------------------------------ commits

    def takes(self, rows: Rows) -> bool:
        """True when the journal has these rows now, on the disk; False: they are for the database, also when it failed."""
        head = rows.head()
        octets = [content for _, content in rows.contents]
        size = len(head) + sum(map(len, octets))
        if size > MOST_BYTES or not self.journal.has_room(size):
            return False
        with self._mutex:
            try:
                self.journal.append(head, octets)
            except OSError as error:
                # Whether the record is there nobody knows: its number counts as taken, and the next transaction says so.
                self.has_failed = True
                self.is_on = False
                _log.error("the journal %s failed, the queue goes on without it: %s", self.journal.path, error)
                return False
            if not self._pending:
                self._since = time.monotonic()
            self._pending.append(rows)
        return True

    # ------------------------------------------------------------ the database

    @property
    def is_behind(self) -> bool:
        """Something is in the journal only, or on its way from there."""
        return bool(self._pending) or self._is_taken

    @property
    def is_due(self) -> bool:
        """It is time for the database to have it."""
        if not self._pending or self._is_taken:
            return False
        return (self._can_turn and self.journal.is_half_full) or time.monotonic() - self._since >= BEHIND_S

    def pending(self) -> tuple[list[Rows], int]:
        """What the database is to have now, and up to which record that is. Commits go to the other half meanwhile."""
        with self._mutex:
            taken, self._pending = self._pending, []
            if taken:
                self._is_taken = True
                if self._can_turn:
                    self.journal.turn()
                    self._can_turn = False
            return taken, self.journal.number

    def undone(self, taken: list[Rows]) -> None:
        """The database has not taken it: it is asked again later, and until then both halves are needed."""
        if not taken:
            return
        with self._mutex:
            self._pending = taken + self._pending
            self._is_taken, self._since = False, time.monotonic()

    def done(self, taken: list[Rows]) -> None:
        """It has. A journal that failed is no longer needed then."""
        with self._mutex:
            if taken:
                self._is_taken, self._can_turn = False, True
            is_over = self.has_failed and self.journal.is_open and not self._pending
        if is_over:
            self.journal.close()

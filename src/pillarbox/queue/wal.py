"""The write-ahead log of a SQLite queue gets its full length before it is used."""

from __future__ import annotations

import logging
import os

import apsw

_log = logging.getLogger("pillarbox.queue")


def lengthen(db: apsw.Connection, path: str, length: int) -> None:
    """Gives the empty WAL of the database at `path` so many octets, zeroes, on the disk.

    A commit that overwrites is synced in a fraction of the time of one that makes the file longer, for the file
    system has nothing to note in its own journal. SQLite takes only frames that carry the salt of the WAL's
    header; zeroes are none, and before the first commit there is no header either.
    """
    try:
        db.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
        handle = os.open(f"{path}-wal", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            if os.fstat(handle).st_size == 0:
                for _ in range(0, length, 1 << 20):
                    os.write(handle, bytes(1 << 20))
                os.fsync(handle)
        finally:
            os.close(handle)
    except (OSError, apsw.Error) as error:
        # A full disk: the queue can still be looked at, and what it accepts it still syncs.
        _log.warning("the write-ahead log of %s keeps its length: %s", path, error)

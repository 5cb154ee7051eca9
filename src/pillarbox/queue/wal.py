"""The write-ahead log of a SQLite queue gets its full length before it is used."""

from __future__ import annotations

import logging
import os

import apsw

# A file is made long before it is needed only where the disk has so many times its length free.
ROOM = 4
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
            if os.fstat(handle).st_size == 0 and has_room(path, length):
                for _ in range(0, length, 1 << 20):
                    os.write(handle, bytes(1 << 20))
                os.fsync(handle)
        finally:
            os.close(handle)
    except (OSError, apsw.Error) as error:
        # A full disk: the queue can still be looked at, and what it accepts it still syncs.
        _log.warning("the write-ahead log of %s keeps its length: %s", path, error)


def has_room(path: str, length: int) -> bool:
    """True if a file of that length beside `path` leaves enough of the disk for mail."""
    found = os.statvfs(os.path.dirname(path) or ".")
    return found.f_bavail * found.f_frsize >= ROOM * length


def scrub(db: apsw.Connection) -> bool:
    """Writes the WAL back and empties it: deleted mail stands in its old frames. False: a reader was at it."""
    try:
        db.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_TRUNCATE)
    except apsw.Error:
        return False
    return True

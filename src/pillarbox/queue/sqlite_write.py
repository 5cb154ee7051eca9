"""Rows into a SQLite queue: few statements for many rows. Within a transaction of the caller's."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence

import apsw

from .clocks import Bounds
from .sqlite_read import SQL
from .sqlite_rows import SPOOL, Row, Rows, merged

# Rows of one statement: each number of them is a text of its own, and the driver keeps so many compiled.
MOST_VALUES = 32
# A compiled statement holds on to what it was last given.
MOST_HELD_BYTES = 1 << 17


@functools.cache
def _with_values(name: str, rows: int, columns: int) -> str:
    """The query of that name with VALUES of that shape: (?,?),(?,?)

    A statement for each row would give the interpreter's lock away as often, and wait for it where other threads are busy.
    """
    row = f"({','.join('?' * columns)})"
    return SQL[name].replace(":rows", ",".join([row] * rows))


def write(db: apsw.Connection, name: str, rows: Sequence[Row]) -> tuple[int, list[Row]]:
    """A named query with the rows for its VALUES: how many rows it changed, and what it gave back."""
    changed = 0
    given: list[Row] = []
    for start in range(0, len(rows), MOST_VALUES):
        some = rows[start : start + MOST_VALUES]
        bindings = tuple(itertools.chain.from_iterable(some))
        given += db.execute(_with_values(name, len(some), len(some[0])), bindings)
        changed += db.changes()
    return changed, given


def write_rows(db: apsw.Connection, rows: Rows) -> None:
    """What one commit writes."""
    write(db, "insert_messages", rows.messages)
    write(db, "insert_final_messages", rows.over)
    some: list[tuple[int, bytes]] = []
    held_bytes = 0
    for content in rows.contents:
        held_bytes += len(content[1])
        if held_bytes > MOST_HELD_BYTES and some:
            write(db, "insert_contents", some)
            some, held_bytes = [], len(content[1])
        some.append(content)
    write(db, "insert_contents", some)
    write(db, "import_recipients", rows.recipients)
    if rows.settled:
        changed, _ = write(db, "settle_recipients", rows.settled)
        if changed < len(rows.settled):
            write(db, "settle_steered", rows.settled)
    write(db, "insert_attempts", rows.attempts)
    finish(db, rows.finished)
    _note_dropped(db, [row[SPOOL] for row in rows.over])


def write_commits(db: apsw.Connection, commits: Sequence[Rows]) -> None:
    """What many commits write, as few writes as can be."""
    for rows in merged(commits):
        write_rows(db, rows)


def finish(db: apsw.Connection, rows: Sequence[tuple[int, float]]) -> None:
    """(id, now) of messages: those whose recipients are all final lose their content."""
    _, finished = write(db, "finish_messages", rows)
    write(db, "drop_contents", [(key,) for key, _ in finished])
    _note_dropped(db, [spool for _, spool in finished])


def _note_dropped(db: apsw.Connection, spools: Sequence[str | None]) -> None:
    """Files that nobody needs any more go once this is committed."""
    write(db, "note_dropped", [(spool,) for spool in spools if spool is not None])


def bound_times(db: apsw.Connection, bounds: Bounds) -> int:
    """See Store.bound_times. The order matters: an age that begins anew gets no further seconds."""
    earliest, latest = bounds.earliest_received_at, bounds.latest_received_at
    if bounds.forward_s > 0:
        db.execute(SQL["live_longer"], (bounds.forward_s, earliest, latest))
    db.execute(SQL["bound_due"], (bounds.now, bounds.latest_due_at))
    count = db.changes()
    db.execute(SQL["bound_age"], (bounds.now, earliest, latest))
    return count + db.changes()

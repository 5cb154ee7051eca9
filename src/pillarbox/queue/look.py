"""All shards of a queue as one, for questions in SQL: read-only, whoever runs it.

The views of `sql/sqlite/0002_views.sql` stand over all of them. Nothing can be written, attached or loaded.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib import resources
from typing import Any
from urllib.parse import quote

import apsw

from ..errors import OptionError, StoreError
from .shards import database, find_shards

_VIEW = re.compile(r"CREATE VIEW (\w+) AS\s+(.*?);\s*(?=CREATE|\Z)", re.S)
_TABLE = re.compile(r"\b(FROM|JOIN) (message|recipient|attempt)\b")
_ALLOWED = (
    apsw.SQLITE_SELECT,
    apsw.SQLITE_READ,
    apsw.SQLITE_FUNCTION,
    apsw.SQLITE_RECURSIVE,
)
# Over several shards it is counted anew.
_NEXT_HOPS = """
SELECT next_hop, sum(queued) AS queued, sum(deferred) AS deferred, sum(held) AS held, min(due_at) AS due_at
FROM ({}) GROUP BY 1"""


def views() -> dict[str, str]:
    """The documented views, by name, as they stand in the migration."""
    text = resources.files(__package__).joinpath("sql", "sqlite", "0002_views.sql").read_text("utf-8")
    return dict(_VIEW.findall(text))


def open_whole(folder: str) -> apsw.Connection:
    """A connection that sees every shard, and can change nothing. StoreError when there is none, or they are too many."""
    shards = find_shards(folder)
    if not shards:
        raise StoreError(f"there is no queue in {folder}: start `pillarbox serve`, or name its folder with --data-dir")
    connection = apsw.Connection(":memory:", flags=apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_URI)
    connection.set_busy_timeout(5000)
    most = connection.limit(apsw.SQLITE_LIMIT_ATTACHED)
    if len(shards) > most:
        raise StoreError(
            f"{len(shards)} shards: SQLite sees {most} at once; ask one, with sqlite3 {database(folder, shards[0])}"
        )
    for shard in shards:
        try:
            connection.execute(f"ATTACH ? AS shard{shard}", (f"file:{quote(database(folder, shard))}?mode=ro",))
        except apsw.Error as error:
            raise StoreError(f"{database(folder, shard)} cannot be read: {error}") from None
    for name, body in views().items():
        parts = [_TABLE.sub(rf"\1 shard{shard}.\2", body) for shard in shards]
        whole = "\nUNION ALL\n".join(f"SELECT * FROM ({part})" for part in parts)
        if name == "queue_next_hops":
            whole = _NEXT_HOPS.format(whole)
        connection.execute(f"CREATE TEMP VIEW {name} AS {whole}")
    connection.authorizer = _authorize
    return connection


def _authorize(operation: int, one: str | None, two: str | None, base: str | None, trigger: str | None) -> int:
    return apsw.SQLITE_OK if operation in _ALLOWED else apsw.SQLITE_DENY


def ask_sql(folder: str, sql: str) -> tuple[list[str], Iterator[tuple[Any, ...]]]:
    """(columns, rows) of one question. OptionError for SQL that cannot be, or that would change something."""
    connection = open_whole(folder)
    try:
        cursor = connection.execute(sql)
        columns = [str(column[0]) for column in cursor.get_description()]
    except apsw.ExecutionCompleteError:
        # No row, and no column is told any more.
        return [], iter(())
    except apsw.AuthError:
        raise OptionError("the queue is only read here: SELECT, from " + ", ".join(views())) from None
    except apsw.Error as error:
        raise OptionError(f"SQL: {error}; there are {', '.join(views())}") from None
    return columns, _rows(cursor)


def _rows(cursor: Any) -> Iterator[tuple[Any, ...]]:
    try:
        yield from cursor
    except apsw.AuthError:
        raise OptionError("the queue is only read here: SELECT, from " + ", ".join(views())) from None
    except apsw.Error as error:
        raise OptionError(f"SQL: {error}") from None

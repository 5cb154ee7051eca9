"""The store of many nodes, for those who must not load its driver: it comes with `pillarbox[postgres]`."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from ..errors import OptionError

if TYPE_CHECKING:
    from .postgres import PostgresStore


def open_postgres(
    url: str, folder: str = "", worker: int = 0, lease_s: float = 30.0, wall: Callable[[], float] = time.time
) -> PostgresStore:
    """The store, not opened yet; without a folder one that only looks and steers. OptionError without the driver."""
    try:
        from .postgres import PostgresStore
    except ImportError as error:
        raise OptionError(
            f"option 'queue': a queue on PostgreSQL needs its driver ({error}): pip install 'pillarbox[postgres]'"
        ) from None
    return PostgresStore(url, folder, worker, lease_s=lease_s, is_node=bool(folder), wall=wall)


def ask_shared_sql(url: str, sql: str) -> tuple[list[str], Iterator[tuple[Any, ...]]]:
    """(columns, rows) of one question to a queue on PostgreSQL. OptionError for SQL that cannot be, or would change something."""
    # The driver's absence is told of by what needs it first.
    open_postgres(url)
    import psycopg

    from .pgconnect import connect, reason_of
    from .pgnode import check_tables

    connection = connect(url, "looks")
    check_tables(connection, url)
    try:
        connection.execute("BEGIN READ ONLY")
        # A cursor takes SELECT alone, and a prepared statement is one statement: COPY, SET, DO, CALL and what stands behind
        # a semicolon never run. No parameters: a % is a %.
        connection.execute(b"DECLARE question NO SCROLL CURSOR FOR " + sql.encode(), prepare=True)
        cursor = connection.execute("FETCH FORWARD 1000 FROM question")
    except (psycopg.errors.ReadOnlySqlTransaction, psycopg.errors.InvalidCursorDefinition):
        raise OptionError(_ONLY_READ) from None
    except psycopg.Error as error:
        if isinstance(error, psycopg.errors.SyntaxError) and not _QUESTION.match(sql):
            raise OptionError(_ONLY_READ) from None
        raise OptionError(f"SQL: {reason_of(error)}") from None
    return [column.name for column in cursor.description or ()], _rows(connection, cursor)


def _rows(connection: Any, cursor: Any) -> Iterator[tuple[Any, ...]]:
    import psycopg

    from .pgconnect import reason_of

    with connection:
        try:
            while rows := cursor.fetchall():
                yield from rows
                cursor = connection.execute("FETCH FORWARD 1000 FROM question")
            connection.execute("ROLLBACK")
        except psycopg.Error as error:
            raise OptionError(f"SQL: {reason_of(error)}") from None


_ONLY_READ = "the queue is only read here: SELECT, from queue_messages, queue_recipients, ..."
# Behind comments: a statement that a cursor takes.
_QUESTION = re.compile(r"(?:\s|--[^\n]*\n|/\*.*?\*/|\()*(?:SELECT|WITH|VALUES|TABLE)\b", re.I | re.S)

"""The store of many nodes, for those who must not load its driver: it comes with `pillarbox[postgres]`."""

from __future__ import annotations

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

    from .pgnode import check_tables, connect

    connection = connect(url, "looks")
    check_tables(connection, url)
    connection.execute("SET default_transaction_read_only = on")
    try:
        # One statement, and no parameters: a % is a %.
        cursor = psycopg.ClientCursor(connection).execute(sql.encode(), prepare=False)
    except psycopg.errors.ReadOnlySqlTransaction:
        raise OptionError("the queue is only read here: SELECT, from queue_messages, queue_recipients, ...") from None
    except psycopg.Error as error:
        raise OptionError(f"SQL: {' '.join(str(error).split())}") from None
    return [column.name for column in cursor.description or ()], iter(cursor.fetchall() if cursor.description else [])

"""The list of a queue, page by page: rows arrive as they are read, and neither side holds more than one page of a shard."""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import time
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

from ..errors import StoreError, StoreLockedError
from .control import PAGE_RECIPIENTS, PAGE_ROWS, make_page, parse_query, perform
from .model import Query
from .shards import database, find_shards, spool_folder
from .sqlite import SqliteStore
from .sqlite_read import SqliteReader, connect
from .stopped import StoppedSteering
from .store import Store
from .whole import GONE, ask_queue, ask_shard

Row = dict[str, Any]
Page = dict[str, Any]


def list_queue(folder: str, query: dict[str, Any]) -> Iterator[Row]:
    """Yields the rows of `queue list`, oldest first, from a running server or a stopped one. Errors as in ask_queue."""
    shards = find_shards(folder)
    if shards:
        streams = [_shard_rows(folder, shard, query) for shard in shards]
    else:
        streams = [_rows(lambda part: ask_queue(folder, {"verb": "page", "query": part}), query)]
    rows = heapq.merge(*streams, key=lambda row: (row["received_at"], row["uid"]))
    return islice(rows, query.get("limit"))


def list_store(store: Store, query: dict[str, Any]) -> Iterator[Row]:
    """As list_queue, of an open store."""
    steering = StoppedSteering(store, time.time)
    return _rows(lambda part: asyncio.run(perform(steering, {"verb": "page", "query": part})), query)


def _rows(ask_page: Callable[[dict[str, Any]], Page], query: dict[str, Any]) -> Iterator[Row]:
    left = query.get("limit")
    after = None
    while True:
        part = {**query, "limit": PAGE_ROWS if left is None else min(left, PAGE_ROWS)}
        if after is not None:
            part["after"] = after
        page = ask_page(part)
        yield from page["rows"]
        after = page["after"]
        if left is not None:
            left -= len(page["rows"])
        if after is None or left == 0:
            return


def _shard_rows(folder: str, shard: int, query: dict[str, Any]) -> Iterator[Row]:
    """The rows of one shard: through its worker, or from its file, without its lock, while no worker runs."""
    store = SqliteStore(folder, shard)
    try:
        # What a crash left in the journal comes into the file first; then the lock is free for a server that starts.
        store.open(is_new_allowed=False)
        store.close()
    except FileNotFoundError:
        return
    except StoreLockedError:
        yield from _rows(lambda part: _ask_worker(folder, shard, part), query)
        return
    with contextlib.closing(connect(database(folder, shard), is_read_only=True)) as connection:
        reader = SqliteReader(connection, spool_folder(folder, shard))
        yield from _rows(lambda part: _read_page(reader, parse_query(part)), query)


def _ask_worker(folder: str, shard: int, query: dict[str, Any]) -> Page:
    page = ask_shard(folder, shard, {"verb": "page", "query": query})
    if page is GONE:
        raise StoreError(f"queue {database(folder, shard)} was taken over by another worker: list again")
    found: Page = page
    return found


def _read_page(reader: SqliteReader, query: Query) -> Page:
    query.most_recipients = PAGE_RECIPIENTS
    return make_page(reader.search(query), query)

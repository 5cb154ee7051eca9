"""The list of a queue, page by page: rows arrive as they are read, and neither side holds more than one page of a shard."""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from ..errors import StoreLockedError
from .control import PAGE_RECIPIENTS, PAGE_ROWS, make_page, parse_query, perform
from .model import Query
from .shards import database, find_shards, spool_folder
from .sqlite import SqliteStore
from .sqlite_read import SqliteReader, connect
from .stopped import StoppedSteering
from .store import Store
from .whole import GONE, ask_queue, ask_shard

# The shard that takes over the mail of shards without a worker.
ADOPTING = 0
Row = dict[str, Any]
Page = dict[str, Any]


@dataclass(slots=True)
class _Mark:
    """The newest page of a shard that was read: the position before it, and its uids."""

    after: list[Any] | None = None
    uids: set[str] = field(default_factory=set)


def list_queue(folder: str, query: dict[str, Any]) -> Iterator[Row]:
    """Yields the rows of `queue list`, oldest first, from a running server or a stopped one. Errors as in ask_queue."""
    shards = find_shards(folder)
    if not shards:
        rows = _rows(lambda part: ask_queue(folder, {"verb": "page", "query": part}), query, _Mark())
    elif shards == [ADOPTING]:
        rows = _shard_rows(folder, ADOPTING, query, _Mark())
    else:
        rows = _all_rows(folder, shards, query)
    return islice(rows, query.get("limit"))


def list_store(store: Store, query: dict[str, Any]) -> Iterator[Row]:
    """As list_queue, of an open store."""
    steering = StoppedSteering(store, time.time)
    rows = _rows(lambda part: asyncio.run(perform(steering, {"verb": "page", "query": part})), query, _Mark())
    return islice(rows, query.get("limit"))


def _rows(ask_page: Callable[[dict[str, Any]], Page], query: dict[str, Any], mark: _Mark) -> Iterator[Row]:
    """The rows from the mark on. The mark is moved from page to page, and stays at the last one."""
    limit = query.get("limit")
    while True:
        part = {**query, "limit": PAGE_ROWS if limit is None else min(limit, PAGE_ROWS)}
        if mark.after is not None:
            part["after"] = mark.after
        page = ask_page(part)
        known, mark.uids = mark.uids, {row["uid"] for row in page["rows"]}
        yield from (row for row in page["rows"] if row["uid"] not in known)
        if page["after"] is None:
            return
        mark.after = page["after"]


def _all_rows(folder: str, shards: list[int], query: dict[str, Any]) -> Iterator[Row]:
    """The rows of several shards, each message once. All uids are kept, in place of the rows.

    A starting server moves the mail of a shard without a worker behind the other mail of ADOPTING: a message is first there
    in both, then in the new shard alone. So that shard is read on when the other shards have been read to their ends.
    """
    seen: set[str] = set()
    marks = {shard: _Mark() for shard in {*shards, ADOPTING}}
    streams = [_shard_rows(folder, shard, query, marks[shard]) for shard in reversed(shards)]
    merged = heapq.merge(*streams, key=lambda row: (row["received_at"], row["uid"]))
    for rows in (merged, _shard_rows(folder, ADOPTING, query, marks[ADOPTING])):
        for row in rows:
            if row["uid"] not in seen:
                seen.add(row["uid"])
                yield row


def _shard_rows(folder: str, shard: int, query: dict[str, Any], mark: _Mark) -> Iterator[Row]:
    """The rows of one shard: through its worker, or from its file, without its lock, while no worker runs."""
    store = SqliteStore(folder, shard)
    try:
        # What a crash left in the journal comes into the file first; then the lock is free for a server that starts.
        store.open(is_new_allowed=False)
        store.close()
    except FileNotFoundError:
        return
    except StoreLockedError:
        yield from _rows(lambda part: _ask_worker(folder, shard, part), query, mark)
        return
    with contextlib.closing(connect(database(folder, shard), is_read_only=True)) as connection:
        reader = SqliteReader(connection, spool_folder(folder, shard))
        yield from _rows(lambda part: _read_page(reader, parse_query(part)), query, mark)


def _ask_worker(folder: str, shard: int, query: dict[str, Any]) -> Page:
    page = ask_shard(folder, shard, {"verb": "page", "query": query})
    # What was in a shard that is gone is in ADOPTING.
    return {"rows": [], "after": None} if page is GONE else page


def _read_page(reader: SqliteReader, query: Query) -> Page:
    query.most_recipients = PAGE_RECIPIENTS
    return make_page(reader.search(query), query)

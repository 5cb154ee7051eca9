"""The list of a queue, page by page: every store, running and stopped servers, several shards."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from pillarbox.errors import StoreError
from pillarbox.queue import control, pages
from pillarbox.queue.adopt import Batch
from pillarbox.queue.control import PAGE_RECIPIENTS, parse_query, perform
from pillarbox.queue.model import Message, Query
from pillarbox.queue.pages import list_queue, list_store
from pillarbox.queue.sqlite import SqliteStore
from pillarbox.queue.stopped import StoppedSteering
from tests.queue.test_store_contract import NOW, accept, message, store  # noqa: F401


def test_search_after_a_position_continues_behind_it(store: Any) -> None:  # noqa: F811
    accept(store, *(message(f"U{n}", at=NOW + n // 2) for n in range(5)))
    first = store.search(Query(limit=2))
    second = store.search(Query(limit=2, after=first[-1].position))
    third = store.search(Query(limit=2, after=second[-1].position))
    assert [view.uid for view in first + second + third] == ["U0", "U1", "U2", "U3", "U4"]


def test_search_newest_first_continues_behind_a_position(store: Any) -> None:  # noqa: F811
    accept(store, *(message(f"U{n}", at=NOW + n // 2) for n in range(4)))
    first = store.search(Query(limit=3, is_newest_first=True))
    second = store.search(Query(limit=3, is_newest_first=True, after=first[-1].position))
    assert [view.uid for view in first + second] == ["U3", "U2", "U1", "U0"]


def test_next_hops_give_no_due_time_for_what_is_leased(store: Any) -> None:  # noqa: F811
    accept(store, message("A", "x@d.test"))
    with store.transaction():
        store.claim(1, NOW + 1, NOW + 3600, 1 << 20)
    assert [row[3] for row in store.next_hops(10)] == [None]


def test_search_stops_behind_the_message_that_reaches_the_bound_of_recipients(store: Any) -> None:  # noqa: F811
    accept(store, *(message(f"U{n}", *(f"r{m}@d.test" for m in range(3))) for n in range(4)))
    assert [view.uid for view in store.search(Query(most_recipients=4))] == ["U0", "U1"]


def test_count_is_of_what_the_query_selects_whatever_its_limit(store: Any) -> None:  # noqa: F811
    accept(store, message("A", "x@d.test"), message("B", "y@d.test"), message("C", "x@d.test"))
    with store.transaction():
        # What a journal has is in the tables now.
        pass
    reader = store.reader()
    assert reader.count(Query(limit=1)) == 3
    assert reader.count(Query(recipient="x@")) == 2
    if reader is not store:
        reader.close()


def test_list_of_a_store_yields_each_message_once_over_many_pages(store: Any, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setattr(pages, "PAGE_ROWS", 3)
    monkeypatch.setattr(control, "PAGE_ROWS", 3)
    accept(store, *(message(f"U{n}") for n in range(10)))
    assert [row["uid"] for row in list_store(store, {})] == [f"U{n}" for n in range(10)]
    assert [row["uid"] for row in list_store(store, {"limit": 4})] == ["U0", "U1", "U2", "U3"]
    assert list(list_store(store, {"limit": 0})) == []


def test_page_is_bounded_in_recipients(store: Any) -> None:  # noqa: F811
    accept(store, *(message(f"U{n}", *(f"r{m}@d.test" for m in range(1000))) for n in range(4)))
    page = asyncio.run(perform(StoppedSteering(store, time.time), {"verb": "page"}))
    assert len(page["rows"]) == PAGE_RECIPIENTS // 1000 and page["after"] is not None


@pytest.mark.parametrize("after", [[], [1], [1, "x"], [1e300, 1], "x", [1, 2, 3], [True, {}]])
def test_query_with_an_invalid_position_is_refused(after: Any) -> None:
    with pytest.raises(ValueError, match="after"):
        parse_query({"after": after})


def shard(folder: Path, number: int, *uids: str, at: float) -> SqliteStore:
    made = SqliteStore(str(folder), number)
    made.open()
    accept(made, *(message(uid, at=at + n) for n, uid in enumerate(uids)))
    return made


def test_list_of_a_stopped_queue_merges_its_shards_and_leaves_their_locks_free(tmp_path: Path) -> None:
    shard(tmp_path, 0, "A", "C", at=NOW).close()
    shard(tmp_path, 1, "B", "D", at=NOW + 0.5).close()
    rows = list_queue(str(tmp_path), {})
    assert next(rows)["uid"] == "A"
    # A server may start while the list is read.
    owner = SqliteStore(str(tmp_path), 0)
    owner.open()
    owner.close()
    assert [row["uid"] for row in rows] == ["B", "C", "D"]
    assert [row["uid"] for row in list_queue(str(tmp_path), {"limit": 2})] == ["A", "B"]


def test_list_of_a_queue_that_does_not_exist_names_its_folder(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=str(tmp_path)):
        list(list_queue(str(tmp_path), {}))


def move(folder: Path, most: int) -> None:
    """Moves the oldest messages of shard 1 to shard 0, as a server that starts does."""
    orphan, own = SqliteStore(str(folder), 1), SqliteStore(str(folder), 0)
    orphan.open()
    own.open()
    batch = Batch(orphan, orphan.rows("export_messages", (most,)))
    with own.transaction():
        batch.take_over(own)
    batch.forget()
    own.close()
    if orphan.rows("export_messages", (1,)):
        orphan.close()
    else:
        orphan.destroy()


@pytest.mark.parametrize("most", [1, 3, 6])
@pytest.mark.parametrize("read", range(1, 12))
def test_list_while_a_shard_is_taken_over_yields_each_message_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: int, most: int
) -> None:
    monkeypatch.setattr(pages, "PAGE_ROWS", 2)
    monkeypatch.setattr(control, "PAGE_ROWS", 2)
    uids = [f"U{n:02}" for n in range(12)]
    shard(tmp_path, 0, *uids[:6], at=NOW).close()
    shard(tmp_path, 1, *uids[6:], at=NOW + 0.5).close()
    rows = list_queue(str(tmp_path), {})
    found = [next(rows)["uid"] for _ in range(read)]
    move(tmp_path, most)
    assert sorted(found + [row["uid"] for row in rows]) == uids


def test_facts_that_are_no_object_are_taken_as_none() -> None:
    """A row that another program wrote (hostile row 133)."""
    made = message("A")
    assert Message("B", made.envelope, made.content, NOW, NOW, facts=["x"]).facts == {}  # type: ignore[arg-type]

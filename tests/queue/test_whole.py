"""The queue as a whole, in one process: shards that are read, asked and taken over."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from pillarbox import MailServer
from pillarbox.errors import StoreError
from pillarbox.mail.content import Content
from pillarbox.places import Slot
from pillarbox.queue.adopt import Batch
from pillarbox.queue.shards import find_shards
from pillarbox.queue.sqlite import SqliteStore
from pillarbox.queue.whole import ask_all, ask_shard, is_paused
from tests.conftest import run_async
from tests.queue.test_store_contract import accept, message


def filled(folder: Path, shard: int, *uids: str) -> SqliteStore:
    """A shard with these messages, open."""
    store = SqliteStore(str(folder), shard)
    store.open()
    for uid in uids:
        accept(store, message(uid))
    return store


def large(store: SqliteStore, uid: str, text: bytes) -> None:
    path = os.path.join(store.spool, uid)
    Path(path).write_bytes(text)
    one = message(uid)
    one.content = Content(b"X: y\r\n", path=path, file_bytes=len(text))
    accept(store, one)


async def server(folder: Path, number: int, count: int) -> MailServer:
    one = MailServer(
        listen=["127.0.0.1:0"], hostname="mx.test", data_dir=str(folder), direct=False, slot=Slot(number, count)
    )
    await one.start()
    return one


def test_workers_of_one_queue_in_one_process(tmp_path: Path) -> None:
    async def main() -> None:
        first, second = await server(tmp_path, 0, 2), await server(tmp_path, 1, 2)
        a = await first.enqueue(reverse_path="a@b.test", recipients=["a@c.test"], content="Subject: 1\n\nx\n")
        b = await second.enqueue(reverse_path="a@b.test", recipients=["b@c.test"], content="Subject: 2\n\ny\n")
        for one in (first, second):
            assert [view.uid for view in await one.mail_queue()] == [a, b]
            assert [view.uid for view in await one.mail_queue(limit=1)] == [a]
            content = await one.queued_content(b)
            assert content is not None and content.read().endswith(b"y\r\n")
            status = await one.queue.status()
            assert (status["running"], status["recipients"]) == (True, {"queued": 2})
            shown = await one.queue.show(b)
            assert shown is not None and shown["subject"] == "2"
            assert await one.queue.show("none") is None
        await first.pause_queue()
        assert first.paused() and second.paused()
        assert (await second.queue.status())["paused"]
        assert is_paused(str(tmp_path))
        await second.resume_queue()
        assert not first.paused() and not is_paused(str(tmp_path))
        live = await first.queue.live()
        assert live["counters"]["accepted"] == 2 and live["sessions"] == []
        assert await second.cancel_message(a) is True
        assert await second.cancel_message(a) is False
        await second.shutdown()
        # A shard whose worker is not there is asked all the same.
        assert await first.cancel_message(b) is True
        assert [view.state for view in await first.mail_queue(is_all=True)] == ["cancelled", "cancelled"]
        await first.shutdown()

    run_async(main)


def test_lanes_of_several_workers_are_one_to_who_looks(tmp_path: Path) -> None:
    from pillarbox.queue.whole import merge

    def lane(state: str, waiting: int, reason: str | None) -> dict[str, object]:
        return {
            "next_hop": "mx:a",
            "state": state,
            "waiting": waiting,
            "busy": 1,
            "connections": 2,
            "retry_at": None,
            "reason": reason,
        }

    answers = [
        {"counters": {"accepted": 1}, "sessions": [1], "lanes": [lane("busy", 3, None)]},
        {"counters": {"accepted": 2}, "sessions": [2], "lanes": [lane("down", 4, "why")]},
        {},
    ]
    whole = merge({"verb": "live"}, answers)
    assert (whole["counters"], whole["sessions"]) == ({"accepted": 3}, [1, 2])
    [one] = whole["lanes"]
    assert (one["state"], one["waiting"], one["busy"], one["connections"], one["reason"]) == ("down", 7, 2, 4, "why")


def test_an_orphan_is_taken_over_with_its_large_contents(tmp_path: Path) -> None:
    async def main() -> None:
        orphan = filled(tmp_path, 3, *(f"small{n}" for n in range(450)))
        large(orphan, "large", b"z" * 1000)
        orphan.close()
        one = await server(tmp_path, 0, 1)
        while find_shards(str(tmp_path)) != [0]:
            await asyncio.sleep(0.01)
        assert len(await one.mail_queue(limit=None)) == 451
        content = await one.queued_content("large")
        assert content is not None and content.read() == b"X: y\r\n" + b"z" * 1000
        assert not os.path.exists(orphan.spool)
        await one.shutdown()

    run_async(main)


@pytest.mark.parametrize("stop_after", ["take_over", "forget"])
def test_a_take_over_that_is_cut_off_doubles_nothing(tmp_path: Path, stop_after: str) -> None:
    """Durable here before it is forgotten there: with the crash between, its uid is known here."""
    orphan = filled(tmp_path, 1, "a", "b")
    large(orphan, "c", b"z" * 100)
    own = filled(tmp_path, 0, "own")
    batch = Batch(orphan, orphan.rows("export_messages", (100,)))
    with own.transaction():
        assert batch.take_over(own) == 3
    if stop_after == "forget":
        batch.forget()
    orphan.close()
    own.close()

    async def main() -> None:
        one = await server(tmp_path, 0, 1)
        while find_shards(str(tmp_path)) != [0]:
            await asyncio.sleep(0.01)
        assert sorted(view.uid for view in await one.mail_queue()) == ["a", "b", "c", "own"]
        content = await one.queued_content("c")
        assert content is not None and content.read().endswith(b"z" * 100)
        await one.shutdown()

    run_async(main)


def test_an_orphan_that_another_has_is_left_alone(tmp_path: Path) -> None:
    orphan = filled(tmp_path, 2, "a")

    async def main() -> None:
        one = await server(tmp_path, 0, 1)
        await asyncio.sleep(0.05)
        assert await one.mail_queue() == []
        await one.shutdown()

    run_async(main)
    assert orphan.get("a") is not None
    orphan.close()


def test_stopped_shards_are_asked_one_by_one(tmp_path: Path) -> None:
    for shard, uid in ((0, "a"), (1, "b")):
        filled(tmp_path, shard, uid).close()
    folder = str(tmp_path)
    assert [row["uid"] for row in ask_all(folder, {"verb": "list"})] == ["a", "b"]
    assert ask_all(folder, {"verb": "cancel", "query": {"uids": ["b"]}}) == ["b"]
    assert ask_all(folder, {"verb": "status"})["recipients"] == {"queued": 1, "cancelled": 1}
    assert ask_all(folder, {"verb": "live"}) == {"counters": {}, "sessions": [], "lanes": []}
    ask_all(folder, {"verb": "pause"})
    assert is_paused(folder)
    with pytest.raises(ValueError, match="unknown verb"):
        ask_all(folder, {"verb": "explode"})
    locked = SqliteStore(folder, 1)
    locked.open()
    with pytest.raises(StoreError, match="control socket does not answer"):
        ask_shard(folder, 1, {"verb": "list"}, patience_s=0.2)
    locked.close()
    # A file that was only begun, and one that is none.
    (tmp_path / "queue-7.db").touch()
    (tmp_path / "queue-8.db").write_bytes(b"no database" * 100)
    assert is_paused(folder)

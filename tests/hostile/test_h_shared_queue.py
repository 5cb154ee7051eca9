"""Rows H113 to H122, H133 and H134: a queue on PostgreSQL, its database away, its nodes dead, paused, too old."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest

from pillarbox import MailServer
from pillarbox.errors import CommitInDoubtError, OptionError, StoreError, StoreLockedError
from pillarbox.mail.content import Content
from pillarbox.queue import pgnode, pgwork, settling
from pillarbox.queue.model import Action, Query, Settled, Settlement, view_as_json
from pillarbox.queue.pgconnect import StoreAwayError
from pillarbox.queue.pgnode import free
from pillarbox.queue.postgres import PostgresStore
from pillarbox.queue.shared import ask_shared_sql
from pillarbox.queue.sql import migrations
from tests.conftest import Client, run_async, serving, until
from tests.hostile.test_g_operation import ScriptedServer
from tests.pgproxy import Proxy
from tests.queue.test_store_contract import accept, done, message, settle

DELIVERED = done(0, "delivered")


@pytest.fixture
def proxy(database: str) -> Iterator[Proxy]:
    made = Proxy(database)
    yield made
    made.close()


def node(url: str, folder: Path, **options: Any) -> PostgresStore:
    store = PostgresStore(url, str(folder), **options)
    store.open()
    return store


def claim(store: PostgresStore, **more: Any) -> list[Any]:
    now = time.time()
    with store.transaction():
        return store.claim(more.get("limit", 10), now, now + 100, more.get("size", 1 << 20))


def ask(url: str, sql: str) -> list[tuple[Any, ...]]:
    with psycopg.connect(url, autocommit=True) as connection:
        cursor = connection.execute(sql.encode())
        return cursor.fetchall() if cursor.description else []


def bury(url: str, store: PostgresStore) -> None:
    """As if nothing had been heard of it for its lease."""
    store.heart._stop.set()
    store.heart._alive_until = 0.0
    ask(url, f"UPDATE node SET alive_until = 0 WHERE id = {store.heart.me}")


async def counted(server: MailServer, recipients: dict[str, int]) -> None:
    """The queue has these recipients, by state."""
    async with asyncio.timeout(30):
        while (await server.queue.status())["recipients"] != recipients:
            await asyncio.sleep(0.01)


def now_message(uid: str, *recipients: str, **more: Any) -> Any:
    return message(uid, *recipients, at=time.time(), **more)


# ---------------------------------------------------------------------------- 113, 118


@pytest.mark.parametrize("where", ["before", "behind"])
def test_row_118_a_commit_whose_answer_is_lost(tmp_path: Path, proxy: Proxy, where: Any) -> None:
    """Before it: it is done again. Behind it: it is found out that it came through. Once, in both cases."""

    async def main() -> None:
        async with ScriptedServer() as relay:
            options = {"queue": proxy.url, "relay": f"127.0.0.1:{relay.port}"}
            async with serving(tmp_path, **options) as server:
                client = await Client.connect(server)
                await client.ask(b"EHLO x.test")
                assert (await client.transaction(b"Subject: x\r\n\r\nx\r\n")).startswith("250")
                await until(lambda: len(relay.messages) == 1)
                for count in range(2, 5):
                    proxy.cut(where)
                    assert (await client.transaction(b"Subject: x\r\n\r\nx\r\n")).startswith("250")
                    await until(lambda count=count: len(relay.messages) == count)
                    await until(lambda count=count: server._parts.context.counters.delivered == count)
                assert proxy.cuts >= 3
                for _ in range(20):
                    # Also what the outcomes' own commits lost is found out.
                    proxy.cut(where)
                    await client.transaction(b"Subject: x\r\n\r\nx\r\n")
                await until(lambda: len(relay.messages) == 24)
                await counted(server, {"delivered": 24})
                client.close()

    run_async(main)
    states = ask(proxy.url, "SELECT state, count(*) FROM recipient GROUP BY 1")
    assert states == [("delivered", 24)] and ask(proxy.url, "SELECT count(*) FROM due") == [(0,)]
    assert ask(proxy.url, "SELECT count(*) FROM finished") == [(24,)]


@pytest.mark.parametrize("where", ["before", "behind"])
def test_row_113_a_claim_whose_answer_is_lost(tmp_path: Path, proxy: Proxy, where: Any) -> None:
    """It came through: it is this node's. It did not: it is free, and what it had fetched goes."""
    store = node(proxy.url, tmp_path)
    accept(store, now_message("A"), now_message("B", content=Content(b"x" * 700_000)))
    proxy.cut(where)
    if where == "before":
        with pytest.raises(StoreAwayError):
            claim(store)
        with store.transaction():
            assert len(store.purge(0, 1000, 10)) == 1, "the content that the lost claim had fetched"
    claimed = claim(store)
    assert {m.uid for m in claimed} == {"A", "B"}
    for m in claimed:
        settle(store, m.key, DELIVERED, at=time.time())
    assert store.counts() == {"delivered": 2} and store.late_settles == 0
    assert ask(proxy.url, "SELECT count(*) FROM due") == [(0,)]
    store.close()


def test_row_113_a_claim_together_with_a_message_and_an_outcome(tmp_path: Path, proxy: Proxy) -> None:
    store = node(proxy.url, tmp_path)
    accept(store, now_message("A"), now_message("B"))
    (first,) = claim(store, limit=1)
    proxy.cut("behind")
    now = time.time()
    with store.transaction():
        store.accept([now_message("C")])
        store.settle([Settlement(first.key, [DELIVERED], now)])
        (second,) = store.claim(1, now, now + 100, 1 << 20)
    settle(store, second.key, DELIVERED, at=time.time())
    assert store.counts() == {"delivered": 2, "queued": 1} and store.late_settles == 0
    store.close()


def test_row_113_late_outcomes_are_not_taken_for_a_commit(tmp_path: Path, proxy: Proxy) -> None:
    store = node(proxy.url, tmp_path)
    accept(store, now_message("A"))
    (mine,) = claim(store)
    ask(proxy.url, "UPDATE due SET owner = NULL, epoch = 0")
    proxy.cut("before")
    # Lost, and done again: history knows of it, and it counts as late once.
    store.commit([], [Settlement(mine.key, [DELIVERED], time.time())])
    assert ask(proxy.url, "SELECT outcome FROM attempt") == [("ambiguous",)] and store.late_settles == 1
    store.close()


def test_a_connection_in_doubt_is_ended_and_not_waited_for(tmp_path: Path, proxy: Proxy) -> None:
    """Behind a network that broke the database waits for the rest of what it was sent: with the locks of it."""
    store = node(proxy.url, tmp_path)
    accept(store, now_message("A"))
    (mine,) = claim(store)
    proxy.cut("behind")
    proxy.keeps_server_side = True
    began = time.monotonic()
    store.commit([], [Settlement(mine.key, [DELIVERED], time.time())])
    assert time.monotonic() - began < 5 and store.counts() == {"delivered": 1}
    store.close()


def test_a_spool_without_room_puts_off_what_needs_it_and_nothing_else(tmp_path: Path, database: str) -> None:
    store = node(database, tmp_path)
    large = Content(b"x" * 700_000)
    accept(store, now_message("A"), now_message("B", content=large), now_message("C"))
    Path(store.spool).rename(tmp_path / "away")
    Path(store.spool).write_bytes(b"not a folder")
    assert {m.uid for m in claim(store)} == {"A", "C"}
    assert ask(database, "SELECT count(*) FROM due WHERE owner IS NULL") == [(1,)]
    assert [r.state for r in store.search(Query(uids=["B"]))[0].recipients] == ["queued"]
    Path(store.spool).unlink()
    (tmp_path / "away").rename(store.spool)
    assert claim(store) == [], "not at once again"
    with store.transaction():
        store.change(Action.RETRY, Query(uids=["B"]), time.time())
    (back,) = claim(store)
    assert back.content.read() == b"x" * 700_000
    # Half of a content stays nowhere.
    with store.transaction():
        store.change(Action.CANCEL, Query(uids=["B"]), time.time())
    settle(store, back.key, DELIVERED, at=time.time())
    with store.transaction():
        assert store.purge(0, 1000, 10) == [Path(back.content.path).name]
    store.close()


def test_half_a_content_is_not_left_behind(tmp_path: Path, database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = node(database, tmp_path)
    accept(store, *(now_message(uid, content=Content(b"x" * 700_000)) for uid in "AB"))
    real, parts = store._read._part, 0

    def part(key: int, number: int) -> Any:
        nonlocal parts
        parts += 1
        if parts == 5:
            raise psycopg.OperationalError("the connection is lost")
        return real(key, number)

    monkeypatch.setattr(store._read, "_part", part)
    with pytest.raises(StoreAwayError):
        claim(store)
    assert list(Path(store.spool).iterdir()) == []
    assert len(claim(store)) == 2
    store.close()


def test_what_is_behind_a_next_hop_that_takes_nothing(tmp_path: Path, database: str) -> None:
    store = node(database, tmp_path)
    accept(store, now_message("A"))
    ask(
        database,
        "INSERT INTO due (message_id, number, next_hop, due_at, expires_at) SELECT -n, 0, 'mx:' || (n %% 3), n, 9e9 "
        "FROM generate_series(1, 30000) n".replace("%%", "%"),
    )
    accept(store, now_message("B"))
    now, skip = time.time(), ["mx:0", "mx:1", "mx:2"]
    with store.transaction():
        assert {m.uid for m in store.claim(10, now, now + 100, 1 << 20, skip)} == {"A", "B"}
        assert store.next_due(skip) is None and store.next_due() is not None
        assert store.next_due(skip[:2]) is not None
    # It is stepped over: not a page of it is read that need not be.
    plans = ask(
        database,
        "EXPLAIN (ANALYZE, FORMAT JSON) " + pgnode.SQL["next_due_behind"].replace("%(skip)s", "'{mx:0,mx:1,mx:2}'"),
    )
    assert _most_rows(plans[0][0][0]["Plan"]) <= 10
    store.close()


def _most_rows(plan: dict[str, Any]) -> float:
    return max([plan["Actual Rows"], *(_most_rows(part) for part in plan.get("Plans", ()))])


def test_a_lease_is_freed_while_another_recipient_is_settled(tmp_path: Path, database: str) -> None:
    """Each sees the other's as not yet final: one of them has to come later, or nobody would find the message finished.

    The heart waits for nobody: whoever hangs with a message locked must not make a node that is well look dead.
    """
    store = node(database, tmp_path / "a")
    dead = node(database, tmp_path / "b")
    accept(store, now_message("A", "x@d.test", "y@d.test"))
    with dead.transaction():
        dead.change(Action.HOLD, Query(uids=["A"]), time.time())
    ask(database, "UPDATE recipient SET state = 'queued' WHERE number = 0")
    ask(
        database,
        "INSERT INTO due (message_id, number, next_hop, due_at, expires_at) SELECT id, 0, '', 0, 9e9 FROM message",
    )
    (mine,) = claim(store)
    ask(database, "UPDATE recipient SET state = 'cancelled' WHERE number = 1")
    ask(
        database,
        "INSERT INTO due (message_id, number, next_hop, due_at, expires_at, owner, epoch, lease_until) "
        f"SELECT id, 1, '', 0, 9e9, {dead.heart.me}, 1, 9e9 FROM message",
    )
    bury(database, dead)
    settled = threading.Event()

    def reap() -> None:
        with psycopg.connect(database, autocommit=True) as connection:
            free(connection, [dead.heart.me], store.heart.me, None)

    with store.transaction():
        store.settle([Settlement(mine.key, [DELIVERED], time.time())])
        other = threading.Thread(target=lambda: (reap(), settled.set()))
        other.start()
        other.join(5)
        assert settled.is_set() and ask(database, "SELECT count(*) FROM due WHERE number = 1") == [(1,)]
    reap()
    assert ask(database, "SELECT count(*) FROM finished") == [(1,)]
    store.close()
    dead.close()


def test_a_heart_that_waits_for_a_lock_says_so_before_its_lease_ends(tmp_path: Path, database: str) -> None:
    store = node(database, tmp_path, lease_s=3.0)
    away = threading.Event()
    store.heart.on_away = lambda is_away: away.set() if is_away else None
    with psycopg.connect(database) as connection:
        connection.execute(f"SELECT 1 FROM node WHERE id = {store.heart.me} FOR UPDATE")
        assert away.wait(2.9)
    store.close()


# -------------------------------------------------------------------------------- 114


def test_row_114_a_full_disk_of_the_database(tmp_path: Path, database: str) -> None:
    async def main() -> None:
        async with serving(tmp_path, queue=database) as server:
            client = await Client.connect(server)
            await client.ask(b"EHLO x.test")
            # What a database without room says, said by the database.
            ask(
                database,
                "CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS "
                "$$ BEGIN RAISE EXCEPTION 'could not extend file: No space left on device' USING ERRCODE = '53100'; END $$",
            )
            ask(database, "CREATE TRIGGER t BEFORE INSERT ON message FOR EACH ROW EXECUTE FUNCTION full_disk()")
            assert (await client.transaction(b"Subject: x\r\n\r\nx\r\n")).startswith("452 4.3.1")
            ask(database, "DROP TRIGGER t ON message")
            assert (await client.transaction(b"Subject: x\r\n\r\nx\r\n")).startswith("250")
            client.close()

    run_async(main)
    assert ask(database, "SELECT count(*) FROM message") == [(1,)]


# -------------------------------------------------------------------------------- 115


def test_row_115_a_content_that_is_gone_or_cut_is_held_and_the_rest_goes_on(tmp_path: Path, database: str) -> None:
    store = node(database, tmp_path)
    large = now_message("CUT", content=Content(b"x" * 700_000))
    accept(store, now_message("GONE"), large, now_message("GOOD"))
    ask(database, "DELETE FROM content c USING message m WHERE m.id = c.message_id AND m.uid = 'GONE'")
    ask(database, "DELETE FROM content c USING message m WHERE m.id = c.message_id AND m.uid = 'CUT' AND c.part = 1")
    assert [m.uid for m in claim(store)] == ["GOOD"]
    for uid in ("GONE", "CUT"):
        view = store.get(uid)
        assert (
            view is not None and view.state == "held" and "content is missing" in (view.recipients[0].last_reply or "")
        )
    assert claim(store) == []
    store.close()


# -------------------------------------------------------------------------------- 116


@pytest.mark.parametrize("skew", [86400.0, -86400.0])
def test_row_116_nodes_whose_clocks_are_wrong_by_a_day(tmp_path: Path, database: str, skew: float) -> None:
    """The database's clock rules: what one node defers is due for the other when it should be."""
    right = node(database, tmp_path / "right")
    wrong = node(database, tmp_path / "wrong", wall=lambda: time.time() + skew)
    accept(right, now_message("A"))
    now = time.time() + skew
    with wrong.transaction():
        (claimed,) = wrong.claim(10, now, now + 100, 1 << 20)
    settle(wrong, claimed.key, done(0, "deferred", now + 60), at=now)
    assert claim(right) == []
    due_at = right.next_due()
    assert due_at is not None and 50 < due_at - time.time() < 61
    due_at = wrong.next_due()
    assert due_at is not None and 50 < due_at - now < 61
    wrong.close()
    right.close()


# -------------------------------------------------------------------------------- 117


def test_row_117_the_database_is_away_at_mail_at_the_end_of_data_and_back(tmp_path: Path, proxy: Proxy) -> None:
    async def main() -> None:
        async with ScriptedServer() as relay:
            async with serving(tmp_path, queue=proxy.url, relay=f"127.0.0.1:{relay.port}") as server:
                client = await Client.connect(server)
                await client.ask(b"EHLO x.test")
                assert (await client.transaction(b"Subject: x\r\n\r\nx\r\n")).startswith("250")
                await until(lambda: len(relay.messages) == 1)
                # In the middle of a transaction: no 250, and the session lives.
                await client.ask(b"MAIL FROM:<a@b.test>")
                await client.ask(b"RCPT TO:<c@d.test>")
                await client.ask(b"DATA")
                proxy.refuse(is_refusing=True)
                assert (await client.ask(b"Subject: x\r\n\r\nx\r\n.")).startswith("451 4.3.0")
                await until(lambda: server._parts.context.room.is_away)
                assert (await client.ask(b"MAIL FROM:<a@b.test>")).startswith("451 4.3.0")
                assert (await client.ask(b"NOOP")).startswith("250")
                proxy.refuse(is_refusing=False)
                await until(lambda: not server._parts.context.room.is_away)
                assert (await client.transaction(b"Subject: x\r\n\r\nx\r\n")).startswith("250")
                await until(lambda: len(relay.messages) == 2)
                client.close()

    run_async(main)


# ---------------------------------------------------------------------- 119, 120, 121, 122


def test_row_119_an_outcome_that_comes_after_the_lease_is_refused_and_counted(tmp_path: Path, database: str) -> None:
    one, two = node(database, tmp_path / "one"), node(database, tmp_path / "two")
    accept(one, now_message("A", "x@d.test", "y@d.test"))
    (claimed,) = claim(one)
    bury(database, one)
    with psycopg.connect(database, autocommit=True) as connection:
        assert free(connection, [one.heart.me], two.heart.me, None) == 2
    assert not one.heart.is_alive and claim(one) == [], "who may be dead takes nothing"
    (again,) = claim(two)
    settle(one, claimed.key, done(0, "delivered"), done(1, "deferred", time.time() + 60), at=time.time())
    assert one.late_settles == 2
    view = two.get("A")
    assert view is not None and [r.state for r in view.recipients] == ["queued", "queued"]
    assert [r.is_leased for r in view.recipients] == [True, True], "it is the other's all the same"
    late = [a.reply for a in view.attempts if a.reply and a.reply.startswith("too late")]
    assert len(late) == 2 and {a.outcome for a in view.attempts} == {"ambiguous"}
    settle(two, again.key, done(0, "delivered"), done(1, "delivered"), at=time.time())
    assert two.late_settles == 0 and two.get("A").finished_at is not None  # type: ignore[union-attr]
    one.close()
    two.close()


def test_given_back_and_claimed_again_in_one_transaction(tmp_path: Path, database: str) -> None:
    store = node(database, tmp_path)
    accept(store, now_message("A"))
    (claimed,) = claim(store)
    back = Settlement(claimed.key, [Settled(0, "queued", "queued", due_at=time.time(), is_attempt=False)], time.time())
    with store.transaction():
        store.settle([back])
        (again,) = store.claim(10, time.time(), time.time() + 100, 1 << 20)
    settle(store, again.key, done(0, "delivered"), at=time.time())
    assert store.late_settles == 0 and store.counts() == {"delivered": 1}
    store.close()


def test_row_119_a_paused_server_begins_nothing_when_it_goes_on(tmp_path: Path, database: str) -> None:
    async def main() -> None:
        async with ScriptedServer() as relay:
            options: dict[str, Any] = {"queue": database, "node_lease_s": 1.5, "relay": f"127.0.0.1:{relay.port}"}
            async with serving(tmp_path, **options) as server:
                await server.pause_queue()
                uid = await server.enqueue(reverse_path="a@b.test", recipients=["c@d.test"], content="Subject: x\n\nx")
                server._parts.lanes.may_begin = lambda: False
                await server.resume_queue()
                await asyncio.sleep(0.2)
                assert relay.messages == []
                server._parts.lanes.may_begin = lambda: True
                await until(lambda: len(relay.messages) == 1)
                await counted(server, {"delivered": 1})
                shown = await server.queue.show(uid)
                assert shown is not None and shown["state"] == "delivered" and len(shown["attempts"]) == 1

    run_async(main)


def test_row_120_leases_of_a_dead_node_are_free_within_a_lease(tmp_path: Path, database: str) -> None:
    one = node(database, tmp_path / "one", lease_s=1.5)
    accept(one, now_message("A"))
    (claimed,) = claim(one)
    two = node(database, tmp_path / "two", lease_s=1.5)
    before = ask(database, "SELECT lease_until FROM due")
    assert claim(two) == [] and ask(database, "SELECT lease_until FROM due") == before, (
        "who fails to take it extends nothing"
    )
    # As kill -9 leaves it: no more beats, and its connections closed.
    one.heart._stop.set()
    died = time.monotonic()
    while not (taken := claim(two)):
        assert time.monotonic() - died < 1.5 + 1.0, "one lease, and a beat of the other"
        time.sleep(0.02)
    assert taken[0].uid == "A" and taken[0].recipients[0].attempts == 1
    assert [a.outcome for a in two.get("A").attempts] == ["ambiguous"]  # type: ignore[union-attr]
    assert claimed.key == taken[0].key
    two.close()
    one.close()


def test_row_121_any_node_has_all_the_mail_of_one_that_is_gone(tmp_path: Path, database: str) -> None:
    one = node(database, tmp_path / "one")
    octets = bytes(range(256)) * 4000
    (tmp_path / "one" / "spool" / "big").write_bytes(octets)
    big = Content(b"Received: z\r\n", path=str(tmp_path / "one" / "spool" / "big"), file_bytes=len(octets))
    accept(one, now_message("SMALL"), now_message("BIG", content=big))
    bury(database, one)
    one.close()
    for file in (tmp_path / "one" / "spool").iterdir():
        file.unlink()
    two = node(database, tmp_path / "two")
    found = {m.uid: m for m in claim(two)}
    assert set(found) == {"SMALL", "BIG"} and found["BIG"].content.read() == b"Received: z\r\n" + octets
    looked = two.content("BIG")
    assert looked is not None and looked.read() == b"Received: z\r\n" + octets
    settle(two, found["BIG"].key, done(0, "delivered"), at=time.time())
    with two.transaction():
        assert len(two.purge(0, 1000, 10)) == 1, "its copy on this machine goes"
    assert ask(database, "SELECT count(*) FROM content") == [(1,)]
    two.close()


def test_row_122_two_servers_in_one_folder_and_two_on_one_queue(tmp_path: Path, database: str) -> None:
    one = node(database, tmp_path / "one")
    with pytest.raises(StoreLockedError, match="pid"):
        node(database, tmp_path / "one")
    two = node(database, tmp_path / "two")
    assert one.heart.me != two.heart.me
    accept(one, now_message("A", leased_until=time.time() + 60))
    accept(two, now_message("B", leased_until=time.time() + 60))
    epochs = ask(database, "SELECT DISTINCT owner, epoch FROM due")
    assert len({epoch for _, epoch in epochs}) == 2 == len({owner for owner, _ in epochs})
    two.close()
    one.close()


def test_pauses_and_changes_reach_every_node(tmp_path: Path, database: str) -> None:
    async def main() -> None:
        async with ScriptedServer() as relay:
            options: dict[str, Any] = {"queue": database, "relay": f"127.0.0.1:{relay.port}"}
            async with serving(tmp_path / "a", **options) as one, serving(tmp_path / "b", **options) as two:
                await one.pause_queue()
                await until(two.paused)
                uid = await two.enqueue(reverse_path="a@b.test", recipients=["c@d.test"], content="Subject: x\n\nx")
                assert await one.cancel_message(uid) and (await two.queue.show(uid))["state"] == "cancelled"  # type: ignore[index]
                await two.pause_queue("mx:x.test")
                await until(lambda: one._parts.lanes.paused == {"mx:x.test"})
                await one.resume_queue("mx:x.test")
                await until(lambda: two._parts.lanes.paused == set())
                kept = await one.enqueue(reverse_path="a@b.test", recipients=["c@d.test"], content="Subject: x\n\nx")
                await two.resume_queue()
                await until(lambda: len(relay.messages) == 1)
                await counted(one, {"cancelled": 1, "delivered": 1})
                status = await one.queue.status()
                assert len(status["nodes"]) == 2 and status["recipients"] == {"cancelled": 1, "delivered": 1}
                assert (await one.queue.show(kept))["state"] == "delivered"  # type: ignore[index]

    run_async(main)


# ---------------------------------------------------------------------------- 133, 134


def test_row_133_rows_that_make_no_sense_harm_nobody(tmp_path: Path, database: str) -> None:
    store = node(database, tmp_path / "seed")
    accept(store, *(now_message(uid) for uid in ("FACTS", "ADDRESS", "STATE", "BODY", "GOOD")))
    store.close()
    ask(database, """UPDATE message SET facts = '["x", {"a": 1}]' WHERE uid = 'FACTS'""")
    ask(
        database,
        "UPDATE message SET body = E'8BIT\\r\\nRCPT TO:<evil@x>', ret = 'x y', envid = E'\\r\\n' WHERE uid = 'BODY'",
    )
    of = "FROM message m WHERE m.id = message_id AND m.uid ="
    ask(database, f"UPDATE recipient SET address = E'a@b.test>\\r\\nRCPT TO:<evil@x.test' {of} 'ADDRESS'")
    ask(database, f"UPDATE recipient SET notify = 'NEVER,x' || chr(13), state = 'odd' {of} 'STATE'")

    async def main() -> None:
        async with ScriptedServer() as relay:
            async with serving(tmp_path / "node", queue=database, relay=f"127.0.0.1:{relay.port}") as server:
                await until(lambda: any("body of GOOD" in str(m) for m in relay.messages))
                async with asyncio.timeout(30):
                    while {"queued", "deferred"} & (await server.queue.status())["recipients"].keys():
                        await asyncio.sleep(0.01)
                for view in await server.mail_queue(is_all=True):
                    view_as_json(view)
                assert not any("evil@x" in line for line in relay.lines)

    run_async(main)


def test_row_134_tables_that_are_newer_or_older(tmp_path: Path, database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    old = node(database, tmp_path / "old", lease_s=0.6)
    accept(old, now_message("A"), now_message("B"))
    (first, _) = claim(old)
    known = migrations("postgres")

    def newer(*scripts: str) -> Any:
        # For the node that is opened here; the hearts of the others, in threads of their own, know what they knew.
        return lambda folder: [*known, *(scripts if threading.current_thread() is threading.main_thread() else ())]

    # A step that older nodes can live with: made with the queue full, and while they run.
    monkeypatch.setattr(pgnode, "migrations", newer("ALTER TABLE message ADD COLUMN extra TEXT"))
    new = node(database, tmp_path / "new")
    monkeypatch.setattr(pgnode, "migrations", migrations)
    assert ask(database, "SELECT version, oldest FROM schema_version") == [(len(known) + 1, 1)]
    accept(old, now_message("C"))
    settle(old, first.key, done(0, "delivered"), at=time.time())
    assert new.counts() == {"queued": 2, "delivered": 1}
    # One that they cannot live with: they say so, and stop; new ones of that age do not start.
    unfit: list[str] = []
    old.heart.on_unfit = unfit.append
    new.close()
    steps = (
        "ALTER TABLE message ADD COLUMN extra TEXT",
        f"-- oldest: {len(known) + 2}\nALTER TABLE message ADD COLUMN more TEXT",
    )
    monkeypatch.setattr(pgnode, "migrations", newer(*steps))
    newest = node(database, tmp_path / "newest")
    monkeypatch.setattr(pgnode, "migrations", migrations)
    end = time.monotonic() + 10
    while not unfit and time.monotonic() < end:
        time.sleep(0.02)
    assert "too old" in unfit[0]
    with pytest.raises(StoreError, match="too old, install a newer one"):
        node(database, tmp_path / "another")
    assert {m.uid for m in claim(newest)} <= {"B", "C"} and newest.counts()["queued"] == 2
    newest.close()
    old.close()
    with pytest.raises(StoreError, match="too old"):
        looks = PostgresStore(database, is_node=False)
        looks.open()


def test_what_is_in_the_way_is_said(tmp_path: Path, postgres: Any) -> None:
    with pytest.raises(StoreAwayError, match=r"postgresql://me:\*\*\*@127.0.0.1"):
        node("postgresql://me:secret@127.0.0.1:1/none", tmp_path)
    with postgres.database() as url, pytest.raises(StoreError, match="makes it"):
        PostgresStore(url, is_node=False).open()


def test_days_that_nobody_wants_are_dropped(tmp_path: Path, database: str) -> None:
    store = node(database, tmp_path)
    ask(database, "CREATE TABLE attempt_20200101 PARTITION OF attempt FOR VALUES FROM (1577836800) TO (1577923200)")
    accept(store, now_message("A"))
    store.heart._prepare_days(store._session.connected())
    left = {name for (name,) in ask(database, "SELECT relname FROM pg_class WHERE relname ~ '^attempt_20[0-9]{6}$'")}
    assert "attempt_20200101" not in left and len(left) == 3
    store.close()


def test_what_a_scrape_tells(tmp_path: Path, database: str) -> None:
    from pillarbox.admin.facts import read_facts
    from pillarbox.admin.metrics import render

    async def main() -> bytes:
        async with serving(tmp_path, queue=database) as server:
            return render(await read_facts(server))[0]

    text = run_async(main).decode()
    for name in ("nodes 1.0", "database_due_lag_seconds 0.0", "database_dead_rows", "queue_late_settles_total 0.0"):
        assert f"pillarbox_{name}" in text, text


def test_what_waits_here_and_is_cancelled_elsewhere_is_let_go(tmp_path: Path, database: str) -> None:
    async def main() -> None:
        async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read()
            writer.close()

        # It takes connections and never says a word: what is for it waits in memory.
        relay = await asyncio.start_server(silent, "127.0.0.1", 0)
        port = relay.sockets[0].getsockname()[1]
        options: dict[str, Any] = {"queue": database, "relay": f"127.0.0.1:{port}"}
        async with serving(tmp_path / "a", **options) as one, serving(tmp_path / "b", **options) as two:
            item = {"reverse_path": "a@b.test", "content": "Subject: x\n\nx"}
            uids = [await one.enqueue(recipients=[f"{n}@d.test", f"x{n}@d.test"], **item) for n in range(4)]
            await until(lambda: one._parts.scheduler.in_hand == 4)
            assert await two.cancel_message(uids[0])
            await two.queue.change(Action.HOLD, Query(uids=uids[1:2]))
            # Settled as cancelled and held, or let go: no longer in hand, and not sent.
            await until(lambda: one._parts.scheduler.in_hand <= 2)
            # As if it had been held for dead: the rest is somebody else's, too.
            with psycopg.connect(database, autocommit=True) as connection:
                free(connection, [one._parts.store.heart.me], 0, None)  # type: ignore[attr-defined]
            await two.pause_queue()
            await until(lambda: one._parts.scheduler.in_hand == 0)
        relay.close()

    run_async(main)


def test_a_server_that_is_too_old_for_the_tables_stops(tmp_path: Path, database: str) -> None:
    async def main() -> None:
        async with serving(tmp_path, queue=database, node_lease_s=0.6) as server:
            ask(database, "UPDATE schema_version SET version = 99, oldest = 99")
            async with asyncio.timeout(20):
                await server.wait_closed()

    run_async(main)


def test_questions_in_sql(tmp_path: Path, database: str) -> None:
    store = node(database, tmp_path)
    accept(store, now_message("A", "x@d.test", "y@d.test"))
    columns, rows = ask_shared_sql(database, "SELECT uid, state, recipients FROM queue_messages WHERE uid LIKE 'A%'")
    assert columns == ["uid", "state", "recipients"] and list(rows) == [("A", "queued", 2)]
    for wrong in ("DELETE FROM message", "COMMIT; DELETE FROM message"):
        with pytest.raises(OptionError, match="only read"):
            ask_shared_sql(database, wrong)
    with pytest.raises(OptionError, match="does not exist"):
        ask_shared_sql(database, "SELECT * FROM nothing")
    assert store.counts() == {"queued": 2}
    store.close()


def test_slots_while_the_database_is_away(tmp_path: Path, proxy: Proxy) -> None:
    async def main() -> None:
        async with ScriptedServer() as relay:
            async with serving(tmp_path, queue=proxy.url, relay=f"127.0.0.1:{relay.port}") as server:
                slots = server._parts.lanes.slots
                assert slots is not None
                proxy.refuse(is_refusing=True)
                assert slots.allowed("mx:x.test", 3) == 0
                await asyncio.sleep(0.1)
                proxy.refuse(is_refusing=False)
                await until(lambda: slots.allowed("mx:x.test", 3) == 3)
                await server.enqueue(reverse_path="a@b.test", recipients=["c@d.test"], content="Subject: x\n\nx")
                await until(lambda: len(relay.messages) == 1)

    run_async(main)


def test_a_commit_in_doubt_that_nobody_can_tell_of(
    tmp_path: Path, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pgwork, "DOUBT_S", 0.3)
    store = node(proxy.url, tmp_path)
    proxy.cut("behind", refuses_then=True)
    with pytest.raises(CommitInDoubtError, match="cannot be told"):
        store.commit([now_message("A")], [])
    proxy.refuse(is_refusing=False)
    # The client was told 451, and sends it again: under another uid. Nothing is lost by that.
    accept(store, now_message("B"))
    assert store.counts() == {"queued": 2}
    store.close()


def in_doubt(proxy: Proxy, do: Callable[[], object]) -> None:
    """It is done, and nobody can tell for a while."""
    proxy.cut("behind", refuses_then=True)
    with pytest.raises(CommitInDoubtError):
        do()
    proxy.refuse(is_refusing=False)


def test_an_outcome_that_is_repeated_does_not_end_a_later_lease(
    tmp_path: Path, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given back, nobody can tell; claimed again, and begun; then the first is repeated: it is late, and ends nothing."""
    monkeypatch.setattr(pgwork, "DOUBT_S", 0.3)
    store = node(proxy.url, tmp_path)
    accept(store, now_message("A"))
    (first,) = claim(store)
    now = time.time()
    back = Settlement(first.key, [Settled(0, "queued", "queued", now, is_attempt=False)], now)
    in_doubt(proxy, lambda: store.commit([], [back]))
    (again,) = claim(store)
    store.commit([], [back])
    assert store.late_settles == 1
    assert ask(proxy.url, "SELECT owner FROM due") == [(store.heart.me,)], "the attempt that runs keeps its lease"
    settle(store, again.key, DELIVERED, at=time.time())
    assert store.counts() == {"delivered": 1} and store.late_settles == 1
    assert store._hands._held == {}
    store.close()


def test_what_a_commit_in_doubt_took_is_free_once_the_database_answers(
    tmp_path: Path, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pgwork, "DOUBT_S", 0.3)
    store = node(proxy.url, tmp_path)
    accept(store, now_message("A"), now_message("B"))
    in_doubt(proxy, lambda: claim(store, limit=1))
    in_doubt(proxy, lambda: store.commit([now_message("C", leased_until=time.time() + 100)], []))
    assert {m.uid for m in claim(store)} == {"A", "B", "C"}
    # It was not tried: history says nothing.
    assert ask(proxy.url, "SELECT count(*) FROM attempt") == [(0,)]
    # And such as never came through leaves nothing.
    accept(store, now_message("D"))
    proxy.cut("before", refuses_then=True)
    with pytest.raises(CommitInDoubtError):
        claim(store)
    proxy.refuse(is_refusing=False)
    assert {m.uid for m in claim(store)} == {"D"} and store._session._doubtful == []
    store.close()


def test_what_finds_no_room_in_the_spool_is_given_up_in_its_time(tmp_path: Path, database: str) -> None:
    store = node(database, tmp_path)
    head = b"Subject: x\r\n\r\n"
    accept(store, now_message("A", content=Content(head + b"x" * 700_000)))
    ask(database, "UPDATE due SET expires_at = 0")
    Path(store.spool).rename(tmp_path / "away")
    now = time.time()
    with store.transaction():
        (expired,) = store.claim_expired(10, now, now + 100)
    assert (
        head.startswith(expired.content.header_section)
        and expired.subject
        and expired.envelope.ret == "HDRS"
        and not expired.content.path
    )
    (tmp_path / "away").rename(store.spool)
    store.close()


def test_nobody_is_told_that_failed_what_others_have_taken_over(tmp_path: Path, database: str) -> None:
    """Refused here, while the lease went to somebody else: it is history, and who has it now finds out."""
    servers: list[MailServer] = []
    calls = 0

    def rcpt(line: str) -> str:
        nonlocal calls
        calls += 1
        if calls == 1:
            with psycopg.connect(database, autocommit=True) as connection:
                free(connection, [servers[0]._parts.store.heart.me], 0, None)  # type: ignore[attr-defined]
        return "550 5.1.1 nobody here" if calls == 1 else "250 2.1.5 ok"

    async def main() -> None:
        async with ScriptedServer(RCPT=rcpt) as relay:
            async with serving(tmp_path, queue=database, relay=f"127.0.0.1:{relay.port}") as server:
                servers.append(server)
                await server.enqueue(reverse_path="a@b.test", recipients=["c@d.test"], content="Subject: x\n\nx")
                await until(lambda: len(relay.messages) == 1)
                await counted(server, {"delivered": 1})
                assert server._parts.store.heart.counters["late_settles"] == 1  # type: ignore[attr-defined]

    run_async(main)
    assert ask(database, "SELECT count(*) FROM message") == [(1,)], "no report"
    outcomes = [outcome for (outcome,) in ask(database, "SELECT outcome FROM attempt ORDER BY at")]
    assert sorted(outcomes) == ["ambiguous", "ambiguous", "delivered"]


def test_reports_that_may_be_written_are_not_written_for_ever(
    tmp_path: Path, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The outcome and its report are committed, nobody can tell: both are tried again, and it is found out that they are."""
    monkeypatch.setattr(pgwork, "DOUBT_S", 0.3)
    monkeypatch.setattr(settling, "FAULT_PAUSE_S", 0.1)

    async def main() -> None:
        async with ScriptedServer(RCPT="550 5.1.1 nobody here") as relay:
            options = {"queue": proxy.url, "relay": f"127.0.0.1:{relay.port}", "node_lease_s": 3.0}
            async with serving(tmp_path, **options) as server:
                real = PostgresStore.accept

                def accept_report(store: PostgresStore, batch: Any) -> None:
                    # The transaction that brings a report, and no other.
                    if not proxy.cuts and any(m.envelope.reverse_path is None for m in batch):
                        proxy.cut("behind", refuses_then=True)
                        threading.Timer(1.0, lambda: proxy.refuse(is_refusing=False)).start()
                    real(store, batch)

                monkeypatch.setattr(PostgresStore, "accept", accept_report)
                await server.enqueue(reverse_path="a@b.test", recipients=["c@d.test"], content="Subject: x\n\nx")
                async with asyncio.timeout(30):
                    while not proxy.cuts or server._parts.scheduler._tasks:
                        await asyncio.sleep(0.02)
                # Found by the simulation: what was settled is not in hand, nor is its content's file kept for it.
                await until(lambda: server._parts.store._hands._held == {})  # type: ignore[attr-defined]

    run_async(main)
    assert ask(proxy.url, "SELECT count(*) FROM message") == [(2,)], "the message and one report"
    assert ask(proxy.url, "SELECT count(*) FROM recipient WHERE address = 'c@d.test' AND state = 'bounced'") == [(1,)]

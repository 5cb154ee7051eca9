"""One contract for every store: SQLite, memory, PostgreSQL; null says yes and forgets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apsw
import psycopg
import pytest

from pillarbox.errors import DuplicateUidError, StoreError, StoreFullError, StoreLockedError
from pillarbox.mail.content import Content
from pillarbox.mail.envelope import Envelope
from pillarbox.queue import sqlite, sqlite_read
from pillarbox.queue.clocks import Bounds
from pillarbox.queue.memory import MemoryStore
from pillarbox.queue.model import Action, Message, Query, Settled, Settlement, view_as_json
from pillarbox.queue.null import NullStore
from pillarbox.queue.pgnode import free
from pillarbox.queue.postgres import PostgresStore
from pillarbox.queue.sqlite import SqliteStore

NOW = 1_800_000_000.0


@pytest.fixture(params=["sqlite", "journal", "memory", "postgres"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    made: Any
    if request.param == "postgres":
        # The tests' own time, in place of the database's.
        made = PostgresStore(request.getfixturevalue("database"), str(tmp_path), has_own_clock=False)
    else:
        made = MemoryStore(str(tmp_path / "spool")) if request.param == "memory" else SqliteStore(str(tmp_path))
    made.open()
    if request.param == "journal":
        # As a busy shard has it.
        made._begin_journal()
        assert made.maintains_beside
    yield made
    made.close()


def message(uid: str, *recipients: str, at: float = NOW, **more: Any) -> Message:
    envelope = Envelope("sender@a.test", [], "8BITMIME", False, "HDRS", "id 1")
    for address in recipients or ("c@d.test",):
        envelope.add(address, ("FAILURE", "DELAY"), "rfc822;orig@d.test")
    content = more.pop("content", Content(f"Subject: {uid}\r\n\r\nbody of {uid}\r\n".encode()))
    return Message(uid, envelope, content, at, at + 1000, f"subject {uid}", {"peer": "192.0.2.1"}, **more)


def has_journal(store: Any) -> bool:
    return bool(store.maintains_beside)


def accept(store: Any, *messages: Message) -> None:
    if has_journal(store):
        assert store.try_commit(messages, ())
        return
    with store.transaction():
        store.accept(messages)


def claim(store: Any, now: float = NOW, limit: int = 10, size: int = 1 << 20) -> list[Message]:
    with store.transaction():
        return list(store.claim(limit, now, now + 100, size))


def lapse(store: Any, now: float, *, is_crash: bool = False) -> int:
    """The leases that have run out by `now` are free; with `is_crash` all there are. How many recipients are due again."""
    if isinstance(store, PostgresStore):
        # What another node's heart-beat does.
        with psycopg.connect(store.url, autocommit=True) as other:
            return free(other, [store.heart.me] if is_crash else [], 0 if is_crash else store.heart.me, now)
    if is_crash:
        with store.transaction():
            return int(store.recover(now))
    return 0


def settle(store: Any, key: int, *settled: Settled, at: float = NOW) -> None:
    outcome = Settlement(key, list(settled), at)
    if has_journal(store):
        assert store.try_commit((), [outcome])
        return
    with store.transaction():
        store.settle([outcome])


def done(number: int, state: str, due_at: float | None = None, **more: Any) -> Settled:
    return Settled(
        number, state, state, due_at, reply=f"250 2.0.0 {state}", stage="end of content", next_hop="hop", **more
    )


def test_accept_and_get(store: Any) -> None:
    accept(store, message("A", "one@d.test", "two@d.test"), message("B"))
    view = store.get("A")
    assert view.reverse_path == "sender@a.test" and view.subject == "subject A" and view.facts == {"peer": "192.0.2.1"}
    assert [(r.address, r.state, r.attempts, r.due_at) for r in view.recipients] == [
        ("one@d.test", "queued", 0, NOW),
        ("two@d.test", "queued", 0, NOW),
    ]
    assert view.recipients[0].notify == ("FAILURE", "DELAY") and view.recipients[0].orcpt == "rfc822;orig@d.test"
    assert view.state == "queued" and view_as_json(view)["recipients"][0]["address"] == "one@d.test"
    assert store.content("A").read() == b"Subject: A\r\n\r\nbody of A\r\n"
    assert store.get("nothing") is None and store.content("nothing") is None
    assert store.counts() == {"queued": 3} and store.next_due() == NOW


def test_octets_and_text_are_kept(store: Any) -> None:
    octets = bytes(range(256)) * 50
    strange = message("X", "ü'\"@dömäin.test", content=Content(octets))
    strange.subject = "quote ' \" \\ \u2028 \U0001f4ee"
    strange.envelope.reverse_path = None
    accept(store, strange, message("Y", content=Content(b"")))
    view = store.get("X")
    assert store.content("X").read() == octets and store.content("Y").read() == b""
    assert (
        view.subject == strange.subject
        and view.reverse_path is None
        and view.recipients[0].address == "ü'\"@dömäin.test"
    )


def test_duplicate_uid(store: Any) -> None:
    accept(store, message("A"))
    with pytest.raises(DuplicateUidError), store.transaction():
        store.accept([message("B"), message("A")])
    assert store.get("B") is None, "all or nothing"
    with pytest.raises(DuplicateUidError):
        store.commit([message("A")], [])
    accept(store, message("B"))
    assert [v.uid for v in store.search(Query())] == ["A", "B"]


def test_claim_is_a_lease(store: Any) -> None:
    accept(store, message("A", "x@d.test", "y@d.test"), message("B", at=NOW + 5))
    claimed = claim(store)
    assert [(m.uid, [r.address for r in m.recipients]) for m in claimed] == [("A", ["x@d.test", "y@d.test"])]
    assert (
        claimed[0].envelope.ret == "HDRS"
        and claimed[0].envelope.envid == "id 1"
        and claimed[0].envelope.body == "8BITMIME"
    )
    assert claimed[0].content.read().startswith(b"Subject: A")
    assert claim(store) == [] and store.get("A").recipients[0].is_leased
    assert [m.uid for m in claim(store, NOW + 5)] == ["B"]
    # A lease that is not renewed ends.
    with store.transaction():
        store.renew([claimed[0].key], NOW + 300)
    assert claim(store, NOW + 150, 10) == [] or [m.uid for m in claim(store, NOW + 150)] == []
    lapse(store, NOW + 301)
    assert "A" in [m.uid for m in claim(store, NOW + 301)]


def test_claim_bounds(store: Any) -> None:
    accept(store, *(message(f"M{n}") for n in range(10)))
    assert len(claim(store, limit=3)) == 3
    assert len(claim(store, limit=10, size=30)) in (1, 2)


def test_leased_at_birth(store: Any) -> None:
    accept(store, message("A", leased_until=NOW + 50))
    assert claim(store) == [] and store.get("A").recipients[0].is_leased
    lapse(store, NOW + 51)
    assert [m.uid for m in claim(store, NOW + 51)] == ["A"]


def test_settle_delivered_and_deferred(store: Any) -> None:
    accept(store, message("A", "x@d.test", "y@d.test"))
    (claimed,) = claim(store)
    settle(store, claimed.key, done(0, "delivered", remote="mx.d.test", seconds=0.5), done(1, "deferred", NOW + 60))
    view = store.get("A")
    assert [(r.state, r.attempts, r.due_at, r.is_leased) for r in view.recipients] == [
        ("delivered", 1, None, False),
        ("deferred", 1, NOW + 60, False),
    ]
    assert view.recipients[1].next_hop == "hop" and view.recipients[1].last_stage == "end of content"
    assert [(a.number, a.outcome, a.remote, a.reply) for a in view.attempts] == [
        (0, "delivered", "mx.d.test", "250 2.0.0 delivered"),
        (1, "deferred", None, "250 2.0.0 deferred"),
    ]
    assert view.finished_at is None and view.state == "deferred" and store.content("A") is not None
    (again,) = claim(store, NOW + 60)
    assert [r.number for r in again.recipients] == [1] and again.recipients[0].attempts == 1
    settle(store, again.key, done(1, "bounced"), at=NOW + 61)
    view = store.get("A")
    assert view.finished_at == NOW + 61 and store.content("A") is None and store.next_due() is None
    assert store.search(Query()) == [] and [v.uid for v in store.search(Query(is_all=True))] == ["A"]
    assert store.counts() == {"delivered": 1, "bounced": 1}


def test_commit_is_both(store: Any) -> None:
    accept(store, message("A"))
    (claimed,) = claim(store)
    store.commit([message("B")], [Settlement(claimed.key, [done(0, "delivered")], NOW)])
    assert store.get("A").finished_at == NOW and store.get("B").state == "queued"


def test_giving_back_is_no_attempt(store: Any) -> None:
    accept(store, message("A"))
    (claimed,) = claim(store)
    settle(store, claimed.key, Settled(0, "queued", "queued", NOW + 9, is_attempt=False))
    view = store.get("A")
    assert (view.recipients[0].attempts, view.recipients[0].due_at, view.attempts) == (0, NOW + 9, [])


def test_recover(store: Any) -> None:
    accept(store, message("A"), message("B"), message("C"))
    claimed = claim(store, limit=2)
    settle(store, claimed[0].key, done(0, "delivered"))
    with store.transaction():
        assert store.change(Action.CANCEL, Query(uids=["B"]), NOW) == ["B"]
    assert store.get("B").finished_at is None, "still in flight"
    claim(store)
    assert lapse(store, NOW + 7, is_crash=True) == 1
    view = store.get("C")
    assert (view.recipients[0].is_leased, view.recipients[0].due_at, view.recipients[0].attempts) == (False, NOW + 7, 1)
    assert [a.outcome for a in view.attempts] == ["ambiguous"]
    assert store.get("B").finished_at == NOW + 7
    assert [m.uid for m in claim(store, NOW + 7)] == ["C"]


def test_what_waits_for_whom(store: Any) -> None:
    one, two, three = message("A", "x@d.test", "y@d.test"), message("B", at=NOW + 5), message("C")
    for m, hop in ((one, "mx:a.test"), (two, "mx:a.test"), (three, None)):
        for r in m.recipients:
            r.next_hop = hop
    three.hold("later")
    accept(store, one, two, three)
    assert store.next_hops(10) == [("mx:a.test", "queued", 3, NOW), ("", "held", 1, None)]
    assert store.next_hops(1) == [("mx:a.test", "queued", 3, NOW)]
    assert store.reader().next_hops(10)[0][2] == 3
    with store.transaction():
        store.change(Action.CANCEL, Query(uids=["A", "B", "C"]), NOW)
    assert store.next_hops(10) == []


def test_held_from_the_start(store: Any) -> None:
    held = message("A", "one@d.test", "two@d.test")
    held.hold("somebody shall look at it")
    assert held.is_held
    accept(store, held, message("B"))
    assert [m.uid for m in claim(store)] == ["B"]
    view = store.get("A")
    assert view.state == "held" and view.facts["held_for"] == "somebody shall look at it"
    assert [r.due_at for r in view.recipients] == [None, None] and store.content("A").read()
    with store.transaction():
        assert store.change(Action.RELEASE, Query(uids=["A"]), NOW + 1) == ["A"]
    (claimed,) = claim(store, NOW + 1)
    assert [r.state for r in claimed.recipients] == ["queued", "queued"]


def test_steering(store: Any) -> None:
    accept(store, message("A"), message("B"), message("C"))

    def change(action: Action, *uids: str, now: float = NOW) -> list[str]:
        with store.transaction():
            return list(store.change(action, Query(uids=uids), now))

    assert change(Action.HOLD, "A", "nothing") == ["A"]
    assert change(Action.HOLD, "A") == []
    assert store.get("A").state == "held" and [m.uid for m in claim(store)] == ["B", "C"]
    assert change(Action.RETRY, "B") == [], "in flight"
    assert change(Action.RELEASE, "A", "B", now=NOW + 1) == ["A"]
    (claimed,) = claim(store, NOW + 1)
    settle(store, claimed.key, done(0, "deferred", NOW + 500))
    assert change(Action.RETRY, "A", now=NOW + 2) == ["A"] and store.next_due() == NOW + 2
    assert change(Action.CANCEL, "A", now=NOW + 3) == ["A"]
    view = store.get("A")
    assert view.state == "cancelled" and view.finished_at == NOW + 3 and store.content("A") is None
    assert change(Action.CANCEL, "A") == [] and change(Action.RELEASE, "A") == [] and change(Action.HOLD, "A") == []


@pytest.mark.parametrize("action", [Action.CANCEL, Action.HOLD])
def test_steered_in_flight(store: Any, action: Action) -> None:
    accept(store, message("A"), message("B"))
    first, second = claim(store)
    with store.transaction():
        assert store.change(action, Query(), NOW) == ["A", "B"]
    settle(store, first.key, done(0, "delivered"))
    settle(store, second.key, done(0, "deferred", NOW + 60))
    assert store.get("A").state == "delivered" and store.get("A").finished_at == NOW
    assert store.get("B").state == {Action.CANCEL: "cancelled", Action.HOLD: "held"}[action]
    assert store.get("B").recipients[0].due_at is None and not store.get("B").recipients[0].is_leased
    assert (store.get("B").finished_at is None) == (action is Action.HOLD)
    if action is Action.HOLD:
        with store.transaction():
            assert store.change(Action.RELEASE, Query(), NOW + 1) == ["B"]
        assert store.get("B").recipients[0].state == "deferred"


def test_held_and_released_in_flight(store: Any) -> None:
    accept(store, message("A"))
    claim(store)
    with store.transaction():
        store.change(Action.HOLD, Query(), NOW)
        store.change(Action.RELEASE, Query(), NOW)
    assert claim(store) == [], "its lease goes on"


def test_search(store: Any) -> None:
    accept(
        store,
        message("A", "x@one.test"),
        message("B", "y@two.test", at=NOW + 10),
        message("C", "z@two.test", at=NOW + 20),
    )
    null = message("D", at=NOW + 30)
    null.envelope.reverse_path = None
    accept(store, null)
    with store.transaction():
        store.change(Action.HOLD, Query(uids=["B"]), NOW)

    def uids(**query: Any) -> list[str]:
        return [view.uid for view in store.search(Query(**query))]

    assert uids() == ["A", "B", "C", "D"]
    assert uids(recipient="@TWO.test") == ["B", "C"] and uids(recipient="x@") == ["A"]
    assert uids(sender="sender@") == ["A", "B", "C"] and uids(sender="<>") == ["D"]
    assert uids(state="held") == ["B"] and uids(received_before=NOW + 15) == ["A", "B"]
    assert uids(limit=2) == ["A", "B"] and uids(uids=["C", "A"]) == ["A", "C"]
    (claimed, *_) = claim(store)
    settle(store, claimed.key, done(0, "deferred", NOW + 99))
    assert uids(next_hop="hop") == ["A"] and uids(state="delivered") == []


@pytest.mark.parametrize(
    ("address", "part"),
    [
        ("Müller@d.test", "MÜLLER"),
        ("MÜLLER@d.test", "müller"),
        ("straße@d.test", "STRASSE@"),
        ("STRASSE@d.test", "straße"),
        ("ΣΊΣΥΦΟΣ@d.test", "σίσυφος@"),
        ("иван@пример.test", "ИВАН@ПРИМЕР"),
        ("ofﬁce@d.test", "OFFICE"),
        ("I%_@d.test", "i%_@D"),
    ],
)
def test_search_by_address_ignores_case_in_every_script(store: Any, address: str, part: str) -> None:
    found = message("A", address)
    found.envelope.reverse_path = address
    accept(store, found, message("B", "x@other.test"))
    assert [view.uid for view in store.search(Query(recipient=part))] == ["A"]
    assert [view.uid for view in store.search(Query(sender=part))] == ["A"]
    with store.transaction():
        assert store.change(Action.HOLD, Query(recipient=part), NOW) == ["A"]


def test_wake(store: Any) -> None:
    accept(store, message("A"), message("B"), message("C"))
    for one, stage in zip(claim(store), ("connect", "rcpt", "connect"), strict=True):
        settled = done(0, "deferred", NOW + 500)
        settled.stage = stage
        settled.next_hop = "other" if one.uid == "C" else "hop"
        settle(store, one.key, settled)
    with store.transaction():
        assert store.wake("hop", {"connect", "greeting"}, NOW + 1) == 1
    assert [m.uid for m in claim(store, NOW + 1)] == ["A"]


def test_claim_expired(store: Any) -> None:
    accept(store, message("A", at=NOW - 2000), message("B"))
    with store.transaction():
        assert [m.uid for m in store.claim_expired(10, NOW, NOW + 100)] == ["A"]
        assert store.claim_expired(10, NOW, NOW + 100) == []


def test_flags(store: Any) -> None:
    assert store.flag("paused") is None
    with store.transaction():
        store.set_flag("paused", "1")
        store.set_flag("paused", "2")
    assert store.flag("paused") == "2"
    with store.transaction():
        store.set_flag("paused", None)
    assert store.flag("paused") is None


def test_purge(store: Any, tmp_path: Path) -> None:
    (tmp_path / "spool").mkdir(exist_ok=True)
    path = tmp_path / "spool" / "big"
    path.write_bytes(b"Subject: x\r\n\r\n" + b"y" * 100)
    big = Content(b"Received: z\r\n", path=str(path), offset=0, file_bytes=114)
    accept(store, message("BIG", content=big), *(message(f"M{n}") for n in range(5)))
    in_spool = set() if isinstance(store, PostgresStore) else {"big"}
    assert store.spool_names() == in_spool and store.content("BIG").size_bytes == 127
    assert store.content("BIG").read() == b"Received: z\r\n" + path.read_bytes()
    for number, one in enumerate(claim(store)):
        settle(store, one.key, done(0, "delivered"), at=NOW + number)
    assert store.spool_names() == set()
    with store.transaction():
        assert store.purge(NOW - 1, 100, 10) == ["big"]
        assert store.purge(NOW - 1, 100, 10) == []
    assert len(store.search(Query(is_all=True))) == 6
    with store.transaction():
        store.purge(NOW + 2, 100, 10)
    assert len(store.search(Query(is_all=True))) == 4
    with store.transaction():
        store.purge(NOW - 1, 1, 10)
    assert [v.uid for v in store.search(Query(is_all=True))] == ["M4"]


def test_rollback(store: Any) -> None:
    with pytest.raises(RuntimeError), store.transaction():
        store.accept([message("A")])
        raise RuntimeError
    assert store.get("A") is None
    assert not store.wants_maintenance
    store.maintain()


def test_null_store(tmp_path: Path) -> None:
    store = NullStore(str(tmp_path / "spool"))
    store.open()
    one = message("A")
    store.commit([one], [])
    store.settle([])
    assert one.key == 1 and store.get("A") is None and store.reader() is store and not store.wants_maintenance
    store.maintain()
    store.close()


# ------------------------------------------------------------------- SQLite's own


def test_sqlite_reopens(tmp_path: Path) -> None:
    store = SqliteStore(str(tmp_path))
    store.open()
    accept(store, message("A"))
    store.close()
    store.close()
    again = SqliteStore(str(tmp_path))
    again.open()
    accept(again, message("B"))
    assert [v.uid for v in again.search(Query())] == ["A", "B"]
    again.close()


def test_sqlite_lock(tmp_path: Path) -> None:
    store = SqliteStore(str(tmp_path))
    store.open()
    with pytest.raises(StoreLockedError, match="pid"):
        SqliteStore(str(tmp_path)).open()
    store.close()


def test_sqlite_reader_is_another_connection(tmp_path: Path) -> None:
    store = SqliteStore(str(tmp_path))
    store.open()
    reader = store.reader()
    accept(store, message("A"))
    assert reader.get("A") is not None and reader.counts() == {"queued": 1}
    assert reader.flag("x") is None and reader.next_due() == NOW and reader.content("A") is not None
    with pytest.raises(apsw.ReadOnlyError):
        list(reader.rows("DELETE FROM message"))
    reader.close()
    store.close()


def test_sqlite_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pillarbox.queue.sqlite.CHECKPOINT_PAGES", 5)
    store = SqliteStore(str(tmp_path))
    store.open()
    accept(store, *(message(f"M{n}") for n in range(50)))
    assert store.wants_maintenance
    store.maintain()
    assert not store.wants_maintenance
    store.close()


def test_sqlite_survives_a_crash_with_its_wal(tmp_path: Path) -> None:
    """What another process finds after a kill: the file, and a WAL that was never written back."""
    import shutil

    store = SqliteStore(str(tmp_path / "a"))
    store.open()
    accept(store, *(message(f"M{n}") for n in range(20)))
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    store.close()
    copy = SqliteStore(str(tmp_path / "b"))
    copy.open()
    assert len(copy.search(Query())) == 20
    copy.close()


def test_sqlite_newer_schema(tmp_path: Path) -> None:
    store = SqliteStore(str(tmp_path))
    store.open()
    store._db.execute("PRAGMA user_version = 99")
    store.close()
    with pytest.raises(StoreError, match="newer Pillarbox"):
        store.open()


def test_sqlite_full(tmp_path: Path) -> None:
    store = SqliteStore(str(tmp_path))
    store.open()
    store._db.execute("PRAGMA max_page_count = 60")
    with pytest.raises(StoreFullError, match="make room"):
        accept(store, *(message(f"M{n}", content=Content(b"x" * 100_000)) for n in range(20)))
    with pytest.raises(StoreFullError):
        store.commit([message("big", content=Content(b"x" * 1_000_000))], [])
    accept(store, message("small"))
    assert [v.uid for v in store.search(Query())] == ["small"]
    store.close()


def test_sqlite_not_a_database(tmp_path: Path) -> None:
    (tmp_path / "queue-0.db").write_bytes(b"this is no database at all, whatever its name says" * 100)
    with pytest.raises(StoreError):
        SqliteStore(str(tmp_path)).open()


def test_sqlite_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreError, match="data directory"):
        SqliteStore(str(tmp_path / "file")).open()
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "queue-0.lock").symlink_to("/dev/null")
    with pytest.raises(StoreError, match="cannot open"):
        SqliteStore(str(tmp_path / "d")).open()


def test_sqlite_quarantine(tmp_path: Path) -> None:
    """Hostile row 115: a message without its content is held, with a reason, and the rest goes on."""
    store = SqliteStore(str(tmp_path))
    store.open()
    accept(store, message("A"), message("B"))
    store._db.execute("DELETE FROM content WHERE message_id = 1")
    assert [m.uid for m in claim(store)] == ["B"]
    view = store.get("A")
    assert view.state == "held" and "missing" in (view.recipients[0].last_reply or "")
    store.close()


def test_sqlite_permissions(tmp_path: Path) -> None:
    store = SqliteStore(str(tmp_path / "new"))
    store.open()
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "new" / "queue-0.db").stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "new" / "spool").stat().st_mode & 0o777 == 0o700
    store.close()


def test_sqlite_wal_that_cannot_be_lengthened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    def fail(*args: Any, **kwargs: Any) -> int:
        raise OSError(28, "No space left on device")

    store = SqliteStore(str(tmp_path))
    monkeypatch.setattr(os, "write", fail)
    monkeypatch.setattr(sqlite, "take_lock", lambda path, folder: os.open(tmp_path / "lock", os.O_CREAT | os.O_RDWR))
    store.open()
    accept(store, message("A"))
    assert store.get("A") is not None
    store.close()


@pytest.mark.parametrize("action", [Action.HOLD, Action.CANCEL])
def test_what_was_steered_in_flight_when_its_server_died_is_history(store: Any, action: Action) -> None:
    """Released, it may come twice: then the record has to say why."""
    accept(store, message("A"))
    claim(store)
    with store.transaction():
        store.change(action, Query(uids=["A"]), NOW)
    lapse(store, NOW + 1, is_crash=True)
    view = store.get("A")
    assert [a.outcome for a in view.attempts] == ["ambiguous"]
    assert view.state == {Action.HOLD: "held", Action.CANCEL: "cancelled"}[action]


def queue_behind(store: Any, blocked: int, *hops: str) -> None:
    """So many messages for `mx:full.test`, and behind them one for each of these."""
    batch = []
    for number, hop in enumerate(["mx:full.test"] * blocked + list(hops)):
        one = message(f"B{number:06}", at=NOW - 100 + number / 1000)
        one.recipients[0].next_hop = hop
        batch.append(one)
    for start in range(0, len(batch), 1000):
        accept(store, *batch[start : start + 1000])


@pytest.fixture
def short_window(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few of the first in line are looked at, so that few have to be queued."""
    monkeypatch.setattr(sqlite_read, "WITHIN", 1000)


def test_what_waits_behind_a_full_next_hop_is_claimed_and_each_has_its_turn(store: Any, short_window: None) -> None:
    queue_behind(store, 2500, "mx:a.test", "mx:b.test", "mx:c.test", "mx:a.test")
    skip = ["mx:full.test"]
    assert store.next_due(skip) == pytest.approx(NOW - 97.5)
    found = []
    with store.transaction():
        while messages := store.claim(1, NOW, NOW + 100, 1 << 20, skip):
            found += [r.next_hop for one in messages for r in one.recipients]
    assert sorted(found) == ["mx:a.test", "mx:a.test", "mx:b.test", "mx:c.test"]
    assert len(set(found[:3])) == 3, found
    due = store.next_due(skip)
    assert due is None or due > NOW, "what is skipped, or in hand, is not due"
    assert len(claim(store, limit=3)) == 3


def test_a_next_hop_that_is_not_known_yet_is_found_behind_a_full_one(store: Any, short_window: None) -> None:
    queue_behind(store, 1500)
    lost = message("A", at=NOW - 1)
    accept(store, lost)
    skip = ["mx:full.test"]
    assert store.next_due(skip) == pytest.approx(NOW - 1)
    with store.transaction():
        found = store.claim(5, NOW, NOW + 100, 1 << 20, skip)
    assert [one.uid for one in found] == ["A"]


def test_a_full_next_hop_costs_no_walk_over_its_messages(tmp_path: Path, short_window: None) -> None:
    store = SqliteStore(str(tmp_path))
    store.open()
    queue_behind(store, 30_000, "mx:a.test", "mx:b.test")
    skip = ["mx:full.test", "mx:other.test"]
    steps = 0

    def count() -> bool:
        nonlocal steps
        steps += 1
        return False

    store._db.set_progress_handler(count, 1000)
    with store.transaction():
        assert len(store.claim(10, NOW, NOW + 100, 1 << 20, skip)) == 2
        assert store.next_due(skip) is None
    # Thousands of steps of SQLite's machine; a walk over 30,000 rows has some 300.
    assert steps < 150, steps
    store.close()


def bound(store: Any, bounds: Bounds) -> int:
    with store.transaction():
        return int(store.bound_times(bounds))


def test_due_times_beyond_the_longest_pause_are_due_now(store: Any) -> None:
    ahead = NOW + 365 * 86400
    accept(store, message("ahead", at=ahead), message("right"), message("leased", leased_until=NOW + 3600.0))
    (late,) = claim(store, ahead, limit=1)
    settle(store, late.key, done(0, "deferred", ahead + 300), at=ahead)
    assert bound(store, Bounds(NOW, NOW + 400.0)) >= 2
    assert bound(store, Bounds(NOW, NOW + 400.0)) == 0, "nothing is mended twice"
    found = store.get(late.uid)
    assert found.recipients[0].due_at == NOW
    assert store.get("leased").recipients[0].due_at == NOW + 3600.0, "a lease keeps its end"


@pytest.mark.parametrize("received", [0.0, NOW + 365 * 86400])
def test_age_that_cannot_be_right_begins_anew(store: Any, received: float) -> None:
    accept(store, message("wrong", at=received), message("right", at=NOW - 500))
    assert bound(store, Bounds(NOW, NOW + 400.0)) == 1 + (received > NOW)
    assert (store.get("wrong").received_at, store.get("wrong").expires_at) == (NOW, NOW + 1000)
    assert (store.get("right").received_at, store.get("right").expires_at) == (NOW - 500, NOW + 500)
    assert {m.uid: m.expires_at for m in claim(store, NOW + 1)} == {"wrong": NOW + 1000, "right": NOW + 500}


def test_age_of_finished_messages_is_left_alone(store: Any) -> None:
    accept(store, message("over", at=10.0))
    (over,) = claim(store)
    settle(store, over.key, done(0, "delivered"))
    assert bound(store, Bounds(NOW, NOW + 1e9)) == 0 and store.get("over").received_at == 10.0


def test_seconds_that_the_clock_jumped_over_do_not_expire_mail(store: Any) -> None:
    accept(store, message("m"))
    bound(store, Bounds(NOW + 5000, NOW + 6000, 5000.0))
    # A shared queue has its database's clock, which a node's steps do not concern.
    assert store.get("m").expires_at == NOW + 1000 + (0 if isinstance(store, PostgresStore) else 5000)

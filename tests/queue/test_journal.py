"""The journal of a busy shard: nothing that was committed is lost or comes twice, wherever it stops; readers see it soon."""

from __future__ import annotations

import os
import random
import shutil
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pillarbox.errors import StoreError, StoreFullError
from pillarbox.mail.content import Content
from pillarbox.queue import ahead, company, journal, sqlite
from pillarbox.queue import commit as commit_module
from pillarbox.queue.commit import GroupCommit
from pillarbox.queue.look import ask_sql
from pillarbox.queue.model import Action, Query, Settlement
from pillarbox.queue.sqlite import SqliteStore
from pillarbox.queue.sqlite_rows import Rows, parse_rows
from pillarbox.queue.whole import catch_up
from tests.conftest import run_async, until
from tests.queue.test_commit_spool import accepted
from tests.queue.test_store_contract import NOW, done, message

# Where the first half begins.
FIRST = 4096
pytestmark = pytest.mark.skipif(not journal.Journal.is_possible(), reason="the journal needs Linux's RWF_DSYNC")


@pytest.fixture(autouse=True)
def small_files(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A crash copies them; and what is left of those that crashed is closed."""
    opened: list[SqliteStore] = []
    real = SqliteStore.open

    def note(self: SqliteStore, **more: Any) -> None:
        real(self, **more)
        opened.append(self)

    monkeypatch.setattr(SqliteStore, "open", note)
    monkeypatch.setattr(journal, "HALF_BYTES", 1 << 20)
    monkeypatch.setattr(sqlite, "CHECKPOINT_PAGES", 100)
    monkeypatch.setattr(sqlite, "SPARE_PAGES", 100)
    yield
    for store in opened:
        if store._lock is not None:
            store._ahead.journal.close(is_needed=True)
            store._db.close()
            store._release_lock()


@pytest.fixture
def held_making(monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, threading.Event]:
    """The making of a journal's file sets the first when it begins, and waits for the second."""
    begun, go = threading.Event(), threading.Event()
    real = journal.Journal.make

    def make(self: journal.Journal) -> None:
        begun.set()
        assert go.wait(30)
        real(self)

    monkeypatch.setattr(journal.Journal, "make", make)
    return begun, go


def busy(folder: Path, shard: int = 0) -> SqliteStore:
    """A store as it is on a busy server."""
    store = SqliteStore(str(folder), shard)
    store.open()
    store._begin_journal()
    assert store.maintains_beside
    return store


def crash(store: SqliteStore, folder: Path) -> SqliteStore:
    """What a server finds that starts on a copy of the files, as they are at this moment."""
    shutil.copytree(store.folder, folder)
    again = SqliteStore(str(folder))
    again.open()
    return again


def uids(store: Any) -> list[str]:
    return sorted(view.uid for view in store.search(Query(is_all=True)))


def told(store: SqliteStore) -> list[Any]:
    """All that is known of every message."""
    views = [store.get(uid) for uid in uids(store)]
    # What is due when, and how often, and every attempt; the content as long as it is needed.
    return [(view, (content := store.content(view.uid)) and content.prefix) for view in views if view]


@pytest.mark.parametrize("seed", range(30))
def test_it_is_as_if_there_were_none(tmp_path: Path, seed: int) -> None:
    """The same random life with a journal, crashes and all, and without one."""
    rng = random.Random(seed)
    with_one, without = busy(tmp_path / "a"), SqliteStore(str(tmp_path / "b"))
    without.open()
    keys: list[int] = []
    leased: list[tuple[int, int]] = []
    at = NOW
    for step in range(60):
        at += 1
        what = rng.choice(["accept", "accept", "accept", "settle", "settle", "claim", "steer", "fold", "crash"])
        if what == "accept":
            batches: list[list[Any]] = [[], []]
            for n in range(rng.randint(1, 4)):
                recipients = [f"r{k}@d{k % 2}.test" for k in range(rng.randint(1, 3))]
                lease = at + 100 if rng.random() < 0.7 else None
                is_held = lease is None and rng.random() < 0.3
                for batch in batches:
                    batch.append(message(f"{step}-{n}", *recipients, at=at))
                    batch[-1].leased_until = lease
                    if is_held:
                        batch[-1].hold("for a look")
            assert with_one.try_commit(batches[0], ())
            without.commit(batches[1], ())
            for one, other in zip(*batches, strict=True):
                assert one.key == other.key
                keys.append(one.key)
                leased += [(one.key, r.number) for r in one.recipients if one.leased_until]
        elif what == "settle" and leased:
            rng.shuffle(leased)
            some = [leased.pop() for _ in range(min(len(leased), rng.randint(1, 5)))]
            outcomes = []
            for key, number in some:
                state = rng.choice(["delivered", "delivered", "deferred", "bounced"])
                due_at = at + 5 if state == "deferred" else None
                outcomes.append(Settlement(key, [done(number, state, due_at, remote=f"at {step}")], at))
            assert with_one.try_commit((), outcomes)
            without.commit((), outcomes)
        elif what == "claim":
            for store in (with_one, without):
                with store.transaction():
                    found = [(m.key, [r.number for r in m.recipients]) for m in store.claim(3, at, at + 100, 1 << 20)]
            leased += [(key, number) for key, numbers in found for number in numbers if (key, number) not in leased]
        elif what == "steer" and keys:
            action = rng.choice(list(Action))
            query = Query(uids=[rng.choice(uids(without))])
            changed = []
            for store in (with_one, without):
                with store.transaction():
                    changed.append(store.change(action, query, at))
            assert changed[0] == changed[1]
        elif what == "fold":
            with_one._catch_up()
        elif what == "crash":
            with_one = crash(with_one, tmp_path / f"crash{step}")
            with_one._begin_journal()
    assert told(crash(with_one, tmp_path / "last")) == told(without)
    assert told(with_one) == told(without)
    assert with_one.next_due() == without.next_due() and with_one.counts() == without.counts()
    with_one.close()
    assert not Path(with_one._ahead.journal.path).exists()


def test_what_came_and_went_leaves_its_history_only(tmp_path: Path) -> None:
    store = busy(tmp_path)
    one = message("M1")
    one.leased_until = NOW + 100
    assert store.try_commit([one], ()) and store.try_commit((), [Settlement(one.key, [done(0, "delivered")], NOW)])
    view = store.get("M1")
    assert view and view.state == "delivered" and view.finished_at == NOW and len(view.attempts) == 1
    assert store.rows("content_by_id", (one.key,)) == []
    store.close()


def test_a_file_goes_with_what_came_and_went(tmp_path: Path) -> None:
    """The spool file of a message that the database first hears of when it is final; one that is not final keeps its own."""
    store = busy(tmp_path)
    messages = [
        message(name, *recipients) for name, recipients in (("M1", ["a@b.test"]), ("M2", ["a@b.test", "c@d.test"]))
    ]
    for one in messages:
        path = Path(store.spool) / f"{one.uid}.eml"
        path.write_bytes(b"text\r\n")
        one.content = Content(b"X: y\r\n", path=str(path), file_bytes=6)
        one.leased_until = NOW + 100
    assert store.try_commit(messages, ())
    assert store.try_commit((), [Settlement(one.key, [done(0, "delivered")], NOW) for one in messages])
    store._catch_up()
    with store.transaction():
        assert store.purge(0.0, 1000, 100) == ["M1.eml"]
    over, other = store.get("M1"), store.get("M2")
    assert over and other and over.finished_at == NOW and other.finished_at is None
    assert store.rows("content_by_id", (messages[0].key,)) == []
    store.close()


@pytest.mark.parametrize("damage", ["cut", "flipped", "another"])
def test_a_record_that_was_being_written_is_none(tmp_path: Path, damage: str) -> None:
    """The power goes while a record is on its way: those before it are whole, and nobody was told of it."""
    store = busy(tmp_path / "a")
    for n in range(3):
        assert store.try_commit([message(f"M{n}")], ())
    before = FIRST + store._ahead.journal._at
    assert store.try_commit([message("last")], ())
    path = Path(store._ahead.journal.path)
    octets = bytearray(path.read_bytes())
    if damage == "cut":
        octets[before + 50 : before + 4096] = bytes(4046)
    elif damage == "flipped":
        octets[before + 200] ^= 1
    else:
        # Behind it is what an earlier round had left: older numbers.
        octets[before : before + 4096] = octets[FIRST : FIRST + 4096]
    path.write_bytes(octets)
    again = crash(store, tmp_path / "b")
    assert uids(again) == ["M0", "M1", "M2"]
    again.close()


@pytest.mark.parametrize("is_turned", [False, True])
def test_damage_in_the_middle_costs_what_is_damaged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, is_turned: bool
) -> None:
    store = busy(tmp_path / "a")
    ends = []
    for n in range(2):
        assert store.try_commit([message(f"A{n}")], ())
        ends.append(store._ahead.journal._at)
    if is_turned:
        store._ahead.journal.turn()
    assert store.try_commit([message("B")], ())
    path = Path(store._ahead.journal.path)
    octets = bytearray(path.read_bytes())
    octets[FIRST + ends[0] + 100] ^= 1
    path.write_bytes(octets)
    again = crash(store, tmp_path / "b")
    assert uids(again) == ["A0", "B"]
    assert "damaged" in caplog.text and str(again._ahead.journal.path) in caplog.text
    again.close()


def test_mail_that_looks_like_a_record_is_none(tmp_path: Path) -> None:
    """Old mail lies behind the last record, and who wrote it could choose what stands where a record may begin."""
    store = busy(tmp_path / "a")
    forged = journal.Journal(str(tmp_path / "forged"))
    forged.make()
    forged.number = 1_000_000
    rows = Rows([(9_999_999, "FORGED", None, "7BIT", 0, None, None, "", 1, NOW, NOW, "{}", None, 0, 0)])
    forged.append(rows.head(), [b""])
    record = Path(forged.path).read_bytes()[FIRST : FIRST + 4096]
    assert store.try_commit([message("M1")], ())
    at = FIRST + store._ahead.journal._at
    octets = bytearray(Path(store._ahead.journal.path).read_bytes())
    octets[at : at + 4096] = record
    Path(store._ahead.journal.path).write_bytes(octets)
    again = crash(store, tmp_path / "b")
    assert uids(again) == ["M1"]
    again.close()
    with pytest.raises(ValueError, match="not in the spool"):
        outside = (*rows.messages[0][:12], "../../etc/passwd", 0, 0)
        parse_rows(Rows([outside]).head(), memoryview(b""))


def test_a_queue_id_that_is_here_already_stops_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It cannot be seen in the journal; the mail has its 250, and gets another name."""
    store = busy(tmp_path / "a")
    store.commit([message("M1")], ())
    assert store.try_commit([message("M1")], ()) and store.try_commit([message("M2"), message("M2")], ())
    again = crash(store, tmp_path / "b")
    assert uids(again) == uids(store) == ["M1", "M1-2", "M2", "M2-4"]
    assert "M1" in caplog.text
    again.close()
    store.close()


def test_what_was_settled_last_says_when_it_was_finished(tmp_path: Path) -> None:
    store = busy(tmp_path)
    one, others = message("M1", "a@b.test", "c@b.test"), [message(f"X{n}") for n in range(40)]
    assert store.try_commit([one, *others], ())
    store._catch_up()
    assert store.try_commit((), [Settlement(one.key, [done(0, "delivered")], NOW + 1)])
    assert store.try_commit((), [Settlement(other.key, [done(0, "delivered")], NOW + 2) for other in others])
    assert store.try_commit((), [Settlement(one.key, [done(1, "delivered")], NOW + 200)])
    view = store.get("M1")
    assert view and view.finished_at == NOW + 200
    store.close()


def test_old_records_stay_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both halves are written over again and again: what the database has does not come back."""
    monkeypatch.setattr(journal, "HALF_BYTES", 1 << 16)
    store = busy(tmp_path / "a")
    for n in range(60):
        if not store.try_commit([message(f"M{n:02}")], ()):
            store.commit([message(f"M{n:02}")], ())
        if n % 7 == 0:
            store._catch_up()
        if n % 13 == 0:
            assert uids(crash(store, tmp_path / f"b{n}")) == [f"M{k:02}" for k in range(n + 1)]
    store.close()
    assert uids(crash(store, tmp_path / "last")) == [f"M{k:02}" for k in range(60)]


@pytest.mark.parametrize("fault", ["error before", "error behind", "short"])
def test_a_journal_that_fails_is_given_up_and_the_mail_is_taken_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    real = os.pwritev
    calls = 0

    def pwritev(file: int, pieces: Any, offset: int, flags: int) -> int:
        nonlocal calls
        calls += 1
        if calls == 2 and fault == "error before":
            raise OSError(5, "Input/output error")
        written = real(file, pieces, offset, flags)
        if calls == 2 and fault == "error behind":
            raise OSError(5, "Input/output error")
        return written // 2 if calls == 2 else written

    async def main() -> None:
        store = busy(tmp_path / "a")
        monkeypatch.setattr(os, "pwritev", pwritev)
        commit = GroupCommit(store)
        commit.start()
        for n in range(4):
            assert await accepted(commit, message(f"M{n}")) == [None]
        assert not store.maintains_beside and calls == 2
        assert uids(crash(store, tmp_path / "b")) == ["M0", "M1", "M2", "M3"]
        await commit.stop()
        store.close()
        assert uids(crash(store, tmp_path / "c")) == ["M0", "M1", "M2", "M3"]

    run_async(main)


def test_while_the_database_has_no_room_the_journal_keeps_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(journal, "HALF_BYTES", 1 << 16)
    store = busy(tmp_path / "a")
    names = [f"M{n:02}" for n in range(40)]
    assert store.try_commit([message(names[0])], ())
    with monkeypatch.context() as broken:

        def full(*_: Any) -> None:
            raise StoreFullError("no room left for the queue")

        broken.setattr(sqlite, "write_commits", full)
        taken = 1
        for name in names[1:]:
            store._catch_up()
            taken += store.try_commit([message(name)], ())
        # Until both halves are full; then the database is asked, and says no.
        assert 10 < taken < 40
        with pytest.raises(StoreFullError):
            store.commit([message("more")], ())
        assert caplog.text.count("no room left") == 1
        shutil.copytree(tmp_path / "a", tmp_path / "b")
        store.close()
        assert Path(store._ahead.journal.path).exists()
    for folder in ("a", "b"):
        again = SqliteStore(str(tmp_path / folder))
        again.open()
        assert uids(again) == names[:taken]
        again.close()


def test_readers_see_it_soon_and_whoever_asks_the_server_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ahead, "BUSY_COMMITTED", 20)

    async def main() -> None:
        store = SqliteStore(str(tmp_path))
        store.open()
        commit = GroupCommit(store)
        commit.start()
        # Nobody is busy yet: the database has it with the 250.
        assert await accepted(commit, message("first")) == [None] and not store.is_behind
        assert await accepted(commit, *(message(f"M{n}") for n in range(22))) == [None] * 22
        await until(lambda: store.maintains_beside and not commit._lock.locked())
        path = tmp_path / "queue-0.journal"
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert await accepted(commit, message("asked for")) == [None] and store.is_behind
        assert (await commit.read(lambda reader: reader.get("asked for"))) is not None and not store.is_behind
        assert await accepted(commit, message("soon")) == [None] and store.is_behind
        reader = store.reader()
        await until(lambda: reader.get("soon") is not None)
        reader.close()
        await commit.stop()
        store.close()
        assert not path.exists()

    run_async(main)


def test_a_burst_does_not_wait_until_the_file_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held_making: tuple[threading.Event, threading.Event]
) -> None:
    monkeypatch.setattr(ahead, "SOON_COMMITTED", 10)
    monkeypatch.setattr(ahead, "BUSY_COMMITTED", 20)
    begun, go = held_making

    async def main() -> None:
        store = SqliteStore(str(tmp_path))
        store.open()
        commit = GroupCommit(store)
        commit.start()
        assert await accepted(commit, *(message(f"M{n}") for n in range(10))) == [None] * 10
        await until(begun.is_set)
        # Busy or not: the database has them meanwhile, by either thread, and that it is slow is held against nobody.
        for n in range(10, 40):
            assert await accepted(commit, message(f"M{n}")) == [None] and not store.is_behind
        with monkeypatch.context() as slowly:
            slowly.setattr(company, "STALLED_S", 0.0)
            assert await accepted(commit, message("M40")) == [None]
        assert commit.company.suits_loop(0, 1, time.monotonic())
        assert await commit.run(lambda _: "whatever") == "whatever"
        go.set()
        # The writer thread has noted it, and has given the store back.
        await until(lambda: store._ahead.is_on and not commit._lock.locked())
        assert await accepted(commit, message("M41")) == [None] and store.is_behind
        assert not commit._is_preparing and not store.wants_preparing
        await commit.stop()
        assert len(uids(store)) == 42
        store.close()

    run_async(main)


def test_who_stops_while_the_file_is_made_leaves_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held_making: tuple[threading.Event, threading.Event]
) -> None:
    monkeypatch.setattr(ahead, "SOON_COMMITTED", 1)
    begun, go = held_making

    async def main() -> None:
        store = SqliteStore(str(tmp_path))
        store.open()
        commit = GroupCommit(store)
        commit.start()
        assert await accepted(commit, message("M1")) == [None]
        await until(begun.is_set)
        threading.Timer(0.05, go.set).start()
        await commit.stop()
        store.close()
        assert not list(tmp_path.glob("*.journal")) and not store._ahead.journal.is_open

    run_async(main)


def test_no_room_for_the_file_is_said_once_and_commits_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(ahead, "SOON_COMMITTED", 1)
    monkeypatch.setattr(ahead, "BUSY_COMMITTED", 2)

    def pwrite(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", pwrite)

    async def main() -> None:
        store = SqliteStore(str(tmp_path))
        store.open()
        commit = GroupCommit(store)
        commit.start()
        for n in range(10):
            assert await accepted(commit, message(f"M{n}")) == [None]
        await until(lambda: "goes on without its journal" in caplog.text and not commit._is_preparing)
        assert await accepted(commit, message("M10")) == [None]
        assert not store.wants_preparing and not store.wants_maintenance and not store.maintains_beside
        await commit.stop()
        assert len(uids(store)) == 11 and caplog.text.count("goes on without its journal") == 1
        store.close()

    run_async(main)


def test_it_is_asked_for_once_more_while_it_is_being_made(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The loop's thread looks just before the file is there, and says so just behind."""
    store = SqliteStore(str(tmp_path))
    store.open()
    store.prepare()
    store._ahead.wants_file = True
    store.prepare()
    assert not store.wants_preparing and not caplog.text
    store._begin_journal()
    assert store.maintains_beside
    store.close()


def test_a_file_that_was_tidied_away_meanwhile_is_made_anew(tmp_path: Path) -> None:
    store = SqliteStore(str(tmp_path / "a"), has_journal_ready=True)
    store.open()
    store.prepare()
    path = tmp_path / "a" / "queue-0.journal"
    path.unlink()
    path.write_text("somebody else's")
    store._begin_journal()
    assert store.try_commit([message("M1")], ()) and store.is_behind
    again = crash(store, tmp_path / "b")
    assert uids(again) == ["M1"]
    again.close()
    store.close()


def test_a_daemon_has_the_file_before_it_is_busy_and_no_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = SqliteStore(str(tmp_path / "a"), has_journal_ready=True)
    store.open()
    assert store.wants_preparing
    store.prepare()
    path = tmp_path / "a" / "queue-0.journal"
    assert (
        not store.wants_preparing
        and path.stat().st_size == FIRST + 2 * journal.HALF_BYTES
        and not store.maintains_beside
    )
    assert store.try_commit([message("M1")], ()) and not store.is_behind
    # Nothing is in it, so a crash leaves nothing; and it is not made again when it is needed.
    again = crash(store, tmp_path / "b")
    assert uids(again) == ["M1"] and not (tmp_path / "b" / path.name).exists()
    again.close()
    made = path.stat().st_ino
    store._begin_journal()
    assert store.try_commit([message("M2")], ()) and store.is_behind and path.stat().st_ino == made
    last = crash(store, tmp_path / "c")
    assert uids(last) == uids(store) == ["M1", "M2"]
    last.close()
    store.close()
    assert not path.exists()

    def pwrite(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", pwrite)
    full = SqliteStore(str(tmp_path / "a"), has_journal_ready=True)
    full.open()
    full.prepare()
    assert "goes on without its journal" in caplog.text and not path.exists()
    monkeypatch.setattr(ahead, "SOON_COMMITTED", 1)
    assert full.try_commit([message("M3")], ()) and not full.wants_preparing
    full.close()


def test_what_is_on_its_way_is_waited_for_and_a_failure_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ahead, "BEHIND_S", 0.01)
    monkeypatch.setattr(commit_module, "BEHIND_S", 0.01)
    go = threading.Event()
    real = sqlite.write_commits
    fails = 2

    def slow(*arguments: Any) -> None:
        nonlocal fails
        go.wait(10)
        fails -= 1
        if fails >= 0:
            raise StoreError("not now")
        real(*arguments)

    monkeypatch.setattr(sqlite, "write_commits", slow)

    async def main() -> None:
        store = busy(tmp_path)
        commit = GroupCommit(store)
        commit.start()
        assert await accepted(commit, message("M1")) == [None]
        await until(lambda: store._ahead._is_taken)
        assert store.is_behind
        go.set()
        # Nobody asks, nobody sends: it comes all the same.
        reader = store.reader()
        await until(lambda: reader.get("M1") is not None)
        assert fails == -1
        # The commit is seen a moment before the store hears of it.
        await until(lambda: not store.is_behind)
        reader.close()
        await commit.stop()
        store.close()

    run_async(main)


def test_who_shares_a_commit_with_many_needs_no_journal(tmp_path: Path) -> None:
    store = SqliteStore(str(tmp_path))
    store.open()
    for n in range(7):
        assert store.try_commit([message(f"M{n}-{k}") for k in range(50)], ())
    assert not store._ahead.is_wanted
    for n in range(8):
        assert store.try_commit([message(f"S{n}")], ())
    # Its file first.
    assert store.wants_preparing and not store._ahead.is_wanted
    store.prepare()
    assert store._ahead.is_wanted
    store.close()


def test_large_commits_and_many_recipients_are_the_databases_own(tmp_path: Path) -> None:
    store = busy(tmp_path)
    large = message("large")
    large.content.prefix = b"x" * (ahead.MOST_BYTES + 1)
    assert not store.try_commit([large], ()) and not store.is_behind
    assert store.try_commit([message("small")], ())
    # What follows it in the database comes behind it.
    store.commit([large], ())
    assert not store.is_behind and uids(store) == ["large", "small"]
    store.close()


def test_what_a_crash_left_is_there_for_those_who_only_look(tmp_path: Path) -> None:
    store = busy(tmp_path / "a")
    assert store.try_commit([message("M1")], ())
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    catch_up(str(tmp_path / "a"))
    assert store.is_behind, "a server that runs is let alone"
    catch_up(str(tmp_path / "b"))
    columns, rows = ask_sql(str(tmp_path / "b"), "SELECT uid FROM queue_messages")
    assert list(rows) == [("M1",)]
    assert not list((tmp_path / "b").glob("*.journal"))
    store.close()


def test_a_journal_of_another_queue_stops_the_start_and_stays(tmp_path: Path) -> None:
    store = busy(tmp_path / "a")
    assert store.try_commit([message("M1")], ())
    other = SqliteStore(str(tmp_path / "b"))
    other.open()
    other.commit([message("M1")], ())
    other.close()
    shutil.copy(tmp_path / "a" / "queue-0.journal", tmp_path / "b")
    with pytest.raises(StoreError, match=r"queue-0\.journal cannot be brought to .*move it away"):
        SqliteStore(str(tmp_path / "b")).open()
    assert (tmp_path / "b" / "queue-0.journal").exists()
    (tmp_path / "b" / "queue-0.journal").unlink()
    (tmp_path / "b" / "queue-0.journal").mkdir()
    with pytest.raises(StoreError, match=r"queue-0\.journal cannot be brought to .*nothing was changed: .*directory"):
        SqliteStore(str(tmp_path / "b")).open()
    store.close()


def test_a_making_that_was_cut_off_leaves_nothing(tmp_path: Path) -> None:
    store = SqliteStore(str(tmp_path))
    store.open()
    # Its key has not come to the database.
    store._ahead.journal.make()
    again = crash(store, tmp_path / "b")
    assert uids(again) == [] and not list((tmp_path / "b").glob("*.journal"))
    again.close()


def test_a_database_that_cannot_note_its_journal_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(ahead, "BUSY_COMMITTED", 0)
    store = SqliteStore(str(tmp_path))
    store.open()

    def full(*_: Any) -> None:
        raise StoreFullError("no room left for the queue")

    with monkeypatch.context() as broken:
        broken.setattr(store, "set_flag", full)
        assert store._ahead.is_wanted
        store.maintain()
    # It is not asked again and again.
    assert not store._ahead.is_wanted and not store.maintains_beside and "goes on without its journal" in caplog.text
    assert not list(tmp_path.glob("*.journal"))
    assert store.try_commit([message("M1")], ()) and uids(store) == ["M1"]
    store.close()


def test_a_disk_without_room_for_a_journal_keeps_the_way_of_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = SqliteStore(str(tmp_path))
    store.open()

    def pwrite(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", pwrite)
    store._begin_journal()
    monkeypatch.undo()
    assert not store.maintains_beside and "goes on without its journal" in caplog.text
    assert store.try_commit([message("M1")], ()) and uids(store) == ["M1"]
    assert not list(tmp_path.glob("*.journal"))
    store.close()

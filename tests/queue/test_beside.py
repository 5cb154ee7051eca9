"""Other work on a busy shard's database: beside the commits, behind what was asked for before it, and nothing waits for it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from pillarbox.errors import StoreError
from pillarbox.mail.content import Content
from pillarbox.queue import ahead, journal
from pillarbox.queue.commit import GroupCommit
from pillarbox.queue.model import Action, Query, Settlement
from pillarbox.queue.sqlite import SqliteStore
from tests.conftest import run_async, until
from tests.queue.test_commit_spool import accepted
from tests.queue.test_store_contract import NOW, claim, done, message, settle

needs_journal = pytest.mark.skipif(not journal.Journal.is_possible(), reason="the journal needs Linux's RWF_DSYNC")


@asynccontextmanager
async def working(folder: Path, *, is_busy: bool = True) -> AsyncIterator[tuple[SqliteStore, GroupCommit]]:
    """A store as on a busy server (or not so busy), and the way to it."""
    store = SqliteStore(str(folder))
    store.open()
    if is_busy:
        store._begin_journal()
    commit = GroupCommit(store)
    commit.start()
    try:
        yield store, commit
    finally:
        await commit.stop()
        store.close()


def uids(store: Any) -> list[str]:
    return sorted(view.uid for view in store.search(Query(is_all=True)))


class Held:
    """Work that begins, and goes on when it may."""

    def __init__(self) -> None:
        self.begun, self.go = threading.Event(), threading.Event()

    def __call__(self, store: Any) -> list[str]:
        self.begun.set()
        assert self.go.wait(30)
        return uids(store)

    async def begin(self, commit: GroupCommit) -> asyncio.Task[list[str]]:
        """The writer thread is at it when this returns."""
        run = asyncio.create_task(commit.run(self))
        await until(self.begun.is_set)
        return run


@needs_journal
def test_no_message_waits_for_it(tmp_path: Path) -> None:
    async def main() -> None:
        async with working(tmp_path) as (store, commit):
            held = Held()
            assert await accepted(commit, message("before")) == [None]
            run = await held.begin(commit)
            for n in range(30):
                assert await accepted(commit, message(f"M{n:02}")) == [None]
            assert not run.done()
            held.go.set()
            assert await run == ["before"], "what came while it was at work is brought behind it"
            assert await commit.read(lambda reader: len(reader.search(Query(is_all=True, limit=100)))) == 31

    run_async(main)


@needs_journal
@pytest.mark.parametrize("size", [10, ahead.MOST_BYTES + 1], ids=["small", "large"])
def test_it_sees_what_was_asked_for_before(tmp_path: Path, size: int) -> None:
    """In the same turn, also where that is more than the journal takes; and what it says of it holds."""

    async def main() -> None:
        async with working(tmp_path) as (store, commit):
            results: list[Any] = []
            commit.accept(message("new", content=Content(b"Subject: x\r\n\r\n" + b"x" * size)), results.append)
            found = await commit.run(lambda s: (uids(s), s.change(Action.HOLD, Query(uids=("new",)), NOW)))
            assert results == [None] and found == (["new"], ["new"])
            view = await commit.read(lambda reader: reader.get("new"))
            assert view is not None and view.recipients[0].state == "held"

    run_async(main)


@needs_journal
def test_an_outcome_that_comes_meanwhile_is_behind_it(tmp_path: Path) -> None:
    async def main() -> None:
        async with working(tmp_path) as (store, commit):
            for uid in ("A", "B"):
                one = message(uid)
                one.leased_until = NOW + 100
                assert await accepted(commit, one) == [None]
            held = Held()
            run = asyncio.create_task(commit.run(held))
            cancel = asyncio.create_task(commit.run(lambda s: s.change(Action.CANCEL, Query(uids=("B",)), NOW)))
            await until(held.begun.is_set)
            for key in (1, 2):
                commit.settle(Settlement(key, [done(0, "delivered")], NOW))
            assert await accepted(commit, message("rides with it")) == [None]
            held.go.set()
            await run
            assert await cancel == ["B"]
            views = [await commit.read(lambda reader, uid=uid: reader.get(uid)) for uid in ("A", "B")]
            # What was on its way when it was cancelled, and arrived, has arrived.
            assert [view.recipients[0].state for view in views] == ["delivered", "delivered"]
            assert all(view.finished_at is not None and len(view.attempts) == 1 for view in views)

    run_async(main)


@needs_journal
def test_it_is_done_in_the_order_in_which_it_was_asked_for(tmp_path: Path) -> None:
    """Beside commits of the loop, and among those of the writer thread (too large for the journal)."""

    async def main() -> None:
        async with working(tmp_path) as (store, commit):
            order: list[int] = []
            runs = []
            for n in range(200):
                runs.append(asyncio.create_task(commit.run(lambda _, n=n: order.append(n))))
                if n % 3 == 0:
                    size = ahead.MOST_BYTES if n % 2 else 10
                    commit.accept(message(f"M{n}", content=Content(b"x" * size)), lambda error: None)
                if n % 5 == 0:
                    await asyncio.sleep(0)
            await asyncio.gather(*runs)
            assert order == list(range(200))

    run_async(main)


@needs_journal
def test_what_waits_for_the_writer_thread_is_one_transaction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has its flush: mail that the program itself queues would have one in each turn of the loop."""
    begun: list[int] = []
    real = SqliteStore.transaction

    @contextmanager
    def transaction(self: SqliteStore) -> Iterator[None]:
        begun.append(1)
        with real(self):
            yield

    async def main() -> None:
        async with working(tmp_path) as (_, commit):
            held = Held()
            first = await held.begin(commit)
            monkeypatch.setattr(SqliteStore, "transaction", transaction)
            runs = []
            for n in range(300):
                one = message(f"M{n:03}")
                runs.append(asyncio.create_task(commit.run(lambda s, one=one: s.accept([one]))))
                await asyncio.sleep(0)
            held.go.set()
            await first
            await asyncio.gather(*runs)
            assert len(await commit.run(uids)) == 300
            assert len(begun) <= 3, "what waited, and the look at it"

    run_async(main)


@needs_journal
def test_nothing_is_taken_before_what_the_writer_thread_has_in_line(tmp_path: Path) -> None:
    """Between two batches of the writer thread the loop puts work in line, and more is asked for."""

    async def main() -> None:
        async with working(tmp_path) as (_, commit):
            at, go, has_taken = threading.Event(), threading.Event(), threading.Event()
            real = commit._take

            def take(**how: Any) -> Any:
                if threading.current_thread() is not threading.main_thread() and not at.is_set():
                    at.set()
                    assert go.wait(30)
                    taken = real(**how)
                    has_taken.set()
                    return taken
                return real(**how)

            commit._take = take  # type: ignore[method-assign]
            order: list[str] = []
            large = message("large", content=Content(b"x" * (ahead.MOST_BYTES + 1)))
            commit.accept(large, lambda error: None)
            await until(at.is_set)
            one = asyncio.create_task(commit.run(lambda _: order.append("one")))
            await until(lambda: commit._beside == 1)
            two = asyncio.create_task(commit.run(lambda _: order.append("two")))
            await asyncio.sleep(0)
            go.set()
            # The loop has no turn until then.
            assert has_taken.wait(30)
            await asyncio.gather(one, two)
            assert order == ["one", "two"]

    run_async(main)


@needs_journal
def test_nothing_joins_what_is_in_line_before_a_commit_of_that_thread(tmp_path: Path) -> None:
    async def main() -> None:
        async with working(tmp_path) as (_, commit):
            held = Held()
            order: list[Any] = []
            runs: list[asyncio.Task[Any]] = [await held.begin(commit)]
            runs.append(asyncio.create_task(commit.run(lambda _: order.append(1))))
            await until(lambda: commit._beside == 2)
            large = message("large", content=Content(b"x" * (ahead.MOST_BYTES + 1)))
            commit.accept(large, lambda error: order.append(error))
            runs.append(asyncio.create_task(commit.run(lambda _: order.append(2))))
            await until(lambda: commit._busy)
            for n in (3, 4):
                runs.append(asyncio.create_task(commit.run(lambda _, n=n: order.append(n))))
                await asyncio.sleep(0)
            held.go.set()
            await asyncio.gather(*runs)
            assert [n for n in order if n] == [1, 2, 3, 4] and None in order

    run_async(main)


def test_without_a_journal_no_thread_is_at_the_database_beside_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with working(tmp_path, is_busy=False) as (store, commit):
            held = Held()
            monkeypatch.setattr(SqliteStore, "wants_maintenance", True)
            monkeypatch.setattr(store, "maintain", lambda: held(store))
            results: list[Any] = []
            commit.accept(message("A"), results.append)
            await until(lambda: results == [None] and held.begun.is_set())
            commit.accept(message("B"), results.append)
            await until(lambda: commit._busy)
            assert commit._lock.locked() and results == [None]
            monkeypatch.setattr(SqliteStore, "wants_maintenance", False)
            held.go.set()
            await until(lambda: results == [None, None])

    run_async(main)


@needs_journal
def test_the_end_waits_for_it(tmp_path: Path) -> None:
    async def main() -> None:
        async with working(tmp_path) as (store, commit):
            held = Held()
            run = await held.begin(commit)
            stop = asyncio.create_task(commit.stop())
            assert await accepted(commit, message("at the last moment")) == [None]
            assert not stop.done() and not run.done()
            held.go.set()
            assert await run == []
            await stop
            assert uids(store) == ["at the last moment"]

    run_async(main)


@needs_journal
def test_its_fault_is_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with working(tmp_path) as (store, commit):

            def fails(store: SqliteStore) -> None:
                store.set_flag("paused", "all")
                raise StoreError("the disk is on fire")

            results: list[Any] = []
            commit.accept(message("M"), results.append)
            with pytest.raises(StoreError, match="on fire"):
                await commit.run(fails)
            assert results == [None] and str(commit.last_error) == "the disk is on fire"
            assert await commit.run(lambda s: (uids(s), s.flag("paused"))) == (["M"], None)
            assert commit.last_error is None

    run_async(main)


@needs_journal
def test_the_journal_fails_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The database is the writer thread's, which is at it: the message is committed there, behind it."""

    async def main() -> None:
        async with working(tmp_path) as (store, commit):
            held = Held()
            run = await held.begin(commit)

            def broken(*_: Any) -> None:
                raise OSError(5, "Input/output error")

            monkeypatch.setattr(journal.Journal, "append", broken)
            results: list[Any] = []
            commit.accept(message("M"), results.append)
            await until(lambda: store._ahead.has_failed)
            assert not results
            held.go.set()
            assert await run == []
            await until(lambda: results == [None])
            assert await commit.run(uids) == ["M"]
            assert await commit.read(lambda reader: reader.get("M")) is not None

    run_async(main)


def test_without_a_journal_it_is_in_the_next_commit(tmp_path: Path) -> None:
    async def main() -> None:
        async with working(tmp_path, is_busy=False) as (store, commit):
            results: list[Any] = []
            commit.accept(message("M"), results.append)
            assert await commit.run(uids) == ["M"]
            assert results == [None] and commit.commits == 1

    run_async(main)


@pytest.mark.parametrize("count", [1, 500])
def test_history_goes_in_as_many_statements_however_much_it_is(tmp_path: Path, count: int) -> None:
    """Each statement gives the interpreter's lock away, and the loop's thread waits for it."""
    store = SqliteStore(str(tmp_path))
    store.open()
    with store.transaction():
        store.accept([message(f"M{n}") for n in range(count)])
    for one in claim(store, limit=count, size=1 << 26):
        settle(store, one.key, done(0, "delivered"), at=NOW)
    statements: list[str] = []
    with store.transaction():
        store._db.trace_v2(1, lambda event: statements.append(event["sql"]))
        store.purge(NOW + 1, 0, 1000)
        store._db.trace_v2(0, None)
    assert uids(store) == [] and store.rows("export_attempts", (0, 1 << 40)) == []
    assert store.rows("export_recipients", (0, 1 << 40)) == []
    assert len([sql for sql in statements if not sql.startswith("--")]) <= 8, statements
    store.close()

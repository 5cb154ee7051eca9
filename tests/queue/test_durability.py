"""Nothing is answered before it is on the disk: which writes are synced, in which order, and what a damaged record is worth."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import apsw
import pytest

from pillarbox.errors import StoreError, StoreFullError
from pillarbox.mail.content import Content
from pillarbox.queue import journal
from pillarbox.queue.commit import GroupCommit
from pillarbox.queue.journal import Journal
from pillarbox.queue.spool import Spool, sync_folder
from pillarbox.queue.sqlite import SqliteStore
from tests.conftest import run_async, until
from tests.queue.test_store_contract import done, message, settle

needs_journal = pytest.mark.skipif(not Journal.is_possible(), reason="the journal needs Linux's RWF_DSYNC")
DATA, WHOLE = "fdatasync", "fsync"


class Calls:
    """Records what is written and synced: (call, name of the file)."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[tuple[str, str]] = []
        for name in (DATA, WHOLE):
            monkeypatch.setattr(os, name, self._noting(name, getattr(os, name)))
        real = os.pwritev

        def pwritev(file: int, pieces: Any, at: int, flags: int = 0) -> int:
            self._note("pwritev dsync" if flags & os.RWF_DSYNC else "pwritev", file)
            return real(file, pieces, at, flags)

        monkeypatch.setattr(os, "pwritev", pwritev)

    def _noting(self, name: str, real: Callable[[int], None]) -> Callable[[int], None]:
        def call(file: int) -> None:
            real(file)
            self._note(name, file)

        return call

    def _note(self, name: str, file: int) -> None:
        self.seen.append((name, os.path.basename(os.readlink(f"/proc/self/fd/{file}"))))


# -------------------------------------------------------------------------- SQLite


class SyncingVfs(apsw.VFS):
    """SQLite's own file system, with a count of the syncs of each file."""

    def __init__(self) -> None:
        self.syncs: list[str] = []
        super().__init__("pillarbox-test-syncs", "unix", makedefault=True)

    def xOpen(self, name: Any, flags: list[int]) -> apsw.VFSFile:
        return SyncingFile(self, name, flags)


class SyncingFile(apsw.VFSFile):
    def __init__(self, vfs: SyncingVfs, name: Any, flags: list[int]) -> None:
        self._vfs = vfs
        self._name = os.path.basename(name.filename() if isinstance(name, apsw.URIFilename) else name or "")
        super().__init__("unix", name, flags)

    def xSync(self, flags: int) -> None:
        super().xSync(flags)
        self._vfs.syncs.append(self._name)


def test_sqlite_commit_is_synced_before_it_returns(tmp_path: Path) -> None:
    vfs = SyncingVfs()
    try:
        store = SqliteStore(str(tmp_path))
        store.open()
        for pragma, value in (("synchronous", 2), ("journal_mode", "wal"), ("wal_autocheckpoint", 0)):
            assert next(iter(store._db.execute(f"PRAGMA {pragma}")))[0] == value
        acts: list[Callable[[], Any]] = [
            lambda: store.commit([message("A")], ()),
            lambda: store.try_commit([message("B")], ()),
            lambda: settle(store, 1, done(0, "delivered")),
            lambda: run_flag(store),
        ]
        for act in acts:
            vfs.syncs.clear()
            act()
            assert "queue-0.db-wal" in vfs.syncs
        store.close()
    finally:
        vfs.unregister()


def run_flag(store: SqliteStore) -> None:
    with store.transaction():
        store.set_flag("paused", "1")


def test_lengthened_wal_is_synced_before_it_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Calls(monkeypatch)
    store = SqliteStore(str(tmp_path))
    store.open()
    assert (WHOLE, "queue-0.db-wal") in calls.seen
    store.close()


# ------------------------------------------------------------------------- journal


@needs_journal
def test_journal_is_made_durable_before_its_first_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Calls(monkeypatch)
    one = Journal(str(tmp_path / "queue-0.journal"))
    one.make()
    # The length first, then the key by which records are known, then the name in the folder.
    assert calls.seen == [(WHOLE, "queue-0.journal"), ("pwritev dsync", "queue-0.journal"), (WHOLE, tmp_path.name)]
    calls.seen.clear()
    one.append(b"head", [b"content"])
    assert calls.seen == [("pwritev dsync", "queue-0.journal")]
    assert (tmp_path / "queue-0.journal").stat().st_mode & 0o777 == 0o600
    one.close()


@needs_journal
def test_journal_that_could_not_be_written_whole_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = Journal(str(tmp_path / "j"))
    one.make()
    real = os.pwritev
    monkeypatch.setattr(os, "pwritev", lambda file, pieces, at, flags: real(file, pieces, at, flags) - 1)
    with pytest.raises(OSError, match="octets"):
        one.append(b"head", [b"content"])
    monkeypatch.setattr(os, "pwritev", real)
    # The number is used up: what may be on the disk under it must not be taken for the next record.
    one.append(b"second", [b""])
    assert one.number == 2
    one.close()


@needs_journal
def test_damage_at_any_octet_costs_its_record_alone(tmp_path: Path) -> None:
    path = tmp_path / "j"
    one = Journal(str(path))
    one.make()
    heads = [b"one", b"two", b"three"]
    for head in heads:
        one.append(head, [head * 3, b"."])
    one.close(is_needed=True)
    octets = bytearray(path.read_bytes())
    key, records = Journal(str(path)).read()
    assert key == one.key and [(number, bytes(head)) for number, head, _ in records] == list(enumerate(heads, 1))
    assert [bytes(content) for _, _, content in records] == [head * 3 + b"." for head in heads]
    start = journal._BLOCK_BYTES * 2
    size = journal._HEADER.size + len(b"two") * 4 + 1
    for at in range(start, start + size):
        octets[at] ^= 0x40
        path.write_bytes(octets)
        assert [number for number, _, _ in Journal(str(path)).read()[1]] == [1, 3], at - start
        octets[at] ^= 0x40
    # What is behind a record is not its own.
    octets[start + size] ^= 0x40
    path.write_bytes(octets)
    assert len(Journal(str(path)).read()[1]) == 3


@needs_journal
def test_record_of_another_key_is_none(tmp_path: Path) -> None:
    """Octets of an older file, or of somebody's mail, that look like a record."""
    one, other = Journal(str(tmp_path / "a")), Journal(str(tmp_path / "b"))
    for each in (one, other):
        each.make()
        each.append(b"head", [b"content"])
        each.close(is_needed=True)
    assert one.key != other.key
    octets = bytearray((tmp_path / "a").read_bytes())
    octets[journal._BLOCK_BYTES :] = (tmp_path / "b").read_bytes()[journal._BLOCK_BYTES :]
    (tmp_path / "a").write_bytes(octets)
    assert Journal(str(tmp_path / "a")).read() == (one.key, [])


@needs_journal
def test_half_of_a_journal_is_written_again_only_when_the_database_has_it(tmp_path: Path) -> None:
    store = SqliteStore(str(tmp_path))
    store.open()
    store._begin_journal()
    ahead = store._ahead
    assert store.try_commit([message("A")], ())
    first = ahead.journal._half
    taken, number = ahead.pending()
    assert ahead.journal._half != first and number == 1
    # The database did not take it: the other half must not be begun anew.
    ahead.undone(taken)
    assert store.try_commit([message("B")], ())
    again, _ = ahead.pending()
    assert ahead.journal._half != first and len(again) == 2
    ahead.undone(again)
    with store.transaction():
        pass
    assert not store.is_behind and store.flag("journal") == f"2 {ahead.journal.key.hex()}"
    store.close()


# --------------------------------------------------------------------- group commit


@pytest.mark.parametrize("kind", ["loop", "thread", "journal"])
def test_answer_comes_behind_the_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Of every way to the store: a session hears that its message is taken when the commit has returned."""
    order: list[str] = []

    async def main() -> None:
        store = SqliteStore(str(tmp_path))
        store.open()
        if kind == "journal":
            store._begin_journal()
        for name in ("commit", "try_commit"):
            real = getattr(store, name)

            def noting(*given: Any, real: Any = real) -> Any:
                order.append("begin")
                answer = real(*given)
                order.append("end")
                return answer

            monkeypatch.setattr(store, name, noting)
        commit = GroupCommit(store)
        if kind == "thread":
            commit.company.took(60.0, time.monotonic())
            commit.company.took(60.0, time.monotonic())
        commit.start()
        answers: list[BaseException | None] = []
        for number in range(5):
            commit.accept(message(f"M{number}"), lambda error: (order.append("answer"), answers.append(error))[1])
        assert not answers, "not while it is asked for"
        await until(lambda: len(answers) == 5)
        assert answers == [None] * 5
        last_end = len(order) - 1 - order[::-1].index("end")
        assert order[0] == "begin" and order.index("answer") > last_end
        await commit.stop()
        store.close()

    run_async(main)


@pytest.mark.parametrize("is_slow", [False, True])
def test_commit_that_fails_is_no_acceptance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_slow: bool) -> None:
    async def main() -> None:
        store = SqliteStore(str(tmp_path))
        store.open()
        failure = StoreFullError("no room left")

        def fails(*given: Any) -> None:
            raise failure

        monkeypatch.setattr(store, "commit", fails)
        monkeypatch.setattr(store, "try_commit", fails)
        commit = GroupCommit(store)
        if is_slow:
            commit.company.took(60.0, time.monotonic())
            commit.company.took(60.0, time.monotonic())
        commit.start()
        answers: list[BaseException | None] = []
        for number in range(3):
            commit.accept(message(f"M{number}"), answers.append)
        await until(lambda: len(answers) == 3)
        assert answers == [failure] * 3 and commit.last_error is failure
        await commit.stop()
        store.close()

    run_async(main)


# --------------------------------------------------------------------------- spool


def test_spool_file_and_its_name_are_synced_before_it_is_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = Calls(monkeypatch)

    async def main() -> None:
        spool = Spool(str(tmp_path))
        for name, pieces in (("large", [b"x" * 300_000] * 3), ("small", [b"x"]), ("empty", [])):
            calls.seen.clear()
            writer = spool.create(name, lambda wants: None)
            for piece in pieces:
                writer.write(piece)
                await asyncio.sleep(0)
            seen: list[Any] = []
            writer.finish(lambda error, seen=seen: seen.append((error, list(calls.seen))))  # type: ignore[misc]
            await until(lambda seen=seen: seen)  # type: ignore[misc]
            assert seen == [(None, [(DATA, name), (WHOLE, tmp_path.name)])]
            assert (tmp_path / name).stat().st_size == sum(map(len, pieces))
        spool.close()

    run_async(main)


@pytest.mark.parametrize("call", [DATA, WHOLE])
def test_spool_whose_sync_fails_is_not_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    def fails(file: int) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, call, fails)

    async def main() -> None:
        spool = Spool(str(tmp_path))
        writer = spool.create("one", lambda wants: None)
        writer.write(b"x")
        errors: list[Any] = []
        writer.finish(errors.append)
        await until(lambda: errors)
        assert isinstance(errors[0], StoreError)
        await until(lambda: not (tmp_path / "one").exists())
        spool.close()

    run_async(main)


def test_folder_that_cannot_be_synced_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError):
        sync_folder(str(tmp_path / "missing"))
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError):
        sync_folder(str(tmp_path / "file"))


# --------------------------------------------------------------- what a crash left


def test_orphan_of_the_spool_goes_and_what_a_row_names_stays(tmp_path: Path) -> None:
    for name in ("needed", "orphan"):
        (tmp_path / name).write_bytes(b"x")
    spool = Spool(str(tmp_path))
    assert spool.collect_orphans({"needed"}) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["needed"]
    spool.close()


def test_message_without_its_content_is_held_and_the_rest_goes_on(tmp_path: Path) -> None:
    store = SqliteStore(str(tmp_path))
    store.open()
    store.commit([message("torn", "a@d.test", "b@d.test"), message("whole")], ())
    with store.transaction():
        store._db.execute("DELETE FROM content WHERE message_id = 1")
        claimed = store.claim(10, 2e9, 2e9 + 10, 1 << 20)
    assert [one.uid for one in claimed] == ["whole"]
    view = store.get("torn")
    assert view is not None
    assert [(r.state, r.is_leased, r.due_at) for r in view.recipients] == [("held", False, None)] * 2
    assert view.finished_at is None and "content is missing" in (view.recipients[0].last_reply or "")
    store.close()


def test_crash_makes_what_was_leased_due_and_an_attempt_in_doubt(tmp_path: Path) -> None:
    store = SqliteStore(str(tmp_path))
    store.open()
    one = message("A", "a@d.test", "b@d.test", content=Content(b"x"))
    one.leased_until = 2e9
    store.commit([one, message("B")], ())
    with store.transaction():
        assert store.recover(1_900_000_000.0) == 2
    leased, other = store.get("A"), store.get("B")
    assert leased is not None and other is not None
    assert [(r.attempts, r.due_at, r.is_leased) for r in leased.recipients] == [(1, 1_900_000_000.0, False)] * 2
    assert [attempt.outcome for attempt in leased.attempts] == ["ambiguous"] * 2
    assert other.recipients[0].attempts == 0 and not other.attempts
    store.close()

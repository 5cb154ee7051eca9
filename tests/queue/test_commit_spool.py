"""Group commit and the spool: what shares a commit, what happens when the disk says no."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from pillarbox.errors import DuplicateUidError, StoreError, StoreFullError
from pillarbox.mail.content import HEAD_BYTES, Content
from pillarbox.queue.commit import GroupCommit
from pillarbox.queue.memory import MemoryStore
from pillarbox.queue.model import Query, Settlement
from pillarbox.queue.spool import HIGH_BYTES, Spool, _write_all
from pillarbox.queue.sqlite import SqliteStore
from tests.conftest import run_async, until
from tests.queue.test_store_contract import NOW, done, message


async def accepted(commit: GroupCommit, *messages: Any) -> list[BaseException | None]:
    """The verdict on each."""
    results: list[BaseException | None] = []
    for one in messages:
        commit.accept(one, results.append)
    await until(lambda: len(results) == len(messages))
    return results


@pytest.mark.parametrize("inline", [False, True])
def test_what_comes_together_shares_a_commit(tmp_path: Path, inline: bool) -> None:
    async def main() -> None:
        store = SqliteStore(str(tmp_path))
        store.open()
        commit = GroupCommit(store)
        if not inline:
            # A disk that slow is the writer thread's work.
            commit.company.took(60.0, time.monotonic())
            commit.company.took(60.0, time.monotonic())
        commit.start()
        assert await accepted(commit, *(message(f"M{n}") for n in range(50))) == [None] * 50
        assert commit.commits == 1 and commit.committed == 50
        assert await commit.read(lambda reader: reader.counts()) == {"queued": 50}
        assert await commit.run(lambda s: s.next_due()) == NOW
        await commit.stop()
        store.close()

    run_async(main)


def test_only_the_culprit_fails(tmp_path: Path) -> None:
    async def main() -> None:
        store = SqliteStore(str(tmp_path))
        store.open()
        commit = GroupCommit(store)
        commit.start()
        await accepted(commit, message("A"))
        settled = Settlement(1, [done(0, "delivered")], NOW)
        commit.settle(settled)

        def bad(s: Any) -> None:
            raise ValueError("a bad idea")

        failing = asyncio.ensure_future(commit.run(bad))
        results = await accepted(commit, message("B"), message("A"), message("C"))
        assert [type(r) for r in results] == [type(None), DuplicateUidError, type(None)]
        with pytest.raises(ValueError, match="a bad idea"):
            await failing
        assert await commit.run(lambda s: [v.uid for v in s.search(Query(is_all=True))]) == ["A", "B", "C"]
        assert (await commit.read(lambda r: r.get("A"))).state == "delivered"
        with pytest.raises(ZeroDivisionError):
            await commit.read(lambda r: 1 // 0)
        assert (await accepted(commit, message("A")))[0].__class__ is DuplicateUidError
        assert commit.last_error is None, "a uid that is queued already is no fault of the store"
        await commit.stop()
        store.close()

    run_async(main)


def test_fault_of_the_store_is_kept_beside_a_duplicate_and_forgotten_after_one() -> None:
    async def main() -> None:
        commit = GroupCommit(MemoryStore())
        fault, duplicate = StoreError("disk full"), DuplicateUidError("queued already")
        commit._note([duplicate, None, fault])
        assert commit.last_error is fault
        commit._note([duplicate])
        assert commit.last_error is None

    run_async(main)


def test_a_settlement_is_tried_until_it_is_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("pillarbox.queue.commit.FAULT_PAUSE_S", 0.01)

    async def main() -> None:
        store = MemoryStore()
        real, failures = store.commit, [3]

        def flaky(accepts: Any, settles: Any) -> None:
            if settles and failures[0]:
                failures[0] -= 1
                raise StoreError("the disk is away")
            real(accepts, settles)

        monkeypatch.setattr(store, "commit", flaky)
        commit = GroupCommit(store)
        commit.start()
        await accepted(commit, message("A"))
        commit.settle(Settlement(1, [done(0, "delivered")], NOW))
        await until(lambda: store.get("A").state == "delivered")
        assert failures == [0]
        await commit.stop()

    run_async(main)


def test_settlements_alone_wait_for_company(tmp_path: Path) -> None:
    async def main() -> None:
        store = SqliteStore(str(tmp_path))
        store.open()
        commit = GroupCommit(store)
        commit.start()
        await accepted(commit, *(message(f"M{n}") for n in range(100)))
        for key in range(1, 101):
            commit.settle(Settlement(key, [done(0, "delivered")], NOW))
        await commit.stop()
        assert store.counts() == {"delivered": 100} and commit.commits <= 3
        store.close()

    run_async(main)


def test_checkpoints_happen_between_commits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pillarbox.queue.sqlite.CHECKPOINT_PAGES", 3)

    async def main() -> None:
        for inline in (False, True):
            store = SqliteStore(str(tmp_path / str(inline)))
            store.open()
            threads = []
            real = store.maintain
            monkeypatch.setattr(store, "maintain", lambda: (threads.append(threading.current_thread().name), real()))
            commit = GroupCommit(store)
            if not inline:
                # A disk that slow is the writer thread's work.
                commit.company.took(60.0, time.monotonic())
                commit.company.took(60.0, time.monotonic())
            commit.start()
            for n in range(5):
                await accepted(commit, message(f"M{n}"))
            await commit.stop()
            assert set(threads) == {"pillarbox-writer"}
            store.close()

    run_async(main)


# ----------------------------------------------------------------------------- spool


async def written(spool: Spool, name: str, pieces: list[bytes]) -> tuple[Any, BaseException | None]:
    wants: list[bool] = []
    writer = spool.create(name, wants.append)
    for piece in pieces:
        writer.write(piece)
        while wants and not wants[-1]:
            await asyncio.sleep(0)
    results: list[BaseException | None] = []
    writer.finish(results.append)
    await until(lambda: results)
    return writer, results[0]


def test_spool_writes_and_syncs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    real_data, real_all = os.fdatasync, os.fsync
    monkeypatch.setattr(os, "fdatasync", lambda fd: (order.append("data"), real_data(fd)))
    monkeypatch.setattr(os, "fsync", lambda fd: (order.append("folder"), real_all(fd)))

    async def main() -> None:
        spool = Spool(str(tmp_path))
        pieces = [bytes([n]) * 100_000 for n in range(30)]
        writer, error = await written(spool, "one", pieces)
        assert error is None and order == ["data", "folder"]
        content = writer.content()
        assert content.read() == b"".join(pieces) and content.size_bytes == 3_000_000
        assert len(writer.head) == HEAD_BYTES and content.start(10) == b"\0" * 10
        _, error = await written(spool, "empty", [])
        assert error is None and (tmp_path / "empty").read_bytes() == b""
        assert (tmp_path / "one").stat().st_mode & 0o777 == 0o600
        spool.remove(["one", "never was"])
        spool.close()
        assert not (tmp_path / "one").exists()

    run_async(main)


def test_spool_back_pressure(tmp_path: Path) -> None:
    async def main() -> None:
        spool = Spool(str(tmp_path))
        wants: list[bool] = []
        writer = spool.create("one", wants.append)
        for _ in range(20):
            writer.write(b"x" * 65536)
        assert wants == [False], "more than the high mark is waiting"
        assert writer._waiting_bytes + writer._writing_bytes > HIGH_BYTES
        await until(lambda: wants == [False, True])
        writer.abort()
        await until(lambda: not (tmp_path / "one").exists())
        spool.close()

    run_async(main)


def test_spool_abort_while_writing(tmp_path: Path) -> None:
    async def main() -> None:
        spool = Spool(str(tmp_path))
        writer = spool.create("one", lambda wants: None)
        writer.write(b"x" * 400_000)
        writer.abort()
        idle = spool.create("two", lambda wants: None)
        idle.abort()
        await until(lambda: not writer._is_writing and not (tmp_path / "one").exists())
        spool.close()
        assert os.listdir(tmp_path) == []

    run_async(main)


@pytest.mark.parametrize(
    ("number", "kind"), [(errno.ENOSPC, StoreFullError), (errno.EDQUOT, StoreFullError), (errno.EIO, StoreError)]
)
def test_spool_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[Exception]) -> None:
    def fail(*args: Any) -> int:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "writev", fail)

    async def main() -> None:
        spool = Spool(str(tmp_path))
        writer = spool.create("one", lambda wants: None)
        writer.write(b"x" * 300_000)
        await until(lambda: writer.error is not None)
        writer.write(b"more")
        results: list[BaseException | None] = []
        writer.finish(results.append)
        await until(lambda: results)
        assert type(results[0]) is kind
        spool.close()
        assert os.listdir(tmp_path) == [], "the partial file is gone"

    run_async(main)


def test_spool_fdatasync_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(fd: int) -> None:
        raise OSError(errno.EIO, "I/O error")

    monkeypatch.setattr(os, "fdatasync", fail)

    async def main() -> None:
        spool = Spool(str(tmp_path))
        _, error = await written(spool, "one", [b"x" * 1000])
        assert isinstance(error, StoreError)
        spool.close()
        assert os.listdir(tmp_path) == []

    run_async(main)


def test_spool_does_not_follow_links(tmp_path: Path) -> None:
    async def main() -> None:
        (tmp_path / "spool").mkdir()
        (tmp_path / "spool" / "one").symlink_to(tmp_path / "elsewhere")
        spool = Spool(str(tmp_path / "spool"))
        _, error = await written(spool, "one", [b"x"])
        assert isinstance(error, StoreError) and not (tmp_path / "elsewhere").exists()
        spool.close()

    run_async(main)


def test_orphans(tmp_path: Path) -> None:
    for name in ("needed", "orphan", "another"):
        (tmp_path / name).write_text("x")
    spool = Spool(str(tmp_path))
    assert spool.collect_orphans({"needed"}) == 2 and os.listdir(tmp_path) == ["needed"]
    assert spool.collect_orphans({"needed"}) == 0
    spool.close()


def test_short_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_w = os.write
    monkeypatch.setattr(os, "writev", lambda fd, pieces: real_w(fd, b"".join(pieces)[:5]))
    monkeypatch.setattr(os, "write", lambda fd, octets: real_w(fd, bytes(octets)[:3]))
    handle = os.open(tmp_path / "x", os.O_CREAT | os.O_WRONLY)
    _write_all(handle, [b"abc", b"defghij", b"klm"] * 3)
    os.close(handle)
    assert (tmp_path / "x").read_bytes() == b"abcdefghijklm" * 3


def test_content_too_short(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc")
    with pytest.raises(OSError, match="too short"):
        Content(path=str(tmp_path / "x"), file_bytes=10).read()


def test_a_file_that_is_given_up_when_the_spool_has_closed(tmp_path: Path) -> None:
    """At the end of a server: nothing fails, and the next start collects it."""

    async def main() -> None:
        spool = Spool(str(tmp_path))
        writer = spool.create("x.eml", lambda wants: None)
        writer.write(b"x" * HIGH_BYTES)
        spool.close()
        writer.abort()
        spool.remove(["y.eml"])
        await until(lambda: not writer._is_writing)
        assert spool.collect_orphans(set()) == 1

    run_async(main)

"""Damaged queues: one message is held, the rest goes on. Real files are damaged, octet by octet."""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path

import apsw
import pytest

from pillarbox.errors import StoreError
from pillarbox.mail.content import Content
from pillarbox.queue.model import Action, Query
from pillarbox.queue.sqlite import SqliteStore
from pillarbox.queue.sqlite_claim import Terms

from .test_store_contract import NOW, accept, claim, done, message, settle


@contextlib.contextmanager
def opened(folder: Path, **options: bool) -> Iterator[SqliteStore]:
    store = SqliteStore(str(folder), **options)
    store.open()
    try:
        yield store
    finally:
        store.close()


def filled(folder: Path, count: int = 40) -> None:
    with opened(folder) as store:
        for n in range(count):
            accept(store, message(f"M{n}", content=Content(b"Subject: x\r\n\r\n" + b"%06d" % n * 1500)))


def altered(folder: Path, sql: str) -> None:
    with contextlib.closing(sqlite3.connect(folder / "queue-0.db")) as db:
        db.execute(sql)
        db.commit()


def overwrite(path: Path, page: int, octets: bytes = b"\xa5" * 4096) -> None:
    with path.open("r+b") as file:
        file.seek((page - 1) * 4096)
        file.write(octets)


def page_of(folder: Path, sql: str) -> int:
    """The page that dbstat names; the virtual table comes with apsw's SQLite."""
    db = apsw.Connection(str(folder / "queue-0.db"))
    with contextlib.closing(db):
        return int(next(iter(db.execute(sql)))[0])


def all_claimed(store: SqliteStore, *, settles: bool = True) -> set[str]:
    found: set[str] = set()
    failures = 0
    while True:
        try:
            messages = claim(store, NOW + 1, limit=7)
        except StoreError:
            # The scheduler tries again after a pause.
            failures += 1
            assert failures < 10
            continue
        if not messages and not store._claims.due(1, Terms(NOW + 1, NOW + 100, 1)):
            return found
        found |= {m.uid for m in messages}
        for m in messages if settles else ():
            settle(store, m.key, done(0, "delivered"))


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE message SET facts = '{broken' WHERE uid = 'M3'",
        "UPDATE message SET facts = x'ff00fe' WHERE uid = 'M3'",
        "DELETE FROM content WHERE message_id = (SELECT id FROM message WHERE uid = 'M3')",
        "UPDATE message SET spool = 'gone', spool_bytes = 9 WHERE uid = 'M3'",
        "UPDATE message SET spool = 'short', spool_bytes = 9 WHERE uid = 'M3'",
    ],
)
def test_damaged_message_is_held_and_the_rest_is_claimed(
    tmp_path: Path, sql: str, caplog: pytest.LogCaptureFixture
) -> None:
    filled(tmp_path)
    altered(tmp_path, sql)
    with opened(tmp_path) as store, caplog.at_level(logging.ERROR):
        Path(store.spool, "short").write_bytes(b"12345")
        assert all_claimed(store) == {f"M{n}" for n in range(40)} - {"M3"}
        view = store.get("M3")
        assert (
            view is not None and view.state == "held" and (view.recipients[0].last_reply or "").startswith("451 4.3.0")
        )
        assert len([r for r in caplog.records if "held" in r.message]) == 1
        assert len(store.search(Query(is_all=True))) == 40, "the list shows all of them"
        with store.transaction():
            assert store.change(Action.CANCEL, Query(uids=["M3"]), NOW) == ["M3"]


def test_message_that_expires_is_given_up_though_its_spool_file_is_gone(tmp_path: Path) -> None:
    filled(tmp_path, 2)
    altered(tmp_path, "UPDATE message SET spool = 'gone', spool_bytes = 9 WHERE uid = 'M1'")
    with opened(tmp_path) as store, store.transaction():
        found = store.claim_expired(10, NOW + 5000, NOW + 6000)
        assert {m.uid for m in found} == {"M0", "M1"}


def test_page_of_a_content_that_cannot_be_read_holds_its_message(tmp_path: Path) -> None:
    filled(tmp_path)
    where = "SELECT pageno FROM dbstat WHERE name = 'content' AND pagetype = 'leaf' ORDER BY pageno LIMIT 1 OFFSET 3"
    overwrite(tmp_path / "queue-0.db", page_of(tmp_path, where))
    with opened(tmp_path) as store:
        taken = all_claimed(store, settles=False)
        held = {view.uid for view in store.search(Query(state="held"))}
        assert taken and held and taken | held == {f"M{n}" for n in range(40)} and len(held) <= 4


def test_lock_of_another_process_does_not_hold_the_loop(tmp_path: Path) -> None:
    import time

    with opened(tmp_path) as store:
        other = apsw.Connection(store.path)
        other.execute("BEGIN IMMEDIATE")
        began = time.monotonic()
        assert store.try_commit([message("A")], ()) is False
        assert time.monotonic() - began < 1.0
        timer = threading.Timer(0.1, lambda: other.execute("ROLLBACK"))
        timer.start()
        # The writer thread waits for it.
        store.commit([message("A")], ())
        timer.join()
        other.close()
        assert store.counts() == {"queued": 1}


def test_deleted_mail_is_gone_from_the_disk_without_history(tmp_path: Path) -> None:
    secret = b"the-text-that-was-deleted"
    with opened(tmp_path, forgets=True) as store:
        for n in range(30):
            accept(store, message(f"M{n}", content=Content(b"Subject: x\r\n\r\n" + secret * (1 + n * 40))))
        with store.transaction():
            store.change(Action.CANCEL, Query(), NOW)
        with store.transaction():
            store.purge(NOW, 0, 100)
        assert store.wants_maintenance
        store.maintain()
        assert not store.wants_maintenance
        assert not [path for path in tmp_path.rglob("*") if path.is_file() and secret in path.read_bytes()]


def test_small_disk_is_not_filled_by_an_empty_queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.statvfs(tmp_path)
    small = os.statvfs_result((*real[:4], (8 << 20) // real.f_frsize, *real[5:]))
    monkeypatch.setattr(os, "statvfs", lambda path: small)
    with opened(tmp_path, has_journal_ready=True) as store:
        store.prepare()
        accept(store, message("A"))
        size = sum(path.stat().st_blocks * 512 for path in tmp_path.rglob("*") if path.is_file())
        assert size < 2 << 20 and store.counts() == {"queued": 1}

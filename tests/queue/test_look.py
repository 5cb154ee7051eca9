"""Questions in SQL: one queue over all shards, and nothing can be changed by them."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from pillarbox.errors import OptionError, StoreError
from pillarbox.queue.look import ask_sql, views
from pillarbox.queue.sqlite import SqliteStore
from tests.daemon import Daemon, pillarbox
from tests.queue.test_store_contract import accept, claim, done, message, settle
from tests.test_workers import send


def fill(folder: Path) -> None:
    for shard, uids in ((0, "AB"), (1, "CD")):
        store = SqliteStore(str(folder), shard)
        store.open()
        for uid in uids:
            one = message(uid, "x@d.test", "y@d.test")
            for r in one.recipients:
                r.next_hop = "mx:d.test"
            accept(store, one)
        (first, *_) = claim(store, limit=2)
        settle(store, first.key, done(0, "delivered"), done(1, "deferred", 2e9))
        store.close()


def test_all_shards_are_one(tmp_path: Path) -> None:
    fill(tmp_path)
    columns, rows = ask_sql(str(tmp_path), "SELECT uid, state, recipients, peer FROM queue_messages ORDER BY uid")
    assert columns == ["uid", "state", "recipients", "peer"]
    assert list(rows) == [
        (uid, state, 2, "192.0.2.1") for uid, state in zip("ABCD", ["deferred", "queued"] * 2, strict=True)
    ]
    _, rows = ask_sql(str(tmp_path), "SELECT sum(queued), sum(deferred) FROM queue_next_hops")
    assert list(rows) == [(4, 2)]
    _, rows = ask_sql(str(tmp_path), "SELECT outcome, count(*) FROM queue_attempts GROUP BY 1 ORDER BY 1")
    assert list(rows) == [("deferred", 2), ("delivered", 2)]
    _, rows = ask_sql(
        str(tmp_path), "SELECT count(*) FROM queue_recipients WHERE state = 'delivered' AND in_flight = 0"
    )
    assert list(rows) == [(2,)]
    assert ask_sql(str(tmp_path), "SELECT uid FROM queue_messages WHERE uid = 'none'")[1] is not None
    # A shard has them, too, for sqlite3 itself.
    store = SqliteStore(str(tmp_path))
    store.open()
    for name in views():
        assert next(iter(store._db.execute(f"SELECT count(*) FROM {name}")))[0] >= 1
    store.close()


@pytest.mark.parametrize(
    "sql",
    [
        "DELETE FROM shard0.message",
        "UPDATE shard0.recipient SET state = 'cancelled'",
        "INSERT INTO shard0.flag VALUES ('paused', '1')",
        "DROP VIEW queue_messages",
        "CREATE TABLE t (x)",
        "ATTACH 'other.db' AS other",
        "PRAGMA shard0.user_version = 9",
        "SELECT 1; DELETE FROM shard0.message",
        "VACUUM INTO 'copy.db'",
        "BEGIN IMMEDIATE",
    ],
)
def test_nothing_can_be_changed(tmp_path: Path, sql: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    fill(tmp_path / "data")
    with pytest.raises(OptionError, match=r"only read|SQL: "):
        list(ask_sql(str(tmp_path / "data"), sql)[1])
    assert list(ask_sql(str(tmp_path / "data"), "SELECT count(*) FROM queue_recipients")[1]) == [(8,)]
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_the_command(tmp_path: Path) -> None:
    folder = f"--data-dir={tmp_path / 'data'}"
    with pytest.raises(StoreError, match="there is no queue"):
        ask_sql(str(tmp_path / "none"), "SELECT 1")
    assert pillarbox("queue", "sql", "SELECT 1", folder, ok=False).returncode == 1
    with Daemon(tmp_path, "--paused", "--workers=2") as daemon:
        for number in range(6):
            send(daemon.port, f"r{number}@c.test")
        asked = "SELECT address FROM queue_recipients ORDER BY address"
        rows = json.loads(pillarbox("queue", "sql", "--json", asked, folder).stdout)
        assert [row["address"] for row in rows] == [f"r{n}@c.test" for n in range(6)]
        found = list(csv.reader(io.StringIO(pillarbox("queue", "sql", "--csv", asked, folder).stdout)))
        assert found[0] == ["address"] and len(found) == 7
        assert "r5@c.test" in pillarbox("queue", "sql", "-", folder, stdin=asked).stdout
        for wrong, words in (
            ("SELECT", "SQL: "),
            ("DELETE FROM shard0.message", "only read here"),
            ("SELECT * FROM nothing", "queue_messages"),
        ):
            done_ = pillarbox("queue", "sql", wrong, folder, ok=False)
            assert done_.returncode == 2 and words in done_.stderr and "Traceback" not in done_.stderr
        assert len(daemon.queue()) == 6

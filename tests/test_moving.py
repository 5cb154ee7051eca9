"""A queue moves to another kind of store, running or not, and nothing of it is lost: `queue export|import --format jsonl`."""

from __future__ import annotations

import base64
import json
import time
from pathlib import Path
from typing import Any

import pytest

from pillarbox.errors import DuplicateUidError, OptionError
from pillarbox.mail.content import Content
from pillarbox.queue.kept import as_json, parse
from pillarbox.queue.memory import MemoryStore
from pillarbox.queue.model import Action, Query, Settled, Settlement
from pillarbox.queue.postgres import PostgresStore
from pillarbox.queue.sqlite import SqliteStore
from tests.daemon import Daemon, pillarbox
from tests.hostile.test_h_shared_queue import now_message

LARGE = b"Subject: large\r\n\r\n" + b"0123456789abcdef\r\n" * 40_000


TWICE = {"number": 0, "address": "c@d.test", "state": "queued", "attempts": 0}


def filled(store: Any) -> None:
    """Messages in all that a queue can make of them."""
    messages = [
        now_message("A", "one@d.test", "two@d.test", "three@d.test"),
        now_message("B", content=Content(LARGE)),
        now_message("C", "gr\u00fc\u00dfe@d.test"),
    ]
    messages[1].envelope.reverse_path = None
    now = time.time()
    with store.transaction():
        store.accept(messages)
        claimed = {m.uid: m for m in store.claim(10, now, now + 100, 1 << 22)}
    tried = {"next_hop": "mx:d.test", "remote": "mx.test", "stage": "rcpt", "started_at": now - 5, "seconds": 1.5}
    with store.transaction():
        key = claimed["A"].key
        settled = [
            Settled(0, "delivered", "delivered", None, "250 2.0.0 ok", **tried),
            Settled(1, "deferred", "deferred", now + 600, "451 4.3.0 later", is_delay_reported=True, **tried),
            Settled(2, "deferred", "ambiguous", now + 60, "451 4.4.2 lost", **tried),
        ]
        store.settle([Settlement(key, settled, now)])
        for uid in ("B", "C"):
            back = Settled(0, "queued", "queued", now, is_attempt=False)
            store.settle([Settlement(claimed[uid].key, [back], now)])
        store.change(Action.HOLD, Query(uids=["C"]), now)


class Roughly(float):
    """A time of one clock, as told by another: right to a few seconds."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, float) and abs(self - other) < 5.0

    __hash__ = float.__hash__


def read(path: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        for r in line["recipients"]:
            r["due_at"] = None if r["due_at"] is None else Roughly(r["due_at"])
    return sorted(lines, key=lambda line: str(line["uid"]))


@pytest.mark.parametrize("is_running", [True, False])
def test_from_sqlite_to_postgres_and_back(tmp_path: Path, database: str, is_running: bool) -> None:
    source = SqliteStore(str(tmp_path / "a"))
    source.open()
    filled(source)
    source.close()
    pillarbox("queue", "export", str(tmp_path / "1"), "--format=jsonl", f"--data-dir={tmp_path / 'a'}")
    before = read(tmp_path / "1")
    assert [line["uid"] for line in before] == ["A", "B", "C"]
    assert base64.b64decode(before[1]["content"]) == LARGE and before[1]["reverse_path"] is None
    assert [r["state"] for r in before[0]["recipients"]] == ["delivered", "deferred", "deferred"]
    assert before[0]["envid"] == "id 1" and before[0]["ret"] == "HDRS"
    assert [a["outcome"] for a in before[0]["attempts"]] == ["delivered", "deferred", "ambiguous"]
    PostgresStore(database, str(tmp_path / "node")).open()
    done = pillarbox("queue", "import", str(tmp_path / "1"), "--format=jsonl", f"--queue={database}")
    assert "3 messages imported" in done.stderr and done.stdout.split() == ["A", "B", "C"]
    again = pillarbox("queue", "import", str(tmp_path / "1"), "--format=jsonl", f"--queue={database}")
    assert "0 messages imported, 3 were there already" in again.stderr
    pillarbox("queue", "export", str(tmp_path / "2"), "--format=jsonl", f"--queue={database}")
    assert read(tmp_path / "2") == before
    arguments = ("queue", "import", str(tmp_path / "2"), "--format=jsonl", f"--data-dir={tmp_path / 'b' / 'data'}")
    if is_running:
        with Daemon(tmp_path / "b", "--paused", "--workers=2") as daemon:
            assert "3 messages imported" in pillarbox(*arguments).stderr
            pillarbox("queue", "export", str(tmp_path / "3"), "--format=jsonl", f"--data-dir={daemon.data}")
            assert "0 messages imported, 3 were there" in pillarbox(*arguments).stderr
    else:
        assert "3 messages imported" in pillarbox(*arguments).stderr
        pillarbox("queue", "export", str(tmp_path / "3"), "--format=jsonl", f"--data-dir={tmp_path / 'b' / 'data'}")
    assert read(tmp_path / "3") == before


def test_what_was_moved_is_delivered(tmp_path: Path, database: str) -> None:
    """Where it waited before it waits, what was held is held, and the rest goes out once."""
    from tests.daemon import sink, wait_until

    source = SqliteStore(str(tmp_path / "a"))
    source.open()
    filled(source)
    source.close()
    pillarbox("queue", "export", str(tmp_path / "1"), "--format=jsonl", f"--data-dir={tmp_path / 'a'}")
    with sink(tmp_path / "sink", "-d", "m.") as (port, dumps):
        with Daemon(tmp_path / "b", f"--queue={database}", f"--relay=127.0.0.1:{port}"):
            pillarbox("queue", "import", str(tmp_path / "1"), "--format=jsonl", f"--queue={database}")
            wait_until(lambda: len(list(dumps.iterdir())) == 1, 20)
            states = {
                row["uid"]: [r["state"] for r in row["recipients"]]
                for row in json.loads(pillarbox("queue", "list", "--json", "--all", f"--queue={database}").stdout)
            }
            assert states == {"A": ["delivered", "deferred", "deferred"], "B": ["delivered"], "C": ["held"]}
            pillarbox("queue", "retry", "A", f"--queue={database}")
            wait_until(lambda: len(list(dumps.iterdir())) == 2, 20)
    assert any(b"0123456789abcdef" in path.read_bytes() for path in dumps.iterdir())


def test_the_memory_store() -> None:
    store = MemoryStore()
    filled(store)
    lines = [
        as_json(store.get(uid), store.envelope(uid), 0.0)
        for uid in "ABC"  # type: ignore[arg-type]
    ]
    other = MemoryStore()
    messages = [parse(json.loads(json.dumps(line))) for line in lines]
    with other.transaction():
        other.restore(messages, time.time())
    assert [as_json(other.get(uid), other.envelope(uid), 0.0) for uid in "ABC"] == lines  # type: ignore[arg-type]
    with pytest.raises(DuplicateUidError), other.transaction():
        other.restore([parse(lines[0])], time.time())


IN_RECIPIENT = ("state", "address", "due_at")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"pillarbox": 2}, "version 1"),
        ({"uid": "a b"}, "uid"),
        ({"recipients": []}, "there is none"),
        ({"recipients": [1]}, "no object"),
        ({"reverse_path": "a@b.test>\r\nRCPT TO:<x@y.test"}, "no mailbox"),
        ({"envid": "x\r\ny"}, "no command line"),
        ({"received_at": "now"}, "no number"),
        ({"attempts": {}}, "no list"),
        ({"attempts": [2]}, "no object"),
        ({"subject": 5}, "no text"),
        ({"state": "odd"}, "not known"),
        ({"attempts": [{"number": 1e10}]}, "no number"),
        ({"recipients": [TWICE, TWICE]}, "the same number"),
        ({"address": "nobody"}, "no mailbox"),
        ({"facts": {"n": 2**70}}, "facts"),
        ({"facts": {"n": "\udc80"}}, "facts"),
        ({"subject": "\udc80"}, "subject"),
        ({"due_at": float("inf")}, "due_at"),
        ({"attempts": [{"number": 0, "at": 1.0, "seconds": 1.0, "outcome": "deferred", "reply": "\udc80"}]}, "reply"),
    ],
)
def test_what_is_no_message(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    store = MemoryStore()
    filled(store)
    good = as_json(store.get("A"), store.envelope("A"), 0.0)  # type: ignore[arg-type]
    bad = json.loads(json.dumps(good))
    bad["recipients"][0] |= {name: value for name, value in change.items() if name in IN_RECIPIENT}
    bad |= {name: value for name, value in change.items() if name not in IN_RECIPIENT}
    with pytest.raises(OptionError, match=said):
        parse(bad)
    path = tmp_path / "lines"
    path.write_text(json.dumps(good) + "\n" + json.dumps(bad) + "\n")
    target = tmp_path / "queue"
    for _ in range(2):
        done = pillarbox("queue", "import", str(path), "--format=jsonl", f"--data-dir={target}", ok=False)
        assert done.returncode == 2 and "line 2" in done.stderr and "nothing was imported" in done.stderr
        path.write_text(json.dumps(good) + "\n" + json.dumps({**good, "content": 5}) + "\n")
    assert not target.exists()

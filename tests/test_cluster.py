"""Three nodes, one PostgreSQL, under load and under fire; see tests/cluster.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.cluster import LEASE_S, SLACK_S, run
from tests.daemon import Daemon, pillarbox, sink, smtp_source, wait_until


def test_nodes_under_fire_lose_nothing(tmp_path: Path, postgres: Any) -> None:
    found = run(tmp_path, postgres, 1200, rounds=5)
    assert found.acknowledged >= 1200 and not found.lost
    assert all(seconds <= LEASE_S + SLACK_S for seconds in found.takeovers_s), found.takeovers_s
    assert not found.unexplained, "what arrived twice had an attempt that is recorded as ambiguous"


def test_smtp_source_into_three_nodes(tmp_path: Path, database: str) -> None:
    """Each message once, whichever node took it; every verb by URL, and by any node's folder."""
    with sink(tmp_path / "sink", "-c") as (port, _):
        options = (f"--queue={database}", f"--relay=127.0.0.1:{port}", "--log-level=error")
        nodes = [Daemon(tmp_path / name, *options) for name in "abc"]
        try:
            pillarbox("queue", "pause", "--queue", database)
            wait_until(lambda: "paused" in nodes[2].pillarbox("list").stderr)
            for one in nodes:
                assert smtp_source(one.port, 100, "-s", "10").returncode == 0
            listed = pillarbox("queue", "list", "--queue", database)
            assert len(listed.stdout.splitlines()) == 300
            assert "300 messages" in listed.stderr and "is paused" in listed.stderr
            uid = nodes[0].queue("--limit", "1")[0]["uid"]
            assert "1 message held" in nodes[1].pillarbox("hold", uid).stdout
            assert (
                uid
                in pillarbox(
                    "queue", "sql", "SELECT uid FROM queue_messages WHERE state = 'held'", "--queue", database
                ).stdout
            )
            pillarbox("queue", "resume", "--queue", database)
            wait_until(lambda: [row["uid"] for row in nodes[2].queue()] == [uid], 60)
            assert "1 message released" in pillarbox("queue", "release", uid, "--queue", database).stdout
            wait_until(lambda: nodes[0].queue() == [], 30)
            done = pillarbox(
                "queue", "sql", "SELECT count(*), sum(attempts) FROM queue_recipients", "--csv", "--queue", database
            )
            assert done.stdout.split() == ["count,sum", "300,300"], "each once"
        finally:
            for one in nodes:
                one.stop()


def test_export_and_import_between_queues(tmp_path: Path, database: str) -> None:
    with Daemon(tmp_path / "file", "--paused") as one:
        assert smtp_source(one.port, 20, "-s", "2").returncode == 0
    pillarbox("queue", "export", str(tmp_path / "mail"), f"--data-dir={one.data}")
    with Daemon(tmp_path / "node", "--paused", f"--queue={database}") as two:
        pillarbox("queue", "import", str(tmp_path / "mail"), "--queue", database)
        assert len(two.queue()) == 20
        # None comes twice.
        pillarbox("queue", "import", str(tmp_path / "mail"), "--queue", database)
        assert len(two.queue()) == 20
    back = tmp_path / "back"
    pillarbox("queue", "export", str(tmp_path / "again"), "--queue", database)
    pillarbox("queue", "import", str(tmp_path / "again"), f"--data-dir={back}")
    assert "20 messages" in pillarbox("queue", "list", f"--data-dir={back}").stderr


def test_what_is_wrong_is_said(tmp_path: Path, database: str) -> None:
    for arguments, code, text in (
        (("queue", "list", "--queue", "mysql://x/y"), 2, "postgresql://"),
        (("queue", "list", "--queue", "postgresql://me:secret@127.0.0.1:1/x"), 1, "me:***@"),
        (("queue", "list", "--queue", database), 1, "makes it"),
        (("serve", "--queue=mysql://x/y"), 2, "postgresql://"),
        (
            (
                "serve",
                "--queue=postgresql://me:secret@127.0.0.1:1/x",
                "--admin=off",
                "--listen=127.0.0.1:0",
                f"--data-dir={tmp_path}",
            ),
            1,
            "away",
        ),
        (("serve", f"--queue={database}", "--store=memory"), 2, "one of them keeps the mail"),
    ):
        done = pillarbox(*arguments, ok=False)
        assert done.returncode == code and text in done.stderr, (arguments, done)
        assert "Traceback" not in done.stderr and "secret" not in done.stderr + done.stdout

"""`pillarbox top` and `pillarbox events`, on a real server."""

from __future__ import annotations

import io
import json
import re
import select
import subprocess
import time
from pathlib import Path

import pytest
from rich.console import Console

from pillarbox.cli import tables, top
from tests.conftest import free_port
from tests.daemon import PILLARBOX, Daemon, pillarbox, sink, wait_until
from tests.test_workers import send


def test_top_shows_what_goes_on(tmp_path: Path) -> None:
    folder = f"--data-dir={tmp_path / 'data'}"
    with sink(tmp_path / "sink") as (port, _), Daemon(tmp_path, f"--relay=127.0.0.1:{port}", "--workers=2") as daemon:
        send(daemon.port, "a@c.test", 3)
        wait_until(lambda: daemon.queue("--state=delivered") and len(daemon.queue("--state=delivered")) == 3)
        text = pillarbox("top", "--count=2", "--interval=0.2", folder).stdout
        assert f"relay:127.0.0.1:{port}" in text and "history: 3 finished" in text and "SESSION" in text
        daemon.pillarbox("pause")
        assert "paused" in pillarbox("top", "--count=1", folder).stdout
    for where in (folder, f"--data-dir={tmp_path / 'nothing'}"):
        done = pillarbox("top", "--count=1", where, ok=False)
        assert done.returncode == 1 and "start `pillarbox serve`" in done.stderr


def page(width: int, *hops: dict[str, object]) -> list[str]:
    """The lines of `pillarbox top` on a terminal of that width."""
    live = {"counters": {}, "sessions": [], "lanes": list(hops)}
    status = {"paused": False, "in_hand": 0, "recipients": {"deferred": 12, "delivered": 9}, "live": live}
    out = io.StringIO()
    Console(file=out, width=width, highlight=False).print(top._page(status, {}, "/var/lib/x", width, 40))
    return out.getvalue().splitlines()


@pytest.mark.parametrize("width", [60, 80, 110, 200])
@pytest.mark.parametrize("hop", ["mx:down.test", "mx:" + "a" * 60 + "." + "b" * 60 + "." + "c" * 56 + ".test"])
def test_top_shows_the_numbers_of_a_next_hop_whatever_its_name_and_reason(width: int, hop: str) -> None:
    reason = f"{hop} is in back-off, next try in 34 s; last: 451 4.4.1 Connection to {hop} timed out" * 3
    lane = {"next_hop": hop, "state": "down", "waiting": 4711, "busy": 17, "connections": 3, "reason": reason}
    lines = page(width, lane, {**lane, "next_hop": "mx:well.test", "state": "busy", "reason": None})
    for name in ("mx:a" if len(hop) > 20 else hop, "mx:well.test"):
        row = next(line for line in lines if line.startswith(name))
        assert all(text in row.split() for text in ("4711", "17", "3")) and len(row) <= width, row
    assert any("deferred 12" in line and "history: 9 finished" in line for line in lines)


def test_event_on_a_terminal_reads_as_text(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.StringIO()
    monkeypatch.setattr(tables, "_console", lambda: Console(file=out, width=400, highlight=False, force_terminal=True))
    event = {
        "event": "send_failed", "uid": "U1", "recipients": ["a@b.test", "c@d.test"], "is_permanent": True,
        "next_attempt": 1796073706.918762, "seconds": 0.123456, "reply": "550 no", "remote": None, "eaten": False,
    }  # fmt: skip
    tables.print_event(event)
    tables.print_event({**event, "is_permanent": False})
    bounced, deferred = out.getvalue().splitlines()
    at = time.strftime("%H:%M:%S", time.localtime(event["next_attempt"]))  # type: ignore[arg-type]
    plain = re.sub(r"\x1b\[[0-9;]*m", "", bounced)
    assert "recipients a@b.test, c@d.test" in plain and f"next_attempt {at}" in plain and "seconds 0.123" in plain
    assert "[" not in plain and "True" not in plain and "eaten" not in plain
    assert "\x1b[31m" in bounced and "\x1b[33m" in deferred and "\x1b[31m" not in deferred


def test_events_come_as_they_happen(tmp_path: Path) -> None:
    folder = f"--data-dir={tmp_path / 'data'}"
    with Daemon(tmp_path, f"--admin=127.0.0.1:{free_port()}") as daemon:
        command = [*PILLARBOX, "events", "message_queued", "--text=want@", "--count=2", folder]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        try:
            # Until it listens, what happens is not for it.
            def brings() -> bool:
                send(daemon.port, "other@c.test")
                send(daemon.port, "want@c.test")
                return child.poll() is not None

            wait_until(brings, 30)
            assert child.stdout is not None
            lines = [json.loads(line) for line in child.stdout]
            assert len(lines) == 2 and {line["event"] for line in lines} == {"message_queued"}
            assert all(line["recipients"] == ["want@c.test"] for line in lines), lines
        finally:
            child.kill()
            child.wait()
        assert pillarbox("events", "--count=0", folder).stdout == ""
        done = pillarbox("events", "no_such_event", folder, ok=False)
        assert done.returncode == 1 and "there is no event 'no_such_event'" in done.stderr
    done = pillarbox("events", folder, ok=False)
    assert done.returncode == 1 and "no server with an admin API runs" in done.stderr


def test_events_end_with_the_server(tmp_path: Path) -> None:
    with Daemon(tmp_path, f"--admin=127.0.0.1:{free_port()}") as daemon:
        command = [*PILLARBOX, "events", "all", f"--data-dir={daemon.data}"]
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

        def brings() -> bool:
            send(daemon.port, "a@c.test")
            return bool(select.select([child.stdout], [], [], 0)[0])

        wait_until(brings, 30)
    out, error = child.communicate(timeout=30)
    assert child.returncode == 1 and "the server has ended" in error

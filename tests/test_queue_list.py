"""`pillarbox queue list` as an operator uses it: pipes, filters that match nothing, long queues, paused next hops."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pillarbox.mail.content import Content
from pillarbox.mail.envelope import Envelope, EnvelopeRecipient
from pillarbox.queue.model import Message
from pillarbox.queue.sqlite import SqliteStore
from tests.daemon import Daemon, pillarbox

LONG_REPLY = "451 4.4.1 " + "no connection\n\x1b[31m " * 30


def fill(folder: Path, count: int, *, recipients: int = 1, reply: str = "451 4.4.1 Timed out") -> None:
    """A queue of `count` deferred messages, as a server leaves it behind."""
    folder.mkdir(exist_ok=True)
    store = SqliteStore(str(folder), 0)
    store.open()
    now = time.time()
    for first in range(0, count, 1000):
        batch = []
        for n in range(first, min(count, first + 1000)):
            to = [EnvelopeRecipient(f"r{n}-{m}@d{n % 20}.test") for m in range(recipients)]
            one = Message(
                f"U{n:07}", Envelope(f"s{n}@us.test", to), Content(b"Subject: x\r\n\r\nx\r\n"), now - 60, now + 1e6
            )
            for number, r in enumerate(one.recipients):
                r.next_hop, r.attempts = f"mx:d{n % 20}.test", 1
                # The first of several was delivered; the others wait.
                is_delivered = recipients > 1 and number == 0
                r.state, r.due_at = ("delivered", None) if is_delivered else ("deferred", now + 1e5)
                r.last_reply = "250 2.0.0 Ok" if is_delivered else reply
            batch.append(one)
        with store.transaction():
            store.restore(batch, now)
    store.close()


def test_piped_list_is_one_line_per_message_without_header_or_notes(tmp_path: Path) -> None:
    fill(tmp_path, 7, reply=LONG_REPLY)
    done = pillarbox("queue", "list", f"--data-dir={tmp_path}")
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines] == [f"U{n:07}" for n in range(7)]
    assert "\x1b" not in done.stdout and all(len(line) < 350 for line in lines)
    assert "7 messages" in done.stderr


def test_json_list_is_an_array_with_one_message_per_line(tmp_path: Path) -> None:
    fill(tmp_path, 3, recipients=2)
    text = pillarbox("queue", "list", "--json", f"--data-dir={tmp_path}").stdout
    rows = json.loads(text)
    assert [row["uid"] for row in rows] == ["U0000000", "U0000001", "U0000002"]
    assert len(rows[0]["recipients"]) == 2 and len(text.splitlines()) == 5
    assert json.loads(pillarbox("queue", "list", "--json", "--state", "held", f"--data-dir={tmp_path}").stdout) == []


def test_row_shows_the_reply_of_a_recipient_that_is_in_its_state(tmp_path: Path) -> None:
    fill(tmp_path, 1, recipients=3)
    line = pillarbox("queue", "list", f"--data-dir={tmp_path}").stdout
    assert "deferred" in line and "(2 of 3) 451 4.4.1" in line and "250" not in line and "r0-1@d0.test (+2)" in line


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--to", "nobody@"), "No message matches. 2 messages in the queue."),
        (("NOSUCHUID",), "No message matches."),
        (("--older-than", "1h"), "No message matches."),
        (("--next-hop", "d0.test"), "for example mx:d0.test"),
        (("--limit", "0"), "0 of 2 messages"),
        (("--limit", "1"), "1 of 2 messages"),
    ],
)
def test_list_that_shows_nothing_says_why(tmp_path: Path, arguments: tuple[str, ...], text: str) -> None:
    fill(tmp_path, 2)
    done = pillarbox("queue", "list", *arguments, f"--data-dir={tmp_path}")
    assert text in done.stderr and "empty" not in done.stderr


def test_empty_queue_names_its_finished_messages(tmp_path: Path) -> None:
    fill(tmp_path, 2)
    assert "2 messages cancelled" in pillarbox("queue", "cancel", "--all", f"--data-dir={tmp_path}").stdout
    done = pillarbox("queue", "list", f"--data-dir={tmp_path}")
    assert "The queue is empty. 2 messages finished: --all shows them." in done.stderr and done.stdout == ""
    assert "Finished messages match" in pillarbox("queue", "list", "--to", "r0-0@", f"--data-dir={tmp_path}").stderr


def test_list_on_a_terminal_is_a_table_of_one_line_per_message_with_a_total(tmp_path: Path) -> None:
    fill(tmp_path, 150, reply=LONG_REPLY)
    main, other = pty.openpty()
    command = [sys.executable, "-m", "pillarbox", "queue", "list", f"--data-dir={tmp_path}"]
    environment = {**os.environ, "COLUMNS": "100", "TERM": "xterm"}
    with subprocess.Popen(command, stdout=other, stderr=other, env=environment) as process:
        os.close(other)
        text = b""
        while True:
            try:
                piece = os.read(main, 65536)
            except OSError:
                break
            if not piece:
                break
            text += piece
        assert process.wait(60) == 0
    os.close(main)
    shown = re.sub(rb"\x1b\[[0-9;]*m", b"", text).decode()
    assert shown.count("U00") == 100 and "100 of 150 messages" in shown and "LAST REPLY" in shown
    assert len(shown.splitlines()) < 105 and max(map(len, shown.splitlines())) <= 100


def test_next_column_of_a_paused_next_hop_says_paused(tmp_path: Path) -> None:
    fill(tmp_path, 21)
    folder = f"--data-dir={tmp_path}"
    pillarbox("queue", "pause", "--next-hop", "mx:d0.test", folder)
    pillarbox("queue", "retry", "--all", folder)
    cells = [line.split() for line in pillarbox("queue", "list", folder).stdout.splitlines()]
    assert [row[0] for row in cells if row[6] == "paused"] == ["U0000000", "U0000020"]


@pytest.mark.parametrize("key", ["example.net", "mx:", "nonsense", "smtp:example.net"])
def test_pause_of_what_is_no_next_hop_is_refused(tmp_path: Path, key: str) -> None:
    fill(tmp_path, 1)
    done = pillarbox("queue", "pause", "--next-hop", key, f"--data-dir={tmp_path}", ok=False)
    assert done.returncode == 2 and "expected mx:DOMAIN" in done.stderr and "paused" not in done.stdout


def test_steering_that_changes_nothing_names_the_reason(tmp_path: Path) -> None:
    fill(tmp_path, 2)
    folder = f"--data-dir={tmp_path}"
    pillarbox("queue", "hold", "U0000000", folder)
    done = pillarbox("queue", "retry", "U0000000", "NOTHERE", folder, ok=False)
    assert done.returncode == 1 and "U0000000 is held" in done.stderr and "NOTHERE: no such message" in done.stderr
    done = pillarbox("queue", "hold", "--to", "nobody@", folder, ok=False)
    assert done.returncode == 1 and "no message matches the filter" in done.stderr


def test_show_content_prints_the_octets_of_a_message(tmp_path: Path) -> None:
    fill(tmp_path, 1)
    folder = f"--data-dir={tmp_path}"
    assert pillarbox("queue", "show", "U0000000", "--content", folder).stdout == "Subject: x\n\nx\n"
    done = pillarbox("queue", "show", "NOTHERE", "--content", folder, ok=False)
    assert done.returncode == 1 and "no such message" in done.stderr


@pytest.mark.alone
def test_large_queue_is_listed_in_pages_without_stalling_the_server(tmp_path: Path) -> None:
    """100,000 messages: the first line within 2 s; neither side holds the list; no session waits 50 ms for the listing."""
    with Daemon(tmp_path, "--paused", "--no-direct") as server:
        pass
    fill(Path(server.data), 100_000)
    with Daemon(tmp_path, "--no-direct") as server:
        began = time.monotonic()
        command = [sys.executable, "-m", "pillarbox", "queue", "list", f"--data-dir={server.data}"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
            assert process.stdout is not None
            assert process.stdout.readline().startswith(b"U0000000")
            first_s = time.monotonic() - began
            process.stdout.close()
            process.wait(60)
        assert first_s < 2
        before_mb = server.peak_mb()
        measured = subprocess.run(
            [sys.executable, "-c", _MEASURED, *command[1:], "--json"],
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        )
        rows, client_mb = json.loads(measured.stdout)
        assert rows == 100_000 and client_mb < 120, client_mb
        assert server.peak_mb() - before_mb < 30


_MEASURED = """
import json, resource, subprocess, sys
with subprocess.Popen([sys.executable, *sys.argv[1:]], stdout=subprocess.PIPE) as process:
    rows = sum(line.startswith(b"{") for line in process.stdout)
print(json.dumps([rows, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024]))
"""

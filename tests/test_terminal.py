"""What a peer wrote reaches no terminal as a control sequence: every command that prints it, as text, JSON and CSV."""

from __future__ import annotations

import csv
import io
import json
import re
import time
from pathlib import Path

import pytest

from pillarbox.cli.terminal import json_text
from pillarbox.mail.content import Content
from pillarbox.mail.envelope import Envelope, EnvelopeRecipient
from pillarbox.queue.model import Attempt, Message
from pillarbox.queue.sqlite import SqliteStore
from pillarbox.testing import ScriptedServer
from tests.conftest import run_async
from tests.daemon import pillarbox

# A title for the window, C1 CSI, a text that runs backwards, an isolate, a line separator, a bell, DEL.
HOSTILE = "a\x1b]0;pwned\x07 \x9b31m \u202efdp.exe \u2066x\u2069 \u2028 \x7f \u061c\u200f z"
CONTROLS = re.compile(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


@pytest.fixture
def folder(tmp_path: Path) -> str:
    """A queue in which every text of a peer is hostile."""
    store = SqliteStore(str(tmp_path), 0)
    store.open()
    envelope = Envelope(f'"{HOSTILE}"@b.test', [EnvelopeRecipient(f'"{HOSTILE}"@d.test')])
    one = Message("U1", envelope, Content(b"x"), time.time(), time.time() + 1e6, subject=HOSTILE)
    one.facts = {"helo": HOSTILE, "peer": "192.0.2.1"}
    r = one.recipients[0]
    r.state, r.next_hop, r.last_reply, r.last_stage = "deferred", f"mx:{HOSTILE}", f"451 {HOSTILE}", HOSTILE
    r.attempts, r.due_at = 1, time.time() + 1000
    one.attempts = [Attempt(0, time.time(), 1.0, HOSTILE, f"mx:{HOSTILE}", HOSTILE, HOSTILE, f"451 {HOSTILE}")]
    with store.transaction():
        store.restore([one], time.time())
    store.close()
    return f"--data-dir={tmp_path}"


@pytest.mark.parametrize(
    "arguments",
    [
        ("queue", "list"),
        ("queue", "list", "--json"),
        ("queue", "show", "U1"),
        ("queue", "show", "U1", "--json"),
        (
            "queue",
            "sql",
            "SELECT * FROM queue_messages m JOIN queue_recipients r USING (uid) JOIN queue_attempts a USING (uid)",
        ),
        ("queue", "sql", "--csv", "SELECT * FROM queue_messages JOIN queue_attempts USING (uid)"),
        ("queue", "sql", "--json", "SELECT * FROM queue_messages JOIN queue_attempts USING (uid)"),
        ("queue", "sql", f"SELECT 1 AS '{HOSTILE}'"),
        ("queue", "sql", f"SELECT * FROM '{HOSTILE}'"),
        ("explain", "U1"),
        ("explain", "U1", "--json"),
        ("queue", "hold", HOSTILE.replace("\x00", "")),
        ("queue", "pause", "--next-hop", f"mx:{HOSTILE}"),
    ],
)
def test_command_prints_no_control_characters_of_peers(folder: str, arguments: tuple[str, ...]) -> None:
    done = pillarbox(*arguments, folder, ok=False)
    text = done.stdout + done.stderr
    assert "pwned" in text and not CONTROLS.search(text), text


def test_json_and_csv_keep_what_was_said(folder: str) -> None:
    rows = json.loads(pillarbox("queue", "list", "--json", folder).stdout)
    assert rows[0]["subject"] == HOSTILE and rows[0]["received"]["helo"] == HOSTILE
    text = pillarbox("queue", "sql", "--csv", "SELECT subject, size_bytes FROM queue_messages", folder).stdout
    assert list(csv.reader(io.StringIO(text)))[1][1] == "1" and "\\x1b]0;pwned\\x07" in text


def test_json_text_is_valid_json_for_every_character() -> None:
    text = "".join(map(chr, [*range(0x20), *range(0x7E, 0xA1), 0x61C, *range(0x2000, 0x2070), 0x1F600]))
    for is_indented in (True, False):
        printed = json_text({text: [text]}, is_indented=is_indented)
        assert json.loads(printed) == {text: [text]} and not CONTROLS.search(printed)


def test_send_escapes_the_reply_of_a_server() -> None:
    async def main() -> list[str]:
        import asyncio

        said = []
        for verb in ("DATA", "RCPT", "MAIL"):
            async with ScriptedServer(**{verb: "554 5.7.1 no \x1b]0;pwned\x07"}) as server:
                done = await asyncio.to_thread(
                    pillarbox, "send", "--to=x@y.test", f"--server=127.0.0.1:{server.port}", ok=False
                )
                said.append(done.stdout + done.stderr)
        return said

    for text in run_async(main):
        assert "pwned" in text and not CONTROLS.search(text), text

"""Addresses that two readers read in two ways never reach the envelope: Django, send_message, queue import; uid and patience."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
import time
from email.message import EmailMessage, Message
from pathlib import Path
from typing import Any

import pytest

import pillarbox
from pillarbox.errors import DuplicateUidError, NotRunningError, OptionError
from pillarbox.mail.fieldtext import field_addresses
from tests.conftest import Client, queued, run_async, serving
from tests.daemon import Daemon

AMBIGUOUS = [
    "alice@evil.test)bob@good.test", "alice@evil.test]bob@good.test", 'alice@evil.test"bob@good.test',
    "alice@evil.test <bob@good.test>", "a@evil.test:b@good.test", "<alice@evil.test>,bob@good.test>",
    "alice@evil.test bob@good.test", "alice@evil.test;bob@good.test", "<alice@evil.test> bob@good.test",
    "alice@evil.test\r\nBcc: bob@good.test", "alice@evil.test@good.test", "alice", "alice@", "@good.test", "", "<>",
    "alice@evil.test\0@good.test", '"alice@evil.test', "(alice@evil.test", "alice@evil.test(bob@good.test", "a@b..test",
    "=?utf-8?q?alice=40evil=2Etest=2C?=@good.test",
]  # fmt: skip
CLEAR = {
    "bob@good.test": "bob@good.test", "Bob <bob@good.test>": "bob@good.test", '"Bob, B" <bob@good.test>': "bob@good.test",
    "J. R. Bob <bob@good.test>": "bob@good.test", "bob@good.test (Bob)": "bob@good.test",
    '"bob builder"@good.test': '"bob builder"@good.test', "Bücher <bob@bücher.test>": "bob@xn--bcher-kva.test",
    '"alice@evil.test" <bob@good.test>': "bob@good.test", "=?utf-8?q?B=C3=B6b?= <bob@good.test>": "bob@good.test",
    "bob@[192.0.2.1]": "bob@[192.0.2.1]", "o'hara+tag@good.test": "o'hara+tag@good.test", "jörg@good.test": "jörg@good.test",
}  # fmt: skip


@pytest.mark.parametrize("text", AMBIGUOUS)
def test_field_that_is_ambiguous_has_no_addresses(text: str) -> None:
    if not text:
        assert field_addresses("To", text) == []
        return
    with pytest.raises(ValueError, match="invalid addresses"):
        field_addresses("To", text)


@pytest.mark.parametrize("text", CLEAR)
def test_field_that_is_clear_has_its_address(text: str) -> None:
    assert field_addresses("To", text) == [CLEAR[text]]


def test_field_with_several_addresses_and_groups() -> None:
    assert field_addresses("To", "a@b.test, Team: c@d.test, e@f.test;, g@h.test") == [
        "a@b.test", "c@d.test", "e@f.test", "g@h.test",
    ]  # fmt: skip
    assert field_addresses("Cc", "undisclosed-recipients:;") == []


def messages(value: str) -> list[Any]:
    """The same field in both of Python's classes, set and parsed."""
    found: list[Any] = []
    old = Message()
    old["To"] = value
    found.append(old)
    try:
        new = EmailMessage()
        new["To"] = value
        found.append(new)
    except (ValueError, IndexError):
        # Python itself refuses to set it.
        pass
    import email.policy

    octets = b"To: " + value.encode() + b"\r\n\r\nx\r\n"
    found.append(email.message_from_bytes(octets, policy=email.policy.default))
    return found


class Way:
    """Keeps what a client would send."""

    def __init__(self) -> None:
        self.items: list[dict[str, Any]] = []

    def enqueue(self, item: dict[str, Any], content: Any, size: int) -> None:
        self.items.append(item)


@pytest.mark.parametrize("text", [one for one in AMBIGUOUS if "\n" not in one and "\0" not in one])
def test_send_message_refuses_what_is_ambiguous(text: str) -> None:
    for message in messages(text):
        way = Way()
        with pytest.raises(OptionError):
            pillarbox.client.Client(way, 0.0).send_message(message, sender="a@b.test")  # type: ignore[arg-type]
        assert not way.items


def test_send_message_takes_a_uid_and_a_reason_to_hold() -> None:
    for message in messages("Bob <bob@bücher.test>"):
        message["From"] = "Shop <shop@good.test>"
        way = Way()
        client = pillarbox.client.Client(way, 0.0)  # type: ignore[arg-type]
        assert client.send_message(message, uid="order-7", hold="look") == "order-7"
        [item] = way.items
        assert (item["uid"], item["hold"], item["reverse_path"]) == ("order-7", "look", "shop@good.test")
        assert item["recipients"] == ["bob@xn--bcher-kva.test"]


def test_import_by_header_fields_refuses_what_is_ambiguous(tmp_path: Path) -> None:
    box = tmp_path / "box"
    box.write_bytes(b"From x\nFrom: a@b.test\nTo: alice@evil.test <bob@good.test>\nSubject: x\n\nx\n")
    command = [
        sys.executable,
        "-m",
        "pillarbox",
        "queue",
        "import",
        "--headers",
        str(box),
        f"--data-dir={tmp_path / 'd'}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode != 0 and "invalid addresses" in " ".join(done.stderr.split())


def test_connect_to_a_wrong_folder_fails_immediately(tmp_path: Path) -> None:
    began = time.monotonic()
    mail: dict[str, Any] = {"reverse_path": "a@b.test", "recipients": "c@d.test", "content": "Subject: x\n\n"}
    with pytest.raises(NotRunningError, match="it is not a folder"):
        pillarbox.connect(tmp_path / "nowhere", patience_s=30).enqueue(**mail)
    assert time.monotonic() - began < 5
    (tmp_path / "data").mkdir()
    with pytest.raises(NotRunningError, match=f"no server runs on {tmp_path / 'data'}: start it"):
        pillarbox.connect(tmp_path / "data", patience_s=0).enqueue(**mail)


def test_connect_after_a_killed_server_says_that_none_runs(tmp_path: Path) -> None:
    with Daemon(tmp_path, "--paused") as daemon:
        daemon.kill()
        with pytest.raises(NotRunningError, match="no server runs on"):
            pillarbox.connect(daemon.data, patience_s=0).enqueue(
                reverse_path="a@b.test", recipients="c@d.test", content="Subject: x\n\n"
            )


def test_duplicate_uid_is_logged_as_information(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with serving(tmp_path, paused=True) as server:
            for number in range(3):
                given = server.enqueue(
                    reverse_path="a@b.test", recipients=["c@d.test"], content=b"From: a@b.test\r\n\r\n", uid="once"
                )
                if number:
                    with pytest.raises(DuplicateUidError):
                        await given
                else:
                    await given

    with caplog.at_level(logging.DEBUG, "pillarbox"):
        run_async(main)
    told = [record for record in caplog.records if "queue id" in record.getMessage()]
    assert told and {record.levelno for record in told} <= {logging.DEBUG, logging.INFO}


DJANGO = """
import sys
import django
from django.conf import settings
settings.configure(
    EMAIL_BACKEND="pillarbox.django.EmailBackend", PILLARBOX=sys.argv[1], DEFAULT_FROM_EMAIL="app@good.test",
    PILLARBOX_PATIENCE_S=0.5,
)
django.setup()
from django.core.mail import EmailMessage, get_connection
ambiguous, clear = eval(sys.argv[2]), eval(sys.argv[3])
for text in ambiguous:
    for message in (EmailMessage("s", "b", "app@good.test", [text]), EmailMessage("s", "b", text, ["x@good.test"]),
                    EmailMessage("s", "b", "app@good.test", ["x@good.test"], bcc=[text])):
        try:
            count = message.send()
        except ValueError:
            continue
        assert count == 0 or not message.recipients() or not text, (text, count)
for text in clear:
    assert EmailMessage("clear", "b", "app@good.test", [text]).send() == 1
message = EmailMessage("uid", "b", "app@good.test", ["x@good.test"])
message.pillarbox_uid = "order-1"
assert message.send() == 1 and message.send() == 1 and message.pillarbox_uid == "order-1"
message = EmailMessage("made", "b", "app@good.test", ["x@good.test"])
assert message.send() == 1
first = message.pillarbox_uid
assert first and message.send() == 1 and message.pillarbox_uid != first
from pillarbox.errors import NotRunningError
import time
began = time.monotonic()
for more in ({"where": "/nowhere", "patience_s": 60}, {"where": sys.argv[4]}):
    try:
        EmailMessage("s", "b", "app@good.test", ["x@good.test"], connection=get_connection(**more)).send()
    except NotRunningError:
        pass
    else:
        raise AssertionError(more)
assert time.monotonic() - began < 5
print("done")
"""


def test_django_backend_is_as_strict_as_djangos_own(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    ambiguous = [one for one in AMBIGUOUS if one]
    with Daemon(tmp_path, "--paused") as daemon:
        command = [
            sys.executable,
            "-c",
            DJANGO,
            str(daemon.data),
            repr(ambiguous),
            repr(list(CLEAR)),
            str(tmp_path / "empty"),
        ]
        done = subprocess.run([one.replace("\0", "\\0") for one in command], capture_output=True, text=True, timeout=60)
        assert done.stdout == "done\n", done.stderr
        rows = daemon.queue()
        addresses = {r["address"] for row in rows for r in row["recipients"]}
        assert addresses == {*CLEAR.values(), "x@good.test"}
        assert [row["uid"] for row in rows if row["subject"] == "uid"] == ["order-1"]
        assert len([row for row in rows if row["subject"] == "made"]) == 2


class Recipients:
    """A plugin that sets the recipients of each message."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def on_message(self, server: Any, event: Any) -> None:
        event.envelope.recipients = self.value


def test_plugin_may_set_recipients_as_text(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def reply(server: pillarbox.MailServer, value: Any) -> str:
        server.plugin_add("sets", Recipients(value))
        client = await Client.connect(server)
        await client.ask(b"EHLO x")
        try:
            return await client.transaction(b"Subject: x\r\n\r\nx\r\n")
        finally:
            client.close()
            server.plugin_del("sets")

    async def main() -> None:
        async with serving(tmp_path, store="memory") as server:
            for value in (["x@y.test"], "x@y.test", ("x@y.test",)):
                assert (await reply(server, value)).startswith("250")
                assert [r.address for r in queued(server)[-1].recipients] == ["x@y.test"]
            for value in (["nobody"], [7], ["x@y.test", None], ["a@b.test\r\nRCPT TO:<x@y.test>"]):
                assert (await reply(server, value)).startswith("451")
                assert "invalid envelope.recipients" in caplog.text and "'sets'" in caplog.text
                caplog.clear()
            await asyncio.sleep(0)

    run_async(main)
